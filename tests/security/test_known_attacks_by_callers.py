"""Known attacks by who asks: strangers, workers, controllers, pages of others, false admins."""

import gzip
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from dbgpt_guanaco import settings as all_settings
from dbgpt_guanaco.server.registration import ControllerError, Registration
from dbgpt_guanaco.settings import ClusterSettings, ServerSettings
from security.attacked import CHAT, EVIL, HELLO, STRANGER, Server
from security.source_rules import SERVER_RULES, modules, violations

# Both on their way: keys of clients have settings of their own, and the admin's moves there.
Access: Any = getattr(all_settings, "AccessSettings", None)
Serving: Any = ServerSettings
ADMIN_KEY = "the-key-of-the-admin"
CONTROLLER = "/api/controller/models"


@pytest.fixture
def server() -> Server:
    return Server()


def with_admin_key() -> dict[str, Any]:
    """Return what gives a server an admin's key."""
    key = SecretStr(ADMIN_KEY)
    return {"access": Access(admin_key=key)} if Access else {"settings": Serving(admin_key=key)}


async def test_different_keys_share_no_cached_prompts(server: Server) -> None:
    """CVE-2025-46570: the time of an answer told whether somebody else had asked the same."""
    for key in ("one", "one", "other", None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        await server.post(CHAT, HELLO, headers=headers)

    first, again, other, nobody = (request.cache_salt for request in server.engine.requests)
    assert first == again
    assert len({first, other, nobody}) == 3
    assert "one" not in first


def test_the_server_guards_nothing_by_assert() -> None:
    """CVE-2026-41523: a check by assert was gone under ``python -O``."""
    trees = [tree for path, tree in modules().items() if path.startswith("server/")]

    assert trees
    assert not any(list(violations(tree, SERVER_RULES["assert"])) for tree in trees)


OPEN = {"/health", "/ready", "/", "/page/{name:path}"}


@pytest.mark.xfail(not Access, reason="there are no keys yet", strict=True)
async def test_every_route_needs_a_key() -> None:
    """VLLM-KEY-ONLY-V1: the key guarded the routes below /v1 and left others open."""
    key = SecretStr("0123456789abcdef0123456789abcdef")
    server = Server(access=Access(api_keys=(key,)))
    routes = server.routes()
    assert len(routes) > 20

    for method, path in routes:
        answer = await server.send(method, re.sub(r"\{.*?\}", "x", path), caller=STRANGER)
        assert (answer.status_code == 401) != (path in OPEN), (method, path, answer.status_code)


WORKER = {"model_name": "guanaco-7b@llm", "host": STRANGER, "port": 8001}


@pytest.mark.parametrize("networks", [(), ("10.0.0.0/24",)])
@pytest.mark.parametrize("path", [CONTROLLER, "/api/controller/heartbeat"])
async def test_a_stranger_registers_no_worker(networks: tuple[str, ...], path: str) -> None:
    """CVE-2024-10044, CVE-2026-85695: anybody registered a worker, was sent prompts, and had the
    controller call any address."""
    server = Server(cluster=ClusterSettings(worker_networks=networks))

    answer = await server.post(path, WORKER, caller=STRANGER)

    assert 400 < answer.status_code < 500
    listed = (await server.send("GET", CONTROLLER)).json()
    assert not any(instance["host"] == STRANGER for instance in listed)


@pytest.mark.parametrize("host", [STRANGER, "169.254.169.254", "127.0.0.1", "10.0.0.8"])
async def test_a_worker_speaks_for_its_own_address_only(host: str) -> None:
    """CVE-2026-85695: a registered address may be anybody's; no header changes whose it is."""
    server = Server(cluster=ClusterSettings(worker_networks=("10.0.0.0/24",)))
    headers = {"X-Forwarded-For": host, "Forwarded": f"for={host}", "X-Real-IP": host}
    worker = WORKER | {"host": host}

    plain = await server.post(CONTROLLER, worker, caller="10.0.0.7")
    forwarded = await server.post(CONTROLLER, worker, caller="10.0.0.7", headers=headers)

    assert (plain.status_code, forwarded.status_code) == (403, 403)


LOAD = {"lora_name": "sql", "lora_path": "team/sql"}
CHANGES: list[dict[str, Any]] = [{"trust_remote_code": True}, {"lora_int_id": 1}, {"path": "/"}]


@pytest.mark.parametrize("change", CHANGES)
async def test_the_load_api_takes_names_and_nothing_else(change: dict[str, Any]) -> None:
    """CVE-2025-12488: the API that loads models took trust_remote_code from the request."""
    server = Server(**with_admin_key())
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}

    refused = await server.post("/v1/load_lora_adapter", LOAD | change, headers=headers)
    taken = await server.post("/v1/load_lora_adapter", LOAD, headers=headers)

    assert (refused.status_code, taken.status_code) == (400, 200)


HEADERS = [
    {},
    {"user_id": "001"},
    {"User-Id": "admin"},
    {"X-User": "admin"},
    {"X-Forwarded-User": "admin"},
    {"Authorization": "Bearer admin"},
    {"Authorization": "Basic YWRtaW46YWRtaW4="},
    {"Cookie": "user_id=001; role=admin"},
]


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("what", ["load", "unload"])
async def test_no_header_makes_an_admin(headers: dict[str, str], has_key: bool, what: str) -> None:
    """CVE-2026-73034, CVE-2026-80104, CVE-2026-51862, CVE-2026-51863, CVE-2024-45436,
    GO-2025-4251: a header named the user, every caller was an admin, or models were managed without
    any key."""
    server = Server(**with_admin_key() if has_key else {})
    body = LOAD if what == "load" else {"lora_name": "scripted"}

    answer = await server.post(f"/v1/{what}_lora_adapter", body, headers=headers)

    assert answer.status_code == 401
    assert server.engine.loras.names == ()


@pytest.mark.parametrize("what", ["startup", "shutdown"])
async def test_db_gpt_s_management_changes_nothing(server: Server, what: str) -> None:
    """GO-2025-4251: DB-GPT's routes, which carry no key, load and stop nothing here."""
    body = {
        "host": "127.0.0.1",
        "port": 8000,
        "model": "evil",
        "worker_type": "llm",
        "params": {"model_path": "/etc", "trust_remote_code": True},
    }

    answer = await server.post(f"/api/worker/models/{what}", body)

    assert answer.status_code >= 400
    assert server.engine.is_alive
    assert server.engine.loras.names == ()


BOMB = gzip.compress(b" " * 50_000_000)


class Pieces(httpx.AsyncByteStream):
    """A body that comes in pieces, as over a network."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(BOMB), 1000):
            yield BOMB[start : start + 1000]


async def test_a_controller_s_compressed_answer_is_not_unpacked() -> None:
    """CVE-2024-12055: a controller that lies cannot fill the memory either."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Pieces())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        registration = Registration(
            "http://10.0.0.1:8000",
            lambda: ("10.0.0.7", 8000),
            lambda: ["mine@llm"],
            lambda: True,
            client,
        )
        with pytest.raises(ControllerError) as told:
            await registration._announce()

    assert len(str(told.value)) < 2000


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:3000"])
async def test_no_other_page_may_read_answers(server: Server, origin: str) -> None:
    """LLAMA-CPP-CORS: every origin was allowed, with its credentials."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}

    for method, path in (("OPTIONS", CHAT), ("GET", "/v1/models"), ("GET", "/health")):
        answer = await server.send(method, path, headers=headers)
        assert not any(name.startswith("access-control") for name in answer.headers)
