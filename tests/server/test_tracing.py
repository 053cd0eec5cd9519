import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fakes import PROMPT_TOKENS, ScriptedEmbedder, ScriptedEngine
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from dbgpt_guanaco.errors import ConfigurationError, EngineBusyError, GenerationFailedError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.listeners import create_listeners
from dbgpt_guanaco.server.tracing import Tracing
from dbgpt_guanaco.settings import ObservationSettings

CHAT = {"messages": [{"role": "user", "content": "the question"}], "stop": ["the stop"]}
TRACE, SPAN = "0123456789abcdef0123456789abcdef", "fedcba9876543210"


class Traced:
    """An application whose spans can be read."""

    def __init__(self, engine: Any) -> None:
        self._spans = InMemorySpanExporter()
        tracing = Tracing(SimpleSpanProcessor(self._spans))
        app = create_app(engine, embedder=ScriptedEmbedder(), listeners=[tracing])
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    async def span_of(self, path: str, body: Any, **headers: str) -> ReadableSpan:
        await self.client.post(path, json=body, headers=headers)
        (span,) = self.spans
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_an_answer_is_one_span_with_counts_and_times() -> None:
    traced = Traced(ScriptedEngine("some", " answer"))

    span = await traced.span_of(
        "/v1/chat/completions", CHAT | {"max_tokens": 9, "temperature": 0.5, "n": 2}
    )

    told = attributes(span)
    assert (span.name, span.kind) == ("chat scripted", SpanKind.SERVER)
    assert 0 <= told.pop("gen_ai.response.time_to_first_chunk") < 5
    assert told.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert told.pop("guanaco.request.id").startswith("req-")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "dbgpt_guanaco",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.model": "scripted",
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": 2 * PROMPT_TOKENS,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "guanaco.dialect": "openai",
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert span.start_time
    assert span.end_time
    assert 0 < span.end_time - span.start_time < 5e9
    assert span.status.status_code is StatusCode.UNSET


async def test_names_are_those_of_the_conventions() -> None:
    known = {v for n, v in vars(gen_ai_attributes).items() if n.startswith("GEN_AI_")}

    told = attributes(await Traced(ScriptedEngine("a")).span_of("/v1/completions", {"prompt": "x"}))

    assert {name for name in told if name.startswith("gen_ai.")} <= known


async def test_no_text_is_told() -> None:
    traced = Traced(ScriptedEngine("some", " answer"))

    span = await traced.span_of("/v1/chat/completions", CHAT, Authorization="Bearer the-key")

    for text in ("question", "the stop", "answer", "the-key"):
        assert text not in span.to_json()


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/generate_stream", {"prompt": "x"}, "chat scripted"),
        ("/api/worker/generate", {"model": "scripted", "prompt": "x"}, "chat scripted"),
        ("/v1/completions", {"prompt": "x"}, "text_completion scripted"),
        ("/v1/embeddings", {"input": "x"}, "embeddings all-minilm-l6-v2"),
        ("/v1/chat/completions", {"messages": "wrong"}, "chat"),
    ],
)
async def test_each_way_to_ask_has_its_name(path: str, body: Any, name: str) -> None:
    assert (await Traced(ScriptedEngine("a")).span_of(path, body)).name == name


async def test_what_asks_no_model_has_no_span() -> None:
    traced = Traced(ScriptedEngine())

    await traced.client.get("/v1/models")
    await traced.client.get("/health")
    await traced.client.post("/v1/tokenize", json={"prompt": "x"})

    assert traced.spans == ()


@pytest.mark.parametrize(
    "headers",
    [
        {"DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}"},
        {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        {"DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"},
        {"DB-GPT-Trace-Span-Id": "empty_span", "traceparent": f"00-{TRACE}-{SPAN}-01"},
    ],
)
async def test_a_span_stands_below_the_callers(headers: dict[str, str]) -> None:
    traced = Traced(ScriptedEngine("a"))

    span = await traced.span_of("/v1/completions", {"prompt": "x"}, **headers)

    assert span.parent
    assert span.parent.is_remote
    assert (span.parent.trace_id, span.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert span.context.trace_id == int(TRACE, 16)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "empty_span",
        f"{'0' * 32}:{SPAN}",
        f"{TRACE}:{'0' * 16}",
        f"{TRACE}:{SPAN}:{SPAN}",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479:9b2f7a4e-58cc-4372-a567-0e02b2c3d479",
    ],
)
async def test_a_wrong_parent_is_no_parent(given: str) -> None:
    traced = Traced(ScriptedEngine("a"))

    span = await traced.span_of(
        "/v1/completions", {"prompt": "x"}, **{"DB-GPT-Trace-Span-Id": given}
    )

    assert span.parent is None


async def test_a_caller_may_ask_not_to_be_traced() -> None:
    traced = Traced(ScriptedEngine("a"))
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-00"}

    await traced.client.post("/v1/completions", json={"prompt": "x"}, headers=headers)

    assert traced.spans == ()


async def test_a_failure_marks_its_span() -> None:
    traced = Traced(ScriptedEngine("a", GenerationFailedError("x")))

    span = await traced.span_of("/v1/completions", {"prompt": "x", "stream": True})

    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "generation_failed"


async def test_a_refusal_tells_its_kind_and_is_no_error_of_ours() -> None:
    traced = Traced(ScriptedEngine(refuse=EngineBusyError(1, 1)))

    span = await traced.span_of("/v1/completions", {"prompt": "x"})

    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["error.type"] == "engine_busy"


class Receiver(HTTPServer):
    """A collector on loopback: keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keep)
        self.paths: list[str] = []
        self.received: list[ExportTraceServiceRequest] = []


class _Keep(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.append(self.path)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
async def test_spans_reach_a_collector_before_the_server_ends(
    receiver: Receiver, path: str
) -> None:
    endpoint = f"http://127.0.0.1:{receiver.server_port}{path}"
    listeners = create_listeners(ObservationSettings(otlp_endpoint=endpoint))
    app = create_app(ScriptedEngine("a"), listeners=listeners)
    headers = {"DB-GPT-Trace-Span-Id": f"{TRACE}:{SPAN}"}
    transport = httpx.ASGITransport(app)

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)

    assert receiver.paths == ["/v1/traces"]
    (resource,) = receiver.received[0].resource_spans
    (span,) = resource.scope_spans[0].spans
    assert span.name == "text_completion scripted"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    told = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert told["service.name"] == "dbgpt_guanaco"


OFF = """
import sys
from dbgpt_guanaco.server import __main__
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.listeners import create_listeners
from dbgpt_guanaco.settings import ObservationSettings
from fakes import ScriptedEngine
create_app(ScriptedEngine(), listeners=create_listeners(ObservationSettings()))
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")
       or name.startswith("opentelemetry.exporter")])
"""


def test_nothing_of_it_is_loaded_while_it_is_off() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFF], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip

    assert done.stdout == "[]\n"


def test_a_missing_library_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dbgpt_guanaco.server.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'dbgpt-guanaco\[tracing\]'"):
        create_listeners(ObservationSettings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize("address", ["localhost:4318", "ftp://x", "http://", "http://a:b@x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        ObservationSettings(otlp_endpoint=address)
