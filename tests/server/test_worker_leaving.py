"""Dialect W: a client that leaves, without a network and without sleeping."""

import asyncio
import json
from typing import Any

import pytest
from asgi import post_of
from fakes import ScriptedEmbedder, ScriptedEngine
from starlette.types import Message

from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.types import Embeddings

HI = {"model": "scripted", "messages": [{"role": "human", "content": "hi"}]}


async def post_and_leave(
    app: Any, path: str, body: bytes, *, messages_seen: int, more_body: bool = False
) -> list[Message]:
    """Send a body, read so many messages, leave. Returns all that was sent."""
    left = asyncio.Event()
    if messages_seen == 0:
        left.set()
    to_read: list[Message] = [{"type": "http.request", "body": body, "more_body": more_body}]
    sent: list[Message] = []

    async def receive() -> Message:
        if to_read:
            return to_read.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) >= messages_seen:
            left.set()

    async with asyncio.timeout(5):
        await app(post_of(path), receive, send)
    return sent


@pytest.mark.parametrize(("path", "messages_seen"), [
    ("/api/worker/generate_stream", 0),
    ("/api/worker/generate_stream", 1),
    ("/api/worker/generate_stream", 2),
    ("/api/worker/generate_stream", 3),
    ("/api/worker/generate", 0),
])  # fmt: skip
async def test_it_frees_its_place(path: str, messages_seen: int) -> None:
    engine = ScriptedEngine("a", "b", endless=True)

    await post_and_leave(
        create_app(engine), path, json.dumps(HI).encode(), messages_seen=messages_seen
    )

    (generation,) = engine.generations
    assert generation.cancelled.is_set()


@pytest.mark.parametrize("path", ["/api/worker/generate_stream", "/api/worker/generate"])
async def test_it_is_no_bug_to_leave_in_the_middle_of_a_body(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine("a")

    await post_and_leave(create_app(engine), path, b'{"mod', messages_seen=0, more_body=True)

    assert not engine.generations
    assert not caplog.records


class EndlessEmbedder(ScriptedEmbedder):
    """Computes until it is cancelled."""

    was_cancelled = False

    async def embed(self, texts: Any) -> Embeddings:
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled = True
        raise AssertionError


async def test_its_embeddings_are_not_computed_on() -> None:
    embedder = EndlessEmbedder()
    body = json.dumps({"model": embedder.card.name, "input": ["a"]}).encode()

    await post_and_leave(
        create_app(ScriptedEngine(), embedder=embedder),
        "/api/worker/embeddings",
        body,
        messages_seen=0,
    )

    assert embedder.was_cancelled
