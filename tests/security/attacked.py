"""The server that is attacked, and how its attackers reach it."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
from fakes import ScriptedEmbedder, ScriptedEngine, ScriptedLoras
from starlette.types import Message, Scope

from dbgpt_guanaco.server.app import create_app

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
WORKER_HELLO = {"model": "scripted", "messages": [{"role": "human", "content": "hi"}]}
STRANGER = "192.0.2.66"
EVIL = "http://evil.example"


class Server:
    """One server over a scripted engine, and its clients."""

    def __init__(self, *script: str, **parts: Any) -> None:
        loras = ScriptedLoras(known=("team/sql",))
        self.engine = ScriptedEngine(*script or ("hi",), loras=loras)
        self.app = create_app(self.engine, embedder=ScriptedEmbedder(), **parts)

    async def send(
        self, method: str, path: str | httpx.URL, *, caller: str = "127.0.0.1", **request: Any
    ) -> httpx.Response:
        address = (caller, 50_000)
        transport = httpx.ASGITransport(self.app, client=address, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **request)

    async def post(self, path: str, body: Any, **request: Any) -> httpx.Response:
        return await self.send("POST", path, json=body, **request)

    async def status_of(self, path: str) -> int:
        """Ask for a path as it stands: a client of good manners would take dots out of it."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.disconnect"} if sent else {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http", "method": "GET", "scheme": "http", "http_version": "1.1",
            "path": unquote(path), "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "headers": [(b"host", b"127.0.0.1")],
            "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await self.app(scope, receive, send)
        return int(sent[0]["status"])

    def routes(self) -> list[tuple[str, str]]:
        """Return method and path of every route there is."""
        return sorted(set(_routes_of(self.app)))


def _routes_of(holder: Any) -> Iterator[tuple[str, str]]:
    for route in holder.routes if hasattr(holder, "routes") else holder.effective_candidates():
        if hasattr(route, "effective_candidates"):
            yield from _routes_of(route)
        else:
            yield from ((method, route.path) for method in route.methods)
