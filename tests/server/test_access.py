"""Every route is closed to whoever has no key, unless it stands in the list below."""

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from fakes import ScriptedEmbedder, ScriptedEngine
from fastapi import FastAPI
from pydantic import SecretStr

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.keys import check_access
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings

KEY, ADMIN_KEY = "a-key-of-somebody", "the-key-of-the-admin"
HERE, NEAR, FAR = "127.0.0.1", "10.0.0.9", "203.0.113.9"

# Written out once more, so that nothing is opened by an edit in one place.
OPEN_TO_ALL = {"/", "/page/{name:path}", "/health", "/ready"}
OPEN_TO_DBGPT = {
    "/generate_stream",
    "/generate",
    "/embedding",
    "/api/health",
    "/api/controller/models",
    "/api/controller/heartbeat",
    "/api/worker/generate_stream",
    "/api/worker/generate",
    "/api/worker/embeddings",
    "/api/worker/count_token",
    "/api/worker/model_metadata",
    "/api/worker/models/supports",
    "/api/worker/models/startup",
    "/api/worker/models/shutdown",
    "/api/worker/apply",
    "/api/worker/parameter/descriptions",
}
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def app_of(*keys: str, admin: str | None = None, **settings: Any) -> FastAPI:
    access = AccessSettings(
        api_keys=tuple(map(SecretStr, keys)),
        admin_key=SecretStr(admin) if admin else None,
        dbgpt_networks=settings.pop("dbgpt_networks", ()),
        **settings,
    )
    cluster = ClusterSettings(worker_networks=(ip_network("10.0.0.0/24"),))
    engine = ScriptedEngine("Hi")
    return create_app(engine, embedder=ScriptedEmbedder(), cluster=cluster, access=access)


def from_(app: FastAPI, address: str, host: str = "localhost:8000") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 50000), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


def routes_of(holder: Any) -> Iterator[tuple[str, str]]:
    """Yield method and path of every route, those of included routers too."""
    for route in holder.routes if hasattr(holder, "routes") else holder.effective_candidates():
        if hasattr(route, "effective_candidates"):
            yield from routes_of(route)
        else:
            yield from ((method, route.path) for method in route.methods)


ROUTES = sorted(set(routes_of(app_of())))


def test_the_walk_finds_the_routes() -> None:
    paths = {path for _, path in ROUTES}

    assert paths > OPEN_TO_ALL | OPEN_TO_DBGPT
    assert {"/openapi.json", "/v1/chat/completions", "/api/v1/load_lora_adapter"} < paths


@pytest.mark.parametrize(("address", "opened"), [(FAR, set()), (HERE, OPEN_TO_DBGPT)])
async def test_every_route_is_denied_without_a_key_unless_it_is_listed(
    address: str, opened: set[str]
) -> None:
    async with from_(app_of(KEY), address) as client:
        denied = set()
        for method, path in ROUTES:
            response = await client.request(method, re.sub(r"{.*?}", "x", path), json={})
            if response.status_code == 401:
                denied.add(path)
                assert response.headers["WWW-Authenticate"] == "Bearer"

    assert {path for _, path in ROUTES} - denied == OPEN_TO_ALL | opened


async def test_a_path_that_nobody_has_needs_a_key_too() -> None:
    async with from_(app_of(KEY), FAR) as client:
        statuses = [
            (await client.get(path)).status_code
            for path in ("/metrics", "/v1", "/healthy", "/health/x", "/api/workers", "/page")
        ]

    assert statuses == [401] * 6


