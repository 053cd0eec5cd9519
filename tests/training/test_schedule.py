from collections import Counter

import pytest

from dbgpt_guanaco.training.examples import Example
from dbgpt_guanaco.training.hyperparameters import Hyperparameters
from dbgpt_guanaco.training.schedule import Schedule


def examples(*lengths: int) -> list[Example]:
    return [Example((n,) * length, (n,) * length) for n, length in enumerate(lengths)]


def order(schedule: Schedule) -> list[int]:
    return [schedule[i].input_ids[0] for i in range(len(schedule))]


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_every_example_comes_once_in_each_round(count: int, groups: bool) -> None:
    how = Hyperparameters(batch=4, epochs=3, groups_by_length=groups)

    schedule = Schedule(examples(*range(1, count + 1)), how)

    seen = order(schedule)
    for begin in range(0, len(seen), count):
        assert sorted(seen[begin : begin + count]) == list(range(count))
    assert len(seen) == 3 * count
    assert schedule.steps == -(-3 * count // 4)


@pytest.mark.parametrize(("count", "epochs", "steps"), [(10, 0.5, 2), (10, 0.01, 1), (1, 1, 1)])
def test_a_part_of_a_round_is_possible(count: int, epochs: float, steps: int) -> None:
    schedule = Schedule(examples(*[5] * count), Hyperparameters(batch=4, epochs=epochs))

    assert schedule.steps == steps


def test_steps_instead_of_rounds_are_all_full() -> None:
    schedule = Schedule(examples(1, 2, 3), Hyperparameters(batch=4, max_steps=5))

    assert schedule.steps == 5
    assert len(schedule) == 20
    assert max(Counter(order(schedule)).values()) <= 7


def test_the_same_seed_gives_the_same_order() -> None:
    lengths = [5 + i % 17 for i in range(60)]

    def drawn(seed: int) -> list[int]:
        return order(Schedule(examples(*lengths), Hyperparameters(seed=seed)))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_rounds_differ() -> None:
    seen = order(Schedule(examples(*range(1, 21)), Hyperparameters(epochs=2)))

    assert seen[:20] != seen[20:]


def test_sequences_of_a_like_length_come_together() -> None:
    lengths = [1 + i % 100 for i in range(800)]

    def padding(groups: bool) -> int:
        how = Hyperparameters(batch=4, epochs=1, groups_by_length=groups)
        schedule = Schedule(examples(*lengths), how)
        sizes = [len(schedule[i].input_ids) for i in range(len(schedule))]
        return sum(4 * max(sizes[i : i + 4]) - sum(sizes[i : i + 4]) for i in range(0, 800, 4))

    assert padding(groups=True) < padding(groups=False) / 5
