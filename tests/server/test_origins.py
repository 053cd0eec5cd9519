"""A web page of somebody else cannot use the model through the browser of whoever reads it."""

from typing import Any

import httpx
import pytest
from fakes import ScriptedEngine
from pydantic import SecretStr

from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings, ServerSettings

KEY = {"Authorization": "Bearer a-key-of-somebody"}
KEYS = (SecretStr("a-key-of-somebody"),)
HOME, EVIL, FRIEND = "http://127.0.0.1:8000", "https://evil.example", "https://chat.example"


def client_of(*, advertise: str | None = None, host: str = "127.0.0.1", **settings: Any) -> Any:
    app = create_app(
        ScriptedEngine("Hi"),
        ServerSettings(host=host),
        cluster=ClusterSettings(advertise_host=advertise),
        access=AccessSettings(**settings),
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOME)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("127.0.0.1:8000", HOME, 200),
        ("127.0.0.1:8000", HOME.upper(), 200),
        ("localhost", "http://localhost", 200),
        ("localhost", "https://localhost", 200),
        ("localhost:443", "https://localhost", 200),
        ("127.0.0.1:8000", "http://127.0.0.1:9000", 403),
        ("127.0.0.1:8000", "http://localhost:8000", 403),
        ("127.0.0.1:8000", EVIL, 403),
        ("127.0.0.1:8000", "null", 403),
        ("127.0.0.1:8000", "", 403),
        ("127.0.0.1:8000", "file://127.0.0.1:8000", 403),
        ("localhost:80", "https://localhost", 403),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_post_from_a_foreign_page_does_not_reach_the_model(
    path: str, host: str, origin: str | None, status: int
) -> None:
    headers = {"Host": host, "Content-Type": "text/plain"}
    if origin is not None:
        headers["Origin"] = origin
    client = client_of()
    response = await client.post(path, content='{"prompt": "Hello"}', headers=headers)

    assert response.status_code == status
    assert len(client._transport.app.state.life.engine.requests) == (status == 200)


async def test_a_key_does_not_make_a_foreign_page_ours() -> None:
    response = await client_of(api_keys=KEYS).get("/v1/models", headers=KEY | {"Origin": EVIL})

    assert response.status_code == 403
    assert "GUANACO_CORS_ORIGINS" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.:8000", 200),
        ("127.0.0.1:8000", 200),
        ("192.0.2.1", 200),
        ("[::1]:8000", 200),
        ("guanaco.example:8000", 200),
        ("advertised.example", 200),
        ("bound.example", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("xn--guanaco", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
async def test_a_name_that_is_not_this_server_s_is_refused(host: str, status: int) -> None:
    client = client_of(
        allowed_hosts=("guanaco.example",), advertise="advertised.example", host="bound.example"
    )
    for path in ("/v1/models", "/health"):
        response = await client.get(path, headers={"Host": host})
        assert response.status_code == status, path


async def test_where_there_are_keys_only_who_shows_none_must_know_the_name() -> None:
    client = client_of(api_keys=KEYS)
    elsewhere = {"Host": "models.example"}

    assert (await client.get("/v1/models", headers=KEY | elsewhere)).status_code == 200
    assert (await client.get("/health", headers=elsewhere)).status_code == 200
    refused = await client.post("/generate", json={"prompt": "Hello"}, headers=elsewhere)
    assert refused.status_code == 403
    assert "GUANACO_ALLOWED_HOSTS" in refused.json()["text"]


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


async def test_a_listed_page_may_ask_and_read() -> None:
    client = client_of(api_keys=KEYS, cors_origins=(FRIEND,))

    asked = await client.options("/v1/chat/completions", headers=PREFLIGHT | {"Origin": FRIEND})
    read = await client.get("/v1/models", headers=KEY | {"Origin": FRIEND})
    refused = await client.get("/v1/models", headers={"Origin": FRIEND})

    assert asked.status_code == read.status_code == 200
    assert refused.status_code == 401  # and the page can read why
    for response in (asked, read, refused):
        assert response.headers["Access-Control-Allow-Origin"] == FRIEND
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("listed", [(), (FRIEND,)])
async def test_no_other_page_may(listed: tuple[str, ...]) -> None:
    client = client_of(cors_origins=listed)

    asked = await client.options("/v1/chat/completions", headers=PREFLIGHT | {"Origin": EVIL})
    read = await client.get("/v1/models", headers={"Origin": EVIL})

    assert asked.status_code in (400, 403)
    assert read.status_code == 403
    for response in (asked, read):
        assert "Access-Control-Allow-Origin" not in response.headers
