"""Slots and queue places: who runs, who waits, who is refused.

Requests run in the order in which they came. Each needs a slot and room for the keys and
values of its prompt and its longest answer, so nothing that was let in runs out of memory.
Called from the event loop and from the engine's thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from dbgpt_guanaco.engine.departures import Departures
from dbgpt_guanaco.errors import EngineBusyError, EngineStoppedError
from dbgpt_guanaco.types import EngineLoad


class HasSize(Protocol):
    """Something that takes room while it runs."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        ...

    @property
    def cancelled_at_s(self) -> float | None:
        """When its client left, by ``time.monotonic``."""
        ...


Item = TypeVar("Item", bound=HasSize)


class Admission(Generic[Item]):
    """A bounded first-come, first-served queue before a number of slots.

    Args:
        slots: Requests that may run at a time.
        queue_size: Requests that may wait.
        kv_tokens: Tokens whose keys and values fit in memory, over all that run.
    """

    def __init__(self, slots: int, queue_size: int, kv_tokens: int) -> None:
        self._slots, self._queue_size = slots, queue_size
        self._free_tokens = kv_tokens
        self._waiting: deque[Item] = deque()
        self._running: set[Item] = set()
        self._departures = Departures()
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def load(self) -> EngineLoad:
        """How many run and wait."""
        with self._changed:
            return EngineLoad(
                running=len(self._running),
                waiting=len(self._waiting),
                slots=self._slots,
                queue_size=self._queue_size,
                departures=tuple(self._departures.counts),
                departures_s=self._departures.sum_s,
            )

    def enter(self, item: Item) -> None:
        """Take a queue place.

        Raises:
            EngineBusyError: There is none, and no slot is free either.
            EngineStoppedError: The engine is closed.
        """
        with self._changed:
            self.check()
            self._waiting.append(item)
            self._changed.notify()

    def check(self) -> None:
        """Refuse now whom ``enter`` would refuse, before anything is done for them.

        Raises:
            EngineBusyError, EngineStoppedError: As ``enter``.
        """
        with self._changed:
            if self._is_closed:
                raise EngineStoppedError
            soon_running = self._slots - len(self._running)
            if len(self._waiting) >= soon_running + self._queue_size:
                raise EngineBusyError(len(self._running), len(self._waiting))

    def next(self, *, wait: bool, fits: Callable[[Item], bool] | None = None) -> Item | None:
        """Give a slot to whoever came first, if there is one and room for it.

        Args:
            wait: Wait until somebody comes; else return None at once. A closed engine
                never waits.
            fits: Whether there is room for one now, beside those that run.
        """
        with self._changed:
            while wait and not self._waiting and not self._is_closed:
                self._changed.wait()
            if not self._waiting or len(self._running) >= self._slots:
                return None
            item = self._waiting[0]
            if item.kv_tokens > self._free_tokens and self._running:
                return None
        # Looked at without the lock, which the event loop needs: it may take its time.
        if fits and not fits(item):
            return None
        with self._changed:
            if not self._waiting or self._waiting[0] is not item:  # it gave up meanwhile
                return None
            self._waiting.popleft()
            self._running.add(item)
            self._free_tokens -= item.kv_tokens
            return item

    def leave(self, item: Item) -> None:
        """Free a slot; harmless when that is done already."""
        with self._changed:
            if item in self._running:
                self._running.remove(item)
                self._free_tokens += item.kv_tokens
                if item.cancelled_at_s is not None:
                    self._departures.note(item.cancelled_at_s)

    def give_up(self, item: Item) -> bool:
        """Free a queue place. Return whether there was one; who runs keeps the slot."""
        with self._changed:
            if item not in self._waiting:
                return False
            self._waiting.remove(item)
            return True

    def dismiss(self) -> list[Item]:
        """Empty the queue; return who waited there and who runs, who keeps the slot."""
        with self._changed:
            dismissed = [*self._running, *self._waiting]
            self._waiting.clear()
            return dismissed

    def close(self) -> list[Item]:
        """Let nobody in any more; return those who were still waiting."""
        with self._changed:
            self._is_closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return left

    @property
    def is_closed(self) -> bool:
        """Nobody is let in."""
        return self._is_closed
