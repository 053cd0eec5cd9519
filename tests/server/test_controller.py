"""The controller role: who is listed, who may register, and what nobody may do."""

import logging
from dataclasses import dataclass, fields
from typing import Any

import httpx
import pytest
from fakes import ScriptedEmbedder, ScriptedEngine

from dbgpt_guanaco.server import instances
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.controller import MAX_REFUSALS, SAME_REFUSAL_S, RefusalLog
from dbgpt_guanaco.server.instances import InstanceTable
from dbgpt_guanaco.settings import ClusterSettings

NETWORKS = ("10.0.0.0/24", "fd00::/64")
MODELS = "/api/controller/models"
HEARTBEAT = "/api/controller/heartbeat"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class OldModelInstance:
    """What a client before 0.7 builds from each object, and fails on a key it does not know."""

    model_name: str
    host: str
    port: int
    weight: float | None = 1.0
    check_healthy: bool | None = True
    healthy: bool | None = False
    enabled: bool | None = True
    prompt_template: str | None = None
    last_heartbeat: str | None = None


class Cluster:
    """One controller, and its callers from many addresses."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("worker_networks", NETWORKS)
        self.clock = clock = Clock()
        self.engine = ScriptedEngine(name="mine")
        self.app = create_app(
            self.engine, embedder=ScriptedEmbedder(), cluster=ClusterSettings(**settings)
        )
        self.app.state.instances = InstanceTable(clock)
        self.app.state.refusals = RefusalLog(clock)

    def from_(self, caller: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, client=(caller, 50000))
        return httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1:8000")

    async def register(self, caller: str, **other: Any) -> httpx.Response:
        return await self.from_(caller).post(MODELS, json=worker(host=caller) | other)

    async def listed(self, **query: Any) -> list[dict[str, Any]]:
        response = await self.from_("192.0.2.1").get(MODELS, params=query)
        assert response.status_code == 200, response.text
        return list(response.json())

    async def names(self, **query: Any) -> list[tuple[str, str]]:
        return [(each["model_name"], each["host"]) for each in await self.listed(**query)]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def worker(host: str, model: str = "theirs@llm", port: int = 8001) -> dict[str, Any]:
    return {"model_name": model, "host": host, "port": port}


OWN = [("mine@llm", "10.0.0.1"), ("all-minilm-l6-v2@text2vec", "10.0.0.1"),
       ("WorkerManager@service", "10.0.0.1")]  # fmt: skip


async def test_it_lists_itself_at_the_address_where_it_was_asked() -> None:
    cluster = Cluster(worker_networks=())

    assert await cluster.names() == OWN
    assert {each["port"] for each in await cluster.listed()} == {8000}
    assert all(each["healthy"] for each in await cluster.listed())
    assert (await cluster.from_("192.0.2.1").get("/api/health")).json() == {"status": "ok"}


async def test_an_old_client_can_read_the_list(cluster: Cluster) -> None:
    await cluster.register("10.0.0.9", weight=2.5, prompt_template="vicuna")

    read = [OldModelInstance(**each) for each in await cluster.listed()]

    assert [set(each) for each in await cluster.listed()] == [
        {field.name for field in fields(OldModelInstance)}
    ] * 4
    assert read[3].weight == 2.5
    assert read[3].prompt_template == "vicuna"


async def test_a_dead_engine_is_shown_as_ill_and_gets_no_chats(cluster: Cluster) -> None:
    cluster.engine.is_alive = False

    assert [each["healthy"] for each in await cluster.listed()] == [False] * 3
    assert await cluster.names(healthy_only="true") == []


async def test_a_name_that_dbgpt_cannot_read_is_not_listed(cluster: Cluster) -> None:
    cluster.engine.card = ScriptedEngine(name="a@b", aliases=("also", "c\nd")).card

    assert await cluster.names() == [("also@llm", "10.0.0.1"), *OWN[1:]]


@pytest.mark.parametrize("healthy_only", ["true", "True", "false", "", "1"])
async def test_the_list_is_filtered_by_name(cluster: Cluster, healthy_only: str) -> None:
    async def names(model_name: str) -> list[tuple[str, str]]:
        return await cluster.names(model_name=model_name, healthy_only=healthy_only)

    assert await names("mine@llm") == OWN[:1]
    assert await names("unknown@llm") == []
    assert await names("") == OWN


@pytest.mark.parametrize("path", [MODELS, HEARTBEAT])
@pytest.mark.parametrize("caller", ["10.0.0.9", "fd00::9", "::ffff:10.0.0.9"])
async def test_a_worker_of_an_allowed_network_joins(
    cluster: Cluster, path: str, caller: str
) -> None:
    """The least that a worker may send is enough, and a heartbeat registers, too."""
    host = {"fd00::9": "[fd00::9]"}.get(caller, "10.0.0.9")

    response = await cluster.from_(caller).post(path, json=worker(host))

    assert response.json() is True
    assert await cluster.names(model_name="theirs@llm", healthy_only="true") == [
        ("theirs@llm", host)
    ]


async def test_all_of_dbgpts_fields_are_taken(cluster: Cluster) -> None:
    full = worker("10.0.0.9") | {
        "weight": None, "check_healthy": True, "healthy": False, "enabled": True,
        "prompt_template": None, "last_heartbeat": None, "remove_from_registry": False,
    }  # fmt: skip

    assert (await cluster.from_("10.0.0.9").post(MODELS, json=full)).json() is True
    assert (await cluster.listed(model_name="theirs@llm"))[0]["healthy"] is True


@pytest.mark.parametrize("path", [MODELS, HEARTBEAT])
async def test_a_replica_of_our_model_joins(cluster: Cluster, path: str) -> None:
    await cluster.from_("10.0.0.9").post(path, json=worker("10.0.0.9", "mine@llm"))

    assert await cluster.names(model_name="mine@llm") == [OWN[0], ("mine@llm", "10.0.0.9")]


NOT_ALLOWED = [
    ((), "10.0.0.9", "10.0.0.9", 8001, "no other worker may register here"),
    ((), "127.0.0.1", "127.0.0.1", 8001, "GUANACO_WORKER_NETWORKS would"),
    (NETWORKS, "10.0.1.9", "10.0.1.9", 8001, "10.0.1.9 is not in one of"),
    (NETWORKS, "127.0.0.1", "127.0.0.1", 8001, "127.0.0.1 is not in one of"),
    (NETWORKS, "10.0.0.9", "10.0.0.7", 8001, "it calls from, 10.0.0.9"),
    (NETWORKS, "10.0.0.9", "169.254.169.254", 80, "it calls from, 10.0.0.9"),
    (NETWORKS, "10.0.0.9", "worker.example", 8001, "it calls from, 10.0.0.9"),
    (NETWORKS, "10.0.0.9", "10.0.0.9:80/x?", 8001, "it calls from, 10.0.0.9"),
    (NETWORKS, "10.0.0.9", "", 8001, "it calls from, 10.0.0.9"),
    (NETWORKS, "10.0.0.1", "10.0.0.1", 8000, "own address"),
]


@pytest.mark.parametrize(("networks", "caller", "host", "port", "told"), NOT_ALLOWED)
async def test_nobody_else_registers_heartbeats_or_deregisters(
    networks: tuple[str, ...], caller: str, host: str, port: int, told: str
) -> None:
    cluster = Cluster(worker_networks=networks)
    if networks:
        await cluster.register("10.0.0.7")
    before = await cluster.names()
    fields = worker(host, port=port)

    responses = [
        await cluster.from_(caller).post(MODELS, json=fields),
        await cluster.from_(caller).post(HEARTBEAT, json=fields),
        await cluster.from_(caller).delete(MODELS, params=fields | {"remove_from_registry": True}),
    ]

    for response in responses:
        assert response.status_code == 403
        assert told in response.json()["error"]["message"]
    assert await cluster.names(healthy_only="true") == before


async def test_a_header_does_not_make_a_caller_another(cluster: Cluster) -> None:
    claims = {"x-forwarded-for": "10.0.0.9", "forwarded": "for=10.0.0.9", "host": "10.0.0.9"}

    response = await cluster.from_("127.0.0.1").post(
        MODELS, json=worker("10.0.0.9"), headers=claims
    )

    assert response.status_code == 403


async def test_behind_a_proxy_its_address_is_not_overwritten_either() -> None:
    cluster = Cluster(advertise_host="10.0.0.8", advertise_port=80)

    for own in (worker("10.0.0.8", port=80), worker("10.0.0.1", port=8000)):
        response = await cluster.from_(own["host"]).post(MODELS, json=own)
        assert response.status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": "theirs"}, {"model_name": "@llm"}, {"model_name": "a@b@llm"},
        {"model_name": "theirs@other"}, {"model_name": "the\nirs@llm"},
        {"model_name": "x" * 300 + "@llm"}, {"model_name": None}, {"model_name": 5},
        {"port": 0}, {"port": 65536}, {"port": -1}, {"port": "8001"}, {"port": 8001.5},
        {"host": None}, {"host": "1" * 65},
        {"weight": -1}, {"weight": "1"}, {"prompt_template": "x" * 1001},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [MODELS, HEARTBEAT])
async def test_what_dbgpt_could_not_use_is_refused(
    cluster: Cluster, path: str, wrong: dict[str, Any]
) -> None:
    response = await cluster.from_("10.0.0.9").post(path, json=worker("10.0.0.9") | wrong)

    assert response.status_code == 400
    assert next(iter(wrong)) in response.json()["error"]["message"]
    assert await cluster.names() == OWN


async def test_a_page_in_a_browser_cannot_register(cluster: Cluster) -> None:
    """It can post without asking first, but only as text or as a form."""
    response = await cluster.from_("10.0.0.9").post(
        MODELS,
        content=b'{"model_name": "theirs@llm", "host": "10.0.0.9", "port": 8001}',
        headers={"content-type": "text/plain"},
    )

    assert response.status_code == 400
    assert await cluster.names() == OWN


async def test_a_worker_leaves_for_good(cluster: Cluster) -> None:
    """DB-GPT's client sends all fields, and an empty string for null."""
    await cluster.register("10.0.0.9")
    await cluster.register("10.0.0.9", port=8002)
    query = worker("10.0.0.9") | {
        "weight": 1.0, "check_healthy": True, "healthy": False, "enabled": True,
        "prompt_template": "", "last_heartbeat": "", "remove_from_registry": True,
    }  # fmt: skip

    for _ in range(2):  # what is gone may go again
        response = await cluster.from_("10.0.0.9").delete(MODELS, params=query)
        assert response.json() is True

    assert [each["port"] for each in await cluster.listed(model_name="theirs@llm")] == [8002]


