"""A LoRA is a model of its own to every client, and only the admin loads one."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fakes import ScriptedEngine, ScriptedLoras
from pydantic import SecretStr

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.instances import own_workers
from dbgpt_guanaco.settings import AccessSettings

ADMIN = {"Authorization": "Bearer the-key-of-the-admin"}
LOAD = {"lora_name": "new", "lora_path": "folder/new"}
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine("Hi", loras=ScriptedLoras("sql", known=("folder/new",)))


def client_of(engine: ScriptedEngine, admin_key: str | None = "the-key-of-the-admin") -> Any:
    access = AccessSettings(admin_key=SecretStr(admin_key) if admin_key else None)
    transport = httpx.ASGITransport(create_app(engine, access=access))
    return httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=ADMIN if admin_key else {}
    )


async def test_a_lora_is_listed_with_its_base(engine: ScriptedEngine) -> None:
    async with client_of(engine) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        alone = (await client.get("/v1/models/sql")).json()

    assert [(m["id"], m["parent"], m["lora"]) for m in listed] == [
        ("scripted", None, None),
        ("sql", "scripted", "sql-folder"),
    ]
    assert alone == listed[1]
    assert own_workers(engine, None) == ["scripted@llm", "sql@llm", "WorkerManager@service"]


CALLS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "chat": lambda name: ("/v1/chat/completions", {"model": name, "messages": MESSAGES}),
    "worker": lambda name: (
        "/api/worker/generate",
        {"model": name, "messages": [{"role": "human", "content": "Hello"}]},
    ),
    "llmserver": lambda name: ("/generate", {"model": name, "prompt": "Hello"}),
}


@pytest.mark.parametrize("dialect", CALLS)
async def test_a_request_chooses_by_its_model_s_name(engine: ScriptedEngine, dialect: str) -> None:
    async with client_of(engine) as client:
        for name in ("scripted", "sql"):
            path, body = CALLS[dialect](name)
            assert (await client.post(path, json=body)).status_code == 200

    base, laid = engine.requests
    assert (base.lora, laid.lora) == (None, "sql")
    assert set(base.sampling.stop) == set(GuanacoAdapter.template.stop)
    assert set(laid.sampling.stop) == set(VicunaAdapter.template.stop)
    assert base.prompt != laid.prompt  # each in the words of its own family


async def test_a_completion_chooses_too(engine: ScriptedEngine) -> None:
    async with client_of(engine) as client:
        answer = await client.post("/v1/completions", json={"model": "sql", "prompt": "Hello"})

    assert answer.json()["model"] == "sql"
    assert engine.requests[0].lora == "sql"


@pytest.mark.parametrize("dialect", ["chat", "worker"])
async def test_an_unknown_name_is_told_which_there_are(
    engine: ScriptedEngine, dialect: str
) -> None:
    path, body = CALLS[dialect]("slq")
    async with client_of(engine) as client:
        answer = await client.post(path, json=body)

    assert "scripted, sql" in answer.text
    assert engine.requests == []


async def test_the_admin_loads_and_unloads(engine: ScriptedEngine) -> None:
    async with client_of(engine) as client:
        loaded = await client.post("/v1/load_lora_adapter", json=LOAD)
        assert loaded.status_code == 200, loaded.text
        assert engine.loras.names == ("sql", "new")

        unloaded = await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
        assert unloaded.status_code == 200
        assert list(engine.loras.names) == ["new"]


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"lora_path": "folder/old"}, 400, "no LoRA of that name"),
        ({"lora_path": "a\0b"}, 400, "lora_path"),
        ({"lora_path": ""}, 400, "lora_path"),
        ({"lora_name": "sql"}, 400, "already"),
        ({"lora_name": "a@b"}, 400, "lora_name"),
        ({"lora_name": ""}, 400, "lora_name"),
        ({"more": 1}, 400, "more"),
    ],
)
async def test_what_cannot_be_loaded_is_told(
    engine: ScriptedEngine, change: dict[str, Any], status: int, told: str
) -> None:
    async with client_of(engine) as client:
        answer = await client.post("/v1/load_lora_adapter", json=LOAD | change)

    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]
    assert engine.loras.names == ("sql",)


async def test_unloading_what_is_not_there_is_a_404(engine: ScriptedEngine) -> None:
    async with client_of(engine) as client:
        answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": "no-such"})

    assert answer.status_code == 404


USER_KEY = "the-key-of-somebody"


@pytest.mark.parametrize("admin_key", ["the-key-of-the-admin", None])
@pytest.mark.parametrize("what", ["load", "unload"])
async def test_a_key_that_is_not_the_admin_s_is_not_enough(
    engine: ScriptedEngine, admin_key: str | None, what: str
) -> None:
    body = LOAD if what == "load" else {"lora_name": "sql"}
    access = AccessSettings(
        admin_key=SecretStr(admin_key) if admin_key else None, api_keys=(SecretStr(USER_KEY),)
    )
    transport = httpx.ASGITransport(create_app(engine, access=access))
    headers = {"Authorization": f"Bearer {USER_KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post(f"/v1/{what}_lora_adapter", json=body, headers=headers)

    assert answer.status_code == 401
    assert "admin" in answer.json()["error"]["message"]
    assert engine.loras.names == ("sql",)


@pytest.mark.parametrize("headers", [{}, ADMIN])
@pytest.mark.parametrize("what", ["load", "unload"])
async def test_without_an_admin_key_nobody_loads(
    engine: ScriptedEngine, headers: dict[str, str], what: str
) -> None:
    body = LOAD if what == "load" else {"lora_name": "sql"}
    async with client_of(engine, None) as client:
        answer = await client.post(f"/v1/{what}_lora_adapter", json=body, headers=headers)

    assert answer.status_code == 401
    assert engine.loras.names == ("sql",)
