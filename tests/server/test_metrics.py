import asyncio
import threading
from typing import Any

import httpx
import pytest
from fakes import PROMPT_TOKENS, ScriptedEmbedder, ScriptedEngine, ScriptedLoras
from metrics_page import scrape
from prometheus_client.openmetrics import parser as openmetrics

from dbgpt_guanaco.errors import (
    EngineBusyError,
    GenerationFailedError,
    GuanacoError,
    OutOfMemoryError,
    PromptTooLongError,
)
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.instruments import MOST_MODELS, add_one, count_buckets
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.types import EngineLoad

HI = [{"role": "user", "content": "Hi."}]
# Every way to ask for an answer, one for each dialect and form.
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HI}),
    ("/api/v1/chat/completions", {"messages": HI, "stream": True}),
    ("/v1/completions", {"prompt": "Hi."}),
    ("/v1/completions", {"prompt": "Hi.", "stream": True}),
    ("/generate_stream", {"prompt": "Hi."}),
    ("/generate", {"prompt": "Hi."}),
    ("/api/worker/generate_stream", {"model": "scripted", "prompt": "Hi."}),
    ("/api/worker/generate", {"model": "scripted", "prompt": "Hi."}),
]


@pytest.mark.parametrize(("path", "body"), WAYS)
async def test_every_dialect_counts_alike(connect: Any, path: str, body: dict[str, Any]) -> None:
    client = connect(ScriptedEngine("a", "b", "c"))

    await client.post(path, json=body)

    page = await scrape(client)
    assert page.value("guanaco_prompt_tokens_total") == PROMPT_TOKENS
    assert page.value("guanaco_generation_tokens_total") == 3
    assert page.value("guanaco_request_success_total", finished_reason="stop") == 1
    assert page.value("guanaco_request_success_total") == 1
    assert page.value("guanaco_time_to_first_token_seconds_count") == 1
    assert page.value("guanaco_inter_token_latency_seconds_count") == 2
    assert page.value("guanaco_e2e_request_latency_seconds_count") == 1
    assert page.value("guanaco_request_generation_tokens_sum") == 3


async def test_each_of_several_answers_is_counted(connect: Any) -> None:
    client = connect(ScriptedEngine("a", "b"))

    await client.post("/v1/chat/completions", json={"messages": HI, "n": 3})

    page = await scrape(client)
    assert page.value("guanaco_request_success_total", finished_reason="stop") == 3
    assert page.value("guanaco_generation_tokens_total") == 6


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (EngineBusyError(1, 2), "engine_busy"),
        (PromptTooLongError(9, 8), "prompt_too_long"),
    ],
)
async def test_a_refusal_is_counted_by_its_cause(
    connect: Any, error: GuanacoError, cause: str
) -> None:
    client = connect(ScriptedEngine(refuse=error))

    await client.post("/v1/chat/completions", json={"messages": HI})

    page = await scrape(client)
    assert page.value("guanaco_request_refusals_total", cause=cause) == 1
    assert page.value("guanaco_request_refusals_total") == 1
    assert page.value("guanaco_request_success_total") == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [(GenerationFailedError("x"), "generation_failed"), (OutOfMemoryError("x"), "out_of_memory")],
)
async def test_a_failure_is_counted_by_its_kind(
    connect: Any, error: GuanacoError, kind: str
) -> None:
    client = connect(ScriptedEngine("a", error))

    await client.post("/v1/chat/completions", json={"messages": HI, "stream": True})

    page = await scrape(client)
    assert page.value("guanaco_request_errors_total", kind=kind) == 1
    assert page.value("guanaco_request_errors_total") == 1
    assert page.value("guanaco_generation_tokens_total") == 1


async def test_a_client_that_leaves_is_counted_once_as_abort() -> None:
    engine = ScriptedEngine("a", endless=True)
    app = create_app(engine)
    body = b'{"messages": [{"role": "user", "content": "Hi."}], "stream": true}'
    left = asyncio.Event()
    to_read = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if to_read:
            return to_read.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if b'"content":"a"' in message.get("body", b""):
            left.set()

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers,
        "query_string": b"", "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    async with asyncio.timeout(5):
        await app(scope, receive, send)

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    page = await scrape(client)
    assert page.value("guanaco_request_success_total", finished_reason="abort") == 1
    assert page.value("guanaco_request_success_total") == 1
    assert page.value("guanaco_generation_tokens_total") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["one two", "three"]}),
        (
            "/api/worker/embeddings",
            {"model": "all-minilm-l6-v2", "input": ["one two", "three"]},
        ),
    ],
)
async def test_embeddings_are_counted(connect: Any, path: str, body: dict[str, Any]) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())

    await client.post(path, json=body)

    page = await scrape(client)
    model = {"model_name": "all-minilm-l6-v2"}
    assert page.value("guanaco_embedding_texts_total", **model) == 2
    assert page.value("guanaco_embedding_tokens_total", **model) == 3
    assert page.value("guanaco_embedding_latency_seconds_count", **model) == 1


