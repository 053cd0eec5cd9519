"""An OpenAI-compatible server that follows a script, for tests of the client."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


@dataclass(frozen=True)
class Script:
    """How one fake server answers every request; delays in seconds."""

    pieces: tuple[str, ...] = ("Hello", " there", "!")
    first_delay_s: float = 0.0
    gap_s: float = 0.0
    usage: Literal["finish", "final", "none"] = "final"
    completion_tokens: int = 3
    keeps_alive: bool = False
    status: int = 200
    retry_after: str | None = None
    ending: Literal["complete", "error", "cut", "silent", "never", "drip"] = "complete"
    fails_every: int = 1
    models: tuple[str, ...] = ("fake",)


@dataclass
class FakeOpenAI:
    """Several scripted servers on one port, told apart by the first part of the path."""

    scripts: Mapping[str, Script]
    port: int = 0
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    barrier: asyncio.Barrier | None = None

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def forget(self) -> None:
        self.asked.clear()
        self.bodies.clear()
        self.keys.clear()
        self.barrier = None

    def gate(self, size: int) -> None:
        """Answer nobody until ``size`` requests are there."""
        self.barrier = asyncio.Barrier(size)

    def prompts_of(self, name: str) -> list[str]:
        return [
            body["messages"][0]["content"]
            for asked, body in zip(self.asked, self.bodies, strict=True)
            if asked == name
        ]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/{name}/v1/models")
        async def models(name: str) -> dict[str, object]:
            return {"data": [{"id": model} for model in self.scripts[name].models]}

        @app.post("/{name}/v1/chat/completions")
        async def chat(name: str, request: Request) -> Response:
            return await self.answer(
                name, await request.json(), request.headers.get("authorization")
            )

        @app.post("/{name}/v1/completions")
        async def complete(name: str, request: Request) -> Response:
            return await self.answer(
                name, await request.json(), request.headers.get("authorization")
            )

        return app

    async def answer(self, name: str, body: dict[str, Any], key: str | None) -> Response:
        script = self.scripts[name]
        self.asked.append(name)
        self.bodies.append(body)
        self.keys.append(key)
        if self.barrier:
            await self.barrier.wait()
        fails = self.asked.count(name) % script.fails_every == 0
        if script.status != 200 and fails:
            headers = {"Retry-After": script.retry_after} if script.retry_after else {}
            return JSONResponse({"error": {"message": "busy"}}, script.status, headers)
        stream = frames(script, is_chat="messages" in body)
        return StreamingResponse(stream, media_type="text/event-stream")


async def frames(script: Script, *, is_chat: bool) -> AsyncIterator[str]:
    usage = {"prompt_tokens": 7, "completion_tokens": script.completion_tokens}

    def choice(text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
        shown = {"delta": {} if text is None else {"content": text}} if is_chat else {"text": text}
        return {"index": 0, "finish_reason": finish_reason} | shown

    if script.keeps_alive:
        yield ": ping\n\n" + sse(choices=[choice("")])
    await asyncio.sleep(script.first_delay_s)
    for place, piece in enumerate(script.pieces):
        await asyncio.sleep(script.gap_s if place else 0)
        yield sse(choices=[choice(piece)])
    if script.ending == "error":
        yield sse(error={"message": "out of memory"})
    elif script.ending == "cut":
        raise ConnectionAbortedError
    elif script.ending == "never":
        await asyncio.Event().wait()
    elif script.ending == "drip":
        while True:
            await asyncio.sleep(0.02)
            yield ": still here\n\n"
    elif script.ending == "complete":
        at_finish = {"usage": usage} if script.usage == "finish" else {}
        yield sse(choices=[choice(None, "stop")], **at_finish)
        if script.usage == "final":
            yield sse(choices=[], usage=usage)
        yield "data: [DONE]\n\n"


def sse(**chunk: object) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


@contextmanager
def serving(**scripts: Script) -> Iterator[FakeOpenAI]:
    """Run scripted servers in a thread of their own, each under its own name."""
    # asyncio sets TCP_NODELAY only where the protocol is spelt out; without it every first
    # chunk would wait 40 ms for an acknowledgement.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        # Listening before the server runs: early connections wait instead of failing.
        listener.listen()
        fake = FakeOpenAI(scripts, port=listener.getsockname()[1])
        config = uvicorn.Config(
            fake.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield fake
        finally:
            server.should_exit = True
            thread.join()
