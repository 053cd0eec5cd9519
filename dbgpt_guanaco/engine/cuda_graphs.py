"""Decoding without the host: one recorded pass for each size of batch, replayed at every step.

Between two kernels of a small batch the device waits for Python, for longer than a kernel takes.
A recorded pass is one launch. Its tensors never move, so what changes from step to step is copied
into them; a batch that is smaller than the recorded one is filled up with rows that belong to no
sequence: they write no keys, see none, and their logits are cut off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """B sequences that compute their newest token; B - b of them may be padding.

    Attributes:
        input_ids: [B] int64, the newest tokens.
        lengths: [B] int32, keys including the newest token's; 0 is padding.
        block_tables: [B, N] int32.
    """

    input_ids: Tensor
    lengths: Tensor
    block_tables: Tensor

    def positions(self) -> Tensor:
        """Where the newest tokens stand, [B] int64; 0 for padding."""
        return (self.lengths.long() - 1).clamp(min=0)

    def slots(self, block_size: int) -> Tensor:
        """Where their keys go, [B] int64; -1 for padding."""
        positions = self.positions()
        blocks = self.block_tables.gather(1, (positions // block_size)[:, None])[:, 0].long()
        slots = blocks * block_size + positions % block_size
        return slots.masked_fill(self.lengths == 0, -1)

    def head(self, number: int) -> "DecodeBatch":
        """Return the first rows, as views."""
        return DecodeBatch(
            self.input_ids[:number], self.lengths[:number], self.block_tables[:number]
        )


# Makes logits [B, V] of a batch, with nothing but work for the device: no look at a number.
DecodeStep = Callable[[DecodeBatch], Tensor]
# Takes what computes a tensor; returns what computes it again, and where it then stands.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class DecodeGraphs:
    """Records a decode step for batches of 1, 2, 4, 8 … rows, and replays the one that fits.

    Recording runs the step on padding only, so the cache keeps what it holds.

    Args:
        step: What is recorded.
        largest: Most sequences of a batch.
        table_blocks: N, the blocks of the longest sequence.
        device: Where the tensors stand.
        record: How a step is recorded; ``CudaRecorder()`` on a GPU.
    """

    def __init__(
        self,
        step: DecodeStep,
        *,
        largest: int,
        table_blocks: int,
        device: torch.device,
        record: Record,
    ) -> None:
        self._static = DecodeBatch(
            torch.zeros(largest, dtype=torch.int64, device=device),
            torch.zeros(largest, dtype=torch.int32, device=device),
            torch.zeros((largest, table_blocks), dtype=torch.int32, device=device),
        )
        self.sizes = sizes_up_to(largest)
        # The largest comes first: what it frees is room enough for all others.
        self._recorded = {
            size: record(partial(step, self._static.head(size))) for size in reversed(self.sizes)
        }
        self._tables: list[tuple[int, ...]] = []  # what the leading rows hold on the device

    @torch.inference_mode()
    def run(
        self, input_ids: Tensor, lengths: Sequence[int], block_tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """Compute one step.

        Args:
            input_ids: [b] on the device.
            lengths: b numbers, each from 1.
            block_tables: Blocks of each sequence, no more than were recorded.

        Returns:
            Logits [b, V]; the next call writes over them.
        """
        number = len(lengths)
        if number > self.sizes[-1]:
            raise ValueError(f"a batch of {number} sequences, recorded are up to {self.sizes[-1]}")
        size = next(size for size in self.sizes if size >= number)
        static = self._static.head(size)
        static.input_ids[:number].copy_(input_ids)
        self._copy([*lengths, *[0] * (size - number)], static.lengths)
        self._set_tables([tuple(table) for table in block_tables])
        replay, logits = self._recorded[size]
        replay()
        return logits[:number]

    def _set_tables(self, tables: list[tuple[int, ...]]) -> None:
        # They change once in a block's length.
        if tables == self._tables[: len(tables)]:
            return
        self._tables = tables
        # Entries behind a sequence's last block are not read, so old ones may stay there.
        width = max(len(table) for table in tables)
        filled = [[*table, *[0] * (width - len(table))] for table in tables]
        self._copy(filled, self._static.block_tables[: len(tables), :width])

    def _copy(self, numbers: Sequence[int] | Sequence[Sequence[int]], target: Tensor) -> None:
        host = torch.tensor(numbers, dtype=torch.int32)
        if target.device.type == "cuda":
            # torch keeps this memory until the copy, which may come much later, has happened.
            host = host.pin_memory()
        target.copy_(host, non_blocking=True)


class CudaRecorder:
    """Records CUDA graphs that share their memory; only one may run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run twice, so that kernels are compiled and workspaces allocated, then record."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it so
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool):
            output = compute()
        return graph.replay, output


@torch.inference_mode()
def record_nothing(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Compute anew at every replay, into the same tensor: a graph without a GPU."""
    output = compute()

    @torch.inference_mode()
    def replay() -> None:
        output.copy_(compute())

    return replay, output


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Return the powers of two below a number, and the number."""
    powers = (1 << exponent for exponent in range(largest.bit_length()))
    return (*(power for power in powers if power < largest), largest)
