import random

import pytest

from dbgpt_guanaco.engine.block_manager import BlockManager


def filled(manager: BlockManager, token_ids: list[int], salt: str = "") -> list[int]:
    """Take blocks for full tokens and let them be found."""
    blocks = manager.take(len(token_ids) // manager.block_size)
    manager.remember(salt, blocks, token_ids)
    return blocks


def test_an_equal_beginning_is_found_but_not_the_last_token() -> None:
    manager = BlockManager(8, 4)
    blocks = filled(manager, list(range(12)))

    assert manager.find([*range(12), 99], "") == blocks
    assert manager.find(list(range(12)), "") == blocks[:2]
    assert manager.find([*range(8), 7, 7, 7, 7, 7], "") == blocks[:2]
    assert manager.find([7, *range(12)], "") == []


def test_salts_share_nothing() -> None:
    manager = BlockManager(8, 4)
    filled(manager, list(range(8)), "a")

    assert manager.find(list(range(9)), "b") == []


def test_the_least_recently_used_block_is_taken_first_and_an_end_before_its_beginning() -> None:
    manager = BlockManager(4, 4)
    old, new = filled(manager, list(range(8))), filled(manager, list(range(50, 58)))
    manager.release(old)
    manager.release(new)

    assert manager.take(1) == [old[1]]
    assert manager.find([*range(8), 1], "") == old[:1]
    assert manager.take(1) == [old[0]]
    assert manager.find([*range(50, 58), 1], "") == new


def test_shared_blocks_stay_until_the_last_holder_leaves() -> None:
    manager = BlockManager(4, 4)
    blocks = filled(manager, list(range(8)))
    manager.share(blocks)
    manager.release(blocks)

    assert manager.num_free == 2
    manager.check([blocks])
    manager.release(blocks)
    assert manager.num_free == 4


def test_two_who_computed_the_same_go_on_behind_the_first() -> None:
    manager = BlockManager(8, 4)
    first, second = filled(manager, list(range(8))), manager.take(3)

    manager.remember("", second, [*range(8), 20, 21, 22, 23])

    assert manager.find([*range(8), 20, 21, 22, 23, 0], "") == [*first, second[2]]


def test_more_blocks_than_there_are_cannot_be_taken() -> None:
    manager = BlockManager(2, 4)

    with pytest.raises(LookupError):
        manager.take(3)
    assert manager.num_free == 2


def test_a_block_that_nobody_holds_cannot_be_released() -> None:
    with pytest.raises(ValueError, match="held by nobody"):
        BlockManager(2, 4).release([0])


def test_books_that_are_wrong_are_noticed() -> None:
    manager = BlockManager(4, 4)
    blocks = manager.take(2)

    manager.check([blocks])
    with pytest.raises(AssertionError):
        manager.check([])


@pytest.mark.parametrize("seed", range(20))
def test_the_books_stay_right_through_anything(seed: int) -> None:
    draw = random.Random(seed)
    manager = BlockManager(12, 2)
    held: list[tuple[list[int], list[int]]] = []
    for _ in range(300):
        tokens = [draw.randint(0, 2) for _ in range(2 * draw.randint(1, 4))]
        shared = manager.find([*tokens, 0], "")
        for index, block in enumerate(shared):  # what is found holds what is asked for
            start = 2 * index
            owner = content[block]
            assert owner == tuple(tokens[: start + 2])
        if manager.can_hold(shared, len(tokens) // 2 - len(shared)) and draw.random() < 0.6:
            manager.share(shared)
            node = manager.node(shared, "")
            new = manager.take(len(tokens) // 2 - len(shared))
            for index, block in enumerate(new, start=len(shared)):
                content[block] = tuple(tokens[: 2 * index + 2])
            manager.remember(node, new, tokens[2 * len(shared) :])
            held.append(([*shared, *new], tokens))
        elif held:
            blocks, _ = held.pop(draw.randrange(len(held)))
            manager.release(blocks)
        if draw.random() < 0.02:
            manager.forget_all()
        manager.check([blocks for blocks, _ in held])


content: dict[int, tuple[int, ...]] = {}
