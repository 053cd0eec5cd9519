"""Loading, ready, draining or failed: what state this server is in, and what it has by then.

The port answers before the model is there and until the last answer has ended. Whoever needs the
engine asks here for it, and is refused while there is none and when there will be none.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import EngineStartingError, EngineStoppedError
from dbgpt_guanaco.start import StartProgress

State = Literal["loading", "ready", "draining", "failed"]
T = TypeVar("T")


class LifeCycle:
    """What this server has, and whether it may be used.

    Written by the event loop, but for ``tell``; read by anybody.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._progress = StartProgress("starting")
        self._loaded: tuple[Engine, Embedder | None] | None = None
        self._is_leaving = self._is_shut = False
        self._when_open: list[Callable[[Engine], None]] = []

    @classmethod
    def of(cls, engine: Engine, embedder: Embedder | None = None) -> "LifeCycle":
        """Return that of a server whose engine is there from the start."""
        life = cls()
        life.open(engine, embedder)
        return life

    @property
    def state(self) -> State:
        """What ``/ready`` says."""
        if self._is_leaving:
            return "draining"
        if self._loaded is None:
            return "loading"
        return "ready" if self._loaded[0].is_alive else "failed"

    @property
    def progress(self) -> StartProgress:
        """What is being done before the engine is there."""
        return self._progress

    @property
    def seconds(self) -> float:
        """Time since the start, in seconds."""
        return self._clock() - self._begin

    @property
    def engine(self) -> Engine | None:
        """The engine, once there is one, whether it may be used or not."""
        return self._loaded[0] if self._loaded else None

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model, once there is one."""
        return self._loaded[1] if self._loaded else None

    def admit(self) -> tuple[Engine, Embedder | None]:
        """Return what answers a request that comes now.

        Raises:
            EngineStartingError: It is being loaded.
            EngineStoppedError: This server takes no more requests.
        """
        if self._is_shut:
            raise EngineStoppedError
        if self._loaded is None:
            raise EngineStartingError(str(self._progress))
        return self._loaded

    def tell(self, progress: StartProgress) -> None:
        """Hear how far the load is. Called by the thread that loads."""
        self._progress = progress

    def when_open(self, call: Callable[[Engine], None]) -> None:
        """Call something with the engine before it is let in; now, if that is so already."""
        self._when_open.append(call)
        if self._loaded:
            call(self._loaded[0])

    def open(self, engine: Engine, embedder: Embedder | None) -> None:
        """Let requests in."""
        for call in self._when_open:
            call(engine)
        self._loaded = engine, embedder

    def leave(self) -> None:
        """Be ready no more; who knows this server already is still let in."""
        self._is_leaving = True

    def shut(self) -> None:
        """Let nobody in any more."""
        self._is_leaving = self._is_shut = True

    def close(self) -> None:
        """End what is there; returns when that is done."""
        if self._loaded:
            engine, embedder = self._loaded
            if embedder:
                embedder.close()
            engine.close()


def in_own_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Do something in a thread that nobody has to wait for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(settle_with: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            settle_with(outcome)

    def run() -> None:
        outcome: tuple[Callable[[Any], None], object]
        try:
            outcome = future.set_result, work()
        except BaseException as error:  # the thread ends here: whoever waits must hear of it
            is_usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            outcome = future.set_exception, error if is_usual else RuntimeError(repr(error))
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
