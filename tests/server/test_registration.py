"""Membership at controllers that vanish, hang, lie and start anew. Time is the test's own."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import ScriptedEmbedder, ScriptedEngine

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server import registration
from dbgpt_guanaco.server.__main__ import main
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.registration import Registration, Registrations, check
from dbgpt_guanaco.settings import (
    ClusterSettings,
    EmbeddingSettings,
    ModelSettings,
    Settings,
)

CONTROLLER = "http://10.0.0.1:8000"
WORKERS = ("mine@llm", "WorkerManager@service")
ADDRESS = ("10.0.0.7", 8001)
BOTH = {(worker, *ADDRESS) for worker in WORKERS}


class Time:
    """Passes as fast as somebody sleeps."""

    def __init__(self) -> None:
        self.now, self._awaited_s, self._has_come = 0.0, float("inf"), asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._awaited_s:
            self._has_come.set()
        await asyncio.sleep(0)

    async def until(self, seconds: float) -> None:
        self._awaited_s, self._has_come = seconds, asyncio.Event()
        async with asyncio.timeout(5):
            await self._has_come.wait()


def response(content: bytes, status: int = 200) -> httpx.Response:
    """Return a response that is still to be read, as it comes from a network."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    return httpx.Response(status, content=pieces())


Behaviour = Callable[[httpx.Request], Awaitable[httpx.Response] | httpx.Response]


class FakeController:
    """DB-GPT's controller, as far as a worker sees it; ``behave`` makes it another."""

    def __init__(self, time: Time, *, is_of_2023: bool = False) -> None:
        self._time, self._is_of_2023 = time, is_of_2023
        self.table: dict[tuple[str, str, int], bool] = {}
        self.requests: list[tuple[float, str, dict[str, Any]]] = []
        self.behave: Behaviour | None = None
        self._was_asked = asyncio.Condition()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        fields = (
            json.loads(request.content) if request.method == "POST" else dict(request.url.params)
        )
        path = request.url.path.removeprefix("/api/controller/")
        self.requests.append((self._time.now, f"{request.method} {path}", fields))
        await self.notify()
        if self.behave:
            answer = self.behave(request)
            return answer if isinstance(answer, httpx.Response) else await answer
        answered = json.dumps(self._answer(request.method, path, fields))
        await self.notify()
        return response(answered.encode())

    async def notify(self) -> None:
        async with self._was_asked:
            self._was_asked.notify_all()

    def _answer(self, method: str, path: str, fields: dict[str, Any]) -> bool:
        key = (fields["model_name"], fields["host"], int(fields["port"]))
        if method == "DELETE":
            self.table[key] = False
            if fields["remove_from_registry"] == "true":
                del self.table[key]
            return True
        if path == "heartbeat" and self._is_of_2023 and key not in self.table:
            return False
        self.table[key] = True
        return True

    def times_of(self, what: str, worker: str = WORKERS[0]) -> list[float]:
        return [t for t, w, f in self.requests if w == what and f["model_name"] == worker]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self._was_asked:
            await self._was_asked.wait_for(is_so)

    async def until_more(self, count: int) -> None:
        enough = len(self.requests) + count
        await self.until(lambda: len(self.requests) >= enough)


class Case:
    def __init__(self, *, is_of_2023: bool = False) -> None:
        self.time = Time()
        self.controller = FakeController(self.time, is_of_2023=is_of_2023)
        self.is_alive = True
        self.address: tuple[str, int] | Exception = ADDRESS
        self.workers: tuple[str, ...] = WORKERS

    def find_address(self) -> tuple[str, int]:
        if isinstance(self.address, Exception):
            raise self.address
        return self.address

    @asynccontextmanager
    async def registered(self) -> AsyncIterator[FakeController]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.controller)) as client:
            self.registration = Registration(
                CONTROLLER, self.find_address, lambda: self.workers, lambda: self.is_alive, client,
                clock=self.time, sleep=self.time.sleep,
            )  # fmt: skip
            task = asyncio.create_task(self.registration.run())
            yield self.controller
            assert not task.done(), task
            task.cancel()


