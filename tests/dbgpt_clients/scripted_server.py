"""Our application over engines that behave, as a process of its own.

What an engine does is chosen by a word in the prompt: ``[endless]`` waits to be cancelled,
``[slow]`` begins a long time after the request, ``[error]`` and ``[memory]`` fail after some text,
``[empty]`` says nothing, ``[busy]`` and ``[long]`` are refused; anything else is answered in full.
``/scripted`` tells a test what arrived.

Run with our own interpreter, with ``tests`` on ``PYTHONPATH``. Prints its port, then serves.
"""

import asyncio
import dataclasses
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from fakes import ScriptedEmbedder, ScriptedEngine, ScriptedGeneration
from fastapi import FastAPI

from dbgpt_guanaco.errors import EngineBusyError, OutOfMemoryError, PromptTooLongError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.settings import ClusterSettings, ServerSettings
from dbgpt_guanaco.types import GenerationRequest, TextDelta

ANSWER = ("你好", "，", "世界", " 🎉", "!\n", "Two", " lines")
TOO_LATE_S = 5.0
KEEP_ALIVE_S = 0.2


class SlowGeneration(ScriptedGeneration):
    """Says nothing until it is cancelled."""

    async def _deltas(self) -> AsyncIterator[TextDelta]:
        await self.cancelled.wait()
        yield self._delta("", 0, "cancelled")


class EngineByPrompt(ScriptedEngine):
    """Answers each request with the script that its prompt names."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.has_accepted = asyncio.Event()

    async def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        """Accept it, or refuse it as a full or a small engine would."""
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        if "[busy]" in prompt:
            raise EngineBusyError(5, 64)
        if "[long]" in prompt:
            raise PromptTooLongError(3000, 2048)
        self.requests.append(request)
        out_of_memory = OutOfMemoryError("the device has no memory left for this answer")
        chosen: dict[str, Sequence[Any]] = {
            "[empty]": (),
            "[error]": ("some text", EngineBusyError(5, 64)),
            "[memory]": ("some text", out_of_memory),
            "[endless]": ("first", " second"),
        }
        script = next((chosen[word] for word in chosen if word in prompt), ANSWER)
        kind = SlowGeneration if "[slow]" in prompt else ScriptedGeneration
        generation = kind(script, endless="[endless]" in prompt, logprobs=False)
        self.generations.append(generation)
        self.has_accepted.set()
        return generation


def add_scripted_routes(app: FastAPI, engine: EngineByPrompt, embedder: ScriptedEmbedder) -> None:
    """Let a test look behind the wire."""

    @app.get("/scripted/requests")
    async def requests() -> list[dict[str, Any]]:
        return [
            {
                "prompt": request.prompt,
                **{
                    field.name: getattr(request.sampling, field.name)
                    for field in dataclasses.fields(request.sampling)
                    if field.name != "logit_bias"
                },
            }
            for request in engine.requests
        ]

    @app.get("/scripted/texts")
    async def texts() -> list[str]:
        return embedder.texts

    @app.get("/scripted/submitted")
    async def submitted() -> bool:
        """Answer as soon as a generation was accepted."""
        async with asyncio.timeout(TOO_LATE_S):
            return await engine.has_accepted.wait()

    @app.get("/scripted/cancelled")
    async def cancelled(within: float = TOO_LATE_S) -> float | None:
        """Answer when the newest generation is cancelled: after how many seconds, or never."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(within):
                await engine.generations[-1].cancelled.wait()
        except TimeoutError:
            return None
        return time.monotonic() - began

    @app.post("/scripted/reset")
    async def reset() -> None:
        engine.requests.clear()
        engine.generations.clear()
        engine.has_accepted.clear()
        embedder.texts.clear()


def main() -> None:
    """Serve until the process is ended."""
    engine, embedder = EngineByPrompt(name="guanaco-test"), ScriptedEmbedder()
    loopback = ipaddress.IPv4Network("127.0.0.0/8")
    app = create_app(
        engine,
        ServerSettings(keep_alive_s=KEEP_ALIVE_S, temperature=0.55),
        embedder=embedder,
        cluster=ClusterSettings(worker_networks=(loopback,)),
    )
    add_scripted_routes(app, engine, embedder)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
