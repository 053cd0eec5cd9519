"""Dialect W: whatever fails, the client gets a status of 200 and a frame with a text."""

import json
import logging
from typing import Any

import httpx
import pytest
from cluster_clients import CLIENTS
from fakes import ScriptedEngine

from dbgpt_guanaco.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationFailedError,
    GuanacoError,
    OutOfMemoryError,
)

STREAM, WHOLE = "/api/worker/generate_stream", "/api/worker/generate"
HI = {"model": "scripted", "messages": [{"role": "human", "content": "hi"}]}
ERROR = "**LLMServer Generate Error, Please CheckErrorInfo.**: "
OUT_OF_MEMORY = "**GPU OutOfMemory, Please Refresh.**"
IMAGE = {"type": "image", "object": {"data": "https://x/y.png", "format": "url"}}

both_paths = pytest.mark.parametrize("path", [STREAM, WHOLE])


def told(response: httpx.Response, path: str) -> str:
    """Return the text of the only frame, as the strictest client reads it."""
    assert response.status_code == 200
    assert (path == STREAM) == response.content.endswith(b"\0")
    content = response.content if path == STREAM else response.content + b"\0"
    (output,) = CLIENTS[0].read([content])
    assert output.error_code == 1
    assert output.text
    return output.text


@both_paths
@pytest.mark.parametrize(("body", "text"), [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"\xff", "the body is not JSON"),
    (b"[" * 1_000, "the body is not JSON"),
    (b"[" * 100_000, "the body has too many parts"),
    (b'{"model": "\\ud800"}', "the body is not JSON"),
    (b"[]", "the body must be a JSON object"),
    (b"{}", "model: "),
    (b'{"model": null}', "model: "),
    (b'{"model": 5}', "model: "),
    (b'{"model": "scripted"}', "messages: is empty, and so is prompt"),
    (b'{"model": "scripted", "messages": [], "prompt": " "}', "messages: is empty"),
    (b'{"model": "' + b"a" * 10_000_000 + b'"}', "the body is larger than"),
])  # fmt: skip
async def test_bad_bodies(connect: Any, path: str, body: bytes, text: str) -> None:
    engine = ScriptedEngine("a")

    response = await connect(engine).post(path, content=body)

    assert told(response, path).startswith(ERROR + text)
    assert not engine.requests


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", "NaN"), ("temperature", "1e400"), ("temperature", "-1"),
    ("temperature", '"hot"'), ("max_new_tokens", "0"), ("max_new_tokens", "-4"),
    ("max_new_tokens", '"many"'), ("max_new_tokens", "1.5"), ("top_p", "2"), ("top_p", "0"),
    ("top_p", "NaN"), ("top_k", "-2"), ("top_k", "NaN"), ("presence_penalty", "3"),
    ("frequency_penalty", "NaN"), ("stop", "5"), ("stop", '[""]'), ("stop", "[5]"),
    ("stop_token_ids", "[-1]"), ("stop_token_ids", '"x"'), ("context", "5"),
    ("messages", "5"), ("messages", '["hi"]'), ("messages", '[{"role": "robot"}]'),
    ("messages", '[{"role": "system", "content": "S"}]'),
])  # fmt: skip
async def test_wrong_values_are_named(connect: Any, field: str, value: str) -> None:
    engine = ScriptedEngine("a")
    body = json.dumps({k: v for k, v in HI.items() if k != field})

    response = await connect(engine).post(STREAM, content=f'{body[:-1]}, "{field}": {value}}}')

    assert told(response, STREAM).startswith(ERROR + field)
    assert not engine.requests


