"""Token ids of one answer → deltas: text that is safe to show, and why the answer ended."""

import time
from collections import deque
from collections.abc import Sequence

from dbgpt_guanaco.engine.detokenizer import Detokenizer, Vocabulary
from dbgpt_guanaco.engine.sampling import Draw
from dbgpt_guanaco.engine.stopping import StopChecker
from dbgpt_guanaco.types import FinishReason, TextDelta, TokenLogprob, Usage


class Answer:
    """The text side of one generation. Feed it tokens until it is over, then finish it.

    It is made when its request gets a slot, so that is the time its deltas tell.

    Attributes:
        is_over: A stop token or a stop string has come; nothing more is wanted.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        detokenizer: Detokenizer,
        stop: StopChecker,
        stop_token_ids: frozenset[int],
        prompt_tokens: int,
    ) -> None:
        self._vocabulary, self._detokenizer, self._stop = vocabulary, detokenizer, stop
        self._stop_token_ids = stop_token_ids
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = prompt_tokens, 0, 0
        self.is_over = False
        self._tail = ""
        # Drawn tokens with the characters each completed, and how many there were by then.
        self._pending: deque[tuple[Draw, int, int]] = deque()
        self._decoded, self._shown = 0, 0
        self._admitted_at_s = time.monotonic()

    def feed(self, token_id: int, draws: Sequence[Draw] = ()) -> TextDelta | None:
        """Take the newest token, return what can be shown now, if anything.

        Args:
            token_id: A drawn token.
            draws: Its log-probabilities, if they are wanted.
        """
        self.completion_tokens += 1
        if token_id in self._stop_token_ids:
            self.is_over = True
            return None
        new = self._detokenizer.feed(token_id)
        self._decoded += len(new)
        self._pending += [(draw, len(new), self._decoded) for draw in draws]
        text = self._stop.feed(new)
        if self._stop.stopped:
            self.is_over, self._tail = True, text
            return None
        if not text:
            return None
        self._shown += len(text)
        return self._delta(text, None, self._take_logprobs())

    def finish(self, *, is_complete: bool = False) -> TextDelta:
        """Return what was held back, and why the answer ended.

        Args:
            is_complete: The answer ended by itself, without a stop token.
        """
        reason: FinishReason = "stop" if self.is_over or is_complete else "length"
        if self._stop.stopped:
            text = self._tail
        else:
            text = self._stop.feed(self._detokenizer.flush())
            if self._stop.stopped:
                reason = "stop"
            else:
                text += self._stop.flush()
        self._shown += len(text)
        return self._delta(text, reason, self._take_logprobs())

    def cancel(self) -> TextDelta:
        """Return the last delta of an answer that nobody wants any more."""
        return self._delta("", "cancelled")

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)

    def _delta(
        self,
        text: str,
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TextDelta:
        return TextDelta(text, self.usage, reason, logprobs, self._admitted_at_s)

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
