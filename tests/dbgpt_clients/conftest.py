"""Our server as a process of its own, and what tests may ask about it."""

import importlib.util
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODEL = "guanaco-test"
EMBEDDING_MODEL = "all-minilm-l6-v2"
TEXT = "你好，世界 🎉!\nTwo lines"

if importlib.util.find_spec("dbgpt") is None:
    collect_ignore_glob = ["test_*.py"]


@dataclass(frozen=True)
class ScriptedServer:
    """A running ``scripted_server.py``."""

    port: int
    host: str = "127.0.0.1"
    model: str = MODEL
    embedding_model: str = EMBEDDING_MODEL
    text: str = TEXT
    default_temperature: float = 0.55  # as scripted_server.py sets it

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def api_base(self) -> str:
        return f"{self.address}/v1"

    def _ask(self, what: str) -> Any:
        response = httpx.get(f"{self.address}/scripted/{what}", timeout=20, trust_env=False)
        return response.raise_for_status().json()

    def request(self) -> dict[str, Any]:
        """Return the only request that reached the engine."""
        (request,) = self._ask("requests")
        return dict(request)

    def texts(self) -> list[str]:
        """Return the texts that reached the embedder."""
        return list(self._ask("texts"))

    def wait_until_submitted(self) -> None:
        self._ask("submitted")

    async def seconds_until_cancelled(self) -> float:
        """Return how long the newest generation went on, from now."""
        seconds = await self._cancelled({})
        assert seconds is not None, "the generation was not cancelled"
        return seconds

    async def goes_on_for(self, seconds: float) -> bool:
        """Say whether the newest generation is not cancelled in that time."""
        return await self._cancelled({"within": seconds}) is None

    async def _cancelled(self, query: dict[str, float]) -> float | None:
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            answer = await client.get(f"{self.address}/scripted/cancelled", params=query)
        seconds: float | None = answer.raise_for_status().json()
        return seconds


@pytest.fixture(scope="session")
def process() -> Iterator[ScriptedServer]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    python = os.environ.get("GUANACO_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    with subprocess.Popen(
        [python, str(HERE / "scripted_server.py")],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as running:
        assert running.stdout
        port = running.stdout.readline().strip()
        assert port, "scripted_server.py did not start"
        try:
            yield ScriptedServer(int(port))
        finally:
            running.kill()


@pytest.fixture
def server(process: ScriptedServer) -> ScriptedServer:
    """Our server, as if no request had reached it."""
    httpx.post(f"{process.address}/scripted/reset", trust_env=False).raise_for_status()
    return process


@pytest.fixture
def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


@pytest.fixture
def load(server: ScriptedServer) -> Callable[..., Any]:
    """Return a maker of DB-GPT's workers that chat through the plugin with our server."""
    from dbgpt_clients.plugin_worker import load_worker

    def make(**fields: Any) -> Any:
        return load_worker(**{"name": server.model, "api_base": server.api_base} | fields)

    return make
