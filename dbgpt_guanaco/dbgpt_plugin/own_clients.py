"""DB-GPT's own clients, made to end an answer that nobody reads any more.

They have the trouble that ``abandonment.py`` tells of: a browser leaves, and the request goes on to
its last token, in a place that others wait for. DB-GPT 0.8.2 offers no way to hear of it from
outside, so their generators are wrapped where they are defined.
"""

import copy
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from dbgpt.model.cluster.worker.remote_worker import RemoteModelWorker
from dbgpt.model.proxy.llms.chatgpt import OpenAILLMClient

from dbgpt_guanaco.dbgpt_plugin.abandonment import AbandonmentWatch

Outputs = AsyncGenerator[Any, None]


def watch_all() -> None:
    """Watch readers of the OpenAI client and of the cluster's client. Harmless when repeated."""
    if not hasattr(RemoteModelWorker.async_generate_stream, "is_watched"):
        RemoteModelWorker.async_generate_stream = _watched_worker(
            RemoteModelWorker.async_generate_stream
        )
    if not hasattr(OpenAILLMClient.generate_stream_v1, "is_watched"):
        OpenAILLMClient.generate_stream_v1 = _watched_client(OpenAILLMClient.generate_stream_v1)


def _watched_worker(answer: Callable[..., Outputs]) -> Callable[..., Outputs]:
    @functools.wraps(answer)
    async def watched(*args: Any, **kwargs: Any) -> Outputs:  # noqa: ANN401
        async with aclosing(answer(*args, **kwargs)) as outputs:
            async for output in _read(outputs, outputs.aclose):
                yield output

    watched.is_watched = True  # type: ignore[attr-defined]
    return watched


def _watched_client(answer: Callable[..., Outputs]) -> Callable[..., Outputs]:
    @functools.wraps(answer)
    async def watched(self: Any, *args: Any, **kwargs: Any) -> Outputs:  # noqa: ANN401
        responses: list[Any] = []

        async def create(**body: Any) -> Any:  # noqa: ANN401
            responses.append(await self.client.chat.completions.create(**body))
            return responses[-1]

        async def close() -> None:
            # It closes no response by itself: generator and response hold each other.
            for response in responses:
                if hasattr(response, "close"):
                    await response.close()

        noting = copy.copy(self)
        noting._client = SimpleNamespace(
            chat=SimpleNamespace(completions=SimpleNamespace(create=create))
        )
        is_whole = False
        try:
            async for output in _read(answer(noting, *args, **kwargs), close):
                yield output
            is_whole = True
        finally:
            if not is_whole:
                await close()

    watched.is_watched = True  # type: ignore[attr-defined]
    return watched


async def _read(outputs: Outputs, close: Callable[[], Awaitable[None]]) -> Outputs:
    with AbandonmentWatch(close) as watch:
        watch.note_reader()
        async for output in outputs:
            yield output
            watch.note_reader()
        if watch.has_closed:
            raise ConnectionError("the answer was given up, because nobody read it for a while")
