"""Events of one stream → an answer with its times, or the reason why there is none."""

import json
from typing import Any

from benchmarks.measures import Answer
from benchmarks.sse import Event

_DETAIL_LENGTH = 200


class FailedRequestError(Exception):
    """A request has no complete answer; caught where it was sent, and counted by ``kind``."""

    def __init__(self, kind: str, detail: str, retry_after: str | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.retry_after = kind, shorten(detail), retry_after


def shorten(text: str) -> str:
    """Return ``text`` on one line, at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _DETAIL_LENGTH else line[: _DETAIL_LENGTH - 1] + "…"


class AnswerReader:
    """Collects the chunks of one answer. Times are seconds since the request was sent.

    A piece of text is a chunk with non-empty text: not the role chunk, not a keep-alive
    chunk, not the finish chunk. The answer ends with the last chunk that has a choice, so a
    late usage chunk does not lengthen it.
    """

    def __init__(self) -> None:
        self._outputs_s: list[float] = []
        self._last_choice_s = 0.0
        self._usage: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._is_done = False

    @property
    def outputs(self) -> int:
        """Pieces of text so far."""
        return len(self._outputs_s)

    def take(self, event: Event, at_s: float) -> None:
        """Take the next event, which arrived ``at_s`` seconds after the request was sent.

        Raises:
            FailedRequestError: The event is an error or cannot be understood.
        """
        if self._is_done:
            return
        if event.data.strip() == "[DONE]":
            self._is_done = True
            return
        chunk = _parse(event)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        for choice in chunk.get("choices") or ():
            self._take_choice(choice, at_s)

    def _take_choice(self, choice: object, at_s: float) -> None:
        if not isinstance(choice, dict):
            raise FailedRequestError("bad event", f"a choice is not an object: {choice!r}")
        self._last_choice_s = at_s
        if _text_of(choice):
            self._outputs_s.append(at_s)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def close(self) -> Answer:
        """Return the answer once the stream has ended.

        Raises:
            FailedRequestError: The answer is not complete, or has no text.
        """
        if not self._is_done and self._finish_reason is None:
            raise FailedRequestError("broken stream", "no finish_reason and no [DONE] was sent")
        if not self._outputs_s:
            raise FailedRequestError("no output", f"no text; finish_reason {self._finish_reason}")
        tokens = _count_of(self._usage, "completion_tokens")
        return Answer(
            outputs_s=tuple(self._outputs_s),
            e2e_s=self._last_choice_s,
            output_tokens=len(self._outputs_s) if tokens is None else tokens,
            token_source="chunks" if tokens is None else "usage",
            prompt_tokens=_count_of(self._usage, "prompt_tokens"),
            finish_reason=self._finish_reason,
            cached_tokens=_count_of(self._usage.get("prompt_tokens_details"), "cached_tokens"),
        )


def _parse(event: Event) -> dict[str, Any]:
    try:
        chunk = json.loads(event.data)
    except ValueError:
        raise FailedRequestError("bad event", f"not JSON: {event.data}") from None
    if not isinstance(chunk, dict):
        raise FailedRequestError("bad event", f"not an object: {event.data}")
    if chunk.get("error") or event.name == "error":
        raise FailedRequestError("stream error", json.dumps(chunk.get("error") or chunk))
    if "choices" not in chunk and "usage" not in chunk:
        raise FailedRequestError("bad event", f"neither choices nor usage: {event.data}")
    return chunk


def _text_of(choice: dict[str, Any]) -> str:
    """Return new text of a chat or completion choice; hidden reasoning is output as well."""
    delta = choice.get("delta") or {}
    shown = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    return str(shown or choice.get("text") or "")


def _count_of(usage: object, name: str) -> int | None:
    """Return a token count, or None when the server gives none (llama.cpp may send null)."""
    count = usage.get(name) if isinstance(usage, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    return count if is_count else None
