"""A ceiling on request bodies, counted while they arrive."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# So much of a refused body is read and dropped, so that the client hears the refusal instead of
# a connection reset while it still sends.
DRAINED_BYTES = 64 * 1024 * 1024


class BodyLimit:
    """ASGI middleware that refuses bodies above a size, with 413."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app, self._max = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application reads."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen <= self._max:
                return message
            while message.get("more_body") and seen <= DRAINED_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
            raise HTTPException(413, f"the body is larger than {self._max} bytes")

        await self._app(scope, counted, send)
