"""The first pass of an engine: which way to compute agrees with the model's own, and is fastest."""

import logging
from typing import Any

import torch
from torch import Tensor

from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS, KVCache, Span
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses, CpuDecoder
from dbgpt_guanaco.engine.cuda_graphs import CudaRecorder, DecodeGraphs, Record
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.passes import Passes, RecordedPasses, TransformersPasses
from dbgpt_guanaco.errors import ConfigurationError, GenerationFailedError

logger = logging.getLogger(__name__)

# A block of tokens, spread over the vocabulary, and again: what a model says to a repetition
# hangs on what it sees of the first time.
PROBE = 2 * tuple(7919 * n + 3 for n in range(BLOCK_TOKENS))
# How far the logits of two ways to compute them may lie apart. Rounding to bfloat16 in every
# layer makes 0.01 of SmolLM2, one token of the probe taken for another 0.11, a wrong block 0.35.
MAX_DIFFERENCE = 0.1


class FirstPass:
    """Computes a probe in several ways.

    Args:
        model: A causal LM of transformers.
        own_attention: What transformers calls the attention that it has without us.
        cache: Where keys and values go; its first two blocks are written over.
        loras: The model's layers.
        vocabulary_size: V.
        slots: Most sequences that decode at a time.
        table_blocks: Blocks of the longest sequence.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        own_attention: str,
        cache: KVCache,
        loras: LoraLayers,
        *,
        vocabulary_size: int,
        slots: int,
        table_blocks: int,
    ) -> None:
        self._model, self._own_attention, self._cache = model, own_attention, cache
        self._device: torch.device = model.device
        self._slots, self._table_blocks = slots, table_blocks
        self._ids = torch.tensor(PROBE, device=self._device) % vocabulary_size
        self._passes = TransformersPasses(model, cache, loras)

    def fastest(self) -> Passes:
        """Return the fastest way that agrees with the model's own code.

        Raises:
            GenerationFailedError: None does: this model needs more than is known here.
        """
        self._model.set_attn_implementation(self._own_attention)
        expected = self._model(input_ids=self._ids[None], use_cache=False).logits[0].float()
        self._model.set_attn_implementation(attention.NAME)
        self._check_own(expected)
        faster = self._recorded() if self._device.type == "cuda" else self._compiled(expected)
        return faster or self._passes

    def _check_own(self, expected: Tensor) -> None:
        error = difference(self._probed(self._passes), expected)
        if not error < MAX_DIFFERENCE:
            raise GenerationFailedError(
                f"the model's attention gives other logits over blocks (relative error {error:.2g})"
            )

    def _compiled(self, expected: Tensor) -> Passes | None:
        try:
            compiled = CpuDecoder(self._model, self._cache)
        except ConfigurationError as error:
            logger.info("the compiled decoder is not used: %s", error)
            return None
        off = difference(self._probed(compiled), expected)
        if not off < MAX_DIFFERENCE:
            logger.warning("the compiled decoder is not used: it is off by %.2g", off)
            self._check_own(expected)  # its layers may have been packed meanwhile
            return None
        logger.info("the compiled decoder is used")
        return CompiledPasses(compiled, self._passes)

    def _recorded(self, record: Record | None = None) -> Passes | None:
        """Return recorded steps; bitsandbytes looks at numbers of int8 layers on the host."""
        if not can_be_recorded(self._model):
            return None
        try:
            graphs = DecodeGraphs(
                self._passes.decode,
                largest=self._slots,
                table_blocks=self._table_blocks,
                device=self._device,
                record=record or CudaRecorder(),
            )
            recorded = RecordedPasses(self._passes, graphs)
            off = difference(self._decoded(recorded), self._decoded(self._passes))
        except Exception as refusal:  # a device, or a layer, says in its own words that it cannot
            logger.warning("recorded steps are not used: %s", refusal)
            return None
        if not off < MAX_DIFFERENCE:
            logger.warning("recorded steps are not used: they are off by %.2g", off)
            return None
        logger.info("recorded steps are used")
        return recorded

    def _probed(self, passes: Passes) -> Tensor:
        """Return logits [T, V], in two passes over two blocks of the cache, empty at first."""
        blocks, size, cut = (1, 0), len(self._ids), len(self._ids) // 3
        for kept in (*self._cache.keys, *self._cache.values):
            kept[:, : len(blocks) * BLOCK_TOKENS].zero_()
        first = passes.compute(self._ids[:cut], [Span(0, cut, cut, blocks)], None).float()
        rest = passes.compute(self._ids[cut:], [Span(0, size - cut, size, blocks)], None).float()
        return torch.cat([first, rest])

    def _decoded(self, passes: Passes) -> Tensor:
        """Return logits [BLOCK_TOKENS, V] of the last tokens of a probe, one a step."""
        ids = self._ids
        ends = range(len(ids) - BLOCK_TOKENS + 1, len(ids) + 1)
        rows = [passes.compute(ids[n - 1 : n], [Span(0, 1, n, (1, 0))], None).clone() for n in ends]
        return torch.cat(rows).float()


def can_be_recorded(model: Any) -> bool:  # noqa: ANN401
    """Say whether a pass never looks at numbers: bitsandbytes' int8 layers do, on the host."""
    return not any(type(layer).__name__ == "Linear8bitLt" for layer in model.modules())


def difference(found: Tensor, expected: Tensor) -> float:
    """Return how far logits [T, V] lie apart; NaN where most are not finite.

    That is the median over the last block of the root mean square of the difference, relative to
    the logits. Not the mean: bfloat16 loses single tokens of such a text altogether.
    """
    error = (found - expected)[-BLOCK_TOKENS:].square().mean(dim=-1)
    size = expected[-BLOCK_TOKENS:].square().mean(dim=-1).clamp(min=1e-12)
    return float((error / size).sqrt().median())
