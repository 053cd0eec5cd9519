import logging
import re
from typing import Any

import httpx
import pytest
from fakes import PROMPT_TOKENS, ScriptedEmbedder, ScriptedEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from dbgpt_guanaco.errors import EngineBusyError, GenerationFailedError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.exchange import Exchange, ExchangeMiddleware, dialect_of

CHAT = {"messages": [{"role": "user", "content": "Hi."}]}
LOGGER = "dbgpt_guanaco.server.exchange_log"


def ends(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(r)["fields"] for r in caplog.records if r.name == LOGGER]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", "/"])
async def test_each_response_is_named(connect: Any, path: str) -> None:
    client = connect(ScriptedEngine())

    names = [(await client.get(path)).headers["x-request-id"] for _ in range(2)]

    assert all(re.fullmatch("req-[0-9a-f]{32}", name) for name in names)
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("abc-1.2:3_4", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("two words", False),
        ("naïve".encode("latin-1").decode("latin-1"), False),
        ("a;b", False),
    ],
)
async def test_a_clients_own_name_is_taken_if_it_is_harmless(
    connect: Any, given: str, is_taken: bool
) -> None:
    engine = ScriptedEngine("a")
    headers = {"X-Request-Id": given.encode("latin-1")}

    response = await connect(engine).post("/v1/chat/completions", json=CHAT, headers=headers)

    assert (response.headers["x-request-id"] == given) is is_taken
    assert engine.requests[0].request_id == response.headers["x-request-id"]


async def test_a_bug_is_named_too(connect: Any) -> None:
    class Broken(ScriptedEngine):
        async def submit(self, *_: object) -> Any:
            raise ZeroDivisionError

    response = await connect(Broken()).post(
        "/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"}
    )

    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")


async def test_an_answer_ends_with_one_line(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(ScriptedEngine("a", "b"))

    response = await client.post("/v1/chat/completions", json=CHAT | {"n": 2})

    (line,) = ends(caplog)
    assert line.pop("total_s") >= line.pop("first_token_s") >= 0
    assert line.pop("client")
    assert line == {
        "request_id": response.headers["x-request-id"], "dialect": "openai", "status": 200,
        "model": "scripted", "answer_id": response.json()["id"], "answers": 2,
        "prompt_tokens": 2 * PROMPT_TOKENS, "cached_tokens": 0, "completion_tokens": 4,
        "finish_reason": "stop",
    }  # fmt: skip


async def test_a_streams_line_comes_after_its_last_token(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await connect(ScriptedEngine("a", "b")).post("/generate_stream", json={"prompt": "Hi."})

    (line,) = ends(caplog)
    assert (line["dialect"], line["completion_tokens"]) == ("llmserver", 2)


async def test_a_refusals_line_tells_the_error(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(ScriptedEngine(refuse=EngineBusyError(1, 1)))

    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json={"messages": "?"})

    busy, invalid = ends(caplog)
    assert (busy["status"], busy["error"], busy["problem"]) == (
        429, "EngineBusyError", "engine_busy",
    )  # fmt: skip
    assert (invalid["status"], invalid["error"]) == (400, "invalid body")


async def test_a_failures_line_tells_the_kind(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(ScriptedEngine("a", GenerationFailedError("x")))

    await client.post("/v1/chat/completions", json=CHAT | {"stream": True})

    (line,) = ends(caplog)
    assert (line["finish_reason"], line["problem"]) == ("failed", "generation_failed")


async def test_embeddings_have_a_line(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())

    await client.post("/v1/embeddings", json={"input": ["a b", "c"]})

    (line,) = ends(caplog)
    assert (line["model"], line["prompt_tokens"]) == ("all-minilm-l6-v2", 3)


async def test_what_is_routine_has_none(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(ScriptedEngine())

    await client.get("/health")
    await client.get("/metrics")

    assert not ends(caplog)


async def test_a_path_cannot_break_the_line(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    await connect(ScriptedEngine()).get("/a%0Ab%1b%F0%9F%92%A9" + "x" * 500)

    (record,) = [r for r in caplog.records if r.name == LOGGER]
    assert "%0Ab%1B" in record.getMessage()
    assert len(record.getMessage()) < 200


async def test_a_middleware_inside_may_tell_whose_key_it_was_and_why_it_refused() -> None:
    async def refuse(request: Request) -> PlainTextResponse:
        request.scope["guanaco.key_name"] = "alice"
        request.scope["guanaco.refusal"] = "tokens_per_minute"
        return PlainTextResponse("", 429)

    inner = Starlette()
    inner.add_route("/", refuse)
    seen: list[Exchange] = []
    app = ExchangeMiddleware(inner, [seen.append])

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        await client.get("http://test/")

    assert [(e.key_name, e.refusal, e.status) for e in seen] == [
        ("alice", "tokens_per_minute", 429)
    ]


async def test_a_refusal_that_no_model_knows_of_is_counted() -> None:
    metrics = create_app(ScriptedEngine()).state.metrics
    exchange = Exchange.of({"method": "POST", "path": "/v1/x", "headers": []})
    exchange.status, exchange.refusal = 429, "tokens_per_minute"

    metrics.on_end(exchange)

    assert metrics.refusals == {"tokens_per_minute": 1}


async def test_who_is_told_cannot_break_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Exchange) -> None:
        raise ZeroDivisionError

    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("fine")

    inner = Starlette()
    inner.add_route("/", answer)
    seen: list[Exchange] = []
    app = ExchangeMiddleware(inner, [fail, seen.append])

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        assert (await client.get("http://test/")).text == "fine"

    assert len(seen) == 1
    assert "could not be told of" in caplog.text


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai"),
        ("/api/v1/models", "openai"),
        ("/api/worker/generate", "worker"),
        ("/generate_stream", "llmserver"),
        ("/", "page"),
        ("/page/app.js", "page"),
        ("/../secret", "other"),
    ],
)
def test_every_path_has_one_of_few_dialects(path: str, dialect: str) -> None:
    assert dialect_of(path) == dialect
