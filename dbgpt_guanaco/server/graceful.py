"""The server from its first byte to its last: listen, load, let in, drain, end.

``LifeCycle`` says which of these it is; here is what moves it on: the loader, signals, the engine.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType

import uvicorn

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.server.registration import Registrations
from dbgpt_guanaco.server.starting import LifeCycle, in_own_thread
from dbgpt_guanaco.server.supervisor import Supervisor
from dbgpt_guanaco.start import Tell

logger = logging.getLogger(__name__)

Load = Callable[[Tell], tuple[Engine, Embedder | None]]
# Exit status of a process whose engine will not come back; sysexits' EX_SOFTWARE.
LOST = 70
# How often the engine is looked at, and the supervisor told.
LOOK_S = 0.5
# From the end of an engine to the end of its process: controllers and probes hear of it.
LAST_WORDS_S = 5.0
# What answers have, when their time is over, to send the error that they end with.
LAST_FRAME_S = 2
# How long an engine may take to close, at most.
CLOSE_S = 5.0
TICK_S = 0.1


class GracefulServer(uvicorn.Server):
    """A uvicorn server that listens while it loads, and lets answers end before it does.

    Args:
        config: uvicorn's.
        life: Told of every change.
        load: Makes engine and embedder; called in a thread of its own.
        on_loaded: Called with both; returns this server's memberships.
        drain_s: Time that running answers have once the server is told to stop, in seconds.
        supervisor: Told of every change, too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        life: LifeCycle,
        load: Load,
        on_loaded: Callable[[Engine, Embedder | None], Registrations],
        drain_s: float,
        supervisor: Supervisor,
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = LAST_FRAME_S
        self._life, self._load, self._on_loaded = life, load, on_loaded
        self._drain_s, self._supervisor = drain_s, supervisor
        self._registrations: Registrations | None = None
        self._living: asyncio.Task[None] | None = None
        self.status = 0
        self.failure: Exception | None = None

    @property
    def must_not_wait(self) -> bool:
        """Threads are left that the process cannot wait for: they load, or are stuck."""
        engine = self._life.engine
        return self.force_exit or engine is None or engine.is_lost

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then begin to load."""
        await super().startup(sockets)
        if self.started:
            self._living = asyncio.create_task(self._live())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self.should_exit:
            self.force_exit = True  # uvicorn does so for Ctrl-C only
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let DB-GPT send no more chats here, then wait for what runs, then end it."""
        deadline = time.monotonic() + self._drain_s
        self._supervisor.tell("STOPPING=1")
        self._life.leave()
        if self._registrations:
            await self._unless_forced(self._registrations.stop())
        self._life.shut()
        while self.server_state.tasks and time.monotonic() < deadline and not self.force_exit:
            await asyncio.wait(set(self.server_state.tasks), timeout=TICK_S)
        if self.server_state.tasks:
            logger.warning("ending %d requests that still run", len(self.server_state.tasks))
        closing = in_own_thread(self._life.close, "guanaco-closing")
        await self._unless_forced(asyncio.wait({closing}, timeout=CLOSE_S))
        self.force_exit |= not closing.done()
        await super().shutdown(sockets)
        if self._living:
            self._living.cancel()

    async def _live(self) -> None:
        """Load, let requests in, and see that the engine stays able to answer them."""
        try:
            await self._watch(await self._open())
        except Exception as error:  # raised again by whoever runs this server
            self.failure, self.should_exit = error, True

    async def _open(self) -> Engine:
        work = partial(self._load, self._life.tell)
        engine, embedder = await in_own_thread(work, "guanaco-loading")
        self._registrations = self._on_loaded(engine, embedder)
        self._life.open(engine, embedder)
        if not self.should_exit:
            self._registrations.start()
            self._supervisor.tell("READY=1")
        return engine

    async def _watch(self, engine: Engine) -> None:
        while not engine.is_lost:
            self._supervisor.tell("WATCHDOG=1")
            await asyncio.sleep(LOOK_S)
        logger.critical("the engine is lost: %s; this process ends with %d", engine.problem, LOST)
        await asyncio.sleep(LAST_WORDS_S)
        self.status, self.should_exit = LOST, True

    async def _unless_forced(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        while not task.done() and not self.force_exit:
            await asyncio.wait({task}, timeout=TICK_S)
