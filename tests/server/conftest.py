import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.logs import QUIET
from dbgpt_guanaco.settings import ServerSettings

Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Return a maker of clients that talk to an app over a fake engine, without a network."""
    clients: list[httpx.AsyncClient] = []

    def make(
        engine: Any, *, embedder: Any = None, cluster: Any = None, **settings: Any
    ) -> httpx.AsyncClient:
        app = create_app(engine, ServerSettings(**settings), embedder=embedder, cluster=cluster)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://localhost"))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def bare_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it to take all handlers from the root, pytest's own too; levels are put back as well."""
    before = {name: logging.getLogger(name).level for name in [None, *QUIET]}
    yield lambda: monkeypatch.setattr(logging.root, "handlers", [])
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
