"""Drawn tokens → the text of their answers; with its last one a sequence gives back what it holds.

Part of the batching engine: ``batching.py`` says when, here is what happens to each sequence.
"""

import logging
from collections.abc import Sequence as Many

import torch

from dbgpt_guanaco.engine.admission import Admission
from dbgpt_guanaco.engine.batch_sampler import Drawn
from dbgpt_guanaco.engine.generation import StreamingGeneration, post_all
from dbgpt_guanaco.engine.machinery import Machinery
from dbgpt_guanaco.engine.scheduler import Step
from dbgpt_guanaco.engine.sequence import Sequence
from dbgpt_guanaco.errors import GenerationFailedError, GuanacoError, OutOfMemoryError
from dbgpt_guanaco.types import TextDelta

logger = logging.getLogger(__name__)

FAILED = "the model failed on this request; the log says why"


class Readout:
    """Turns what was drawn into deltas, and lets sequences leave.

    Args:
        machinery: Holds their blocks and their rows.
        admission: Holds their slots.
    """

    def __init__(self, machinery: Machinery, admission: Admission[StreamingGeneration]) -> None:
        self._machinery, self._admission = machinery, admission

    def read(self, step: Step, drawn: Drawn, token_ids: Many[int]) -> Exception | None:
        """Hand out the text of the tokens that a step has drawn.

        What fails here is one sequence's own, its text or its structure, and ends that one.

        Args:
            step: What was computed.
            drawn: What was drawn from it.
            token_ids: Of those sequences that draw in it, in their order.

        Returns:
            The first such failure.
        """
        posts, failed = [], list[Exception]()
        for position, (sequence, token_id) in enumerate(zip(step.drawing, token_ids, strict=True)):
            if sequence.is_over:
                continue
            try:
                item = self._take(sequence, token_id, drawn, position)
            except Exception as error:
                logger.exception("request %s failed", sequence.request_id)
                failed.append(error)
                item = told(error)
                self._let_go(sequence)
            if item:
                posts.append((sequence.generation, item))
        post_all(posts)
        return failed[0] if failed else None

    def leave_cancelled(self) -> None:
        """Let those leave whose clients have left."""
        for sequence in self._machinery.scheduler.sequences:
            if sequence.is_cancelled:
                self._leave(sequence)
                sequence.generation.post(sequence.answer.cancel())

    def _take(
        self, sequence: Sequence, token_id: int, drawn: Drawn, position: int
    ) -> TextDelta | GuanacoError | None:
        """Let a sequence have its token; it leaves with its last one."""
        if token_id < 0:
            self._leave(sequence)
            if sequence.row.problem:
                return sequence.row.problem
            logger.error("request %s: no token could be drawn from its logits", sequence.request_id)
            return GenerationFailedError(FAILED)
        sequence.append(token_id)
        answer, matcher = sequence.answer, sequence.row.matcher
        if matcher:
            matcher.accept(token_id)
        delta = answer.feed(token_id, drawn.draws(position, token_id))
        is_complete = bool(matcher and matcher.is_over)
        if not (answer.is_over or is_complete or len(sequence.token_ids) == sequence.max_tokens):
            return delta
        self._leave(sequence)
        if delta:
            sequence.generation.post(delta)
        return answer.finish(is_complete=is_complete)

    def _leave(self, sequence: Sequence) -> None:
        """Give back all that a sequence holds, before its reader hears the end."""
        sequence.is_over = True
        try:
            self._machinery.scheduler.remove(sequence)
        finally:  # wrong books must not keep its slot
            self._machinery.sampler.close(sequence.row)
            self._admission.leave(sequence.generation)

    def _let_go(self, sequence: Sequence) -> None:
        """Let a sequence leave whatever the books say: its reader is told in any case."""
        try:
            if not sequence.is_over:
                self._leave(sequence)
        except Exception:
            logger.exception("the books were wrong about request %s", sequence.request_id)

    def end_all(self, sequences: Many[Sequence], error: GuanacoError) -> None:
        """End answers by an error."""
        for sequence in sequences:
            if not sequence.is_over:
                self._let_go(sequence)
                sequence.generation.post(error)


def told(error: Exception) -> GuanacoError:
    """Return what the reader of an answer is told of a failure."""
    if isinstance(error, GuanacoError):
        return error
    reason: GuanacoError = GenerationFailedError(FAILED)
    if isinstance(error, torch.OutOfMemoryError):
        reason = OutOfMemoryError("the device has no memory left for this request")
    reason.__cause__ = error
    return reason
