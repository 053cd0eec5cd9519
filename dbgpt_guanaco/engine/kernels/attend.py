"""Attention of one pass on a GPU: what ``attention.CpuAttention`` is on a CPU, with our kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.kernels.paged_attention import paged_decode, paged_prefill, write_kv
from dbgpt_guanaco.engine.transfer import pinned_copy


@dataclass(frozen=True, slots=True)
class Places:
    """Where B sequences of a pass stand in the cache, on the device.

    Attributes:
        slots: [T] int64, where the pass's own keys go; -1 is nowhere.
        lengths: [B] int32, keys of each sequence with those of this pass.
        block_tables: [B, N] int32.
        decodes: Leading sequences, of one query each; there are more if the others have any.
        query_starts: [B - decodes + 1] int32, where the others' queries begin behind those.
        max_query_tokens: Most queries of one of the others.
    """

    slots: Tensor
    lengths: Tensor
    block_tables: Tensor
    decodes: int
    query_starts: Tensor | None = None
    max_query_tokens: int = 0


def places_of(spans: Sequence[Span], slots: Tensor) -> Places:
    """Send the places of a pass to the device of ``slots``."""
    decodes = next((n for n, span in enumerate(spans) if span.count > 1), len(spans))
    width = max(len(span.blocks) for span in spans)
    tables = [[*span.blocks, *[0] * (width - len(span.blocks))] for span in spans]
    starts = [span.start - decodes for span in spans[decodes:]]
    counts = [span.count for span in spans[decodes:]]
    return Places(
        slots=slots,
        lengths=_int32([span.length for span in spans], slots.device),
        block_tables=_int32(tables, slots.device),
        decodes=decodes,
        query_starts=_int32([*starts, starts[-1] + counts[-1]], slots.device) if counts else None,
        max_query_tokens=max(counts, default=0),
    )


class TritonAttention:
    """An ``Attend`` over places that are on the device already; waits for nothing there."""

    def __init__(self, cache: KVCache, places: Places) -> None:
        self._cache, self._places = cache, places

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See ``Attend``."""
        at, cached = self._places, (self._cache.keys[layer], self._cache.values[layer])
        write_kv(*cached, keys.transpose(0, 1), values.transpose(0, 1), at.slots)
        queries = queries.transpose(0, 1)  # [T, H, D]
        output = queries.new_empty(queries.shape)
        size, n = self._cache.block_size, at.decodes
        if n:
            paged_decode(
                queries[:n],
                *cached,
                at.lengths[:n],
                at.block_tables[:n],
                block_size=size,
                scale=scale,
                window=window,
                softcap=softcap,
                out=output[:n],
            )
        if at.query_starts is not None:
            paged_prefill(
                queries[n:],
                *cached,
                at.query_starts,
                at.lengths[n:],
                at.block_tables[n:],
                block_size=size,
                scale=scale,
                max_query_tokens=at.max_query_tokens,
                window=window,
                softcap=softcap,
                out=output[n:],
            )
        return output


def _int32(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return pinned_copy(torch.tensor(numbers, dtype=torch.int32), device)