@pytest.mark.parametrize(
    "flag", [{}, {"remove_from_registry": ""}, {"remove_from_registry": False}]
)
async def test_a_worker_that_leaves_otherwise_is_shown_as_ill(
    cluster: Cluster, flag: dict[str, Any]
) -> None:
    await cluster.register("10.0.0.9")

    await cluster.from_("10.0.0.9").delete(MODELS, params=worker("10.0.0.9") | flag)

    assert [each["healthy"] for each in await cluster.listed(model_name="theirs@llm")] == [False]
    assert await cluster.names(model_name="theirs@llm", healthy_only="true") == []
    await cluster.from_("10.0.0.9").post(HEARTBEAT, json=worker("10.0.0.9"))
    assert await cluster.names(model_name="theirs@llm", healthy_only="true") != []


async def test_a_silent_worker_gets_no_chats_and_is_forgotten(cluster: Cluster) -> None:
    await cluster.register("10.0.0.9")
    seen = {}
    for silent_s in (0, 60, 61, 300, 301):
        cluster.clock.now = 1000 + silent_s
        seen[silent_s] = [e["healthy"] for e in await cluster.listed(model_name="theirs@llm")]

    assert seen == {0: [True], 60: [True], 61: [False], 300: [False], 301: []}


async def test_a_heartbeat_keeps_a_worker_and_what_it_said(cluster: Cluster) -> None:
    await cluster.register("10.0.0.9", weight=3)
    for _ in range(20):
        cluster.clock.now += 59
        await cluster.from_("10.0.0.9").post(HEARTBEAT, json=worker("10.0.0.9"))

    listed = await cluster.listed(model_name="theirs@llm", healthy_only="true")

    assert [each["weight"] for each in listed] == [3]


