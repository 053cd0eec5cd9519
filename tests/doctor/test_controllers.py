"""Controllers that answer, lie, hang and are somewhere else; real ones on real sockets."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from dbgpt_guanaco.doctor import controllers
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ClusterSettings, ModelSettings, ServerSettings, Settings

OTHERS = [{"model_name": "other@llm", "host": "127.0.0.1", "port": 8001, "healthy": True}]


@contextmanager
def controller(body: bytes | str, status: int = 200, skew_s: float = 0) -> Iterator[str]:
    """Answer every request alike, at an address of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode() if isinstance(body, str) else body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + skew_s, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def examined(
    *addresses: str, host: str = "127.0.0.1", name: str = "guanaco-7b", **cluster: Any
) -> Finding:
    settings = Settings(
        model=ModelSettings(name=name),
        server=ServerSettings(host=host, port=8123),
        cluster=ClusterSettings(controllers=addresses, **cluster),
    )
    return run_check("dbgpt_guanaco.doctor.controllers.controllers", Setup(settings=settings))


def test_none_is_right() -> None:
    assert examined().status == "ok"


def test_a_controller_is_told_with_what_it_will_be_told() -> None:
    with controller(json.dumps(OTHERS)) as address:
        finding = examined(address)

    assert finding.status == "ok"
    assert finding.text == (
        f"{address} answers; this server is registered there as 127.0.0.1:8123, beside 1 other"
    )


def test_a_controller_without_workers_is_right() -> None:
    with controller("[]") as address:
        assert examined(address).status == "ok"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("<html>DB-GPT</html>", 200),
        ('{"detail": "Not Found"}', 404),
        ("[]", 500),
        ('{"success": true, "data": []}', 200),
        ('["guanaco-7b@llm"]', 200),
        ("[" * 100_000, 200),
        ("", 200),
    ],
)
def test_what_is_no_controller_is_a_failure(body: str, status: int) -> None:
    with controller(body, status) as address:
        finding = examined(address)

    assert finding.status == "failure"
    assert f"answers {status}, and is no model controller" in finding.text
    assert "not to the web server's" in finding.remedy


def test_a_controller_that_is_away_is_a_failure() -> None:
    with controller("[]") as address:
        pass

    finding = examined(address)

    assert finding.status == "failure"
    assert "does not answer" in finding.text
    assert finding.remedy.startswith("dbgpt start controller")


def test_a_controller_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "ASK_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        finding = examined(f"http://127.0.0.1:{silent.getsockname()[1]}")

    assert finding.status == "failure"
    assert "does not answer" in finding.text


def test_a_name_that_nobody_knows_is_a_failure() -> None:
    finding = examined("http://no-such-host.invalid:8000", host="0.0.0.0")

    assert finding.status == "failure"
    assert "there is no way to it" in finding.text


def test_a_server_that_only_this_machine_reaches_is_told_before_it_is_started() -> None:
    finding = examined("http://192.0.2.7:8000")

    assert finding.status == "failure"
    assert "Set GUANACO_HOST=0.0.0.0" in finding.text


def test_an_advertised_loopback_at_a_controller_elsewhere_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controllers, "_host_of", lambda _: "192.0.2.7")
    with controller("[]") as address:
        finding = examined(address, advertise_host="127.0.0.1")

    assert finding.status == "warning"
    assert "set GUANACO_ADVERTISE_HOST" in finding.remedy


@pytest.mark.parametrize(("skew_s", "status"), [(0, "ok"), (20, "ok"), (-90, "warning")])
def test_a_clock_that_differs_is_a_warning(skew_s: float, status: str) -> None:
    with controller("[]", skew_s=skew_s) as address:
        finding = examined(address)

    assert finding.status == status
    assert ("Its clock differs by" in finding.text) == (status == "warning")


def test_the_worst_of_several_counts_and_all_are_told() -> None:
    with controller("[]") as good, controller("no") as bad:
        finding = examined(good, bad)

    assert finding.status == "failure"
    assert f"{good} answers; this server" in finding.text
    assert f"{bad} answers 200, and is no" in finding.text


def test_a_name_that_db_gpt_cannot_read_is_a_failure() -> None:
    with controller("[]") as address:
        finding = examined(address, name="models/a@b")

    assert finding.status == "failure"
    assert "DB-GPT takes no @" in finding.text


def test_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # it would not get past this
    with controller("[]") as address:
        assert examined(address).status == "ok"


def test_a_compressed_answer_is_not_unpacked() -> None:
    with controller(gzip.compress(b"[" + b" " * 10_000_000 + b"]")) as address:
        assert examined(address).status == "failure"
