"""Bounds on request bodies: how large, in what time, and only as they are."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dbgpt_guanaco.server.refusals import refusal


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large, too slow, or compressed.

    Args:
        app: What is behind it.
        max_body_bytes: A body that announces more is refused before a byte of it is read, one
            that announces nothing as soon as it is larger. What still comes of it is dropped by
            ``connections.py``.
        body_s: Seconds for a body to arrive.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_s: float) -> None:
        self._app, self._max, self._body_s = app, max_body_bytes, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by the head, or watch the body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if problem := self._problem_of(request):
            await refusal(request, problem)(scope, receive, send)
            return
        await self._app(scope, self._watched(receive), send)

    def _problem_of(self, request: Request) -> HTTPException | None:
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            return HTTPException(415, f"a body is read as it is, not as {encoding[:20]}")
        announced = request.headers.get("content-length", "")
        is_large = announced.isdecimal() and int(announced[:20]) > self._max
        return self._too_large() if is_large else None

    def _watched(self, receive: Receive) -> Receive:
        seen, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_s

        async def watched() -> Message:
            nonlocal seen, is_whole
            try:
                # After the body nothing comes but the news that the client has left.
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not arrive within {self._body_s:g} seconds"
                ) from None
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > self._max:
                raise self._too_large()
            return message

        return watched

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._max} bytes")
