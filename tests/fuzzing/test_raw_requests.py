"""Requests whose very bytes are broken, and clients that stop in the middle of one."""

import contextlib
import re
import socket
import time

from hypothesis import given
from hypothesis import strategies as st

from fuzzing.checks import FAILURE, KEY, OUR_FAULT, PATIENCE_S, REQUESTS, Target, examples

WAIT_S = 0.05
BODY = b'{"prompt": "Hi", "max_new_tokens": 3}'
HEAD = (
    "POST /generate_stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    f"Authorization: Bearer {KEY}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode()
CHUNKED = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
WHOLE = [
    HEAD + BODY,
    CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    HEAD + BODY + HEAD + BODY,  # two in one piece
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
]
PIECES = st.binary(max_size=6) | st.sampled_from(
    [b"\r\n", b"\n", b"\0", b"\r\n\r\n", b":", b" ", b"HTTP/2.0", b"Content-Length: 5\r\n",
     b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n", b"Host: a\r\n",
     b"Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFF\r\n", b"Expect: 100-continue\r\n",
     b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"x" * 70_000, b"A: b\r\n" * 3000]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(WHOLE))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(PIECES) + text[at + draw(st.integers(0, 5)) :]
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


def answer_to(address: str, request: bytes, wait_s: float = WAIT_S) -> bytes:
    """Send bytes, wait a little, say that there will be no more, and read to the end."""
    host, _, port = address.removeprefix("http://").partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(request)
        connection.settimeout(wait_s)
        try:
            answer = received(connection)
        except TimeoutError:
            connection.settimeout(PATIENCE_S)
            connection.shutdown(socket.SHUT_WR)  # for this server, that is to leave
            answer = received(connection)
        return answer
    return b""


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@examples(max(50, REQUESTS // 10))
@given(requests())
def test_no_bytes_break_the_server(target: Target, request: bytes) -> None:
    began_s = time.monotonic()

    answer = answer_to(target.stage.address, request)

    assert time.monotonic() - began_s < PATIENCE_S
    for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer):
        target.statuses["raw", int(status)] += 1
        assert int(status) < FAILURE, answer
    assert not OUR_FAULT.search(answer), answer


def test_a_whole_request_is_answered(target: Target) -> None:
    for request in WHOLE:
        assert b"HTTP/1.1 200" in answer_to(target.stage.address, request, PATIENCE_S)
