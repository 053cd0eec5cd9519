"""What the event loop's thread takes for a token of each stream: requests, events, no sockets."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.settings import EngineSettings

PATH = "/v1/completions"


@dataclass(frozen=True, slots=True)
class LoopTime:
    """Milliseconds of a step, in which each stream gets a token.

    Attributes:
        loop: The event loop's thread was busy.
        wall: From the first request to the last event.
    """

    loop: float
    wall: float


def loop_time(loaded: LoadedModel, streams: int, tokens: int) -> LoopTime:
    """Stream answers to so many clients at once, through the application as a server calls it."""
    engine = BatchingEngine(loaded, EngineSettings(slots=streams))
    try:
        engine.wait_until_warm()
        # No answer may end before the others.
        body = {
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "logit_bias": dict.fromkeys(map(str, loaded.stop_token_ids), -100),
        }
        return asyncio.run(_measured(create_app(engine), streams, body))
    finally:
        engine.close()


async def _measured(app: Any, streams: int, body: dict[str, Any]) -> LoopTime:  # noqa: ANN401
    await asyncio.gather(*(_stream(app, n, body) for n in range(streams)))  # all is warm now
    busy, began = time.thread_time(), time.perf_counter()
    await asyncio.gather(*(_stream(app, streams + n, body) for n in range(streams)))
    wall, tokens = time.perf_counter() - began, body["max_tokens"]
    return LoopTime(1000 * (time.thread_time() - busy) / tokens, 1000 * wall / tokens)


async def _stream(app: Any, number: int, asked_for: dict[str, Any]) -> None:  # noqa: ANN401
    body = json.dumps({"prompt": f"{number} questions", **asked_for}).encode()
    sent: list[dict[str, Any]] = []
    asked = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()  # this client stays to the end
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(_scope(), receive, send)
    if sent[0]["status"] != 200:
        raise RuntimeError(f"refused: {sent[-1]}")


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
