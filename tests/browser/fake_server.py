"""A server of the chat page without a model: it answers from a script, on a loopback port."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

PAGE = Path(__file__).parents[2] / "dbgpt_guanaco" / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
START_TIMEOUT_S = 10


@dataclass(frozen=True)
class Script:
    """How the next questions are answered.

    Attributes:
        pieces: Content of one chunk each.
        hold_after: Pieces to send before waiting for ``FakeServer.release``; None waits never.
        is_endless: Repeat the pieces until the client leaves.
        bytes_per_send: Cut the stream into sends of this size, also inside characters.
        completion_tokens: What the usage chunk says; None says one per piece.
        finish_reason: Why the answer ended.
        refuse: Status of an error sent instead of a stream.
        error: An error, sent instead of the stream or after the pieces.
        is_cut: End the stream after the pieces without a word.
    """

    pieces: tuple[str, ...] = ("Hello", " there.")
    hold_after: int | None = None
    is_endless: bool = False
    bytes_per_send: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = "stop"
    refuse: int | None = None
    error: str = ""
    is_cut: bool = False


class FakeServer:
    """Serves the page and answers from ``script``; remembers what it was asked.

    Attributes:
        disconnected: Set when a client left before its answer was over.
        release: Lets an answer that is held go on.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.script = Script()
        self.models = [
            {"id": "all-MiniLM-L6-v2", "kind": "embedding"},
            {"id": "guanaco-7b", "max_model_len": 2048},
            {"id": "guanaco-13b"},
        ]
        self.key = ""
        self.health: dict[str, Any] = {
            "status": "ok",
            "model": "guanaco-7b",
            "running": 0,
            "waiting": 0,
            "slots": 5,
        }
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.disconnected = threading.Event()
        self.release = threading.Event()
        self.app = self._build()

    def _build(self) -> FastAPI:
        app = FastAPI()
        app.get("/")(self._index)
        app.get("/page/{path:path}")(self._file)
        app.get("/v1/models")(self._models)
        app.get("/health")(self._health)
        app.post("/v1/chat/completions")(self._chat)
        return app

    async def _index(self) -> Response:
        return _page_file("index.html")

    async def _file(self, path: str) -> Response:
        return _page_file(path)

    async def _models(self, request: Request) -> Response:
        if self._is_refused(request):
            return _refusal(401, "a key is needed")
        return JSONResponse({"object": "list", "data": self.models})

    def _is_refused(self, request: Request) -> bool:
        return bool(self.key) and request.headers.get("authorization") != f"Bearer {self.key}"

    async def _health(self) -> Response:
        return JSONResponse(self.health)

    async def _chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.authorizations.append(request.headers.get("authorization"))
        script = self.script
        if self._is_refused(request):
            return _refusal(401, "a key is needed")
        if script.refuse is not None:
            return _refusal(script.refuse, script.error)
        frames = self._frames(script)
        if script.bytes_per_send is not None:
            frames = _cut(frames, script.bytes_per_send)
        return StreamingResponse(frames, media_type="text/event-stream")

    async def _frames(self, script: Script) -> AsyncIterator[bytes]:
        try:
            yield _chunk({"role": "assistant", "content": ""})
            yield _chunk({})  # keep-alive
            for index, piece in enumerate(_pieces(script)):
                if index == script.hold_after:
                    await asyncio.to_thread(self.release.wait)
                yield _chunk({"content": piece})
                # Without a pause an endless answer would fill every buffer on its way.
                await asyncio.sleep(0.01 if script.is_endless else 0)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        if script.is_cut:
            return
        if script.error:
            yield _sse({"error": _error(script.error)})
        else:
            yield _chunk({}, script.finish_reason)
            yield _usage(script)
        yield b"data: [DONE]\n\n"


class Stage:
    """Listens on one port for one fake after the other; late requests stay with their own.

    Attributes:
        fake: Who answers new requests.
    """

    def __init__(self) -> None:
        self.fake: FakeServer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.fake is not None, "nobody answers"
        await self.fake.app(scope, receive, send)

    @contextmanager
    def open(self) -> Iterator[str]:
        """Serve on a free loopback port until the block ends; gives the address."""
        config = uvicorn.Config(
            self, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            assert server.is_listening.wait(START_TIMEOUT_S), "the fake server did not start"
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """Says when it listens, and where."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = threading.Event()
        self.port = 0

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        self.is_listening.set()


def _page_file(path: str) -> Response:
    file = (PAGE / path).resolve()
    if not (file.is_relative_to(PAGE) and file.is_file()):
        return _refusal(404, f"no page file {path!r}")
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return FileResponse(file, headers=headers)


def _pieces(script: Script) -> Iterator[str]:
    if not script.is_endless:
        yield from script.pieces
        return
    for index in count():
        yield from (piece.format(index=index) for piece in script.pieces)


async def _cut(frames: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    whole = b"".join([frame async for frame in frames])
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
        await asyncio.sleep(0)


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _sse({"object": "chat.completion.chunk", "choices": [choice]})


def _usage(script: Script) -> bytes:
    tokens = script.completion_tokens or len(script.pieces)
    usage = {"prompt_tokens": 7, "completion_tokens": tokens}
    return _sse({"object": "chat.completion.chunk", "choices": [], "usage": usage})


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": _error(message)}, status_code=status)


def _error(message: str) -> dict[str, str | None]:
    return {"message": message, "type": "invalid_request_error", "param": None, "code": None}
