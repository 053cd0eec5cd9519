"""More connections than there may be: who waits for an answer keeps it, and who asks gets in."""

import asyncio
import json
import logging
import resource
import subprocess
import sys

import pytest
from fakes import ScriptedEngine

from dbgpt_guanaco.server.connection_limit import SHARE, ConnectionLimit, most_connections
from server.test_connections import CHAT, post, read_to_the_end, served

MOST = 5
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_the_longest_idle_connection_makes_room_and_no_answer_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine("Hi", endless=True)
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING):
        async with served(engine, most=MOST) as connect:
            answered = await connect()
            await loop.sock_sendall(answered, post("/v1/chat/completions", CHAT))
            while not engine.generations:  # noqa: ASYNC110
                await asyncio.sleep(0)
            silent = [await connect() for _ in range(MOST - 1)]
            await loop.sock_sendall(silent[0], b"GET /hea")  # no head: it counts as idle as before
            kept_alive = silent.pop()
            await loop.sock_sendall(kept_alive, HEALTH)
            assert b"200 OK" in await loop.sock_recv(kept_alive, 65_536)

            for longest in silent:
                newcomer = await connect()
                await loop.sock_sendall(newcomer, HEALTH)
                assert b"200 OK" in await loop.sock_recv(newcomer, 65_536)
                assert await read_to_the_end(longest) == b""
            await loop.sock_sendall(kept_alive, HEALTH)
            assert b"200 OK" in await loop.sock_recv(kept_alive, 65_536)
            others = [await connect() for _ in range(MOST - 2)]
            for each in (others[-1], kept_alive):
                await loop.sock_sendall(each, HEALTH)
                assert b"200 OK" in await loop.sock_recv(each, 65_536)
            for _ in range(MOST - 1):
                await connect()
            assert await read_to_the_end(kept_alive) == b"", "answered, it is idle again"

            engine.generations[0].cancel()
            got = b""
            while b"[DONE]" not in got:
                got += await loop.sock_recv(answered, 65_536)
    assert caplog.text.count("5 connections are open, as many as there may be") == 1


async def test_where_all_are_busy_the_newcomer_is_turned_away() -> None:
    engine = ScriptedEngine("Hi", endless=True)
    loop = asyncio.get_running_loop()
    async with served(engine, most=2) as connect:
        busy = [await connect() for _ in range(2)]
        for connection in busy:
            await loop.sock_sendall(connection, post("/v1/chat/completions", CHAT))
        while len(engine.generations) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await read_to_the_end(await connect()) == b""

        busy[0].close()
        await engine.generations[0].cancelled.wait()
        newcomer = await connect()
        await loop.sock_sendall(newcomer, HEALTH)
        assert b"200 OK" in await loop.sock_recv(newcomer, 65_536)
        engine.generations[1].cancel()


async def test_an_answer_on_its_way_arrives_though_its_connection_has_to_go() -> None:
    loop = asyncio.get_running_loop()
    async with served(ScriptedEngine("x" * 3_000_000), most=1) as connect:
        reader = await connect()
        whole = {"prompt": "Say it.", "max_tokens": 1}
        await loop.sock_sendall(reader, post("/v1/completions", whole))
        got = await loop.sock_recv(reader, 1)  # all is written, and most of it waits here
        newcomer = await connect()
        await loop.sock_sendall(newcomer, HEALTH)
        assert b"200 OK" in await loop.sock_recv(newcomer, 65_536)
        got += await read_to_the_end(reader)

    assert got.count(b"x") >= 3_000_000


class Peer:
    is_closed = False

    def make_room(self) -> None:
        self.is_closed = True


def test_a_burst_closes_no_more_than_it_has_to() -> None:
    """A connection that was given up is gone only in the event loop's next turn."""
    limit, peers = ConnectionLimit(3), [Peer() for _ in range(5)]
    for peer in peers:
        limit.enter(peer)
    limit.note(peers[0], is_idle=True)  # its last bytes, after it was closed
    limit.enter(Peer())
    for peer in peers:
        limit.leave(peer)

    assert [peer.is_closed for peer in peers] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("soft", "hard", "most", "files"),
    [(100, 400, 9999, 400), (300, 300, 9999, 300), (9, 90, 50, 50)],
)
def test_a_process_takes_the_files_that_it_may_have(
    soft: int, hard: int, most: int, files: int
) -> None:
    script = f"""
import json, resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from dbgpt_guanaco.server import connection_limit
connection_limit.MOST_FILES = {most}
most = connection_limit.most_connections()
print(json.dumps([most, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert json.loads(told.stdout) == [int(SHARE * files), files, hard]


def test_a_limit_that_cannot_be_raised_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS tells no hard limit, and refuses what is above one."""

    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    assert most_connections() == int(SHARE * 256)
