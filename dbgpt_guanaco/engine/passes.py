"""Tokens of several sequences → logits, over a cache of blocks: the ways to compute a pass.

``TransformersPasses`` runs any model's own code and is what the others are compared with before
they are used: a compiled decoder where the CPU and the model allow it, recorded steps on a GPU.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dbgpt_guanaco.engine.attention import Attend, CpuAttention, KVCache, Span
from dbgpt_guanaco.engine.cuda_graphs import DecodeBatch, DecodeGraphs
from dbgpt_guanaco.engine.lora_layers import LoraLayers, head_rows_of, rows_of
from dbgpt_guanaco.engine.transfer import to_device

logger = logging.getLogger(__name__)


class Passes(Protocol):
    """Computes passes over one model and one cache, one at a time."""

    def compute(
        self, input_ids: Tensor, spans: Sequence[Span], wanted: Sequence[int] | None
    ) -> Tensor:
        """Compute logits; keys and values go to the cache.

        Args:
            input_ids: [T] tokens of several sequences, one after the other, on the device.
            spans: The sequences, those of one token first; together they are all T tokens.
            wanted: N tokens whose logits are wanted; None is all.

        Returns:
            [N, V]; a later pass may write over them.
        """
        ...


class TransformersPasses:
    """Passes through transformers' code as it is.

    Args:
        model: A causal LM whose attention is ours (``attention.NAME``).
        cache: Where keys and values are.
        loras: The model's layers, which get the LoRAs of the spans.
        has_kernels: Attention is computed by our kernels; by default, where there is a GPU.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        cache: KVCache,
        loras: LoraLayers,
        *,
        has_kernels: bool | None = None,
    ) -> None:
        self._model, self._cache, self._loras = model, cache, loras
        self._device: torch.device = model.device
        self._has_kernels = self._device.type != "cpu" if has_kernels is None else has_kernels

    def compute(
        self, input_ids: Tensor, spans: Sequence[Span], wanted: Sequence[int] | None
    ) -> Tensor:
        """See ``Passes``."""
        slots = to_device(slots_of(spans, self._cache.block_size), self._device)
        head_rows = head_rows_of(spans, wanted, self._device)
        with self._loras.applied(rows_of(spans, self._device), head_rows):
            return self._forward(
                input_ids,
                to_device(positions_of(spans), self._device),
                self._attend(spans, slots),
                None if wanted is None else to_device(wanted, self._device),
            )

    def decode(self, batch: DecodeBatch) -> Tensor:
        """Compute a batch that stands on a GPU without a look at its numbers; → [B, V]."""
        from dbgpt_guanaco.engine.kernels.attend import Places, TritonAttention

        slots = batch.slots(self._cache.block_size)
        places = Places(slots, batch.lengths, batch.block_tables, decodes=len(slots))
        attend = TritonAttention(self._cache, places)
        return self._forward(batch.input_ids, batch.positions(), attend, None)

    def _forward(
        self, input_ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None
    ) -> Tensor:
        output = self._model(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=0 if wanted is None else wanted,
            attend=attend,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _attend(self, spans: Sequence[Span], slots: Tensor) -> Attend:
        if not self._has_kernels:
            return CpuAttention(self._cache, slots, spans)
        from dbgpt_guanaco.engine.kernels.attend import TritonAttention, places_of

        return TritonAttention(self._cache, places_of(spans, slots))


class RecordedPasses:
    """Replays the steps in which everybody decodes; whatever else comes is computed anew.

    So is a step with a LoRA in it: what is recorded cannot ask which.
    """

    def __init__(self, passes: Passes, graphs: DecodeGraphs) -> None:
        self._passes, self._graphs = passes, graphs

    def compute(
        self, input_ids: Tensor, spans: Sequence[Span], wanted: Sequence[int] | None
    ) -> Tensor:
        """See ``Passes``."""
        if wanted is None and all(span.count == 1 and not span.lora for span in spans):
            lengths = [span.length for span in spans]
            return self._graphs.run(input_ids, lengths, [span.blocks for span in spans])
        return self._passes.compute(input_ids, spans, wanted)


def positions_of(spans: Sequence[Span]) -> list[int]:
    """Return where each token of a pass stands in its own sequence, [T]."""
    return [p for span in spans for p in range(span.length - span.count, span.length)]


def slots_of(spans: Sequence[Span], block_size: int) -> list[int]:
    """Return where the keys and values of each token of a pass go, [T]."""
    return [
        span.blocks[place // block_size] * block_size + place % block_size
        for span in spans
        for place in range(span.length - span.count, span.length)
    ]
