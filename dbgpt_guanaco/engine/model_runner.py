"""A step → logits → drawn tokens: the only place of the batching engine that runs the model."""

from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from dbgpt_guanaco.engine.attention import Attend, CpuAttention, KVCache, Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.scheduler import Step


class ModelRunner:
    """Runs steps one after the other.

    Args:
        model: A causal LM of transformers whose attention is ours (``attention.NAME``).
        cache: Where keys and values are.
        sampler: Draws, and knows each row's newest token.
    """

    def __init__(self, model: Any, cache: KVCache, sampler: BatchSampler) -> None:  # noqa: ANN401
        self._model, self._cache, self._sampler = model, cache, sampler
        self._device: torch.device = model.device

    def run(self, step: Step) -> Drawn:
        """Compute a step and draw a token for each of ``step.drawing``, in that order."""
        logits = self._logits(step)
        return self._sampler.draw(logits, [s.row for s in step.drawing])

    def _logits(self, step: Step) -> Tensor:
        """Return [N, V]."""
        spans = _spans(step)
        slots = self._tensor([slot for span in spans for slot in self._slots(span)])
        positions = [p for span in spans for p in range(span.length - span.count, span.length)]
        ends = [s.start + s.count - 1 for s in spans]
        drawing = len(step.decodes)
        wanted = ends[:drawing]
        wanted += [end for end, c in zip(ends[drawing:], step.chunks, strict=True) if c.is_last]
        return self.forward(
            self._input_ids(step),
            self._tensor(positions),
            CpuAttention(self._cache, slots, spans),
            None if len(wanted) == len(positions) else self._tensor(wanted),
        )

    def forward(
        self, input_ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None
    ) -> Tensor:
        """Run the model's own code.

        Args:
            input_ids: [T] tokens of several sequences, one after the other.
            positions: [T] where each stands in its own sequence.
            attend: Attention of this pass.
            wanted: [N] tokens whose logits are wanted; None is all.

        Returns:
            Logits, [N, V].
        """
        output = self._model(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=0 if wanted is None else wanted,
            attend=attend,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _input_ids(self, step: Step) -> Tensor:
        ids = [i for c in step.chunks for i in c.sequence.token_ids[c.start : c.end]]
        if not step.decodes:
            return self._tensor(ids)
        rows = self._tensor([s.row.index for s in step.decodes])
        newest = self._sampler.last_tokens.index_select(0, rows)
        return torch.cat([newest, self._tensor(ids)]) if ids else newest

    def _slots(self, span: Span) -> Many[int]:
        size = self._cache.block_size
        places = range(span.length - span.count, span.length)
        return [span.blocks[place // size] * size + place % size for place in places]

    def _tensor(self, numbers: Many[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self._device, non_blocking=True)


def _spans(step: Step) -> list[Span]:
    """Return who computes what, decoding sequences first."""
    spans, start = [], 0
    # A step has counted the tokens that it draws already.
    for sequence in step.decodes:
        spans.append(Span(start, 1, sequence.num_computed, tuple(sequence.blocks)))
        start += 1
    for chunk in step.chunks:
        count = chunk.end - chunk.start
        spans.append(Span(start, count, chunk.end, tuple(chunk.sequence.blocks)))
        start += count
    return spans
