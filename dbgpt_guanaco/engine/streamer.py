"""What ``generate`` talks to: it hands over tokens and asks whether to stop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.sampling import Draw
from dbgpt_guanaco.engine.structure import StructureMatcher
from dbgpt_guanaco.types import TextDelta


class GenerationEndedError(Exception):
    """Unwinds ``generate`` when its answer is over: a stop string, a full structure, a cancel."""


class StopOnTokens(StoppingCriteria):  # type: ignore[misc] # transformers is not typed
    """Ends ``generate`` after a stop token."""

    def __init__(self, stop_token_ids: Sequence[int], device: torch.device) -> None:
        self._ids = torch.tensor(sorted(stop_token_ids), dtype=torch.long, device=device)

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Say of each sequence, [B, T] → [B], whether its newest token is a stop token."""
        return torch.isin(input_ids[:, -1], self._ids)


class AnswerStreamer(TextIteratorStreamer):  # type: ignore[misc] # transformers is not typed
    """transformers' ``TextIteratorStreamer``, mended.

    The original withholds text until a blank, cuts characters in half, and leaves its reader
    hanging when ``generate`` raises. This one decodes bytes exactly, knows stop strings, and
    hands deltas to a reader that also takes errors and never blocks.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,  # noqa: ANN401
        answer: Answer,
        draws: list[Draw],
        post: Callable[[TextDelta], None],
        matcher: StructureMatcher | None = None,
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._answer, self._draws, self._post, self._matcher = answer, draws, post, matcher
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the newest token, shape [1]; the first call brings the prompt.

        Raises:
            GenerationEndedError: A stop string or the answer's structure is complete; nothing
                more is wanted.
        """
        if self._is_prompt:
            self._is_prompt = False
            return
        delta = self._answer.feed(int(value.reshape(-1)[0]), self._draws)
        self._draws.clear()
        if self._answer.is_over:
            raise GenerationEndedError
        if delta:
            self._post(delta)
        if self._matcher and self._matcher.is_over:
            raise GenerationEndedError

    def end(self) -> None:
        """Nothing to do: whoever runs ``generate`` asks for the last delta."""
