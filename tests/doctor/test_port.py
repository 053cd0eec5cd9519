"""Free, taken by a stranger, or by a server of ours."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dbgpt_guanaco.doctor import port
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ServerSettings, Settings

OURS = {"status": "ok", "model": "guanaco-7b", "running": 0, "waiting": 0, "slots": 32}
LOADING = {"status": "loading", "stage": "weights", "done": 1, "total": 2, "seconds": 3.5}


def setup(number: int, host: str = "127.0.0.1") -> Setup:
    return Setup(settings=Settings(server=ServerSettings(host=host, port=number)))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """A port on which every request has the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_free_port_is_right(taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]

    assert port.port(setup(free)).text == f"127.0.0.1:{free} is free"
    assert port.port(setup(0)).status == "ok"


def test_a_port_that_is_taken_tells_by_whom_and_which_is_free(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "ASK_S", 0.2)

    finding = port.port(setup(taken))

    assert finding.status == "failure"
    assert f"127.0.0.1:{taken} is taken by " in finding.text
    assert f"(pid {os.getpid()})" in finding.text
    other = int(finding.remedy.removeprefix("MODEL_PORT="))
    assert port.port(setup(other)).status == "ok"


def test_whoever_may_not_be_seen_is_told_with_the_command_that_may(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "ASK_S", 0.2)
    monkeypatch.setattr("psutil.net_connections", lambda _: [])

    assert f"ss -ltnp 'sport = :{taken}'" in port.port(setup(taken)).text


@pytest.mark.parametrize(
    ("health", "told"), [(OURS, "ok: guanaco-7b"), (LOADING, "loading: weights")]
)
def test_a_server_of_ours_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, health: dict[str, object], told: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # it would not get past this
    with answering(json.dumps(health).encode()) as number:
        finding = port.port(setup(number))

    assert finding.status == "ok"
    assert finding.text == f"a server of this kind runs there already, {told}"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'"status"', b"x" * 100_000, b""])
def test_another_web_server_is_a_stranger(body: bytes) -> None:
    with answering(body) as number:
        assert port.port(setup(number)).status == "failure"


@pytest.mark.parametrize(
    ("host", "told"), [("192.0.2.1", "is no address of this machine"), ("no host", "is no address")]
)
def test_an_address_of_another_machine_is_a_failure(host: str, told: str) -> None:
    finding = port.port(setup(8000, host))

    assert finding.status == "failure"
    assert told in finding.text


def test_a_port_that_only_root_may_have_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = port._bound

    def refuse(host: str, number: int) -> socket.socket:
        if 0 < number < 1024:
            raise PermissionError(13, "Permission denied")
        return real(host, number)

    monkeypatch.setattr(port, "_bound", refuse)

    finding = port.port(setup(80))

    assert finding.status == "failure"
    assert finding.text == "port 80 needs the rights of root"
    assert int(finding.remedy.removeprefix("MODEL_PORT=")) >= 8000
