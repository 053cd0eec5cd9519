"""Requests that come before the engine is there, and after it takes none."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from fakes import ScriptedEmbedder, ScriptedEngine

from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.starting import LifeCycle, in_own_thread
from dbgpt_guanaco.settings import ClusterSettings
from dbgpt_guanaco.start import StartProgress

# What answers at any time: probes, metrics, the page, and DB-GPT's probe of a controller.
OPEN = {"/health", "/ready", "/metrics", "/", "/api/health"}
# Their clients never look at a status; the frame says it.
FRAMES_ONLY = {"/api/worker/generate", "/api/worker/generate_stream"}
TOLD = "the model is being loaded (loading weights, 3 of 7 tensors); try again soon"


def loading() -> LifeCycle:
    life = LifeCycle()
    life.tell(StartProgress("loading weights", 3, 7, "tensors"))
    return life


def routes() -> list[tuple[str, str]]:
    paths = create_app(ScriptedEngine()).openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(found) > 25
    return found


@pytest.fixture
def client(connect: Any) -> httpx.AsyncClient:
    cluster = ClusterSettings(worker_networks=("127.0.0.0/8",))
    client: httpx.AsyncClient = connect(loading(), cluster=cluster)
    return client


async def ask(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    instance: dict[str, Any] = {"model_name": "a@llm", "host": "127.0.0.1", "port": 8001}
    return await client.request(method, path, json=instance, params=instance | {"model": "a"})


@pytest.mark.parametrize(("method", "path"), [r for r in routes() if r[1] not in OPEN])
async def test_every_other_route_says_that_the_model_is_being_loaded(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await ask(client, method, path)

    assert TOLD in response.text
    if path not in FRAMES_ONLY:
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_what_is_open_answers_meanwhile(client: httpx.AsyncClient, path: str) -> None:
    assert TOLD not in (await client.get(path)).text


DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"error": {"message": TOLD, "type": "server_error",
                                        "param": None, "code": None}}),
    ("/generate_stream", {"text": f"**LLMServer Generate Error, Please CheckErrorInfo.**: {TOLD}",
                          "error_code": 1,
                          "model_context": {"prompt_echo_len_char": 0, "echo": False}}),
    ("/generate", {"text": f"**LLMServer Generate Error, Please CheckErrorInfo.**: {TOLD}",
                   "error_code": 0}),
    ("/api/worker/generate_stream",
     {"text": f"**LLMServer Generate Error, Please CheckErrorInfo.**: {TOLD}", "error_code": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "told"), DIALECTS)
async def test_each_dialect_says_it_in_its_own_words(
    client: httpx.AsyncClient, path: str, told: dict[str, Any]
) -> None:
    response = await client.post(path, json={})

    assert json.loads(response.content.rstrip(b"\0")).items() >= told.items()


async def test_it_answers_once_the_engine_is_there(connect: Any) -> None:
    life = loading()
    client = connect(life)
    assert (await client.get("/v1/models")).status_code == 503

    life.open(ScriptedEngine(), ScriptedEmbedder())

    assert len((await client.get("/v1/models")).json()["data"]) == 2


async def test_who_leaves_still_lets_in_who_was_sent_here_until_the_door_is_shut(
    connect: Any,
) -> None:
    life = LifeCycle.of(ScriptedEngine("a"))
    client = connect(life)

    life.leave()
    early = await client.post("/v1/completions", json={"prompt": "x"})
    life.shut()
    late = await client.post("/v1/completions", json={"prompt": "x"})

    assert early.status_code == 200
    assert late.status_code == 503
    assert late.headers["retry-after"] == "5"
    assert late.json()["error"]["message"] == "the server is shutting down"


async def test_a_controller_that_leaves_lists_the_others_only(connect: Any) -> None:
    life = LifeCycle.of(ScriptedEngine())
    client = connect(life, cluster=ClusterSettings(worker_networks=("127.0.0.0/8",)))
    await ask(client, "POST", "/api/controller/models")

    before = (await client.get("/api/controller/models")).json()
    life.shut()
    after = (await client.get("/api/controller/models")).json()

    assert {each["model_name"] for each in before} > {"a@llm", "scripted@llm"}
    assert [each["model_name"] for each in after] == ["a@llm"]


async def test_work_in_its_own_thread_gives_what_it_returns_or_raises() -> None:
    names = await in_own_thread(lambda: threading.current_thread().name, "worker")
    assert names == "worker"

    def fail() -> None:
        raise ModelLoadError("no")

    def leave() -> None:
        raise SystemExit(1)

    with pytest.raises(ModelLoadError, match="no"):
        await in_own_thread(fail, "worker")
    with pytest.raises(RuntimeError, match="SystemExit"):
        await in_own_thread(leave, "worker")


async def test_work_that_ends_when_nobody_waits_any_more_is_dropped() -> None:
    go = threading.Event()
    future = in_own_thread(go.wait, "worker")
    future.cancel()
    go.set()
    for thread in threading.enumerate():
        if thread.name == "worker":
            await asyncio.to_thread(thread.join)

    assert future.cancelled()