async def test_a_refusal_has_openai_s_form_and_names_no_key() -> None:
    async with from_(app_of(KEY), FAR) as client:
        response = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer wrong-but-secret"}
        )

    assert response.status_code == 401
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "Bearer" in response.json()["error"]["message"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    "path", ["/generate_stream", "/generate", "/api/worker/generate_stream", "/api/worker/generate"]
)
async def test_dbgpt_is_told_in_a_frame_what_its_operator_must_set(path: str) -> None:
    async with from_(app_of(KEY), FAR) as client:
        response = await client.post(path, json={})

    frame = httpx.Response(200, content=response.content.rstrip(b"\0")).json()
    assert response.status_code == 401
    assert "GUANACO_DBGPT_NETWORKS" in frame["text"]
    assert FAR in frame["text"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY} ", 200),
        (f"Bearer {ADMIN_KEY}", 200),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer \xff\xfe", 401),
    ],
)
async def test_a_key_is_sent_as_bearer(header: str, status: int) -> None:
    async with from_(app_of(KEY, admin=ADMIN_KEY), FAR) as client:
        response = await client.get(
            "/v1/models", headers=[(b"Authorization", header.encode("latin-1"))]
        )

    assert response.status_code == status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "Hello"}),
        ("/embedding", {"prompt": "Hello"}),
        ("/api/worker/count_token", {"prompt": "Hello"}),
        ("/api/controller/models", None),
    ],
)
async def test_dbgpt_needs_no_key_from_a_listed_network(path: str, body: Any) -> None:
    async def status(address: str, **headers: str) -> int:
        app = app_of(KEY, dbgpt_networks=(ip_network("203.0.113.0/28"), ip_network("::1/128")))
        async with from_(app, address) as client:
            sent = client.get(path, headers=headers)
            if body:
                sent = client.post(path, json=body, headers=headers)
            return (await sent).status_code

    assert await status(HERE) == await status(FAR) == await status("::1") == 200
    assert await status("::ffff:127.0.0.1") == 200
    assert await status("198.51.100.7") == await status("unknown") == 401
    assert await status("198.51.100.7", Authorization=f"Bearer {KEY}") == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
async def test_a_proxy_on_this_machine_lends_its_address_to_nobody(header: str) -> None:
    async with from_(app_of(KEY), HERE) as client:
        response = await client.post("/generate", json={"prompt": "Hi"}, headers={header: HERE})

    assert response.status_code == 401


async def test_a_network_of_workers_reaches_the_controller_and_no_more() -> None:
    async with from_(app_of(KEY), NEAR) as client:
        assert (await client.get("/api/controller/models")).status_code == 200
        assert (await client.get("/api/health")).status_code == 200
        assert (await client.post("/generate", json={"prompt": "Hello"})).status_code == 401


async def test_metrics_are_open_to_the_networks_that_are_listed() -> None:
    app = app_of(KEY, metrics_networks=(ip_network("10.0.0.9/32"),))

    @app.get("/metrics")
    async def metrics() -> str:
        return "up 1"

    async def status(address: str) -> int:
        async with from_(app, address) as client:
            return (await client.get("/metrics")).status_code

    assert (await status(NEAR), await status(HERE), await status(FAR)) == (200, 401, 401)


async def test_without_keys_everything_is_open_to_whoever_reaches_the_port() -> None:
    async with from_(app_of(), FAR) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post("/generate", json={"prompt": "Hello"})).status_code == 200


async def test_callers_of_different_keys_share_no_cached_prompts() -> None:
    app = app_of(KEY, ADMIN_KEY)
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}"},
                    {"Authorization": f"Bearer {ADMIN_KEY}"}):  # fmt: skip
        async with from_(app, HERE) as client:
            await client.post("/generate", json={"prompt": "Hello"}, headers=headers)
            await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            await client.post(
                "/api/worker/generate",
                json={"model": "scripted", "messages": [{"role": "human", "content": "Hi"}]},
                headers=headers,
            )

    salts = [request.cache_salt for request in app.state.life.engine.requests]
    nobody, somebody, again, admin = salts[:2], salts[2:5], salts[5:8], salts[8:]
    assert nobody == ["", ""]
    assert len(set(somebody)) == len(set(admin)) == 1
    assert somebody == again != admin
    assert KEY not in somebody[0]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "fe80::1"])
def test_strangers_are_not_let_in_without_keys(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"GUANACO_API_KEYS.*GUANACO_ALLOW_NO_KEYS=true"):
        check_access(AccessSettings(), address)

    check_access(AccessSettings(api_keys=(SecretStr(KEY),)), address)
    check_access(AccessSettings(admin_key=SecretStr(KEY)), address)
    check_access(AccessSettings(allow_no_keys=True), address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_on_this_machine_no_key_is_needed(address: str) -> None:
    assert check_access(AccessSettings(), address).names == ()
