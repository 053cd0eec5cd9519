"""Attention over blocks: what transformers' model code calls in place of its own.

The model sees one long row of tokens that belong to many sequences. Each layer hands over
queries, keys and values; the new keys and values go to their slots in the cache, and each
sequence attends over its own blocks. Registered through transformers' public
``AttentionInterface``, so that the model's code runs as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from dbgpt_guanaco.adapters.lora import Lora

NAME = "guanaco_paged"
BLOCK_TOKENS = 16  # the compiled decoder knows no other number
# A sequence joins a group of longer ones as long as it gathers at most so many times too much.
MAX_PADDING = 1.5


@dataclass(frozen=True, slots=True)
class Span:
    """The queries of one sequence in a pass.

    Attributes:
        start: First query, counted over the pass.
        count: Queries.
        length: Keys to attend over, those of this pass included.
        blocks: Where the keys are.
        lora: What is laid on the model for it.
    """

    start: int
    count: int
    length: int
    blocks: Sequence[int]
    lora: Lora | None = None


class Attend(Protocol):
    """Attention of one pass over the cache of one layer."""

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
        """Write keys and values, then attend.

        Args:
            layer: Which cache.
            queries: [H, T, D].
            keys: [Hkv, T, D].
            values: [Hkv, T, D].
            scale: Factor on the products.
            window: How many newest keys a query sees; None is all.
            softcap: Bound of the scores through tanh; None leaves them.

        Returns:
            [T, H, D].
        """
        ...


class KVCache:
    """Keys and values of all layers, [Hkv, slots, D] each; a block is ``block_size`` slots.

    Args:
        layers: Of each layer, the number of key heads and their size.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int]],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size, self.num_blocks = block_size, num_blocks
        slots = num_blocks * block_size
        self.keys = [_zeros((h, slots, d), dtype, device) for h, d in layers]
        self.values = [_zeros((h, slots, d), dtype, device) for h, d in layers]


def _zeros(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros, on a CPU such that take memory only where something is written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = numpy.zeros(math.prod(shape) * dtype.itemsize, dtype=numpy.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


@dataclass(frozen=True, slots=True)
class _Group:
    """Decoding sequences of similar length, B of them, that attend in one call.

    Attributes:
        rows: [B] their queries.
        blocks: [B·N] their blocks, padded to the longest.
        mask: [1, B, 1, N·block_size] what is not padding; None where nothing is.
    """

    rows: Tensor
    blocks: Tensor
    lengths: Tensor
    mask: Tensor | None


class CpuAttention:
    """Attention with torch's own kernel, over gathered blocks."""

    def __init__(self, cache: KVCache, slots: Tensor, spans: Sequence[Span]) -> None:
        self._cache, self._slots = cache, slots
        self._groups = [
            self._group(spans) for spans in _grouped([s for s in spans if s.count == 1])
        ]
        self._chunks = [span for span in spans if span.count > 1]
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._tables = {s.start: torch.tensor(s.blocks) for s in self._chunks}

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
        all_keys, all_values = self._cache.keys[layer], self._cache.values[layer]
        all_keys.index_copy_(1, self._slots, keys)
        all_values.index_copy_(1, self._slots, values)
        heads, tokens, size = queries.shape
        output = torch.empty((tokens, heads, size), dtype=queries.dtype)
        for group in self._groups:
            mask = (
                group.mask if window is None else _windowed(group, window, self._cache.block_size)
            )
            count = group.rows.numel()
            own = queries.index_select(1, group.rows) if count < tokens else queries
            # Heads that share keys stand as queries of one head: nothing is repeated.
            own = own.view(keys.shape[0], -1, count, size).transpose(1, 2)  # [Hkv, B, G, D]
            found = _attention(
                own,
                self._gather(all_keys, group.blocks, count),
                self._gather(all_values, group.blocks, count),
                mask,
                scale,
                softcap,
            )
            found = found.permute(1, 0, 2, 3).reshape(count, heads, size)
            output[group.rows] = found
        for span in self._chunks:
            end = span.start + span.count
            blocks = self._tables[span.start]
            own = queries[None, :, span.start : end]
            found = _attention(
                own,
                self._gather(all_keys, blocks, 1)[None, :, 0, : span.length],
                self._gather(all_values, blocks, 1)[None, :, 0, : span.length],
                self._causal(span, window),
                scale,
                softcap,
            )
            output[span.start : end] = found[0].transpose(0, 1)
        return output

    def _gather(self, cache: Tensor, blocks: Tensor, count: int) -> Tensor:
        """Return [Hkv, B, N·block_size, D]."""
        heads, _, size = cache.shape
        by_block = cache.view(heads, -1, self._cache.block_size * size)
        return by_block.index_select(1, blocks).view(heads, count, -1, size)

    def _causal(self, span: Span, window: int | None) -> Tensor:
        key = (span.start, window)
        if key not in self._masks:
            positions = torch.arange(span.length - span.count, span.length)[:, None]
            others = torch.arange(span.length)[None]
            mask = others <= positions
            if window is not None:
                mask &= others > positions - window
            self._masks[key] = mask
        return self._masks[key]

    def _group(self, spans: Sequence[Span]) -> _Group:
        width = max(len(s.blocks) for s in spans)
        tables = [[*s.blocks, *[0] * (width - len(s.blocks))] for s in spans]
        lengths = torch.tensor([s.length for s in spans])
        places = torch.arange(width * self._cache.block_size)
        mask = (places < lengths[:, None])[None, :, None]
        return _Group(
            rows=torch.tensor([s.start for s in spans]),
            blocks=torch.tensor(tables).flatten(),
            lengths=lengths,
            mask=None if bool(mask.all()) else mask,
        )


def _grouped(spans: Sequence[Span]) -> list[list[Span]]:
    """Put sequences of similar length together, so that little padding is gathered."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: -len(s.blocks)):
        if groups:
            width = len(groups[-1][0].blocks)
            gathered = width * (len(groups[-1]) + 1)
            needed = sum(len(s.blocks) for s in groups[-1]) + len(span.blocks)
            if gathered <= MAX_PADDING * needed or width <= 4:
                groups[-1].append(span)
                continue
        groups.append([span])
    # Queries keep their order where one group holds them all: nothing is picked out then.
    return [sorted(group, key=lambda s: s.start) for group in groups]


def _windowed(group: _Group, window: int, block_size: int) -> Tensor:
    width = group.blocks.numel() // group.rows.numel() * block_size
    places = torch.arange(width)
    lengths = group.lengths[:, None]
    return ((places < lengths) & (places >= lengths - window))[None, :, None]


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    if softcap is None:
        return functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            scale=scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
    if queries.shape[1] != keys.shape[1]:
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = (queries.float() @ keys.float().transpose(-1, -2)) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ values.float()).to(queries.dtype)


def register() -> None:
    """Make the attention known to transformers, under ``NAME``. May be called again."""
    AttentionInterface.register(NAME, _paged)
    AttentionMaskInterface.register(NAME, _no_mask)


def _paged(
    module: Any,  # noqa: ANN401 - whatever transformers calls an attention layer
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - blocks know their lengths
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    attend: Attend,
    **others: object,
) -> tuple[Tensor, None]:
    if others.get("s_aux") is not None:
        raise NotImplementedError("attention sinks are not understood")
    output = attend(
        module.layer_idx,
        query[0],
        key[0],
        value[0],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return output[None], None


def _no_mask(*_: object, **__: object) -> None:
    """Masks of [T, T] over all sequences are not wanted: blocks say who sees what."""