async def test_labels_hold_only_names_that_are_served(connect: Any) -> None:
    client = connect(
        ScriptedEngine("a", aliases=("gpt",), loras=ScriptedLoras("sql")),
        embedder=ScriptedEmbedder(),
    )
    for model in ("scripted", "gpt", "sql", "made-up-by-a-client"):
        await client.post("/v1/chat/completions", json={"messages": HI, "model": model})
    await client.get("/made/up/by/a/client")
    await client.post("/v1/embeddings", json={"input": "x", "model": "made-up"})

    labels = (await scrape(client)).labels

    assert {value for name, value in labels if name == "model_name"} == {"scripted", "sql"}
    assert {value for name, value in labels if name == "dialect"} == {"openai", "other"}
    assert not [value for _, value in labels if "made" in value]


def test_names_of_loras_without_end_share_one_label() -> None:
    metrics = Metrics(LifeCycle.of(ScriptedEngine()))

    for i in range(MOST_MODELS + 50):
        add_one(metrics.of(f"lora{i}").counts.endings, "stop")

    counted = {name: counts.endings["stop"] for name, counts in metrics.counts()}
    assert len(counted) == MOST_MODELS + 1
    assert counted["other"] == 51


class BusyEngine(ScriptedEngine):
    """Says that it is busy."""

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(3, 4, 5, 6, 10, 4, 100, 40, 2, 7)


async def test_the_engines_own_numbers_are_read_at_the_scrape(connect: Any) -> None:
    page = await scrape(connect(BusyEngine()))

    told = {
        "num_requests_running": 3, "num_requests_waiting": 4, "max_requests_running": 5,
        "max_requests_waiting": 6, "kv_cache_blocks": 10, "kv_cache_usage_perc": 0.6,
        "prefix_cache_queries_total": 100, "prefix_cache_hits_total": 40,
        "num_preemptions_total": 2, "device_memory_bytes": 7,
    }  # fmt: skip
    assert {name: page.value(f"guanaco_{name}") for name in told} == told


@pytest.mark.parametrize(("is_alive", "state"), [(True, "ready"), (False, "failed")])
async def test_one_state_of_the_engine_is_true(connect: Any, is_alive: bool, state: str) -> None:
    engine = ScriptedEngine()
    engine.is_alive = is_alive

    page = await scrape(connect(engine))

    assert page.value("guanaco_engine_state", state=state) == 1
    assert page.value("guanaco_engine_state") == 1


async def test_what_needs_a_model_is_exported_once_there_is_one(connect: Any) -> None:
    life = LifeCycle()
    client = connect(life)
    await client.post("/v1/completions", json={"prompt": "Hi."})

    loading = await scrape(client)
    life.open(ScriptedEngine("a"), None)
    await client.post("/v1/completions", json={"prompt": "Hi."})
    ready = await scrape(client)
    life.leave()
    draining = await scrape(client)

    assert loading.value("guanaco_engine_state", state="loading") == 1
    assert loading.value("guanaco_http_responses_total", code="503") == 1
    with pytest.raises(KeyError):
        loading.value("guanaco_num_requests_running")
    assert ready.value("guanaco_engine_state", state="ready") == 1
    assert ready.value("guanaco_num_requests_running") == 1
    assert ready.value("guanaco_generation_tokens_total") == 1
    assert draining.value("guanaco_engine_state", state="draining") == 1


async def test_health_tells_the_same_numbers(connect: Any) -> None:
    client = connect(BusyEngine("a", "b"))
    await client.post("/v1/completions", json={"prompt": "x"})

    health, page = (await client.get("/health")).json(), await scrape(client)

    assert health["generation_tokens"] == page.value("guanaco_generation_tokens_total") == 2
    assert health["kv_usage"] == page.value("guanaco_kv_cache_usage_perc") == 0.6


async def test_memory_and_build_are_told(connect: Any) -> None:
    page = await scrape(connect(ScriptedEngine()))

    assert page.value("process_resident_memory_bytes") > 10 * 2**20
    assert page.value("guanaco_build_info") == 1
    assert page.value("guanaco_model_info", model_name="scripted", quantization="nf4") == 1


async def test_two_applications_do_not_mix(connect: Any) -> None:
    one, other = connect(ScriptedEngine("a")), connect(ScriptedEngine("a"))

    await one.post("/v1/completions", json={"prompt": "x"})

    assert (await scrape(other)).value("guanaco_generation_tokens_total") == 0


async def test_open_metrics_is_written_for_who_asks_for_it(connect: Any) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}

    response = await connect(ScriptedEngine()).get("/metrics", headers=accept)

    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = openmetrics.text_string_to_metric_families(response.text)  # type: ignore[no-untyped-call]
    assert {"guanaco_prompt_tokens", "guanaco_engine_state"} <= {f.name for f in families}


async def test_the_event_loop_goes_on_while_a_scrape_is_written(connect: Any) -> None:
    """The engine's numbers are held back; another request is answered meanwhile."""
    is_asked, may_go_on = threading.Event(), threading.Event()

    class SlowToTell(ScriptedEngine):
        @property
        def load(self) -> EngineLoad:
            if threading.current_thread() is not threading.main_thread():
                is_asked.set()
                assert may_go_on.wait(10)
            return super().load

    client = connect(SlowToTell("a"))
    scraping = asyncio.create_task(client.get("/metrics"))
    await asyncio.to_thread(is_asked.wait, 10)

    answer = await client.post("/v1/completions", json={"prompt": "x"})

    assert answer.status_code == 200
    assert not scraping.done()
    may_go_on.set()
    assert (await scraping).status_code == 200


def test_buckets_of_counts_are_1_2_5_steps() -> None:
    assert count_buckets(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert count_buckets(2048)[-1] == 2000
