"""Two of our servers with the same model, as DB-GPT's own controller and web server use them."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.deployment import MODEL, started_controller, started_guanaco, started_web_server
from e2e.processes import Program
from e2e.ways import WAYS
from e2e.web_api import WebApi

(WAY,) = (way for way in WAYS if way.has_dbgpt_controller)
CHATS = 16  # by chance all of them go to one of two: once in 2**15 runs
# Its controller looks every 20 s for who has been silent for 60 s.
DROPPED_WITHIN_S = 100.0
ANSWERED = '"POST /api/worker/generate_stream HTTP/1.1" 200'


@dataclass(frozen=True)
class Cluster:
    """Two replicas, and what DB-GPT needs to use them."""

    controller: Program
    replicas: tuple[Program, Program]
    web: Program

    def healthy(self) -> int:
        """How many replicas DB-GPT may be told."""
        query = f"/api/controller/models?model_name={MODEL}@llm&healthy_only=true"
        return len(self.controller.get(query).json())

    def chats(self) -> list[int]:
        """How many chats each replica has answered."""
        return [replica.log.count(ANSWERED) for replica in self.replicas]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as programs:
        controller = programs.enter_context(started_controller(WAY, folder / "controller"))
        settings = {"GUANACO_CONTROLLER": controller.address}
        first, second = (
            programs.enter_context(started_guanaco(folder / name, settings))
            for name in ("first", "second")
        )
        addresses = {"CONTROLLER_PORT": controller.address.rpartition(":")[2]}
        web = programs.enter_context(started_web_server(WAY, folder / "web", addresses))
        cluster = Cluster(controller, (first, second), web)
        controller.wait_until(lambda: cluster.healthy() == 2, "both are registered", 30)
        yield cluster


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[WebApi]:
    api = WebApi(cluster.web.address, MODEL)
    yield api
    api.close()


def chat(web: WebApi, number: int) -> str:
    """Ask something that was not asked before: DB-GPT keeps answers."""
    return web.ask("chat_normal", f"({number}) Say hello.", max_tokens=4)[-1]


def test_both_get_chats_and_the_other_goes_on_when_one_is_killed(
    cluster: Cluster, web: WebApi
) -> None:
    for number in range(CHATS):
        assert chat(web, number).strip()
    first, second = cluster.chats()
    assert first + second == CHATS
    assert first > 0
    assert second > 0

    cluster.replicas[0].process.send_signal(signal.SIGKILL)
    cluster.controller.wait_until(
        lambda: cluster.healthy() == 1, "the dead one is dropped", DROPPED_WITHIN_S
    )
    for number in range(CHATS, CHATS + 6):
        assert chat(web, number).strip()
    assert cluster.chats()[1] == second + 6
