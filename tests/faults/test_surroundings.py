"""Faults beside the engine: clocks, clients, controllers, disks, another process."""

import asyncio
import contextlib
import itertools
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from server.test_registration import (
    CONTROLLER,
    Behaviour,
    FakeController,
    Time,
    answering,
    dripping,
    flooding,
    gone,
    hanging,
)
from test_cluster import CHAT, LOOPBACK, LightDBGPT, Server, wait_until
from typer.testing import CliRunner

from dbgpt_guanaco.cli import app
from dbgpt_guanaco.server import registration
from dbgpt_guanaco.server.registration import Registrations
from dbgpt_guanaco.settings import ClusterSettings
from faults.matrix import Row
from faults.stage import DIALECTS, PATIENCE_S, Stage, described, results

Record = Callable[[Row], None]
HOUR_S = 3600.0


def test_a_clock_that_jumps_by_hours_changes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    right, jumps = time.time, itertools.cycle([0.0, -7 * HOUR_S, 9 * HOUR_S])
    monkeypatch.setattr(time, "time", lambda: right() + next(jumps))

    seen = results(stage.ask_all())

    assert [each.problem for each in seen] == [None] * len(DIALECTS)
    stage.assert_all_is_back()
    record(Row("the wall clock jumps by hours, both ways", stage.where, described(seen)))


def test_a_client_that_never_reads_holds_up_nobody(stage: Stage, record: Record) -> None:
    body = json.dumps(DIALECTS[2].body).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", int(stage.address.rpartition(":")[2])))
        deaf.sendall(
            b"POST /generate_stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        seen = results(stage.ask_all())

        assert [each.problem for each in seen] == [None] * len(DIALECTS)
        stage.assert_all_is_back()  # though nothing was read yet
    record(Row("a client never reads", stage.where, f"the others – {described(seen)}"))


def elsewhere(_: httpx.Request) -> httpx.Response:
    return httpx.Response(307, headers={"location": "http://10.9.9.9/api/controller/models"})


TROUBLE: list[tuple[str, Behaviour]] = [
    ("vanishes", gone),
    ("answers wrong JSON", answering(b'{"success": true}')),
    ("redirects to another host", elsewhere),
    ("answers 500", answering(b"oops", 500)),
    ("never answers", hanging),
    ("answers byte by byte, for ever", dripping),
    ("never stops answering", flooding),
    ("is another program, which answers 200 and a page", answering(b"<html></html>")),
]


@pytest.mark.parametrize(("trouble", "behave"), TROUBLE, ids=[name for name, _ in TROUBLE])
async def test_a_controller_in_trouble_costs_no_chat_and_is_registered_with_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, trouble: str, behave: Behaviour, record: Record
) -> None:
    if not stage.is_batching:
        pytest.skip("it stands beside any engine")
    for name in ("LEAST_BEAT_S", "MOST_BEAT_S", "FIRST_RETRY_S", "LAST_RETRY_S", "LOOK_S"):
        monkeypatch.setattr(registration, name, 0.02)
    monkeypatch.setattr(registration, "REQUEST_S", 0.05)
    controller, hosts = FakeController(Time()), set[str]()

    async def transport(request: httpx.Request) -> httpx.Response:
        hosts.add(request.url.host)
        return await controller(request)

    cluster = ClusterSettings(controllers=(CONTROLLER,), advertise_host="10.0.0.7")
    memberships = Registrations(
        cluster, ("0.0.0.0", 8001), stage.engine, transport=httpx.MockTransport(transport)
    )
    memberships.start()
    await controller.until(lambda: len(controller.table) == 2)
    controller.behave = behave
    controller.table.clear()
    await controller.until_more(3)
    seen = await asyncio.to_thread(lambda: results(stage.ask_all()))
    controller.behave = None
    await controller.until(lambda: len(controller.table) == 2)
    await memberships.stop()

    assert [each.problem for each in seen] == [None] * len(DIALECTS)
    assert hosts == {"10.0.0.1"}
    record(Row(f"a controller {trouble}", "beside the engine", described(seen)))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(**settings: Any) -> Server:
        servers.append(Server(tmp_path, **settings))
        return servers[-1]

    yield started
    for server in servers:
        server.end()


def test_a_log_on_a_full_disk_costs_no_answer(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full"), mode))
    server = start()
    monkeypatch.undo()
    address = server.address

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/ready").status_code == 200
        return False

    wait_until(is_ready)
    answers = [httpx.post(f"{address}/v1/chat/completions", json=CHAT) for _ in range(2)]
    server.process.send_signal(signal.SIGTERM)

    assert all("data: [DONE]" in each.text for each in answers)
    assert server.process.wait(5) == -signal.SIGTERM
    record(Row("the log's disk is full", "beside the engine", "the whole answer"))


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Let the operating system refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_conversion_on_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, record: Record
) -> None:
    torch.save({"weight": torch.zeros(2_000_000)}, tmp_path / "pytorch_model.bin")

    with room_for(1_000_000):
        result = CliRunner().invoke(app, ["convert", str(tmp_path)])

    assert result.exit_code == 2
    assert "model.safetensors cannot be written: " in result.stderr.replace("\n", "")
    assert "nothing was left of it" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]
    seen = "`dbgpt-guanaco convert` ends with 2 and one message"
    record(Row("the disk is full while a checkpoint is converted", "beside the engine", seen))


CHATS = 8


def test_a_replica_that_is_killed_loses_what_it_was_saying_and_nothing_else(
    start: Callable[..., Server], record: Record
) -> None:
    """Several chats at once go through a controller; one of two replicas gets SIGKILL."""
    first = start(GUANACO_WORKER_NETWORKS=LOOPBACK)
    first.wait_until_ready()
    second = start(GUANACO_CONTROLLER=first.address)
    second.wait_until_ready()
    dbgpt = LightDBGPT(first)
    wait_until(partial(dbgpt.lists, second))
    ports = [first.port, second.port] * (CHATS // 2)
    talk = threading.Barrier(CHATS + 1)

    def chat(port: int) -> bool:
        body = CHAT | {"max_tokens": 20}
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        text = ""
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", address, json=body) as r,
        ):
            for line in r.iter_lines():
                if "word" in line and "word" not in text:
                    talk.wait(PATIENCE_S)
                text += line
        return text.count('"word ') == 20 and text.endswith("data: [DONE]")

    with ThreadPoolExecutor(CHATS) as clients:
        chats = [clients.submit(chat, port) for port in ports]
        talk.wait(PATIENCE_S)
        second.process.kill()
        whole = [each.result(PATIENCE_S) for each in chats]
    wait_until(lambda: not dbgpt.lists(second))

    assert whole == [port == first.port for port in ports]
    assert {dbgpt.chat() for _ in range(8)} == {first.port}
    seen = "its own clients: the stream breaks off; the other's: the whole answer"
    record(
        Row("kill -9 of one of two replicas, 8 chats at once", "a replica", seen,
            "up to 60 s, when its controller drops it; no gap at the other", "what it was saying")
    )  # fmt: skip
