"""Dialect W: embeddings, token counts, what is served, and what is not done over HTTP.

Their clients parse bare JSON, so here, and only here, a failure has a status of its own.
"""

from typing import Any

import httpx
import pytest
from cluster_clients import MetadataOf047, MetadataOf070, SupportedOf038, SupportedOf070, Worker
from fakes import ScriptedEmbedder, ScriptedEngine

from dbgpt_guanaco.errors import EngineBusyError, InvalidRequestError
from dbgpt_guanaco.settings import ClusterSettings

EMBEDDER = "all-minilm-l6-v2"


@pytest.fixture
def worker(connect: Any) -> httpx.AsyncClient:
    """A worker with both kinds of model."""
    engine = ScriptedEngine(aliases=("guanaco",))
    made: httpx.AsyncClient = connect(engine, embedder=ScriptedEmbedder())
    return made


async def post(worker: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await worker.post(f"/api/worker/{path}", json=body)


def refusal(response: httpx.Response) -> str:
    """Return what DB-GPT shows its user: any body with another status than 200 and 201."""
    assert 400 <= response.status_code < 600
    message = response.json()["error"]["message"]
    assert message
    return str(message)


@pytest.mark.parametrize("more", [
    {}, {"span_id": "a:b"}, {"worker_type": "text2vec", "query": None}, {"worker_type": None},
])  # fmt: skip
async def test_embeddings_are_bare_lists_in_order(worker: Any, more: dict[str, Any]) -> None:
    response = await post(worker, "embeddings", model=EMBEDDER, input=["one", "three"], **more)

    assert response.status_code == 200
    assert response.json() == [[3, 0, 0.5], [5, 1, 0.5]]
    assert response.headers["content-type"] == "application/json"


async def test_no_texts_have_no_vectors(connect: Any) -> None:
    embedder = ScriptedEmbedder(refuse=InvalidRequestError("input", "is empty"))
    worker = connect(ScriptedEngine(), embedder=embedder)

    assert (await post(worker, "embeddings", model=EMBEDDER, input=[])).json() == []


@pytest.mark.parametrize(("body", "status", "text"), [
    ({"model": EMBEDDER, "input": ["a"], "worker_type": "reranker", "query": "q"}, 400, "rerank"),
    ({"model": EMBEDDER, "input": ["a"], "query": "q"}, 400, "no reranker is served here"),
    ({"model": "m3e", "input": ["a"]}, 404, f"unknown model 'm3e'; known: {EMBEDDER}"),
    ({"model": "scripted", "input": ["a"]}, 404, "unknown model 'scripted'"),
    ({"model": EMBEDDER}, 400, "input: Field required"),
    ({"model": EMBEDDER, "input": "a"}, 400, "input: Input should be a valid list"),
    ({"model": EMBEDDER, "input": [5]}, 400, "input[0]: Input should be a valid string"),
    ({"model": EMBEDDER, "input": ["a"], "worker_type": "x"}, 400, "worker_type: "),
    ({"model": EMBEDDER, "input": ["a" * 5_000_000]}, 413, "the body is larger than"),
])  # fmt: skip
async def test_what_cannot_be_embedded_is_told(
    worker: Any, body: dict[str, Any], status: int, text: str
) -> None:
    response = await post(worker, "embeddings", **body)

    assert text in refusal(response)
    assert response.status_code == status


async def test_without_an_embedding_model_the_setting_is_named(connect: Any) -> None:
    response = await post(connect(ScriptedEngine()), "embeddings", model=EMBEDDER, input=["a"])

    assert "EMBEDDING_MODEL" in refusal(response)
    assert response.status_code == 404


async def test_a_busy_embedder_says_so(connect: Any) -> None:
    embedder = ScriptedEmbedder(refuse=EngineBusyError(1, 64))

    response = await post(
        connect(ScriptedEngine(), embedder=embedder), "embeddings", model=EMBEDDER, input=["a"]
    )

    assert "64 waiting" in refusal(response)
    assert response.status_code == 429


@pytest.mark.parametrize("more", [{}, {"model": "scripted"}, {"model": None, "span_id": "a"}])
async def test_tokens_are_counted_without_a_model_too(worker: Any, more: dict[str, Any]) -> None:
    response = await post(worker, "count_token", prompt="one two three", **more)

    assert response.json() == 4  # and the one that opens a text


async def test_tokens_of_another_model_are_not_counted(worker: Any) -> None:
    assert "unknown model" in refusal(await post(worker, "count_token", prompt="a", model="other"))
    assert "prompt" in refusal(await post(worker, "count_token"))


@pytest.mark.parametrize("version", [MetadataOf047, MetadataOf070])
@pytest.mark.parametrize("model", ["scripted", "guanaco"])
async def test_metadata_are_read_by_every_version(worker: Any, model: str, version: Any) -> None:
    body = (await post(worker, "model_metadata", model=model, span_id="a:b")).json()

    parsed = version(**body)

    assert (parsed.model, parsed.context_length, parsed.chat_model) == (model, 2048, True)
    assert parsed.ext_metadata.prompt_roles == ["system", "human", "ai"]


async def test_metadata_of_the_embedding_model_say_that_it_does_not_chat(worker: Any) -> None:
    parsed = MetadataOf070(**(await post(worker, "model_metadata", model=EMBEDDER)).json())

    assert (parsed.context_length, parsed.chat_model) == (256, False)


async def test_metadata_of_another_model_are_refused(worker: Any) -> None:
    assert "unknown model 'x'" in refusal(await post(worker, "model_metadata", model="x"))


@pytest.mark.parametrize("version", [SupportedOf038, SupportedOf070])
async def test_what_is_served_is_listed_under_our_address(connect: Any, version: Any) -> None:
    cluster = ClusterSettings(advertise_host="10.0.0.7", advertise_port=8123)
    worker = connect(ScriptedEngine(), embedder=ScriptedEmbedder(), cluster=cluster)

    (listed,) = (await worker.get("/api/worker/models/supports")).json()

    parsed = Worker(**listed)
    assert (parsed.host, parsed.port) == ("10.0.0.7", 8123)
    models = [version(**model) for model in parsed.models]
    assert [(m.model, m.worker_type) for m in models] == [
        ("scripted", "llm"), (EMBEDDER, "text2vec"),
    ]  # fmt: skip
    assert all(m.enabled and m.path_exist and m.path == m.model for m in models)


async def test_without_an_embedding_model_none_is_listed(connect: Any) -> None:
    (listed,) = (await connect(ScriptedEngine()).get("/api/worker/models/supports")).json()

    assert [m["model"] for m in listed["models"]] == ["scripted"]


START = {"host": "10.0.0.7", "port": 8000, "params": {"name": "x"}, "delete_after": False}


@pytest.mark.parametrize(("model", "kind"), [
    ("scripted", "llm"), ("guanaco", "llm"), (EMBEDDER, "text2vec"),
])  # fmt: skip
async def test_what_runs_is_started(worker: Any, model: str, kind: str) -> None:
    response = await post(worker, "models/startup", model=model, worker_type=kind, **START)
    applied = await post(worker, "apply", model=model, worker_type=kind, apply_type="start")

    assert response.status_code == 200
    assert applied.json() == {"message": f"{model} is running", "success": True, "timecost": 0}


@pytest.mark.parametrize(("model", "kind"), [
    ("vicuna", "llm"), ("scripted", "text2vec"), (EMBEDDER, "llm"), ("scripted", "reranker"),
])  # fmt: skip
async def test_nothing_else_is_started(worker: Any, model: str, kind: str) -> None:
    response = await post(worker, "models/startup", model=model, worker_type=kind, **START)
    applied = await post(worker, "apply", model=model, worker_type=kind, apply_type="start")

    message = refusal(response)
    assert applied.json() == {"message": message, "success": False, "timecost": 0}


async def test_nothing_is_stopped_and_how_to_stop_is_told(worker: Any) -> None:
    response = await post(worker, "models/shutdown", model="scripted", worker_type="llm", **START)

    assert "SIGTERM" in refusal(response)


@pytest.mark.parametrize(("kind", "text"), [
    ("stop", "SIGTERM"), ("restart", "settings"), ("update_params", "settings"),
])  # fmt: skip
async def test_nothing_is_changed_over_http(worker: Any, kind: str, text: str) -> None:
    applied = await post(
        worker, "apply", model="scripted", worker_type="llm", apply_type=kind, params={},
        apply_user=None,
    )  # fmt: skip

    body = applied.json()
    assert (applied.status_code, body["success"]) == (200, False)
    assert text in body["message"]


async def test_a_running_model_has_no_parameters_to_describe(worker: Any) -> None:
    path = "/api/worker/parameter/descriptions"

    known = await worker.get(path, params={"model": "scripted", "worker_type": "llm"})
    unknown = await worker.get(path, params={"model": "x"})

    assert known.json() == []
    assert "unknown model" in refusal(unknown)


async def test_one_request_holds_no_more_texts_than_fit_in_memory(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder(name="e"))
    full = await client.post("/api/worker/embeddings", json={"model": "e", "input": [""] * 2048})
    assert len(full.json()) == 2048
    more = await client.post("/api/worker/embeddings", json={"model": "e", "input": [""] * 2049})
    assert more.status_code == 400
    assert "2048" in more.text
