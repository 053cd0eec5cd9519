"""What the paged kernels must do, for any device; run as a program, in Triton's interpreter.

The interpreter has to be chosen before Triton is imported for the first time, so it runs in a
process of its own, which prints what became of every check.
"""

import json
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dbgpt_guanaco.engine.kernels.paged_attention import (
    decode_scratch,
    paged_decode,
    paged_prefill,
    write_kv,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest error of a component of about 1. float32 is what proves the algorithm.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class Case:
    """Sequences of a pass, and the model's shape.

    Attributes:
        counts: Queries of each sequence; a padding row of a graph has a length of 0.
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 4
    head_size: int = 32
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    extra_blocks: int = 3


DECODE = {
    "one_key": Case((1,), (1,)),
    "lengths_around_a_block": Case((1,) * 4, (15, 16, 17, 1)),
    "several_splits": Case((1,) * 3, (129, 400, 63), heads=2, kv_heads=2),
    "combined_in_two_rounds": Case((1,), (2200,), heads=2, kv_heads=1),
    "longer_splits": Case((1,), (8300,), heads=1, kv_heads=1),
    "group_of_3": Case((1,) * 2, (40, 70), heads=6, kv_heads=2, head_size=64),
    "group_of_4_size_80": Case((1,) * 2, (33, 7), heads=4, kv_heads=1, head_size=80),
    "group_of_20": Case((1,), (50,), heads=20, kv_heads=1),
    "head_size_96": Case((1,), (21,), heads=2, kv_heads=1, head_size=96),
    "head_size_128": Case((1,), (70,), heads=2, kv_heads=1, head_size=128),
    "head_size_256": Case((1,), (37,), heads=1, kv_heads=1, head_size=256),
    "block_of_24": Case((1,) * 2, (50, 24), block_size=24),
    "window": Case((1,) * 4, (200, 33, 10, 1), kv_heads=2, window=33),
    "window_over_splits": Case((1,), (420,), heads=2, kv_heads=1, window=300),
    "softcap": Case((1,) * 2, (60, 5), softcap=2.0),
    "padding_rows": Case((1, 1, 1), (37, 0, 0), heads=2, kv_heads=1),
}
PREFILL = {
    "whole_prompts": Case((5, 17, 1), (5, 17, 1)),
    "chunk_after_earlier_keys": Case((20, 3), (75, 90), kv_heads=2),
    "more_than_a_tile": Case((130,), (150,), heads=1, kv_heads=1),
    "decode_beside_prefill": Case((1, 40, 1, 7), (60, 40, 3, 20), heads=2, kv_heads=1),
    "group_of_3_size_80": Case((9, 4), (9, 30), heads=3, kv_heads=1, head_size=80),
    "head_size_64": Case((33,), (40,), heads=2, kv_heads=2, head_size=64),
    "head_size_128": Case((18,), (70,), heads=2, kv_heads=1, head_size=128),
    "window": Case((70, 6), (150, 6), heads=2, kv_heads=1, window=20),
    "softcap": Case((12,), (40,), softcap=2.0),
    "empty_and_padding_rows": Case((4, 0, 1, 0), (30, 12, 0, 0), heads=2, kv_heads=1),
}


@dataclass(frozen=True)
class Pass:
    """The tensors of a case. What no token owns is NaN, and must not be read."""

    case: Case
    queries: torch.Tensor  # [T, H, D]
    keys: torch.Tensor  # [Hkv, S, D]
    values: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor

    @property
    def options(self) -> dict[str, Any]:
        case = self.case
        return {
            "block_size": case.block_size,
            "scale": 1 / math.sqrt(case.head_size),
            "window": case.window,
            "softcap": case.softcap,
        }

    def slots(self, sequence: int) -> torch.Tensor:
        """Where the sequence's keys stand, in order."""
        positions = torch.arange(int(self.lengths[sequence]), device=self.keys.device)
        blocks = self.block_tables[sequence, positions // self.case.block_size].long()
        return blocks * self.case.block_size + positions % self.case.block_size

    def decoded(self, **more: Any) -> torch.Tensor:
        return paged_decode(
            self.queries,
            self.keys,
            self.values,
            self.lengths,
            self.block_tables,
            **self.options,
            **more,
        )

    def prefilled(self, **more: Any) -> torch.Tensor:
        return paged_prefill(
            self.queries,
            self.keys,
            self.values,
            self.query_starts,
            self.lengths,
            self.block_tables,
            max_query_tokens=max(self.case.counts),
            **self.options,
            **more,
        )

    def expected(self) -> torch.Tensor:
        """The plain definition, in float64, a query at a time; zeros where there is no key."""
        case, expected = self.case, torch.zeros_like(self.queries, dtype=torch.float64)
        for sequence, count in enumerate(case.counts):
            slots, length = self.slots(sequence), case.lengths[sequence]
            keys = self.keys[:, slots].double().repeat_interleave(case.heads // case.kv_heads, 0)
            values = self.values[:, slots].double()
            values = values.repeat_interleave(case.heads // case.kv_heads, 0)
            for i in range(count if length else 0):
                row, end = int(self.query_starts[sequence]) + i, length - count + i + 1
                seen = slice(max(0, end - (case.window or end)), end)
                query = self.queries[row].double()[:, :, None]
                scores = (keys[:, seen] @ query)[..., 0] / math.sqrt(case.head_size)
                if case.softcap:
                    scores = case.softcap * torch.tanh(scores / case.softcap)
                expected[row] = (scores.softmax(-1)[:, None] @ values[:, seen])[:, 0]
        return expected


def make_pass(case: Case, dtype: torch.dtype, device: torch.device) -> Pass:
    """Random numbers, in blocks that lie anywhere, in a cache whose rest is NaN."""
    generator = torch.Generator().manual_seed(0)
    needed = [-(-length // case.block_size) for length in case.lengths]
    num_blocks = sum(needed) + case.extra_blocks
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.zeros(len(needed), max(needed) + 2, dtype=torch.int32)
    for sequence, number in enumerate(needed):
        tables[sequence, :number] = torch.tensor([free.pop() for _ in range(number)])
    starts = torch.tensor([0, *case.counts]).cumsum(0).int()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    shape = (case.kv_heads, num_blocks * case.block_size, case.head_size)
    keys, values = (torch.full(shape, math.nan, dtype=dtype, device=device) for _ in "kv")
    made = Pass(
        case,
        random(sum(case.counts), case.heads, case.head_size),
        keys,
        values,
        starts.to(device),
        torch.tensor(case.lengths, dtype=torch.int32, device=device),
        tables.to(device),
    )
    for sequence, length in enumerate(case.lengths):
        for cache in (keys, values):
            cache[:, made.slots(sequence)] = random(case.kv_heads, length, case.head_size)
    return made


def check_decode(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    made = make_pass(case, dtype, device)
    # What is left in the output and in the scratch from earlier must not show.
    out = torch.full_like(made.queries, math.nan)
    options = made.options
    scratch = decode_scratch(made.queries, made.block_tables, case.block_size, options["window"])
    scratch.sums.fill_(math.nan)
    scratch.weights.fill_(math.nan)
    made.decoded(out=out, scratch=scratch)
    _compare(out, made.expected(), dtype)


def check_prefill(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    made = make_pass(case, dtype, device)
    _compare(made.prefilled(), made.expected(), dtype)


def _compare(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert not found.isnan().any(), "NaN leaked"
    error = float((found.double() - expected).abs().max())
    assert error <= TOLERANCE[dtype], f"error {error:.2e} of at most {TOLERANCE[dtype]:.0e}"


def check_strided_queries(dtype: torch.dtype, device: torch.device) -> None:
    """Queries as attention has them, [1, H, T, D] seen as [T, H, D]."""
    for name, checks in (("group_of_3", DECODE), ("chunk_after_earlier_keys", PREFILL)):
        made = make_pass(checks[name], dtype, device)
        strided = made.queries.transpose(0, 1).contiguous().transpose(0, 1)
        assert not strided.is_contiguous()
        other = replace(made, queries=strided)
        if checks is DECODE:
            assert torch.equal(other.decoded(), made.decoded())
        else:
            assert torch.equal(other.prefilled(), made.prefilled())


def check_alone_as_in_a_batch(dtype: torch.dtype, device: torch.device) -> None:
    """Bit by bit, with other neighbours and with a wider block table."""
    made = make_pass(Case((1,) * 3, (300, 40, 129), heads=2, kv_heads=1), dtype, device)
    together = made.decoded()
    for i in range(3):
        needed = -(-made.case.lengths[i] // made.case.block_size)
        alone = replace(
            made,
            queries=made.queries[i : i + 1],
            lengths=made.lengths[i : i + 1],
            block_tables=made.block_tables[i : i + 1, :needed],
        )
        assert torch.equal(alone.decoded()[0], together[i])


def check_prefill_in_chunks(dtype: torch.dtype, device: torch.device) -> None:
    """Bit by bit the same, however a prompt is cut."""
    for window in (None, 50):
        made = make_pass(Case((150,), (150,), heads=1, kv_heads=1, window=window), dtype, device)
        whole, parts = made.prefilled(), []
        for begin, end in ((0, 37), (37, 38), (38, 150)):
            case = replace(made.case, counts=(end - begin,), lengths=(end,))
            part = replace(
                made,
                case=case,
                queries=made.queries[begin:end],
                query_starts=torch.tensor([0, end - begin], dtype=torch.int32, device=device),
                lengths=torch.tensor([end], dtype=torch.int32, device=device),
            )
            parts.append(part.prefilled())
        assert torch.equal(torch.cat(parts), whole)


def check_rows_of_no_sequence(dtype: torch.dtype, device: torch.device) -> None:
    """What fills a pass up to a round number comes out as zeros."""
    made = make_pass(PREFILL["whole_prompts"], dtype, device)
    padded = torch.cat([made.queries, torch.full_like(made.queries[:3], math.nan)])
    found = replace(made, queries=padded).prefilled()
    assert torch.equal(found[:-3], made.prefilled())
    assert not found[-3:].any()


def check_write(dtype: torch.dtype, device: torch.device) -> None:
    """Eleven heads of 80, of any strides and of another dtype; -1 writes nothing."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.zeros(11, 32, 80, dtype=dtype, device=device) for _ in "kv")
    new = torch.randn(5, 2, 80, 11, generator=generator).to(device)
    new_keys, new_values = new[:, 0].transpose(1, 2), new[:, 1].transpose(1, 2)
    slots = torch.tensor([31, -1, 0, 17, -1], device=device)
    expected = [torch.zeros_like(keys) for _ in "kv"]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0][:, slot] = new_keys[token].to(dtype)
            expected[1][:, slot] = new_values[token].to(dtype)
    write_kv(keys, values, new_keys, new_values, slots)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


Check = Callable[[torch.dtype, torch.device], None]


def _with_case(check: Callable[[Case, torch.dtype, torch.device], None], case: Case) -> Check:
    return lambda dtype, device: check(case, dtype, device)


CHECKS: dict[str, Check] = {
    **{f"decode_{name}": _with_case(check_decode, case) for name, case in DECODE.items()},
    **{f"prefill_{name}": _with_case(check_prefill, case) for name, case in PREFILL.items()},
    "strided_queries": check_strided_queries,
    "alone_as_in_a_batch": check_alone_as_in_a_batch,
    "prefill_in_chunks": check_prefill_in_chunks,
    "rows_of_no_sequence": check_rows_of_no_sequence,
    "write": check_write,
}


def main() -> None:
    """Run checks, each named with its dtype, and print what went wrong with each as JSON."""
    outcomes = {}
    for run in sys.argv[1:]:
        name, dtype = run.split("-")
        try:
            CHECKS[name](DTYPES[dtype], torch.device("cpu"))
        except Exception:
            outcomes[run] = traceback.format_exc()
        else:
            outcomes[run] = ""
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
