"""Replicas: real servers, each its own process, found as DB-GPT's light web server finds them.

The engine is scripted and the times of the cluster are short; see ``quick_server.py``. All else
is what a person starts: ``main()``, settings from the environment, sockets, signals.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import wait_until_ready

SCRIPT = Path(__file__).parent / "quick_server.py"
CHAT = {"messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": 1}
LOOPBACK = "127.0.0.0/8"


class Server:
    """A server in its own process."""

    def __init__(self, folder: Path, port: int = 0, **settings: str) -> None:
        self.port = port or free_port()
        self.address, self.log = f"http://127.0.0.1:{self.port}", folder / f"log-{self.port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GUANACO_")}
        environment |= {"MODEL_PORT": str(self.port), "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                cwd=folder,
                env=environment | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        wait_until_ready(self.address, self.process, self.log)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class LightDBGPT:
    """Asks a controller before every chat, takes one by chance, tries no other."""

    def __init__(self, controller: Server) -> None:
        self._models = f"{controller.address}/api/controller/models"
        self._random, self._client = random.Random(7), httpx.Client()

    def lists(self, server: Server) -> bool:
        return server.port in self.ports()

    def ports(self, *, healthy_only: bool = True) -> set[int]:
        query = {"model_name": "scripted@llm", "healthy_only": str(healthy_only)}
        return {each["port"] for each in self._client.get(self._models, params=query).json()}

    def chat(self) -> int:
        """Chat with somebody; return the port."""
        port = self._random.choice(sorted(self.ports()))
        answer = self._client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT)
        assert "word" in answer.text
        return port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], bool], within_s: float = 10.0) -> float:
    """Return how long it took, in seconds."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < within_s
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def started(**settings: Any) -> Server:
        servers.append(Server(tmp_path, **settings))
        return servers[-1]

    yield started
    for server in servers:
        server.end()
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The controller, and a worker itself."""
    server = Server(tmp_path_factory.mktemp("first"), GUANACO_WORKER_NETWORKS=LOOPBACK)
    server.wait_until_ready()
    yield server
    server.end()


@pytest.fixture
def dbgpt(first: Server) -> LightDBGPT:
    return LightDBGPT(first)


@pytest.fixture
def second(start: Callable[..., Server], first: Server, dbgpt: LightDBGPT) -> Server:
    """A worker that is on the list."""
    server = start(GUANACO_CONTROLLER=first.address)
    server.wait_until_ready()
    wait_until(partial(dbgpt.lists, server))
    return server


def test_both_get_work_until_one_is_killed(
    first: Server, second: Server, dbgpt: LightDBGPT
) -> None:
    assert {dbgpt.chat() for _ in range(8)} == {first.port, second.port}

    second.process.kill()

    assert wait_until(lambda: not dbgpt.lists(second)) > 0.5  # nobody can know at once
    assert second.port in dbgpt.ports(healthy_only=False)  # shown as ill
    assert {dbgpt.chat() for _ in range(8)} == {first.port}


def test_told_to_stop_it_leaves_the_list_first_and_ends_its_answers(
    first: Server, second: Server, dbgpt: LightDBGPT
) -> None:
    body = CHAT | {"max_tokens": 40}
    with httpx.stream("POST", f"{second.address}/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(line for line in lines if "word" in line)
        second.process.send_signal(signal.SIGTERM)
        wait_until(lambda: second.port not in dbgpt.ports(healthy_only=False))
        answer_runs = second.process.poll() is None
        late = httpx.post(f"{second.address}/v1/tokenize", json={"prompt": "late"})
        rest = list(lines)

    assert answer_runs
    assert late.status_code == 200  # who had asked for the list before is still let in
    assert rest[-2:] == ["data: [DONE]", ""]
    assert second.process.wait(5) == -signal.SIGTERM
    assert dbgpt.chat() == first.port


def test_a_second_signal_waits_for_nothing(second: Server) -> None:
    body = CHAT | {"max_tokens": 500}
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.stream("POST", f"{second.address}/v1/chat/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if "word" in line:
                second.process.send_signal(signal.SIGTERM)

    assert second.process.wait(3) == -signal.SIGTERM


def test_an_engine_that_has_died_leaves_the_list(second: Server, dbgpt: LightDBGPT) -> None:
    second.process.send_signal(signal.SIGUSR1)

    wait_until(lambda: not dbgpt.lists(second))
    assert second.port in dbgpt.ports(healthy_only=False)


def test_a_controller_that_comes_late_and_starts_again_is_told_again(
    start: Callable[..., Server],
) -> None:
    port = free_port()
    worker = start(GUANACO_CONTROLLER=f"http://127.0.0.1:{port}")

    def is_told(line: str, times: int) -> bool:
        return worker.log.read_text().count(line) == times

    for times in (1, 2):
        wait_until(partial(is_told, "WARNING  not registered with", times))
        controller = start(port=port, GUANACO_WORKER_NETWORKS=LOOPBACK)
        wait_until(partial(is_told, "INFO     registered with", times))
        assert LightDBGPT(controller).lists(worker)
        controller.end()


def test_a_header_does_not_make_a_caller_another(first: Server) -> None:
    response = httpx.post(
        f"{first.address}/api/controller/models",
        json={"model_name": "scripted@llm", "host": "10.0.0.9", "port": 8000},
        headers={"x-forwarded-for": "10.0.0.9", "x-real-ip": "10.0.0.9"},
    )

    assert response.status_code == 403
    assert "calls from, 127.0.0.1," in response.json()["error"]["message"]
