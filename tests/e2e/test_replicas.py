"""Two of our servers with the same model, as DB-GPT's own controller and web server use them."""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.deployment import MODEL, started_controller, started_guanaco, started_web_server
from e2e.processes import Program
from e2e.ways import WAYS
from e2e.web_api import ANSWER_S, WebApi

(WAY,) = (way for way in WAYS if way.has_dbgpt_controller)
AT_ONCE = 8  # by chance all of them go to one of two: once in 2**7 runs
LONG = 400  # tokens: several are at it when the last has begun
CHATS = 16  # by chance all of them go to one of two: once in 2**15 runs
# Its controller looks every 20 s for who has been silent for 60 s.
DROPPED_WITHIN_S = 100.0
# What DB-GPT writes behind an answer that has failed.
BROKEN = '<span style="color:red">ERROR!</span>'
ANSWERED = "POST /api/worker/generate_stream answered 200"


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


def ask_long(web: WebApi, question: str) -> str:
    """Return the last text that came, with what went wrong, if something did."""
    return web.ask("chat_normal", question, max_tokens=LONG)[-1]


def running(replica: Program) -> int:
    return int(replica.get("/health").json()["running"])


def test_a_replica_that_is_killed_under_load_loses_what_it_was_saying_and_nothing_else(
    cluster: Cluster, web: WebApi
) -> None:
    """Several chats at once, sent by chance; then all that DB-GPT does without the dead replica."""
    for number in range(CHATS):
        assert chat(web, number).strip()
    assert min(cluster.chats()) > 0
    assert sum(cluster.chats()) == CHATS
    dying, other = cluster.replicas
    questions = [f"({number}) Tell me a very long story." for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as people:
        asked = [people.submit(ask_long, web, question) for question in questions]
        dying.wait_until(
            lambda: (
                min(at := [running(dying), running(other)]) > 0
                and sum(at) + sum(each.done() for each in asked) == AT_ONCE
            ),
            "both are busy, and no chat is still on its way",
            ANSWER_S,
        )
        at_it = [each for each in asked if not each.done()]
        lost = running(dying)
        dying.process.send_signal(signal.SIGKILL)
        texts = [each.result(ANSWER_S) for each in at_it]
    cluster.controller.wait_until(
        lambda: cluster.healthy() == 1, "the dead one is dropped", DROPPED_WITHIN_S
    )

    assert len([text for text in texts if BROKEN in text]) == lost, texts
    assert all(text.strip() for text in texts)
    assert all(chat(web, number).strip() for number in range(CHATS, CHATS + 6))
