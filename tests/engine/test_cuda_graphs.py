"""Recorded decode steps, with a recorder that computes anew: everything but the device's part."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dbgpt_guanaco.engine.cuda_graphs import (
    DecodeBatch,
    DecodeGraphs,
    record_nothing,
    sizes_up_to,
)

CPU = torch.device("cpu")
BLOCK = 4
POISON = 10**6


class TinyModel:
    """Logits that tell all that a row was given, and a cache that shows who wrote where."""

    def __init__(self, blocks: int) -> None:
        self.cache = torch.zeros(blocks * BLOCK, dtype=torch.int64)
        self.batches: list[DecodeBatch] = []

    def __call__(self, batch: DecodeBatch) -> Tensor:
        self.batches.append(batch)
        slots = batch.slots(BLOCK)
        self.cache[slots[slots >= 0]] = batch.input_ids[slots >= 0]
        seen = [self._seen(n, batch) for n in range(len(batch.lengths))]
        return torch.stack([batch.input_ids, batch.positions(), torch.tensor(seen)], dim=1)

    def _seen(self, row: int, batch: DecodeBatch) -> int:
        """The sum of what the row's sequence has in the cache."""
        places = torch.arange(int(batch.lengths[row]))
        blocks = batch.block_tables[row, places // BLOCK].long()
        return int(self.cache[blocks * BLOCK + places % BLOCK].sum())


def graphs_of(model: TinyModel, largest: int = 6) -> DecodeGraphs:
    return DecodeGraphs(model, largest=largest, table_blocks=3, device=CPU, record=record_nothing)


def test_sizes_double_up_to_the_largest() -> None:
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(8) == (1, 2, 4, 8)
    assert sizes_up_to(20) == (1, 2, 4, 8, 16, 20)


def test_recording_leaves_the_cache_alone() -> None:
    model = TinyModel(4)
    model.cache.fill_(POISON)
    graphs_of(model)
    assert bool((model.cache == POISON).all())


def test_every_batch_gets_its_own_rows_whatever_ran_before() -> None:
    model = TinyModel(12)
    graphs = graphs_of(model)
    tables = [[7, 2], [0], [5, 1, 3], [11], [9], [4]]
    lengths = [5, 1, 12, 4, 3, 2]
    for rows in ([0, 1, 2, 3, 4, 5], [2], [5, 0, 4], [3, 1], [0, 1, 2, 3, 4], [2, 2]):
        model.cache.zero_()
        ids = torch.tensor([100 + row for row in rows])
        found = graphs.run(ids, [lengths[r] for r in rows], [tables[r] for r in rows])
        expected = [[100 + row, lengths[row] - 1, 100 + row] for row in rows]
        assert found.tolist() == expected


def test_padding_writes_nothing_and_sees_nothing() -> None:
    model = TinyModel(4)
    graphs = graphs_of(model)
    graphs.run(torch.full((6,), 9), [1] * 6, [[n % 4] for n in range(6)])
    model.cache.fill_(POISON)

    graphs.run(torch.tensor([1, 2, 3]), [1, 1, 1], [[0], [1], [2]])

    batch = model.batches[-1]
    assert batch.lengths.tolist() == [1, 1, 1, 0]
    assert batch.slots(BLOCK).tolist() == [0, 4, 8, -1]
    assert batch.positions().tolist() == [0, 0, 0, 0]
    assert int((model.cache != POISON).sum()) == 3


def test_tables_are_read_anew_when_a_caller_changed_its_own_list() -> None:
    model = TinyModel(4)
    graphs = graphs_of(model)
    table = [0]
    graphs.run(torch.tensor([1]), [4], [table])
    table.append(3)
    graphs.run(torch.tensor([5]), [5], [table])
    assert int(model.cache[3 * BLOCK]) == 5


def test_tensors_never_move() -> None:
    """A graph reads and writes the addresses that it was recorded with."""
    model = TinyModel(4)
    graphs = graphs_of(model)
    recorded = {len(b.lengths): b for b in model.batches}
    outputs = set()
    for length in (1, 2, 3):
        outputs.add(graphs.run(torch.tensor([1, 2]), [length] * 2, [[0], [1]]).data_ptr())
        now = model.batches[-1]
        assert now.input_ids.data_ptr() == recorded[2].input_ids.data_ptr()
        assert now.block_tables.data_ptr() == recorded[2].block_tables.data_ptr()
    assert len(outputs) == 1


def test_the_largest_is_recorded_first() -> None:
    order: list[int] = []

    def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = compute()
        order.append(len(output))
        return (lambda: None), output

    DecodeGraphs(
        lambda batch: batch.input_ids, largest=8, table_blocks=1, device=CPU, record=record
    )
    assert order == [8, 4, 2, 1]


def test_a_batch_that_was_not_recorded_is_refused() -> None:
    graphs = graphs_of(TinyModel(4), largest=2)
    with pytest.raises(ValueError, match="3 sequences, recorded are up to 2"):
        graphs.run(torch.tensor([1, 2, 3]), [1] * 3, [[0]] * 3)