async def test_the_table_is_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MAX_INSTANCES", 3)
    for port in (1, 2, 3):
        await cluster.register("10.0.0.9", port=port)
        cluster.clock.now += 10

    full = [
        await cluster.register("10.0.0.9", port=4),
        await cluster.from_("10.0.0.9").post(HEARTBEAT, json=worker("10.0.0.9", port=4)),
    ]
    renewed = await cluster.register("10.0.0.9", port=2)
    cluster.clock.now += 45  # the first and the third are silent now
    instead = await cluster.register("10.0.0.9", port=5)

    assert [response.status_code for response in full] == [503, 503]
    assert renewed.json() is instead.json() is True
    assert [e["port"] for e in await cluster.listed(model_name="theirs@llm")] == [2, 3, 5]


async def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(worker_networks=())
    caplog.set_level(logging.INFO)

    def told() -> int:
        return sum("may not register" in record.message for record in caplog.records)

    for _ in range(5):
        await cluster.register("10.0.0.9")
    assert told() == 1
    cluster.clock.now += SAME_REFUSAL_S
    await cluster.register("10.0.0.9")
    assert told() == 2
    for number in range(2 * MAX_REFUSALS):
        await cluster.register(f"fd00::{number:x}")
    assert told() == MAX_REFUSALS + 1


async def test_who_joins_and_leaves_is_logged_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbgpt_guanaco")
    query = worker("10.0.0.9") | {"remove_from_registry": True}
    for _ in range(3):
        await cluster.register("10.0.0.9")
        await cluster.from_("10.0.0.9").post(HEARTBEAT, json=worker("10.0.0.9"))
    for _ in range(3):
        await cluster.from_("10.0.0.9").delete(MODELS, params=query)

    assert [record.message for record in caplog.records] == [
        "registered theirs@llm at 10.0.0.9:8001", "deregistered theirs@llm at 10.0.0.9:8001"
    ]  # fmt: skip
