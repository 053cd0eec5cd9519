"""Generations → objects of the OpenAI dialect, whole or as chunks."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sse_starlette import ServerSentEvent

from dbgpt_guanaco.engine.base import Generation
from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.server import errors, frames
from dbgpt_guanaco.types import FinishReason, TextDelta, TokenLogprob, Usage

Kind = Literal["chat", "completion"]
OBJECTS: dict[tuple[Kind, bool], str] = {
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answers, and what every object about them repeats.

    Attributes:
        generations: One for each choice.
        echo: Begin each choice with its prompt.
        with_logprobs: Each choice carries log-probabilities.
        include_usage: The stream ends with an event of its own for usage.
        choices_per_prompt: Neighbouring choices that share a prompt, whose tokens count once.
    """

    kind: Kind
    request_id: str
    model: str
    generations: Sequence[Generation]
    echo: bool = False
    with_logprobs: bool = False
    include_usage: bool = False
    choices_per_prompt: int = 1
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """Wait for every choice and return them as one object.

        Raises:
            GuanacoError: One of them failed.
        """
        tasks = [asyncio.ensure_future(_collect(g)) for g in self.generations]
        try:
            collected = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        choices = [self._whole_choice(index, deltas) for index, deltas in enumerate(collected)]
        last = [deltas[-1] for deltas in collected]
        return self._object(choices, is_chunk=False) | {
            "usage": _usage_object(self._total_usage([delta.usage for delta in last]))
        }

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Write the choices as chunks, mixed as they come; an error becomes the last event."""
        usages = [Usage(0, 0)] * len(self.generations)
        lengths = [0] * len(self.generations)
        try:
            for index, generation in enumerate(self.generations):
                if self.kind == "chat":
                    yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
                elif self.echo:
                    lengths[index] = len(generation.prompt_text)
                    yield self._chunk(index, {"text": generation.prompt_text})
            async for index, delta in _merged(self.generations):
                usages[index] = delta.usage
                if delta.text or delta.logprobs or not delta.is_last:
                    yield self._chunk(index, self._content(delta, lengths[index]))
                    lengths[index] += sum(token.characters for token in delta.logprobs)
                if delta.is_last:
                    empty: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
                    # DB-GPT reads usage only from a chunk that has a choice.
                    usage = {"usage": _usage_object(self._total_usage(usages))}
                    yield self._chunk(index, empty, _reason(delta.finish_reason), usage)
            if self.include_usage:
                usage = {"usage": _usage_object(self._total_usage(usages))}
                yield frames.event(self._object([], is_chunk=True) | usage)
        except GuanacoError as error:
            yield frames.event(errors.as_body(error))
        yield frames.DONE

    @property
    def keep_alive(self) -> ServerSentEvent:
        """A chunk without content.

        Comments would be the usual sign of life, but a 2023 DB-GPT shows them to its user or
        breaks on them.
        """
        return self._chunk(0, {"delta": {}} if self.kind == "chat" else {"text": ""})

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        reason: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> ServerSentEvent:
        choice = {"index": index, **content, "finish_reason": reason}
        no_usage = {"usage": None} if self.include_usage else {}
        return frames.event(self._object([choice], is_chunk=True) | (usage or no_usage))

    def _content(self, delta: TextDelta, offset: int) -> dict[str, Any]:
        told = self._logprobs(delta.logprobs, offset)
        if self.kind == "chat":
            return {"delta": {"content": delta.text}, **told}
        return {"text": delta.text, **told}

    def _whole_choice(self, index: int, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        prompt = self.generations[index].prompt_text if self.echo else ""
        logprobs = self._logprobs([lp for delta in deltas for lp in delta.logprobs], len(prompt))
        end = {"finish_reason": _reason(deltas[-1].finish_reason)}
        if self.kind == "chat":
            message = {"role": "assistant", "content": text}
            return {"index": index, "message": message, **logprobs, **end}
        return {"index": index, "text": prompt + text, **logprobs, **end}

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        if not self.with_logprobs:
            return {"logprobs": None}
        if self.kind == "chat":
            content = [
                _chat_logprob(token) | {"top_logprobs": [_chat_logprob(t) for t in token.top]}
                for token in tokens
            ]
            return {"logprobs": {"content": content}}
        return {"logprobs": _completion_logprobs(tokens, offset)}

    def _object(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": OBJECTS[self.kind, is_chunk],
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _total_usage(self, usages: Sequence[Usage]) -> Usage:
        step = self.choices_per_prompt
        of_prompts = [usages[i : i + step] for i in range(0, len(usages), step)]
        return Usage(
            sum(max(u.prompt_tokens for u in choices) for choices in of_prompts),
            sum(u.completion_tokens for u in usages),
            # Choices find what the first of them has computed; that was no earlier request.
            sum(min(u.cached_tokens for u in choices) for choices in of_prompts),
        )


def _usage_object(usage: Usage) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return frames.usage_object(usage) | details


def _reason(reason: FinishReason | None) -> str:
    # OpenAI knows no cancelled answer; whoever cancelled does not read it.
    return "length" if reason == "length" else "stop"


async def _collect(generation: Generation) -> list[TextDelta]:
    return [delta async for delta in generation]


async def _merged(
    generations: Sequence[Generation],
) -> AsyncIterator[tuple[int, TextDelta]]:
    """Yield deltas with their generation's index, in the order in which they come.

    Raises:
        GuanacoError: The first error of any of them.
    """
    if len(generations) == 1:
        async for delta in generations[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, TextDelta] | Exception] = asyncio.Queue()

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                queue.put_nowait((index, delta))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, g)) for i, g in enumerate(generations)]
    try:
        running = len(generations)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            yield item
            running -= item[1].is_last
    finally:
        for task in tasks:
            task.cancel()


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.raw)}


def _key(token: TokenLogprob) -> str:
    """Return a token's text, or its bytes where they are only a part of a character."""
    if "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def _completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += token.characters
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_key(t): t.logprob for t in token.top} for token in tokens],
        "text_offset": offsets,
    }
