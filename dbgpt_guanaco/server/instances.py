"""Model instances of a DB-GPT cluster: what a worker registers and what a controller keeps.

A worker is known by ``<model>@<type>``, host and port. Hosts are in the form in which DB-GPT puts
them into a URL.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server import served

WORKER_TYPES = ("llm", "text2vec", "reranker", "service")
MAX_NAME_CHARACTERS = 300
# DB-GPT's own controller, since 0.5.9, waits as long. Workers send a heartbeat every 20 s.
SILENT_AFTER_S = 60.0
# A worker that is silent for so long is no longer shown.
FORGOTTEN_AFTER_S = 300.0
MAX_INSTANCES = 1000


def is_worker(name: str) -> bool:
    """Say whether a name is ``<model>@<type>``.

    DB-GPT splits it at ``@``, and shows no list of models at all when one name does not have
    exactly one.
    """
    model, _, kind = name.partition("@")
    has_length = len(name) <= MAX_NAME_CHARACTERS
    return bool(model) and kind in WORKER_TYPES and name.isprintable() and has_length


@dataclass(frozen=True, slots=True)
class Instance:
    """One model at one address.

    Attributes:
        worker: ``<model>@<type>``.

    Raises:
        InvalidRequestError: A name or port that DB-GPT could not use.
    """

    worker: str
    host: str
    port: int

    def __post_init__(self) -> None:
        if not is_worker(self.worker):
            raise InvalidRequestError(
                "model_name",
                f"must be <model>@<type>, type one of {', '.join(WORKER_TYPES)}, "
                f"in at most {MAX_NAME_CHARACTERS} characters",
            )
        if not 1 <= self.port <= 65535:
            raise InvalidRequestError("port", "must be from 1 to 65535")


@dataclass(frozen=True, slots=True)
class Membership:
    """An instance in the table.

    Attributes:
        last_beat_s: When it was last heard of, by the table's clock.
        has_left: It deregistered, but asked to be shown still.
    """

    instance: Instance
    weight: float
    prompt_template: str | None
    last_beat_s: float
    has_left: bool = False


class InstanceTable:
    """The instances of other servers, in memory. They come back with their next heartbeat.

    Whoever is silent is noticed when the table is read, so nothing runs in the background.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[Instance, Membership] = {}

    def register(
        self, instance: Instance, weight: float = 1.0, prompt_template: str | None = None
    ) -> bool:
        """Take an instance in, or renew it. Returns False where there is no room."""
        if instance not in self._members and not self._has_room():
            return False
        self._members[instance] = Membership(instance, weight, prompt_template, self._clock())
        return True

    def beat(self, instance: Instance) -> bool:
        """Note a sign of life. Takes an unknown instance in: this table was lost, not the worker.

        Returns:
            False where there is no room.
        """
        known = self._members.get(instance)
        if not known:
            return self.register(instance)
        self._members[instance] = replace(known, last_beat_s=self._clock(), has_left=False)
        return True

    def __contains__(self, instance: Instance) -> bool:
        return instance in self._members

    def leave(self, instance: Instance, *, is_removed: bool) -> None:
        """Send no more chats to an instance; show it still unless it is removed."""
        if is_removed:
            self._members.pop(instance, None)
        elif instance in self._members:
            self._members[instance] = replace(self._members[instance], has_left=True)

    def members(self) -> list[Membership]:
        """Return whom the table knows, without those who have been silent for very long."""
        now = self._clock()
        for member in list(self._members.values()):
            if now - member.last_beat_s > FORGOTTEN_AFTER_S:
                del self._members[member.instance]
        return list(self._members.values())

    def is_healthy(self, member: Membership) -> bool:
        """Say whether chats may go there."""
        return not member.has_left and self._clock() - member.last_beat_s <= SILENT_AFTER_S

    def described(self) -> list[dict[str, Any]]:
        """Return all as DB-GPT's objects."""
        return [
            describe(
                member.instance,
                is_healthy=self.is_healthy(member),
                silent_s=self._clock() - member.last_beat_s,
                weight=member.weight,
                prompt_template=member.prompt_template,
            )
            for member in self.members()
        ]

    def _has_room(self) -> bool:
        members = self.members()
        if len(members) < MAX_INSTANCES:
            return True
        oldest = min(members, key=lambda member: (self.is_healthy(member), member.last_beat_s))
        if self.is_healthy(oldest):
            return False
        del self._members[oldest.instance]
        return True


def describe(
    instance: Instance,
    *,
    is_healthy: bool,
    silent_s: float = 0.0,
    weight: float = 1.0,
    prompt_template: str | None = None,
) -> dict[str, Any]:
    """Return DB-GPT's object for an instance.

    Clients before 0.7 refuse a key that they do not know, so ``remove_from_registry`` is left
    out; later ones have a default for it. The time is local and names no zone, like DB-GPT's.
    """
    heard = datetime.now() - timedelta(seconds=silent_s)
    return {
        "model_name": instance.worker,
        "host": instance.host,
        "port": instance.port,
        "weight": weight,
        "check_healthy": True,
        "healthy": is_healthy,
        "enabled": True,
        "prompt_template": prompt_template,
        "last_heartbeat": heard.isoformat(timespec="seconds"),
    }


def own_workers(engine: Engine, embedder: Embedder | None) -> Sequence[str]:
    """Return what this server offers to a DB-GPT cluster.

    ``WorkerManager`` is what DB-GPT's page of models asks which models there are. A name that
    DB-GPT could not read is left out.
    """
    offered = [f"{name}@llm" for name in served.names(engine)]
    if embedder:
        offered.append(f"{embedder.card.name}@text2vec")
    return [worker for worker in (*offered, "WorkerManager@service") if is_worker(worker)]
