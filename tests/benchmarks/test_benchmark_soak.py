import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.soak_arithmetic import Sample, judge
from benchmarks.soak_clients import Client, Log

DEPARTURES = {"0.1": 50, "0.25": 99, "0.5": 100, "+Inf": 100}
CALM = Sample(
    at_s=0,
    health_s=0.01,
    running=0,
    waiting=0,
    blocks_held=0,
    rss_bytes=1000 * 2**20,
    open_files=20,
    departures=DEPARTURES,
)


def samples(*mib: float, **last: Any) -> list[Sample]:
    grown = [
        replace(CALM, at_s=float(n), rss_bytes=int(each * 2**20)) for n, each in enumerate(mib)
    ]
    return [*grown[:-1], replace(grown[-1], **last)]


def holds(*mib: float, wrong: dict[str, int] | None = None, **last: Any) -> dict[str, bool]:
    findings = judge(samples(*mib, **last), {"read nothing": 5}, wrong or {})
    return {finding.claim.split()[0]: finding.holds for finding in findings}


def test_a_calm_server_keeps_every_promise() -> None:
    assert all(holds(1000, 1000, 1000, 1000).values())


def test_memory_that_grows_after_the_warm_up_is_told() -> None:
    assert holds(500, 1000, 1000, 1019)["resident"]
    assert not holds(500, 1000, 1000, 1021)["resident"]


@pytest.mark.parametrize("what", ["running", "waiting", "blocks_held"])
def test_what_is_held_in_the_end_is_told(what: str) -> None:
    held: dict[str, Any] = {what: 1}

    assert not holds(1000, 1000, **held)["after"]


def test_places_that_came_back_late_are_told() -> None:
    late = DEPARTURES | {"0.25": 98}

    assert not holds(1000, 1000, departures=late)["places"]
    assert not holds(1000, 1000, departures=dict.fromkeys(DEPARTURES, 0))["places"]


def test_one_failure_that_a_client_saw_is_told() -> None:
    assert not holds(1000, 1000, wrong={"left: status 500": 1})["failures"]


@pytest.mark.parametrize(
    ("answer", "seen", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n", True, None),
        (b'HTTP/1.1 200 OK\r\n\r\n{"text":"a","error_code":0}\0', True, None),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {", False, "the answer broke off"),
        (
            b'HTTP/1.1 200 OK\r\n\r\n{"error_code":1,"text":"the model failed"}\0',
            False,
            "the model failed",
        ),
        (b'HTTP/1.1 200 OK\r\n\r\n{"error_code":1,"text":"the server is busy"}\0', True, None),
        (b"HTTP/1.1 503 Gone\r\n\r\n", False, "status 503"),
        (b"HTTP/1.1 429 Busy\r\n\r\n", True, None),
        (b"", False, "closed without an answer"),
        (b"HTTP/1.1 500 Oh\r\n\r\n", False, "status 500"),
    ],
)
async def test_a_client_tells_failures_from_refusals(
    answer: bytes, seen: bool, wrong: str | None
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    log = Log()
    async with server:
        client = Client(server.sockets[0].getsockname()[1], "m", 0, 0, log)
        client._habits = {client._read: 1}
        await client.live(time.monotonic() + 0.3)

    assert bool(log.seen) is seen
    assert [wrong or ""] == ["".join(log.wrong).rpartition(": ")[2]]
