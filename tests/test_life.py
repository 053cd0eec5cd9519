"""A server's life, from outside: it listens, loads, is ready, drains and ends.

Each server is its own process, over a scripted engine that loads for as long as a test wants.
"""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_cluster import Server, wait_until

from dbgpt_guanaco.server.bodies import SMALL_BYTES

HEAP_BYTES = 64 * 2**20  # what glibc reserves for an arena, and aligns it to
SCRIPT = {"messages": [{"role": "user", "content": "Say it."}]}
STOPPING = "the server is shutting down"


class Life:
    """A server that loads until it is told how that ends, and a supervisor that listens."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        self._supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._supervisor.bind(str(folder / "notify"))
        self._supervisor.settimeout(10)
        self.server = Server(
            folder, NOTIFY_SOCKET=str(folder / "notify"), QUICK_LOAD=str(self._pipe), **settings
        )
        self.client = httpx.Client(base_url=self.server.address, timeout=20)

    def load(self, outcome: str = "well") -> None:
        self._pipe.write_text(outcome)

    def ready(self) -> dict[str, Any]:
        """What ``/ready`` says, with its status."""
        response = self.client.get("/ready")
        return {"code": response.status_code, **response.json()}

    def is_listening(self) -> bool:
        try:
            return bool(self.ready())
        except httpx.TransportError:
            return False

    def is_in_state(self, state: str) -> bool:
        return bool(self.ready()["status"] == state)

    def told(self) -> str:
        """The next thing that the supervisor hears, signs of life left out."""
        while (message := self._supervisor.recv(100).decode()) == "WATCHDOG=1":
            pass
        return message

    def hears_signs_of_life(self) -> bool:
        return self._supervisor.recv(100) == b"WATCHDOG=1"

    def end(self) -> str:
        self.client.close()
        self._supervisor.close()
        self.server.end()
        return self.server.log.read_text()


Start = Callable[..., Life]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    lives = []

    def started(**settings: str) -> Life:
        lives.append(Life(tmp_path, **settings))
        wait_until(lives[-1].is_listening)
        return lives[-1]

    yield started
    for life in lives:
        life.end()


@contextmanager
def talking(life: Life, path: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """An answer whose first words have come."""
    with life.client.stream("POST", path, json=body) as response:
        pieces = response.iter_text()
        while "word" not in next(pieces):
            pass
        yield pieces


def test_it_answers_while_it_loads_then_is_ready_then_lets_its_answer_end(start: Start) -> None:
    life = start()
    body = SCRIPT | {"max_tokens": 20, "stream": True}
    wait_until(lambda: life.ready().get("total") == 2)
    loading = life.ready()
    assert (loading["code"], loading["status"]) == (503, "loading")
    assert loading["stage"] == "waiting to be told"
    assert life.client.post("/v1/chat/completions", json=body).status_code == 503
    assert "<title>" in life.client.get("/").text

    life.load()
    wait_until(partial(life.is_in_state, "ready"))
    assert life.told() == "READY=1"
    assert life.hears_signs_of_life()
    with talking(life, "/v1/chat/completions", body) as pieces:
        life.server.process.send_signal(signal.SIGTERM)
        assert life.told() == "STOPPING=1"
        wait_until(partial(life.is_in_state, "draining"))
        late = httpx.post(f"{life.server.address}/v1/chat/completions", json=body)
        rest = "".join(pieces)

    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert late.json()["error"]["message"] == STOPPING
    assert rest.rstrip().endswith("data: [DONE]")
    assert life.server.process.wait(5) == -signal.SIGTERM


def test_what_loading_freed_goes_back_and_threads_take_no_arenas(start: Start) -> None:
    life = start()
    life.load("wasteful")
    wait_until(partial(life.is_in_state, "ready"))
    process = Path(f"/proc/{life.server.process.pid}")
    status = (process / "status").read_text()
    most, now = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) for name in ("VmHWM", "VmRSS"))

    def heaps() -> set[str]:
        """What glibc reserved for arenas other than the first; an arena may have several."""
        spans = re.findall(r"^(\w+)-\w+ rw-p 0+ 00:00 0 *$", (process / "maps").read_text(), re.M)
        return {begin for begin in spans if int(begin, 16) % HEAP_BYTES == 0}

    before = heaps()
    long = [{"role": "user", "content": "x" * 2 * SMALL_BYTES}]  # a thread of the pool reads it
    ask = partial(life.client.post, "/v1/chat/completions", json={"messages": long})
    with ThreadPoolExecutor(16) as clients:
        answers = [answer.result() for answer in [clients.submit(ask) for _ in range(64)]]

    assert most - now > 60_000, "loading left 100 MB of holes"
    assert {answer.status_code for answer in answers} == {200}
    assert before
    assert heaps() <= before


# Of each dialect an answer that would take long, and what its last frame says.
ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": (
        SCRIPT | {"max_tokens": 900, "stream": True},
        {"error": {"message": STOPPING, "type": "server_error", "param": None, "code": None}},
    ),
    "/generate_stream": ({"prompt": "Say it.", "max_new_tokens": 900}, {"error_code": 1}),
    "/api/worker/generate_stream": (
        {"model": "scripted", "prompt": "Say it.", "max_new_tokens": 900}, {"error_code": 1},
    ),
}  # fmt: skip


def test_what_runs_too_long_ends_with_an_error_in_its_dialect(start: Start) -> None:
    life = start(GUANACO_DRAIN_S="0.3")
    life.load()
    wait_until(partial(life.is_in_state, "ready"))

    with ExitStack() as answers:
        running = [
            (answers.enter_context(talking(life, path, body)), told)
            for path, (body, told) in ANSWERS.items()
        ]
        life.server.process.send_signal(signal.SIGTERM)
        ends = [(last_frame("".join(pieces)), told) for pieces, told in running]

    for frame, told in ends:
        assert frame.items() >= told.items()
    assert [frame.get("text", STOPPING).endswith(STOPPING) for frame, _ in ends] == [True] * 3
    assert life.server.process.wait(5) == -signal.SIGTERM


def last_frame(text: str) -> dict[str, Any]:
    frames = [line for line in text.replace("\0", "\n").split("\n") if "{" in line]
    last: dict[str, Any] = json.loads(frames[-1].removeprefix("data: "))
    return last


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_loads_it_ends_at_once(start: Start, sent: signal.Signals) -> None:
    life = start()
    wait_until(lambda: life.ready().get("total") == 2)

    life.server.process.send_signal(sent)

    assert life.server.process.wait(3) == {signal.SIGTERM: -15, signal.SIGINT: 130}[sent]


def test_what_a_setting_can_mend_ends_it_with_2_and_one_message(start: Start) -> None:
    life = start()
    life.load("setting")

    assert life.server.process.wait(5) == 2
    log = life.end()
    assert "error: there is no such model; set LLM_MODEL" in log
    assert "Traceback" not in log


def test_a_bug_while_loading_ends_it_with_its_trace(start: Start) -> None:
    life = start()
    life.load("bug")

    assert life.server.process.wait(5) == 1
    assert "ZeroDivisionError: a bug" in life.end()


def test_an_engine_that_will_not_come_back_ends_the_process_with_70(start: Start) -> None:
    life = start()
    life.load()
    wait_until(partial(life.is_in_state, "ready"))
    life.server.process.send_signal(signal.SIGUSR2)

    assert life.server.process.wait(5) == 70
    assert "the engine is lost: told to die" in life.end()