def longest_gap(times: list[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(times))


async def test_it_registers_all_then_sends_heartbeats_often_enough() -> None:
    case = Case()
    async with case.registered() as controller:
        await controller.until(lambda: len(controller.times_of("POST heartbeat")) == 50)

    assert controller.table == dict.fromkeys(BOTH, True)
    assert len(controller.times_of("POST models")) == 1
    times = [0.0, *controller.times_of("POST heartbeat")]
    assert longest_gap(times) + registration.REQUEST_S < 20
    assert len({round(b - a, 6) for a, b in pairwise(times)}) > 10  # jittered
    assert controller.requests[0][2] == {
        "model_name": "mine@llm", "host": "10.0.0.7", "port": 8001
    }  # fmt: skip


@pytest.mark.parametrize("is_of_2023", [True, False])
async def test_after_a_restart_of_the_controller_it_is_known_again(
    is_of_2023: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The one of 2023 answers ``false`` to a heartbeat of somebody it does not know."""
    case = Case(is_of_2023=is_of_2023)
    async with case.registered() as controller:
        await controller.until(lambda: len(controller.times_of("POST heartbeat")) == 3)
        controller.table.clear()
        lost = case.time.now
        await controller.until(lambda: set(controller.table) == BOTH)

    assert case.time.now - lost <= 20
    assert len(controller.times_of("POST heartbeat")) <= 4  # the first one already mended it
    assert not caplog.records  # nothing was lost that anybody would notice


def gone(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused")


def refusing(_: httpx.Request) -> httpx.Response:
    return response(b'{"error": "not in a network"}', 403)


def answering(content: bytes, status: int = 200) -> Behaviour:
    return lambda _: response(content, status)


async def hanging(_: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def dripping(_: httpx.Request) -> httpx.Response:
    async def drops() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.001)
            yield b""

    return httpx.Response(200, content=drops())


async def flooding(_: httpx.Request) -> httpx.Response:
    async def flood() -> AsyncIterator[bytes]:
        while True:
            yield b"true" * 1000

    return httpx.Response(200, content=flood())


TROUBLE: list[tuple[Behaviour, str]] = [
    (gone, "Connection refused"),
    (refusing, "not in a network"),
    (answering(b"false"), "answered 200"),
    (answering(b'"true"'), "answered 200"),
    (answering(b'{"success": true}'), "answered 200"),
    (answering(b""), "answered 200"),
    (answering(b"true", 202), "answered 202"),
    (answering(b"true", 307), "answered 307"),
    (answering(b"\xff\x00\n\x1b[31m"), "answered 200"),
    (hanging, "no answer within"),
    (dripping, "no answer within"),
    (flooding, "answered 200"),
]


@pytest.mark.parametrize(("behave", "told"), TROUBLE)
async def test_a_controller_in_trouble_is_tried_again_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, behave: Behaviour, told: str
) -> None:
    monkeypatch.setattr(registration, "REQUEST_S", 0.02)
    caplog.set_level(logging.INFO, "dbgpt_guanaco")
    case = Case(is_of_2023=True)
    async with case.registered() as controller:
        await controller.until(lambda: len(controller.times_of("POST heartbeat")) == 2)
        for _ in range(2):
            controller.behave = behave
            controller.table.clear()
            await controller.until_more(20)
            controller.behave = None
            back = case.time.now
            await controller.until(lambda: set(controller.table) == BOTH)
            assert case.time.now - back <= 20
            await controller.until(lambda: not caplog.records[-1].message.startswith("not"))

    assert longest_gap([t for t, _, _ in controller.requests]) <= 20
    lines = [record.message for record in caplog.records]
    assert [line.split(" with ")[0] for line in lines] == [
        "registered",
        *["not registered", "registered"] * 2,
    ]
    assert all(told in line for line in lines[1::2])
    assert all(line.isprintable() for line in lines)


async def test_a_controller_that_is_not_there_yet_is_waited_for() -> None:
    case = Case()
    case.controller.behave = gone
    async with case.registered() as controller:
        await controller.until(lambda: len(controller.times_of("POST models")) == 8)
        first = controller.times_of("POST models")
        controller.behave = None
        await controller.until(lambda: set(controller.table) == BOTH)

    gaps = [later - earlier for earlier, later in pairwise(first)]
    assert gaps[0] <= 2 <= gaps[2]  # patient soon, and not too patient ever
    assert max(gaps) <= 20


async def test_an_address_that_cannot_be_found_yet_is_waited_for() -> None:
    case = Case()
    case.address = OSError("no way there")
    async with case.registered() as controller:
        await case.time.until(100)
        assert not controller.requests
        case.address = ADDRESS
        await controller.until(lambda: set(controller.table) == BOTH)


async def test_a_dead_engine_is_taken_back_at_once_and_shown_as_ill() -> None:
    case = Case()
    async with case.registered() as controller:
        await controller.until(lambda: len(controller.times_of("POST heartbeat")) == 2)
        case.is_alive = False
        died = case.time.now
        await controller.until(lambda: controller.table == dict.fromkeys(BOTH, False))
        assert case.time.now - died <= 1
        beats = len(controller.times_of("POST heartbeat"))
        await controller.until_more(10)
        assert len(controller.times_of("POST heartbeat")) == beats
        case.is_alive = True
        await controller.until(lambda: controller.table == dict.fromkeys(BOTH, True))


async def test_an_engine_that_is_dead_from_the_start_is_never_registered() -> None:
    case = Case()
    case.is_alive = False
    async with case.registered() as controller:
        await case.time.until(100)
        await case.registration.stop()

    assert not controller.requests


# Registrations: all controllers, and the end.

ENGINE = ScriptedEngine(name="mine", aliases=("also",))


def all_of(transport: httpx.AsyncBaseTransport, *controllers: str) -> Registrations:
    cluster = ClusterSettings(controllers=controllers or (CONTROLLER,), advertise_host=ADDRESS[0])
    return Registrations(cluster, ("0.0.0.0", ADDRESS[1]), ENGINE, ScriptedEmbedder(), transport)


async def test_everything_is_registered_everywhere_and_taken_back() -> None:
    one, two = FakeController(Time()), FakeController(Time())

    async def either(request: httpx.Request) -> httpx.Response:
        return await (one if request.url.host == "10.0.0.1" else two)(request)

    registrations = all_of(httpx.MockTransport(either), CONTROLLER, "http://10.0.0.2:9000")
    registrations.start()
    for controller in (one, two):
        await controller.until(lambda table=controller.table: len(table) == 4)  # type: ignore[misc]
        assert controller.table == dict.fromkeys(
            [(worker, *ADDRESS) for worker in (
                "mine@llm", "also@llm", "all-minilm-l6-v2@text2vec", "WorkerManager@service"
            )],
            True,
        )  # fmt: skip

    await registrations.stop()
    await registrations.stop()  # twice is harmless

    assert one.table == two.table == {}
    assert {fields["port"] for _, what, fields in one.requests if "DELETE" in what} == {"8001"}


@pytest.mark.parametrize("behave", [hanging, dripping, gone, refusing])
async def test_the_end_does_not_wait_for_a_controller_in_trouble(
    monkeypatch: pytest.MonkeyPatch, behave: Behaviour
) -> None:
    controller = FakeController(Time())
    registrations = all_of(httpx.MockTransport(controller))
    registrations.start()
    await controller.until(lambda: len(controller.table) == 4)
    assert registration.GOODBYE_S <= 3
    monkeypatch.setattr(registration, "GOODBYE_S", 0.1)
    controller.behave = behave

    async with asyncio.timeout(1):
        await registrations.stop()


async def test_without_controllers_the_end_takes_no_time() -> None:
    registrations = Registrations(ClusterSettings(), ("127.0.0.1", 8000), ENGINE)
    registrations.start()
    async with asyncio.timeout(0.2):
        await registrations.stop()


async def test_no_proxy_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    controller = FakeController(Time())

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        lines.append(line.decode().strip())
        while (await reader.readline()).strip():
            pass
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ntrue")
        await writer.drain()
        writer.close()
        await controller.notify()

    lines: list[str] = []
    server = await asyncio.start_server(served, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cluster = ClusterSettings(controllers=(f"http://127.0.0.1:{port}",))
    registrations = Registrations(cluster, ("127.0.0.1", 8000), ENGINE)
    registrations.start()
    await controller.until(lambda: len(lines) == 3)
    await registrations.stop()
    server.close()

    assert lines[:3] == ["POST /api/controller/models HTTP/1.1"] * 3
    assert lines[3].startswith("DELETE /api/controller/models?model_name=")


async def test_our_own_controller_takes_it() -> None:
    app = create_app(ScriptedEngine(), cluster=ClusterSettings(worker_networks=("10.0.0.0/24",)))
    transport = httpx.ASGITransport(app=app, client=(ADDRESS[0], 50000))
    registrations = all_of(transport)

    async def listed() -> list[str]:
        async with httpx.AsyncClient(transport=transport, base_url=CONTROLLER) as client:
            response = await client.get("/api/controller/models", params={"healthy_only": True})
            return [each["host"] for each in response.json()]

    registrations.start()
    async with asyncio.timeout(5):
        while len(await listed()) < 6:  # noqa: ASYNC110  # asks the server, as DB-GPT does
            await asyncio.sleep(0)
    assert await listed() == ["10.0.0.1"] * 2 + ["10.0.0.7"] * 4
    await registrations.stop()

    assert await listed() == ["10.0.0.1"] * 2


# What is said before the model is loaded.


def settings(**groups: Any) -> Settings:
    return Settings(cluster=ClusterSettings(controllers=(CONTROLLER,)), **groups)


def test_the_plan_is_told() -> None:
    assert check(settings(), ("10.0.0.7", 8001)) == [f"{CONTROLLER} as 10.0.0.7:8001"]
    assert check(Settings(), ("127.0.0.1", 8001)) == []


def test_listening_for_oneself_and_a_controller_elsewhere_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="GUANACO_HOST"):
        check(settings(), ("127.0.0.1", 8001))


def test_that_error_ends_the_start_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUANACO_CONTROLLER", CONTROLLER)
    monkeypatch.setenv("MODEL_PORT", "0")
    monkeypatch.setitem(sys.modules, "dbgpt_guanaco.engine.factory", None)  # cannot be imported

    assert main() == 2
    assert f"the controller {CONTROLLER} is on another machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "groups",
    [
        {"model": ModelSettings(name="org/a@b")},
        {"model": ModelSettings(aliases=("a@b",))},
        {"embedding": EmbeddingSettings(embedding_model="a@b")},
    ],
)
def test_a_name_that_dbgpt_does_not_take_is_an_error(groups: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="a@b: DB-GPT takes no @"):
        check(settings(**groups), ("10.0.0.7", 8001))
    assert check(Settings(**groups), ("10.0.0.7", 8001)) == []


async def test_what_is_loaded_later_is_registered_and_taken_back() -> None:
    case = Case()
    async with case.registered() as controller:
        await controller.until(lambda: set(controller.table) == BOTH)
        case.workers = (*WORKERS, "sql@llm")
        await controller.until(lambda: ("sql@llm", *ADDRESS) in controller.table)
        assert all(controller.table.values())

        case.workers = WORKERS
        await controller.until(lambda: set(controller.table) == BOTH)
        assert all(controller.table.values())
