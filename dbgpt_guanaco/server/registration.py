"""Tells DB-GPT's model controllers that this server is there, for as long as it is.

One task for each controller: it registers, then sends heartbeats, and registers anew whenever a
heartbeat is not answered with ``true``, because a controller keeps its table in memory. A
controller that is away, or wrong, costs a line in the log and never a chat.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import PurePath

import httpx

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import ConfigurationError, GuanacoError
from dbgpt_guanaco.server.addresses import advertised_address
from dbgpt_guanaco.server.instances import Instance, own_workers
from dbgpt_guanaco.settings import ClusterSettings, Settings

logger = logging.getLogger(__name__)

# From one heartbeat to the next, drawn anew each time, so that many servers do not beat at once.
# With the time of a request it stays below the 20 s that DB-GPT's own workers keep.
LEAST_BEAT_S, MOST_BEAT_S = 14.0, 17.0
REQUEST_S = 2.5
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 15.0
# An engine that has died is noticed within this time.
LOOK_S = 0.5
# All of the deregistration; chats that run go on meanwhile.
GOODBYE_S = 3.0
# DB-GPT asks for the list, then connects: who has asked before the deregistration is let in.
LINGER_S = 0.3
MAX_ANSWER_BYTES = 2048
MAX_TOLD_CHARACTERS = 300
MAX_PROBLEMS = 5
REMOVED = {"remove_from_registry": "true"}


class ControllerError(Exception):
    """A controller answered, but did not agree."""


class Registration:
    """This server's membership at one controller.

    Args:
        controller: Its address.
        find_address: Returns the host and port to register; may block, and may raise.
        find_workers: Returns what is offered now: ``<model>@<type>``.
        is_alive: The engine takes requests; where it does not, nothing is registered.
        client: For all requests.
        clock: Seconds that never go back.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        controller: str,
        find_address: Callable[[], tuple[str, int]],
        find_workers: Callable[[], Sequence[str]],
        is_alive: Callable[[], bool],
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._controller, self._find_address = controller, find_address
        self._find_workers, self._is_alive, self._client = find_workers, is_alive, client
        self._clock, self._sleep = clock, sleep
        self._instances: list[Instance] = []  # what the controller may know of
        self.is_registered = False
        self._is_told = False  # the log says that it is registered
        self._problems: set[str] = set()  # what the log says since

    async def run(self) -> None:
        """Keep the controller informed until cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            start, was_alive = self._clock(), self._is_alive()
            try:
                await (self._announce() if was_alive else self._leave(is_removed=False))
            except Exception as error:  # one failed beat must not be the last one
                self.is_registered = False
                self._tell_problem(error)
                pause_s, retry_s = retry_s, min(2 * retry_s, LAST_RETRY_S)
            else:
                pause_s, retry_s = random.uniform(LEAST_BEAT_S, MOST_BEAT_S), FIRST_RETRY_S  # noqa: S311
            while self._clock() < start + pause_s and self._is_alive() == was_alive:
                if self.is_registered and self._has_changed():
                    break
                await self._sleep(min(LOOK_S, start + pause_s - self._clock()))

    async def stop(self) -> None:
        """Deregister, if there is anything to take back. Raises what went wrong."""
        if self._instances:
            await self._leave(is_removed=True)

    async def _announce(self) -> None:
        if self.is_registered and not self._has_changed():
            with contextlib.suppress(ControllerError):
                await self._send_all("POST", "/api/controller/heartbeat")
                return
        self.is_registered = False
        host, port = await asyncio.to_thread(self._find_address)
        offered = [Instance(worker, host, port) for worker in self._find_workers()]
        gone = [instance for instance in self._instances if instance not in offered]
        self._instances = [*offered, *gone]  # both must be taken back if this is the last word
        await self._send_all("DELETE", "/api/controller/models", REMOVED, gone)
        self._instances = offered
        await self._send_all("POST", "/api/controller/models")
        self.is_registered = True
        self._tell_success(host, port)

    async def _leave(self, *, is_removed: bool) -> None:
        """Take everything back: for good, or so that it is shown as ill."""
        self.is_registered = self._is_told = False
        flag = REMOVED if is_removed else {"remove_from_registry": "false"}
        await self._send_all("DELETE", "/api/controller/models", flag)

    def _has_changed(self) -> bool:
        """Say whether something else is offered now than the controller knows: a LoRA came."""
        return [instance.worker for instance in self._instances] != list(self._find_workers())

    async def _send_all(
        self,
        method: str,
        path: str,
        flag: dict[str, str] | None = None,
        instances: Sequence[Instance] | None = None,
    ) -> None:
        chosen = self._instances if instances is None else instances
        sent = (self._send(method, path, instance, flag) for instance in chosen)
        # All are awaited, whichever fails: what is under way must not arrive later.
        for result in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _send(
        self, method: str, path: str, instance: Instance, flag: dict[str, str] | None
    ) -> None:
        """Send one instance.

        Raises:
            ControllerError: The answer is not ``true``.
            httpx.HTTPError: There is none.
            TimeoutError: There is none in time.
        """
        fields: dict[str, str | int] = {
            "model_name": instance.worker, "host": instance.host, "port": instance.port
        }  # fmt: skip
        # DB-GPT takes a deregistration from the query; 0.3.7 took it from the body.
        query = {**fields, **flag} if flag else None
        async with (
            asyncio.timeout(REQUEST_S),
            self._client.stream(
                method, self._controller + path, params=query, json=fields
            ) as response,
        ):
            answer = b""
            async for piece in response.aiter_raw():
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    break
        if response.status_code != 200 or answer.strip() != b"true":
            told = answer[:MAX_TOLD_CHARACTERS].decode(errors="backslashreplace")
            raise ControllerError(f"it answered {response.status_code}: {told!r}")

    def _tell_success(self, host: str, port: int) -> None:
        if not self._is_told:
            logger.info("registered with %s as %s:%d", self._controller, host, port)
        self._is_told = True
        self._problems.clear()

    def _tell_problem(self, error: Exception) -> None:
        """Log each problem once until it goes well again."""
        self._is_told = False
        problem = _explain(error)
        if problem not in self._problems and len(self._problems) < MAX_PROBLEMS:
            self._problems.add(problem)
            logger.warning(
                "not registered with %s: %s; trying until it works", self._controller, problem
            )


class Registrations:
    """This server's memberships at all controllers.

    Args:
        cluster: The controllers, and what is set of the own address.
        listening: Address and port of the listening socket.
        engine: Whose models are offered while it is alive.
        embedder: Whose model is offered beside it.
        transport: What carries the requests, if not the network.
    """

    def __init__(
        self,
        cluster: ClusterSettings,
        listening: tuple[str, int],
        engine: Engine,
        embedder: Embedder | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        # Not by way of a proxy from the environment: DB-GPT reaches this server directly, too.
        self._client = httpx.AsyncClient(
            trust_env=False,
            transport=transport,
            headers={"Accept-Encoding": "identity"},
            timeout=REQUEST_S,
        )
        self._registrations = [
            Registration(
                controller,
                partial(advertised_address, cluster, listening, controller),
                partial(own_workers, engine, embedder),
                lambda: engine.is_alive,
                self._client,
            )
            for controller in cluster.controllers
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to register. The server must be listening."""
        self._tasks = [asyncio.create_task(each.run()) for each in self._registrations]

    async def stop(self) -> None:
        """Deregister everywhere, and return within some seconds whatever the controllers do."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await self._say_goodbye()
        await self._client.aclose()

    async def _say_goodbye(self) -> None:
        is_known = any(each.is_registered for each in self._registrations)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                ends = [each.stop() for each in self._registrations]
                for result in await asyncio.gather(*ends, return_exceptions=True):
                    if isinstance(result, Exception):
                        logger.warning("not deregistered: %s", _explain(result))
        if is_known:
            await asyncio.sleep(LINGER_S)


def check(settings: Settings, listening: tuple[str, int]) -> list[str]:
    """Find out, before the model is loaded, whether the controllers can be told of this server.

    Returns:
        What is to be registered where, for a person: ``http://10.0.0.5:8000 as 10.0.0.7:8000``.

    Raises:
        ConfigurationError: A setting must be changed.
    """
    names = (settings.model.name, settings.embedding.embedding_model or "", *settings.model.aliases)
    for name in names if settings.cluster.controllers else ():
        if "@" in PurePath(name).name:
            raise ConfigurationError(
                f"{name}: DB-GPT takes no @ in the name of a model; rename it, "
                "or leave GUANACO_CONTROLLER out"
            )
    return [_plan(settings.cluster, listening, each) for each in settings.cluster.controllers]


def _plan(cluster: ClusterSettings, listening: tuple[str, int], controller: str) -> str:
    try:
        host, port = advertised_address(cluster, listening, controller)
    except OSError as error:
        return f"{controller}, once it is found ({error.strerror or error})"
    return f"{controller} as {host}:{port}"


def _explain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {REQUEST_S:g} s"
    if isinstance(error, ControllerError | GuanacoError | OSError | httpx.HTTPError):
        return str(error)[:MAX_TOLD_CHARACTERS] or type(error).__name__
    return repr(error)[:MAX_TOLD_CHARACTERS]