@pytest.mark.parametrize(("content", "text"), [
    ([IMAGE], "messages[0].content: only text is understood, no image"),
    (IMAGE | {"type": "audio"}, "messages[0].content: only text is understood, no audio"),
    ([IMAGE | {"type": "video"}], "messages[0].content: only text is understood, no video"),
    (None, "messages[0].content: must be a text, or"),
    (["hi"], "messages[0].content: must be a text, or"),
    ({"type": "text"}, "messages[0].content: must be a text, or"),
    ({"type": "text", "object": {"data": 5}}, "messages[0].content: must be a text, or"),
    ({"type": "smell", "object": {"data": "x"}}, "messages[0].content: must be a text, or"),
])  # fmt: skip
async def test_content_that_is_no_text(connect: Any, content: Any, text: str) -> None:
    body = HI | {"messages": [{"role": "human", "content": content}]}

    response = await connect(ScriptedEngine("a")).post(STREAM, json=body)

    assert told(response, STREAM).startswith(ERROR + text)


@both_paths
@pytest.mark.parametrize(("error", "text"), [
    (EngineBusyError(5, 64), f"{ERROR}the server is busy: 5 running and 64 waiting"),
    (EngineStoppedError(), f"{ERROR}the server is shutting down"),
    (OutOfMemoryError("no room"), OUT_OF_MEMORY),
])  # fmt: skip
async def test_refusals(connect: Any, path: str, error: GuanacoError, text: str) -> None:
    response = await connect(ScriptedEngine(refuse=error)).post(path, json=HI)

    assert told(response, path).startswith(text)


@both_paths
async def test_another_model_is_refused_and_ours_named(connect: Any, path: str) -> None:
    engine = ScriptedEngine("a", aliases=("guanaco",))

    response = await connect(engine).post(path, json=HI | {"model": "vicuna-13b"})
    long = await connect(engine).post(path, json=HI | {"model": "v" * 1_000_000})

    assert "unknown model 'vicuna-13b'; known: guanaco, scripted" in told(response, path)
    assert len(long.content) < 3000  # a client's own words are not sent back in full
    assert not engine.requests


@pytest.mark.parametrize(("error", "text"), [
    (GenerationFailedError("it failed"), f"{ERROR}it failed"),
    (EngineStoppedError(), f"{ERROR}the server is shutting down"),
    (OutOfMemoryError("no room"), OUT_OF_MEMORY),
])  # fmt: skip
async def test_a_failure_in_the_middle_keeps_the_text_before_it(
    connect: Any, error: GuanacoError, text: str
) -> None:
    engine = ScriptedEngine("Par", error)

    response = await connect(engine).post(STREAM, json=HI)
    whole = await connect(engine).post(WHOLE, json=HI)

    first, last = CLIENTS[0].read([response.content])
    assert (first.text, first.error_code) == ("Par", 0)
    assert (last.text, last.error_code) == (f"Par\n{text}", 1)
    assert told(whole, WHOLE) == text
    assert all(generation.cancelled.is_set() for generation in engine.generations)


class BuggyEngine(ScriptedEngine):
    """Fails with what nobody planned: at once, or after its first text."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__("Par", KeyError("secret"))  # type: ignore[arg-type]
        self._at_once = at_once

    async def submit(self, request: Any) -> Any:
        if self._at_once:
            raise KeyError("secret")
        generation = await super().submit(request)
        deltas = generation._deltas

        async def failing() -> Any:
            async for delta in deltas():
                yield delta
                raise KeyError("secret")

        generation._deltas = failing  # type: ignore[method-assign]
        return generation


@both_paths
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_bug_is_logged_and_its_words_are_not_told(
    connect: Any, path: str, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BuggyEngine(at_once=at_once)

    response = await connect(engine).post(path, json=HI)

    assert response.status_code == 200
    assert b"secret" not in response.content
    content = response.content if path == STREAM else response.content + b"\0"
    *_, last = CLIENTS[0].read([content])
    assert last.error_code == 1
    assert "internal error" in str(last.text)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info
    assert all(generation.cancelled.is_set() for generation in engine.generations)


async def test_a_refusal_is_logged_without_what_was_said(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    await connect(ScriptedEngine()).post(STREAM, json=HI | {"model": "capital", "top_p": "capital"})

    assert "/api/worker/generate_stream answered 200: InvalidRequestError" in caplog.text
    assert "capital" not in caplog.text
