"""What ``generate`` talks to: it hands over tokens and asks whether to stop."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from dbgpt_guanaco.engine.detokenizer import Detokenizer, Vocabulary
from dbgpt_guanaco.engine.sampling import Draw
from dbgpt_guanaco.engine.stopping import StopChecker
from dbgpt_guanaco.types import FinishReason, TextDelta, TokenLogprob, Usage


class GenerationEndedError(Exception):
    """Unwinds ``generate`` when its answer is over: a stop string, or a cancel."""


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
        detokenizer: Detokenizer,
        vocabulary: Vocabulary,
        stop: StopChecker,
        stop_token_ids: frozenset[int],
        draws: list[Draw],
        prompt_tokens: int,
        post: Callable[[TextDelta], None],
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._detokenizer, self._vocabulary, self._stop = detokenizer, vocabulary, stop
        self._stop_token_ids, self._draws = stop_token_ids, draws
        self._prompt_tokens, self._completion_tokens = prompt_tokens, 0
        self._post = post
        self._reason: FinishReason = "length"
        self._is_prompt, self._tail = True, ""
        # Drawn tokens with the characters each completed, and how many there were by then.
        self._pending: deque[tuple[Draw, int, int]] = deque()
        self._decoded, self._shown = 0, 0

    def put(self, value: torch.Tensor) -> None:
        """Take the newest token, shape [1]; the first call brings the prompt.

        Raises:
            GenerationEndedError: A stop string is complete; nothing more is wanted.
        """
        if self._is_prompt:
            self._is_prompt = False
            return
        self._completion_tokens += 1
        token_id = int(value.reshape(-1)[0])
        if token_id in self._stop_token_ids:
            self._reason = "stop"
            self._draws.clear()
            return
        new = self._detokenizer.feed(token_id)
        self._decoded += len(new)
        self._pending += [(draw, len(new), self._decoded) for draw in self._draws]
        self._draws.clear()
        text = self._stop.feed(new)
        if self._stop.stopped:
            self._reason = "stop"
            self._tail = text
            raise GenerationEndedError
        if text:
            self._shown += len(text)
            self._post(TextDelta(text, self.usage, logprobs=self._take_logprobs()))

    def end(self) -> None:
        """Nothing to do: whoever runs ``generate`` asks for the last delta."""

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt_tokens, self._completion_tokens)

    def last_delta(self, *, is_cancelled: bool) -> TextDelta:
        """Return what was held back, and why the answer ended."""
        if is_cancelled:
            return TextDelta("", self.usage, "cancelled")
        if self._stop.stopped:
            text = self._tail
        else:
            text = self._stop.feed(self._detokenizer.flush())
            if self._stop.stopped:
                self._reason = "stop"
            else:
                text += self._stop.flush()
        self._shown += len(text)
        return TextDelta(text, self.usage, self._reason, self._take_logprobs())

    def _take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens whose text is shown: one that is held back may be a stop string."""
        taken = []
        while self._pending and self._pending[0][2] <= self._shown:
            draw, characters, _ = self._pending.popleft()
            taken.append(self._logprob(draw, characters))
        return tuple(taken)

    def _logprob(self, draw: Draw, characters: int) -> TokenLogprob:
        top = tuple(self._told(token_id, value) for token_id, value in draw.top)
        return self._told(draw.token_id, draw.logprob, characters, top)

    def _told(
        self, token_id: int, value: float, characters: int = 0, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        raw = self._vocabulary.token_bytes(token_id)
        return TokenLogprob(token_id, raw.decode(errors="replace"), raw, value, characters, top)
