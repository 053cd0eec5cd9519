"""The clients of a soak: some read, some leave, some are slow or deaf, some send nonsense.

Each speaks HTTP over a socket of its own, because a library would not let it behave so badly.
"""

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

PATIENCE_S = 60.0
SENT_AWAY = "sent away, for now"
_PAUSE_S = 0.05
_SLOW_READS, _SLOW_S = 12, 0.25
_DEAF_BUFFER = 2048
_NONSENSE_S = 10.0
_PATHS = ("/v1/chat/completions", "/generate_stream", "/api/worker/generate_stream")
_NONSENSE: tuple[bytes, ...] = (
    b"", b"{", b"[" * 50_000, b"\xff\xfe", b'{"messages": 5}', b'{"prompt": ["a", 5]}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e400}',
    b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "a"}], "guided_regex": "("}',
    b'{"messages": [{"role": "user", "content": "' + b"a " * 20_000 + b'"}]}',
    b'{"model": "no-such", "messages": [{"role": "user", "content": "a"}]}',
)  # fmt: skip


class SoakError(Exception):
    """A client saw what no client may see."""


@dataclass
class Log:
    """What all clients saw.

    Attributes:
        seen: How often each thing happened.
        wrong: What must not happen.
    """

    seen: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


class Client:
    """One person with a keyboard and bad habits, again and again.

    Args:
        port: Of the server, on 127.0.0.1.
        model: Name of the model.
        number: Decides with the seed what this client does.
        seed: The run's.
        log: Where it writes down what it saw.
    """

    def __init__(self, port: int, model: str, number: int, seed: int, log: Log) -> None:
        self._port, self._model, self._log = port, model, log
        self._random = random.Random(f"{seed}/{number}")
        self._habits: dict[Callable[[], Awaitable[str]], int] = {
            self._read: 20,
            self._leave: 50,
            self._read_slowly: 6,
            self._be_deaf: 4,
            self._talk_nonsense: 15,
            self._break_off: 5,
        }

    async def live(self, until_s: float) -> None:
        """Do this and that until a time of ``time.monotonic``."""
        while time.monotonic() < until_s:
            habit = self._random.choices(list(self._habits), list(self._habits.values()))[0]
            try:
                seen = await asyncio.wait_for(habit(), PATIENCE_S)
                self._log.seen[seen] += 1
                if seen == SENT_AWAY:
                    await asyncio.sleep(self._random.uniform(1, 3))  # Retry-After says 1
            except TimeoutError:
                self._log.wrong[f"{habit.__name__}: nothing ended within {PATIENCE_S:g} s"] += 1
            except SoakError as error:
                self._log.wrong[str(error)] += 1
            except OSError as error:
                self._log.wrong[f"{habit.__name__}: {type(error).__name__}"] += 1
            await asyncio.sleep(self._random.uniform(0, 2 * _PAUSE_S))

    async def _read(self) -> str:
        async with self._asked(self._question(tokens=8)) as reader:
            return _whole(await reader.read())

    async def _leave(self) -> str:
        """Read nothing, the head, or some of the text, and go."""
        amount = self._random.choice((0, 600, 1500, 2500))
        async with self._asked(self._question(tokens=200)) as reader:
            head = b""
            while len(head) < amount and (piece := await reader.read(amount)):
                head += piece
            if not amount:
                await asyncio.sleep(self._random.uniform(0, 0.3))
                return "left before an answer"
            return _outcome(head, "left within an answer")

    async def _read_slowly(self) -> str:
        async with self._asked(self._question(tokens=100), buffer=_DEAF_BUFFER) as reader:
            head = b""
            for _ in range(_SLOW_READS):
                head += await reader.read(64)
                await asyncio.sleep(_SLOW_S)
            return _outcome(head, "read slowly and left")

    async def _be_deaf(self) -> str:
        async with self._asked(self._question(tokens=400), buffer=_DEAF_BUFFER):
            await asyncio.sleep(self._random.uniform(1, 8))
            return "read nothing"

    async def _talk_nonsense(self) -> str:
        body = self._random.choice(_NONSENSE)
        if self._random.random() < 0.5:
            whole = self._question(tokens=2)[1]
            cut = self._random.randrange(len(whole))
            body = whole[:cut] + self._random.randbytes(3) + whole[cut + 2 :]
        async with self._asked((self._random.choice(_PATHS), body)) as reader:
            try:
                answer = await asyncio.wait_for(reader.read(), _NONSENSE_S)
            except TimeoutError:  # whoever loses max_tokens is told a long story
                return "left within an answer"
            return _outcome(answer, "nonsense was answered", is_asked_well=False)

    async def _break_off(self) -> str:
        path, body = self._question(tokens=5)
        request = self._request(path, body)
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            writer.write(request[: self._random.randrange(1, len(request))])
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0, 0.5))
        return "broke off a request"

    def _question(self, tokens: int) -> tuple[str, bytes]:
        path = self._random.choice(_PATHS)
        words = " ".join(self._random.choices(_TEXT.split(), k=self._random.choice((5, 20, 80))))
        if path.startswith("/v1"):
            body = {"messages": [{"role": "user", "content": words}], "stream": True,
                    "max_tokens": tokens, "temperature": 0.7}  # fmt: skip
        elif path.startswith("/api"):
            body = {"model": self._model, "messages": [{"role": "human", "content": words}],
                    "max_new_tokens": tokens}  # fmt: skip
        else:
            body = {"prompt": f"###Human: {words}###Assistant:", "max_new_tokens": tokens}
        return path, json.dumps(body).encode()

    @staticmethod
    def _request(path: str, body: bytes) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @contextlib.asynccontextmanager
    async def _asked(
        self, question: tuple[str, bytes], buffer: int | None = None
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Send a question; leave without a word when the block ends."""
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
            reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 2**16)
        except BaseException:
            connection.close()
            raise
        try:
            # A server that refuses at once may close before all has been sent.
            with contextlib.suppress(ConnectionError):
                writer.write(self._request(*question))
                await writer.drain()
            yield reader
        finally:
            writer.transport.abort()


def _whole(answer: bytes) -> str:
    """Say what an answer was that has been read to its end.

    Raises:
        SoakError: It was a failure of the server, or is not whole.
    """
    seen = _outcome(answer, "read to the end")
    if seen == "the connection was closed":
        raise SoakError("read: closed without an answer")
    if seen == "read to the end" and not answer.rstrip(b"\r\n0").endswith((b"[DONE]", b"\0")):
        raise SoakError("read: the answer broke off")
    return seen


def _outcome(answer: bytes, what: str, *, is_asked_well: bool = True) -> str:
    """Say what an answer, or its beginning, was.

    Args:
        answer: Head and body.
        what: The client did.
        is_asked_well: There was nothing to refuse but for want of a place.

    Raises:
        SoakError: It was a failure of the server.
    """
    if failure := _FAILURE.search(answer):
        raise SoakError(f"{what}: {failure[0].decode(errors='replace')}")
    status = answer[9:12].decode(errors="replace")
    if status == "200":
        # Two protocols tell errors in a frame, and streams in their last event.
        if b"the server is busy" in answer:
            return SENT_AWAY
        if is_asked_well and _ERROR.search(answer):
            raise SoakError(f"{what}: an error, {answer[-200:]!r}")
        return what
    if status == "429":
        return SENT_AWAY
    if status[:1] == "4" and not is_asked_well:
        return "refused"
    if not status:
        return "the connection was closed"
    raise SoakError(f"{what}: status {status}")


# What this server says when the fault is its own, in any dialect.
_FAILURE = re.compile(rb"internal error|the model failed|the engine|no memory left|server_error")
_ERROR = re.compile(rb'"error_code": ?[1-9]|"error": ?\{')
_TEXT = "the of and to in is that for it was on with as at by from this are or an be we"
