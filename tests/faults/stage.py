"""A real server on loopback over a tiny model, and a client of each dialect that it must not fail.

The server runs in a thread of the test's process, so that a test can reach into its engine.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.server.__main__ import _bind
from dbgpt_guanaco.server.app import create_app

PROMPT, TOKENS = "Hi", 60
PATIENCE_S = 20.0
# Before what the two old dialects write into the chat.
OF_2023 = "**LLMServer Generate Error, Please CheckErrorInfo.**: "


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of client asks."""

    name: str
    path: str
    body: dict[str, Any]
    is_stream: bool = True


OPENAI = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
DIALECTS = (
    Dialect("OpenAI stream", "/v1/completions", OPENAI | {"stream": True}),
    Dialect("OpenAI whole", "/v1/completions", OPENAI, is_stream=False),
    Dialect("2023", "/generate_stream",
            {"prompt": PROMPT, "max_new_tokens": TOKENS, "temperature": 0}),
    Dialect("cluster", "/api/worker/generate_stream",
            {"model": "tiny", "prompt": PROMPT, "max_new_tokens": TOKENS, "temperature": 0}),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client saw.

    Attributes:
        status: Of the response.
        frames: All JSON that came.
    """

    dialect: Dialect
    status: int
    frames: Sequence[dict[str, Any]]

    @property
    def problem(self) -> str | None:
        """The words of the error that the answer ended with."""
        last = self.frames[-1] if self.frames else {"error": {"message": "nothing came"}}
        if "error" in last:
            return str(last["error"]["message"])
        told = str(last["text"]).rpartition("\n")[2] if last.get("error_code") else None
        return told.removeprefix(OF_2023) if told else None

    @property
    def in_short(self) -> str:
        """For a row of the matrix."""
        if self.problem is None:
            return "the whole answer"
        if not self.dialect.is_stream or (len(self.frames) == 1 and self.status >= 400):
            return f"{self.status}"
        kind = "error event" if "error" in self.frames[-1] else "error frame"
        return f"{self.status}, last an {kind}"


@dataclass
class Asked:
    """A question that is being answered."""

    future: Future[Seen] = field(default_factory=Future)
    has_text: threading.Event = field(default_factory=threading.Event)


class Hook:
    """Stands before and behind every forward pass of the model, and does what it is told to.

    Attributes:
        before: Called before a pass.
        behind: Called behind it, with its output.
    """

    def __init__(self, model: Any) -> None:
        self.before: Callable[[], None] = lambda: None
        self.behind: Callable[[Any], None] = lambda _: None
        model.register_forward_pre_hook(lambda *_: self.before())
        model.register_forward_hook(lambda _module, _inputs, output: self.behind(output))

    def clear(self) -> None:
        self.before, self.behind = lambda: None, lambda _: None


class Stage:
    """An engine, its server, and clients of every dialect."""

    def __init__(
        self, engine: BatchingEngine | StreamingEngine, loaded: LoadedModel, **more: Any
    ) -> None:
        self.engine, self.hook = engine, Hook(loaded.model)
        listener = _bind("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(engine, **more), log_config=None, ws="none", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=self.address, timeout=PATIENCE_S)
        self._clients = ThreadPoolExecutor(8)
        self.wait_until(lambda: self._server.started)

    @property
    def is_batching(self) -> bool:
        return isinstance(self.engine, BatchingEngine)

    @property
    def where(self) -> str:
        return "batching engine" if self.is_batching else "streaming engine"

    def ask(self, dialect: Dialect, **more: Any) -> Asked:
        """Ask in a thread."""
        asked = Asked()

        def answer() -> None:
            try:
                asked.future.set_result(self._answer(dialect, dialect.body | more, asked))
            except Exception as error:
                asked.future.set_exception(error)

        self._clients.submit(answer)
        return asked

    def ask_all(self) -> list[Asked]:
        return [self.ask(dialect) for dialect in DIALECTS]

    def _answer(self, dialect: Dialect, body: dict[str, Any], asked: Asked) -> Seen:
        text = ""
        with self.client.stream("POST", dialect.path, json=body) as response:
            for piece in response.iter_text():
                text += piece
                if '"text":' in text:
                    asked.has_text.set()
        lines = text.replace("\0", "\n").replace("data: ", "\n").splitlines()
        frames = [json.loads(line) for line in lines if line.startswith("{")]
        return Seen(dialect, response.status_code, frames)

    def works_again_after(self) -> float:
        """Ask until there is an answer; return how long that took, in seconds."""
        start = time.monotonic()
        body = OPENAI | {"max_tokens": 2}
        while self.client.post("/v1/completions", json=body).status_code != 200:
            assert time.monotonic() < start + PATIENCE_S
        return time.monotonic() - start

    def assert_all_is_back(self) -> None:
        """Places and blocks come back to an engine that nobody asks anything."""
        self.wait_until(lambda: self.engine.load.running == self.engine.load.waiting == 0)
        self.wait_until(lambda: self.engine.load.kv_blocks_free == self.engine.load.kv_blocks)
        assert self.engine.is_alive

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    @contextlib.contextmanager
    def all_begin_together(self) -> Iterator[None]:
        """Hold the engine in another request's pass until all that ask meanwhile wait."""
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            self.hook.before = lambda: None
            held.set()
            go.wait(PATIENCE_S)

        self.hook.before = hold
        plug = self.ask(DIALECTS[1], max_tokens=1)
        assert held.wait(PATIENCE_S)
        try:
            yield
            self.wait_until(lambda: self.engine.load.waiting == len(DIALECTS))
        finally:
            go.set()
        plug.future.result(PATIENCE_S)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(PATIENCE_S)
        self._clients.shutdown()
        self.engine.close()


def results(asked: Sequence[Asked]) -> list[Seen]:
    return [each.future.result(PATIENCE_S) for each in asked]


def described(seen: Sequence[Seen]) -> str:
    """Say what clients saw, those together that saw the same."""
    first = next((each.problem for each in seen if each.problem), None)
    by_sight: dict[str, list[str]] = {}
    for each in seen:
        own = f" (*{each.problem}*)" if each.problem not in (None, first) else ""
        by_sight.setdefault(each.in_short + own, []).append(each.dialect.name)
    if len(by_sight) == 1 and not first:
        return f"all: {next(iter(by_sight))}"
    told = f"*{first}* – " if first else ""
    return told + "; ".join(f"{', '.join(names)}: {sight}" for sight, names in by_sight.items())


def own_threads() -> set[threading.Thread]:
    """The threads of engines; those of clients and of pools are made when they are needed."""
    names = ("guanaco-engine", "guanaco-watchdog")
    return {thread for thread in threading.enumerate() if thread.name in names}
