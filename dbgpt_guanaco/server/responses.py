"""Responses that end their generations however the connection ends."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dbgpt_guanaco.engine.base import Generation

T = TypeVar("T")
CLIENT_LEFT = 499  # nginx's status for it; nobody reads it


async def on_client_left(_: Request, __: Exception) -> Response:
    """Answer a client that left before its request was whole; this is for the log alone."""
    return Response(status_code=CLIENT_LEFT)


class EventStream(EventSourceResponse):
    """Sends server-sent events and cancels the generations however the connection ends.

    A generator's ``finally`` is not enough: if the client leaves before the first event, the
    generator was never started and its ``finally`` never runs.
    """

    def __init__(
        self,
        events: AsyncIterable[ServerSentEvent],
        generations: Sequence[Generation],
        *,
        keep_alive: ServerSentEvent,
        keep_alive_s: float,
    ) -> None:
        super().__init__(
            events,
            sep="\n",
            ping=keep_alive_s,
            ping_message_factory=lambda: keep_alive,
            headers={"Cache-Control": "no-cache"},
        )
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, then free the slots."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            cancel_all(self._generations)


class FrameStream(StreamingResponse):
    """Sends raw frames and cancels the generation however the connection ends.

    It listens for the client's leaving all the time, also while no frame is due: a client
    that gave up waiting must not keep its place.
    """

    def __init__(self, frames: AsyncIterator[bytes], generation: Generation) -> None:
        # No content type, as a 2023 DB-GPT server sends none.
        super().__init__(frames, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the frames, then free the slot."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_when_client_leaves, receive, group.cancel_scope)
                await self.stream_response(send)
                group.cancel_scope.cancel()
        finally:
            self._generation.cancel()


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Run ``work``; stop it when the client closes the connection."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_client_left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=CLIENT_LEFT)
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def cancel_all(generations: Sequence[Generation]) -> None:
    """Cancel every one; those that are over do not mind."""
    for generation in generations:
        generation.cancel()


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel_when_client_leaves(receive: Receive, scope: anyio.CancelScope) -> None:
    await _client_left(receive)
    scope.cancel()
