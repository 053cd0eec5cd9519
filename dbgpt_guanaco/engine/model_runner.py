"""A step → logits → drawn tokens: the only place of the batching engine that runs the model."""

import logging

import torch
from torch import Tensor

from dbgpt_guanaco.engine.attention import Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.passes import Passes
from dbgpt_guanaco.engine.scheduler import Step
from dbgpt_guanaco.engine.transfer import to_device

logger = logging.getLogger(__name__)


class ModelRunner:
    """Runs steps one after the other.

    Args:
        passes: Computes logits.
        sampler: Draws, and knows each row's newest token.
        device: Where both of them are.
    """

    def __init__(self, passes: Passes, sampler: BatchSampler, device: torch.device) -> None:
        self._passes, self._sampler, self._device = passes, sampler, device

    def run(self, step: Step) -> Drawn:
        """Compute a step and draw a token for each of ``step.drawing``, in that order.

        A step with prompts that does not fit the memory is computed in two, once.
        """
        try:
            logits = self._logits(step)
        except torch.OutOfMemoryError:
            if not step.chunks:
                raise
            logits = None
        if logits is None:  # not where the error, and what its frames hold, is still there
            logger.warning("a step did not fit the memory: its prompts are computed in two pieces")
            logits = torch.cat([self._logits(half) for half in step.halves() if half])
        return self._sampler.draw(logits, [s.row for s in step.drawing])

    def _logits(self, step: Step) -> Tensor:
        spans = _spans(step)
        return self._passes.compute(self._input_ids(step), spans, _wanted(step, spans))

    def _input_ids(self, step: Step) -> Tensor:
        ids = [i for c in step.chunks for i in c.sequence.token_ids[c.start : c.end]]
        if not step.decodes:
            return to_device(ids, self._device)
        rows = to_device([s.row.index for s in step.decodes], self._device)
        newest = self._sampler.last_tokens.index_select(0, rows)
        return torch.cat([newest, to_device(ids, self._device)]) if ids else newest


def _spans(step: Step) -> list[Span]:
    """Return who computes what, decoding sequences first."""
    spans, start = [], 0
    # A step has counted the tokens that it draws already.
    for sequence in step.decodes:
        blocks, lora = tuple(sequence.blocks), sequence.generation.lora
        spans.append(Span(start, 1, sequence.num_computed, blocks, lora))
        start += 1
    for chunk in step.chunks:
        count = chunk.end - chunk.start
        blocks, lora = tuple(chunk.sequence.blocks), chunk.sequence.generation.lora
        spans.append(Span(start, count, chunk.end, blocks, lora))
        start += count
    return spans


def _wanted(step: Step, spans: list[Span]) -> list[int] | None:
    """Return the tokens after which one is drawn: the decoding ones, the ends of prompts."""
    if not step.chunks:
        return None
    wanted = list(range(len(step.decodes)))
    for span, chunk in zip(spans[len(wanted) :], step.chunks, strict=True):
        if chunk.is_last:
            wanted.append(span.start + span.count - 1)
    return wanted
