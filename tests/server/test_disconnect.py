"""A client that leaves, without a network and without sleeping."""

import asyncio
import json
from typing import Any

import pytest
from asgi import post_of
from fakes import ScriptedEngine
from starlette.types import Message

from dbgpt_guanaco.server.app import create_app

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
CASES = [
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/chat/completions", CHAT | {"stream": True, "n": 2}),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "hi", "stream": True}),
    ("/generate_stream", {"prompt": "hi"}),
    ("/generate", {"prompt": "hi"}),
]


@pytest.mark.parametrize("messages_seen", [0, 1, 2])
@pytest.mark.parametrize(("path", "body"), CASES)
async def test_a_client_that_leaves_frees_its_place(
    path: str, body: dict[str, Any], messages_seen: int
) -> None:
    engine = ScriptedEngine("a", "b", endless=True)
    left = asyncio.Event()
    is_stream = path == "/generate_stream" or body.get("stream")
    if messages_seen == 0 or not is_stream:
        left.set()  # nothing is sent before the whole answer
    to_read: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent: list[Message] = []

    async def receive() -> Message:
        if to_read:
            return to_read.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > messages_seen:
            left.set()

    async with asyncio.timeout(5):
        await create_app(engine)(post_of(path), receive, send)

    assert engine.generations
    assert all(generation.cancelled.is_set() for generation in engine.generations)


@pytest.mark.parametrize("path", [*dict(CASES), "/embedding", "/api/worker/generate_stream"])
async def test_a_client_that_leaves_within_its_request_is_no_failure(path: str) -> None:
    engine = ScriptedEngine("a")
    sent: list[Message] = []
    parts: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b'{"prom', "more_body": True},
    ]

    async def receive() -> Message:
        return parts.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(5):
        await create_app(engine)(post_of(path), receive, send)

    assert sent[0]["status"] in (400, 499)
    assert not engine.requests
