"""Whatever is asked, and however it ends, at debug level no line of the log holds any of it."""

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fakes import ScriptedEmbedder
from rich.console import Console
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.logs import set_up_logging
from dbgpt_guanaco.settings import EngineSettings, LogFormat

CANARY = "canary"
ANSWER = "[~^]{8}"  # signs that stand nowhere else in a log, so that one alone gives it away
SAID = f"my {CANARY}-1234 is secret"
MESSAGES = [{"role": "user", "content": SAID}]
CHAT = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stop": [f"{CANARY}-stop"]}
SCHEMA = {"type": "object", "properties": {f"{CANARY}_key": {"enum": [f"{CANARY}-value"]}}}
BROKEN_SCHEMA = {"type": "string", "pattern": f"({CANARY}", f"{CANARY}_rule": True}
WORKER = {"model": "tiny", "prompt": SAID, "max_new_tokens": 5, "messages": []}


def with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    wanted = {"name": CANARY, "schema": schema, "strict": True}
    return CHAT | {"response_format": {"type": "json_schema", "json_schema": wanted}}


ASKED: list[tuple[str, Any]] = [
    ("/v1/chat/completions", CHAT | {"guided_regex": ANSWER}),
    ("/v1/chat/completions", CHAT | {"guided_regex": ANSWER, "stream": True, "logprobs": True}),
    ("/v1/chat/completions", with_schema(SCHEMA)),
    ("/v1/chat/completions", with_schema(BROKEN_SCHEMA)),
    ("/v1/chat/completions", CHAT | {"guided_regex": f"({CANARY}"}),
    ("/v1/chat/completions", CHAT | {"guided_grammar": f"start: {CANARY}"}),
    ("/v1/chat/completions", {"messages": SAID}),
    ("/v1/chat/completions", CHAT | {"model": CANARY}),
    ("/v1/chat/completions", CHAT | {f"My {CANARY} is a field": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": SAID * 500}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": f"{CANARY} \ud800"}]}),
    ("/v1/completions", {"prompt": SAID, "max_tokens": 5, "echo": True}),
    ("/v1/completions", {"prompt": SAID, "temperature": f"{CANARY}"}),
    ("/v1/tokenize", {"prompt": SAID}),
    ("/v1/embeddings", {"input": SAID}),
    ("/v1/embeddings", {"input": [SAID, 1]}),
    ("/generate_stream", {"prompt": SAID, "max_new_tokens": 5, "stop": CANARY}),
    ("/generate", {"prompt": SAID, "max_new_tokens": 5}),
    ("/embedding", {"prompt": SAID}),
    ("/api/worker/generate_stream", WORKER),
    ("/api/worker/generate", WORKER | {"messages": [{"role": CANARY, "content": SAID}]}),
    ("/api/worker/count_token", {"prompt": SAID}),
]
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {CANARY}-key",
    "X-Request-Id": f"{CANARY} is no id",
    "DB-GPT-Trace-Span-Id": CANARY,
    "traceparent": CANARY,
    "User-Agent": CANARY,
}


@pytest.fixture
def engine(request: pytest.FixtureRequest, llama_tokenizer: Any) -> Iterator[Any]:
    made = request.param(tiny_loaded(llama_tokenizer), EngineSettings(slots=4))
    made.wait_until_warm()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("engine", "log_format"),
    [(StreamingEngine, "text"), (BatchingEngine, "json")],
    indirect=["engine"],
)
async def test_no_line_holds_what_was_asked_or_answered(
    engine: Any,
    log_format: LogFormat,
    bare_logging: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    bare_logging()
    text = io.StringIO()
    set_up_logging("debug", Console(file=text, width=10_000), log_format)
    app = create_app(engine, embedder=ScriptedEmbedder())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        responses = [
            await client.post(path, content=json.dumps(body), headers=HEADERS, params={"q": CANARY})
            for path, body in ASKED
        ]
        responses.append(
            await client.post("/v1/completions", content=f'{{"prompt": {CANARY}', headers=HEADERS)
        )

    logged = text.getvalue() + "".join(capfd.readouterr())
    assert logged.count("request_id") >= len(responses)
    assert re.search(ANSWER, responses[0].text)  # it was answered, and with this
    assert {r.status_code for r in responses} == {200, 400, 404}
    assert CANARY not in logged.lower()
    assert not re.search("[~^]", logged)
