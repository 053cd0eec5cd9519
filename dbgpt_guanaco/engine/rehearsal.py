"""The largest step there can be, computed before the cache is made, which gets what it leaves."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS, KVCache, Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler
from dbgpt_guanaco.engine.cuda_graphs import sizes_up_to
from dbgpt_guanaco.engine.device_memory import Memory
from dbgpt_guanaco.engine.first_pass import can_be_recorded
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.passes import TransformersPasses
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.types import SamplingParams

logger = logging.getLogger(__name__)

# Fewer prompt tokens a step are not worth a start.
LEAST_TOKENS = 64
# A draw that takes the most memory: all that can be asked for at once.
GREEDIEST = SamplingParams(
    temperature=1, top_p=0.9, typical_p=0.9, repetition_penalty=1.1, logprobs=True, top_logprobs=20
)


class Rehearsal:
    """Computes steps over a cache that is hardly larger than they need.

    Args:
        model: A causal LM of transformers.
        new_cache: Makes a cache of so many blocks.
        loras: The model's layers.
        vocabulary_size: V.
        slots: Most sequences at a time.
        context_tokens: Tokens of the longest sequence.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        new_cache: Callable[[int], KVCache],
        loras: LoraLayers,
        *,
        vocabulary_size: int,
        slots: int,
        context_tokens: int,
    ) -> None:
        self._model, self._new_cache, self._loras = model, new_cache, loras
        self._device: torch.device = model.device
        self._size, self._slots, self._context_tokens = vocabulary_size, slots, context_tokens

    def needed_bytes(self, memory: Memory, prompt_tokens: int) -> tuple[int, int]:
        """Return what steps take at most, and with how many prompt tokens: fewer where need be.

        Raises:
            OutOfMemoryError: Not even a short piece of a prompt fits.
        """
        own = self._model.config._attn_implementation
        self._model.set_attn_implementation(attention.NAME)
        try:
            while True:
                try:
                    return self._needed_bytes(memory, prompt_tokens), prompt_tokens
                except torch.OutOfMemoryError as error:
                    prompt_tokens //= 2
                    if prompt_tokens < LEAST_TOKENS:
                        raise OutOfMemoryError(
                            f"beside the weights there is no room for a step of {self._slots} "
                            f"answers and {LEAST_TOKENS} prompt tokens; allow fewer answers at a "
                            "time with LIMIT_MODEL_CONCURRENCY"
                        ) from error
                    logger.warning("steps take %d prompt tokens: more do not fit", prompt_tokens)
        finally:
            self._model.set_attn_implementation(own)

    def _needed_bytes(self, memory: Memory, prompt_tokens: int) -> int:
        largest = memory.peak(lambda: self.step(prompt_tokens))
        if not can_be_recorded(self._model):
            return largest
        # What is recorded keeps its memory: that of one step, and the logits of each size.
        dtype_bytes: int = self._model.get_output_embeddings().weight.element_size()
        logits = sum(sizes_up_to(self._slots)) * self._size * dtype_bytes
        return largest + memory.peak(lambda: self.step(0)) + logits

    @torch.no_grad()
    def step(self, prompt_tokens: int) -> None:
        """Let all slots decode and draw, and compute as many tokens of prompts beside them."""
        piece = min(prompt_tokens, self._context_tokens)
        cache = self._new_cache(max(1, -(-piece // BLOCK_TOKENS)))
        # Nobody's keys are worth anything here, so all write into the same blocks.
        table = (0,) * -(-self._context_tokens // BLOCK_TOKENS)
        spans = [Span(n, 1, 1, table) for n in range(self._slots)]
        while prompt_tokens > 0:
            start, count = spans[-1].start + spans[-1].count, min(piece, prompt_tokens)
            spans.append(Span(start, count, count, tuple(range(-(-count // BLOCK_TOKENS)))))
            prompt_tokens -= count
        ids = torch.zeros(spans[-1].start + spans[-1].count, dtype=torch.long, device=self._device)
        ends = [span.start + span.count - 1 for span in spans]
        passes = TransformersPasses(self._model, cache, self._loras)
        logits = passes.compute(ids, spans, ends)
        sampler = BatchSampler(self._size, self._slots, self._device)
        rows = [sampler.open(GREEDIEST, (0,), None) for _ in range(self._slots)]
        sampler.draw(logits[: self._slots], rows).token_ids()
