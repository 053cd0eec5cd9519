"""Real sockets whose other end does nothing, or next to nothing."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fakes import ScriptedEngine
from uvicorn.server import ServerState

from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.connection_limit import ConnectionLimit
from dbgpt_guanaco.server.connections import PatientConnection
from dbgpt_guanaco.settings import AccessSettings

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
HUGE = ["x" * 20_000] * 100  # far more than buffers hold
SOON_S = 0.2
NEVER_S = 60.0

Connect = Callable[..., Awaitable[socket.socket]]


@asynccontextmanager
async def served(
    engine: ScriptedEngine,
    *,
    head_s: float = NEVER_S,
    body_s: float = NEVER_S,
    reader_s: float = NEVER_S,
    most: int = 100,
) -> AsyncIterator[Connect]:
    """Serve an engine; yield what opens connections with small buffers."""
    app = create_app(engine, access=AccessSettings(body_s=body_s))
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="none", timeout_keep_alive=int(NEVER_S)
    )
    config.load()
    loop, state, opened = asyncio.get_running_loop(), ServerState(), list[socket.socket]()
    limit = ConnectionLimit(most)
    server = await loop.create_server(
        lambda: PatientConnection(config, state, {}, head_s=head_s, reader_s=reader_s, limit=limit),
        "127.0.0.1",
        0,
    )

    async def connect(buffer_bytes: int = 4096) -> socket.socket:
        connection = socket.socket()
        opened.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.setblocking(False)
        await loop.sock_connect(connection, server.sockets[0].getsockname())
        return connection

    try:
        async with asyncio.timeout(20):
            yield connect
    finally:
        for connection in opened:
            connection.close()
        server.close()
        await server.wait_closed()
        await asyncio.gather(*state.tasks, return_exceptions=True)


def post(path: str, body: Any, *, claimed: int | None = None, **headers: str) -> bytes:
    """Return a request; ``claimed`` is a Content-Length that is not true."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(content) if claimed is None else claimed
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {length}"] if "Transfer_Encoding" not in headers else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def read_to_the_end(connection: socket.socket) -> bytes:
    """Return all that comes until the other end closes."""
    loop, got = asyncio.get_running_loop(), b""
    while True:
        try:
            piece = await loop.sock_recv(connection, 65_536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece


async def trickle(connection: socket.socket, byte: bytes) -> None:
    """Send one byte now and then, until the other end has had enough."""
    try:
        while True:
            await asyncio.get_running_loop().sock_sendall(connection, byte)
            await asyncio.sleep(SOON_S / 10)
    except (BrokenPipeError, ConnectionResetError):
        return


@pytest.fixture(params=["kernel", "no kernel"])
def _who_notices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each of the two notice it: the kernel, and where that does not know how, the alarm."""
    if request.param == "no kernel":
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    else:
        monkeypatch.setattr(PatientConnection, "_check_reader", lambda _: None)


@pytest.mark.usefixtures("_who_notices")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/generate_stream", {"prompt": "Hello"}),
        ("/api/worker/generate_stream", {"model": "scripted", "prompt": "Hello", "messages": []}),
    ],
)
async def test_who_never_reads_is_dropped_and_the_place_is_free(path: str, body: Any) -> None:
    engine = ScriptedEngine(*HUGE, endless=True)
    async with served(engine, reader_s=SOON_S) as connect:
        connection = await connect()
        await asyncio.get_running_loop().sock_sendall(connection, post(path, body))
        while not engine.generations:  # noqa: ASYNC110  # the server has no event for it
            await asyncio.sleep(0)
        await engine.generations[0].cancelled.wait()


@pytest.mark.usefixtures("_who_notices")
async def test_who_reads_slowly_gets_it_all() -> None:
    engine = ScriptedEngine("x" * 1_000_000)
    async with served(engine, reader_s=SOON_S) as connect:
        connection, loop, got = await connect(65_536), asyncio.get_running_loop(), b""
        await loop.sock_sendall(connection, post("/v1/chat/completions", CHAT))
        while b"[DONE]" not in got[-100:]:
            got += await loop.sock_recv(connection, 16_384)
            await asyncio.sleep(SOON_S / 10)

    assert got.count(b"x") >= 1_000_000


async def test_a_head_that_trickles_in_is_cut_off() -> None:
    async with served(ScriptedEngine("Hi"), head_s=SOON_S) as connect:
        connection = await connect()
        await asyncio.get_running_loop().sock_sendall(connection, b"GET /health HTTP/1.1\r\nX: ")

        await trickle(connection, b"x")


async def test_the_head_of_a_second_request_has_no_more_time() -> None:
    async with served(ScriptedEngine("Hi"), head_s=SOON_S) as connect:
        connection, loop = await connect(), asyncio.get_running_loop()
        await loop.sock_sendall(connection, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await loop.sock_recv(connection, 4096)
        await loop.sock_sendall(connection, b"GET /health HTTP/1.1\r\nX: ")

        await trickle(connection, b"x")


async def test_who_says_nothing_is_not_waited_for() -> None:
    async with served(ScriptedEngine("Hi"), head_s=SOON_S) as connect:
        assert await read_to_the_end(await connect()) == b""


async def test_an_answer_may_take_longer_than_its_request() -> None:
    engine = ScriptedEngine("Hi", endless=True)
    async with served(engine, head_s=SOON_S, body_s=SOON_S) as connect:
        connection, loop = await connect(), asyncio.get_running_loop()
        await loop.sock_sendall(connection, post("/v1/chat/completions", CHAT))
        assert b"Hi" in await until(connection, b"Hi")
        await asyncio.sleep(2 * SOON_S)
        assert not engine.generations[0].cancelled.is_set()


async def until(connection: socket.socket, wanted: bytes) -> bytes:
    got = b""
    while wanted not in got:
        got += await asyncio.get_running_loop().sock_recv(connection, 65_536)
    return got


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate_stream"])
async def test_a_body_that_trickles_in_is_a_408(path: str) -> None:
    engine = ScriptedEngine("Hi")
    async with served(engine, body_s=SOON_S, head_s=SOON_S) as connect:
        connection = await connect()
        await asyncio.get_running_loop().sock_sendall(
            connection, post(path, b'{"prompt": "', claimed=10_000)
        )
        answer, _ = await asyncio.gather(read_to_the_end(connection), trickle(connection, b"x"))

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"within 0.2 seconds" in answer
    assert engine.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, b"413"),
        ({"Content_Encoding": "gzip"}, b"415"),
        ({"Content_Encoding": "deflate"}, b"415"),
        ({"Origin": "https://evil.example"}, b"403"),
    ],
)
async def test_a_body_that_will_not_be_read_is_refused_by_its_head(
    headers: dict[str, str], status: bytes
) -> None:
    async with served(ScriptedEngine("Hi")) as connect:
        connection, loop = await connect(), asyncio.get_running_loop()
        request = post("/v1/chat/completions", b"", claimed=5_000_000, **headers)
        await loop.sock_sendall(connection, request)  # and no byte of the body

        assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 " + status)


async def test_who_sends_on_hears_the_refusal_and_is_cut_off_later() -> None:
    async with served(ScriptedEngine("Hi"), head_s=SOON_S) as connect:
        connection, loop = await connect(), asyncio.get_running_loop()
        request = post("/v1/chat/completions", b"x" * 1_000_000, claimed=1_000_000_000)
        await loop.sock_sendall(connection, request)  # all of it is taken, and dropped
        assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 413")

        await trickle(connection, b"x")


async def test_a_body_of_unknown_length_is_refused_while_it_arrives() -> None:
    engine = ScriptedEngine("Hi")
    async with served(engine, head_s=SOON_S) as connect:
        connection, loop = await connect(), asyncio.get_running_loop()
        await loop.sock_sendall(connection, post("/generate", b"", Transfer_Encoding="chunked"))
        for _ in range(50):
            await loop.sock_sendall(connection, b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 413")


async def test_the_kernel_looks_for_dead_peers() -> None:
    asked: list[tuple[int, ...]] = []

    class Noted(PatientConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            accepted = transport.get_extra_info("socket")
            asked.append(
                (
                    accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                    accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
                )
            )

    config = uvicorn.Config(create_app(ScriptedEngine("Hi")), log_config=None)
    config.load()
    loop, limit = asyncio.get_running_loop(), ConnectionLimit(9)
    server = await loop.create_server(
        lambda: Noted(config, ServerState(), {}, head_s=9, reader_s=7, limit=limit), "127.0.0.1", 0
    )
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    async with asyncio.timeout(20):
        while not asked:  # noqa: ASYNC110  # nor here
            await asyncio.sleep(0)
    writer.close()
    server.close()

    assert asked == [(1, 7000, 65_536)]
