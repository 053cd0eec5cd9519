"""DB-GPT's model controller: who serves which model, for a DB-GPT that needs no other process.

A light DB-GPT web server asks before every chat, and sends the chat to one of those it is told,
drawn by chance. This server always lists itself, under the address at which it was asked.

**Who is trusted.** Whoever registers the name of a model gets a share of its users' prompts and
writes their answers; this port has no password, because DB-GPT sends none. So nobody may
register unless ``GUANACO_WORKER_NETWORKS`` names the networks of machines that the operator
trusts with exactly that. Inside them a worker speaks only for the address that its connection
comes from: it cannot send chats to a third machine, nor end another worker's registration. No
registered address is ever called from here. A proxy in front of this port would lend its
own address to everyone, so it must not pass ``/api/controller`` on.
"""

import logging
import time
from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from dbgpt_guanaco.server.addresses import IPAddress, as_url_host, literal_address, own_address
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.dependencies import ClusterDep, LifeDep
from dbgpt_guanaco.server.fields import Host, Name, Port
from dbgpt_guanaco.server.instances import (
    MAX_INSTANCES,
    Instance,
    InstanceTable,
    describe,
    own_workers,
)
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.settings import ClusterSettings

logger = logging.getLogger(__name__)

router = APIRouter(tags=["DB-GPT controller"], route_class=JsonRoute)

# One caller's refusals are logged once in this time, and so many callers' in all.
SAME_REFUSAL_S = 600.0
MAX_REFUSALS = 100


class InstanceBody(BaseModel):
    """What a worker sends. Other keys are ignored, as DB-GPT's own controller ignores them.

    Among them are ``healthy``, ``enabled`` and ``last_heartbeat``: those the controller knows
    by itself.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    model_name: Name
    host: Host
    port: Port
    weight: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    prompt_template: Name | None = None


class RefusalLog:
    """Says which refusals are worth a line, so that no stranger can fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[str, float] = {}

    def is_news(self, caller: str) -> bool:
        """Say whether this caller was not refused lately."""
        now = self._clock()
        self._logged = {c: t for c, t in self._logged.items() if now - t < SAME_REFUSAL_S}
        if caller in self._logged or len(self._logged) >= MAX_REFUSALS:
            return False
        self._logged[caller] = now
        return True


def _refuse(request: Request, problem: str) -> HTTPException:
    caller = request.client.host if request.client else "unknown"
    refusals = cast(RefusalLog, request.app.state.refusals)
    if refusals.is_news(caller):
        logger.warning("%s may not register a worker: %s", caller, problem)
    return HTTPException(403, problem)


async def _table(request: Request, life: LifeDep) -> InstanceTable:
    if life.state == "loading":
        life.admit()
    return cast(InstanceTable, request.app.state.instances)


async def _caller(request: Request, cluster: ClusterDep) -> IPAddress:
    """Return the address that the connection comes from, if it may register at all."""
    if not cluster.worker_networks:
        raise _refuse(
            request, "no other worker may register here; GUANACO_WORKER_NETWORKS would allow it"
        )
    address = literal_address(request.client.host) if request.client else None
    if address is None or not any(address in network for network in cluster.worker_networks):
        raise _refuse(request, f"{address} is not in one of GUANACO_WORKER_NETWORKS")
    return address


def _is_on(value: object) -> object:
    return False if value == "" else value


TableDep = Annotated[InstanceTable, Depends(_table)]
CallerDep = Annotated[IPAddress, Depends(_caller)]
# DB-GPT's client sends every field, and an empty string for null.
Flag = Annotated[bool, BeforeValidator(_is_on), Query()]


def _own_instance(
    request: Request, cluster: ClusterDep, caller: IPAddress, worker: str, host: str, port: int
) -> Instance:
    """Return the caller's instance, or refuse one that is not the caller's."""
    if literal_address(host) != caller:
        raise _refuse(
            request,
            f"a worker registers only the address that it calls from, {caller}, and not another; "
            "GUANACO_ADVERTISE_HOST, or worker_register_host in DB-GPT's worker, sets it",
        )
    instance = Instance(worker, as_url_host(host), port)
    if (instance.host, port) in _own_addresses(request, cluster):
        raise _refuse(request, f"{instance.host}:{port} is this controller's own address")
    return instance


def _own_addresses(request: Request, cluster: ClusterDep) -> set[tuple[str, int]]:
    local_host, local_port = request.scope.get("server") or ("", 0)
    return {own_address(request, cluster), (as_url_host(local_host), local_port)}


def _no_room() -> HTTPException:
    return HTTPException(503, f"{MAX_INSTANCES} workers are registered, and all are alive")


@router.get("/health")
async def health() -> dict[str, str]:
    """Answer DB-GPT's probe; without it each of its calls would wait two seconds."""
    return {"status": "ok"}


@router.get("/controller/models")
async def listed(
    request: Request,
    life: LifeDep,
    cluster: ClusterDep,
    table: TableDep,
    model_name: Name = "",
    healthy_only: Flag = False,
) -> list[dict[str, Any]]:
    """Return this server's instances and those that have registered."""
    return [
        described
        for described in _own(request, life, cluster) + table.described()
        if model_name in ("", described["model_name"])
        and (described["healthy"] or not healthy_only)
    ]


def _own(request: Request, life: LifeCycle, cluster: ClusterSettings) -> list[dict[str, Any]]:
    """Return what this server offers itself; nothing more once it is told to stop."""
    engine = life.engine
    if engine is None or life.state == "draining":
        return []
    host, port = own_address(request, cluster)
    return [
        describe(Instance(worker, host, port), is_healthy=engine.is_alive)
        for worker in own_workers(engine, life.embedder)
    ]


@router.post("/controller/models")
async def register(
    request: Request, body: InstanceBody, caller: CallerDep, cluster: ClusterDep, table: TableDep
) -> bool:
    """Take a worker in, or renew it."""
    instance = _own_instance(request, cluster, caller, body.model_name, body.host, body.port)
    weight = 1.0 if body.weight is None else body.weight
    is_new = instance not in table
    if not table.register(instance, weight, body.prompt_template):
        raise _no_room()
    if is_new:
        logger.info("registered %s at %s:%d", instance.worker, instance.host, instance.port)
    return True


@router.post("/controller/heartbeat")
async def heartbeat(
    request: Request, body: InstanceBody, caller: CallerDep, cluster: ClusterDep, table: TableDep
) -> bool:
    """Note that a worker lives."""
    instance = _own_instance(request, cluster, caller, body.model_name, body.host, body.port)
    if not table.beat(instance):
        raise _no_room()
    return True


@router.delete("/controller/models")
async def deregister(
    request: Request,
    caller: CallerDep,
    cluster: ClusterDep,
    table: TableDep,
    model_name: Name,
    host: Host,
    port: Port,
    remove_from_registry: Flag = False,
) -> bool:
    """Send no more chats to a worker. What was never registered is as good as gone."""
    instance = _own_instance(request, cluster, caller, model_name, host, port)
    if instance in table:
        logger.info("deregistered %s at %s:%d", instance.worker, instance.host, instance.port)
    table.leave(instance, is_removed=remove_from_registry)
    return True
