"""One HTTP request, from its first byte to the last of its answer: counts and times, no text.

``ExchangeMiddleware`` stands around the whole application. It gives each request its id, puts
an ``Exchange`` into the scope, where routes find it, and hands it on when all is over.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dbgpt_guanaco.server.progress import Progress

logger = logging.getLogger(__name__)

KEY = "guanaco.exchange"
# Where a middleware that knows the caller says who it is, and why it refused.
KEY_NAME, REFUSAL = "guanaco.key_name", "guanaco.refusal"
HEADER = "X-Request-Id"
MAX_PATH_CHARACTERS = 120
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

DIALECTS = (
    ("/v1/", "openai"),
    ("/api/v1/", "openai"),
    ("/api/worker/", "worker"),
    ("/api/controller/", "controller"),
    ("/generate", "llmserver"),
    ("/embedding", "llmserver"),
    ("/health", "health"),
    ("/ready", "health"),
    ("/api/health", "health"),
    ("/metrics", "metrics"),
    ("/page/", "page"),
)


def dialect_of(path: str) -> str:
    """Return which part of the server a path belongs to: one of few words, whatever it is."""
    if path == "/":
        return "page"
    return next((name for start, name in DIALECTS if path.startswith(start)), "other")


def shown_path(path: str) -> str:
    """Return a path as it may stand in a log: cut, and without what a terminal would obey."""
    return quote(path[:MAX_PATH_CHARACTERS], errors="replace")


@dataclass(slots=True)
class Exchange:
    """A request and what became of it.

    Attributes:
        arrived_at_s: On the clock of ``time.monotonic``.
        arrived_at_ns: Since 1970, for others' eyes.
        status: Of the response; None while there is none.
        asked: What was asked of a model, in order: several for ``n`` answers, none for most paths.
        key_name: Name of the caller's key, where keys have names.
        refusal: Why the caller was refused before a model was asked.
        problem: Kind of the error that was answered, if one was.
        reserve: Called with the number of answers that are to be asked for; raises what the caller
            may not have.
    """

    request_id: str
    method: str
    path: str
    client: str
    headers: Headers
    arrived_at_s: float = field(default_factory=time.monotonic)
    arrived_at_ns: int = field(default_factory=time.time_ns)
    ended_at_s: float | None = None
    status: int | None = None
    asked: list[Progress] = field(default_factory=list)
    key_name: str | None = None
    refusal: str | None = None
    problem: str | None = None
    reserve: Callable[[int], None] = lambda _: None

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> "Exchange":
        """Return that of a request; a client's own id is taken if it is short and harmless."""
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        host, port = scope.get("client") or ("", 0)
        return cls(
            given if SAFE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}",
            str(scope["method"]),
            str(scope["path"]),
            f"{host}:{port}" if host else "",
            headers,
        )

    @property
    def dialect(self) -> str:
        """Which part of the server was asked."""
        return dialect_of(self.path)

    @property
    def total_s(self) -> float:
        """Time from the first byte to the last, or until now."""
        return (self.ended_at_s or time.monotonic()) - self.arrived_at_s

    def end(self, scope: MutableMapping[str, Any]) -> None:
        """Note what is known only now."""
        self.ended_at_s = time.monotonic()
        self.key_name, self.refusal = scope.get(KEY_NAME), scope.get(REFUSAL)


class Listener(Protocol):
    """Somebody who is told of each exchange when it is over. Called on the event loop."""

    def on_end(self, exchange: Exchange) -> None:
        """Take note, without waiting for anything."""
        ...

    def close(self) -> None:
        """Hand on what is left. May wait a few seconds."""
        ...


class ExchangeMiddleware:
    """ASGI middleware that watches each request, and names it in the response.

    Args:
        app: What answers.
        on_end: Called with each exchange when it is over, whatever became of it.
    """

    def __init__(self, app: ASGIApp, on_end: Sequence[Callable[[Exchange], None]]) -> None:
        self._app, self._on_end = app, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, then hand the exchange on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange.of(scope)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)[HEADER] = exchange.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except BaseException:
            exchange.status = exchange.status or 500
            raise
        finally:
            exchange.end(scope)
            self._tell(exchange)

    def _tell(self, exchange: Exchange) -> None:
        for tell in self._on_end:
            try:
                tell(exchange)
            except Exception:  # the answer is out; it must not fail for what is told of it
                logger.exception("request %s could not be told of", exchange.request_id)
