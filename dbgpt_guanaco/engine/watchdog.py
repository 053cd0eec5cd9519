"""Notices a step that does not return. A thread cannot be ended, but whoever waits can be told.

A step that returns after all is survived: the engine starts again with an empty cache. One that
does not return in twice the time is not waited for any longer: only a new process helps.
"""

import threading
import time
from collections.abc import Callable

# How often is looked, as a part of the time that a step may take.
LOOKS = 10


class Watchdog:
    """Looks at the steps of an engine, from a thread of its own.

    Args:
        timeout_s: How long a step may take.
        on_stuck: Called once for a step that takes longer, from that thread. The step's end waits
            for it to return.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        timeout_s: float,
        on_stuck: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s, self._on_stuck, self._clock = timeout_s, on_stuck, clock
        self._lock = threading.Lock()
        self._begin: float | None = None
        self._is_stuck = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guanaco-watchdog", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """What is wrong with the step that runs."""
        if not self._is_stuck:
            return None
        return f"a step of the engine has been running for more than {self._timeout_s:g} s"

    @property
    def is_lost(self) -> bool:
        """The step that runs has had twice its time."""
        begin = self._begin  # the engine's thread may end the step meanwhile
        return begin is not None and self._clock() - begin > 2 * self._timeout_s

    def begin(self) -> None:
        """Hear that a step begins."""
        self._begin = self._clock()

    def end(self) -> bool:
        """Hear that the step is over. Returns whether it was taken for stuck meanwhile."""
        with self._lock:
            was_stuck, self._is_stuck, self._begin = self._is_stuck, False, None
        return was_stuck

    def look(self) -> None:
        """See whether the step that runs takes too long."""
        with self._lock:
            if self._begin is None or self._is_stuck:
                return
            if self._clock() - self._begin > self._timeout_s:
                self._is_stuck = True
                self._on_stuck(self.problem or "")

    def close(self) -> None:
        """Look no more; returns when the thread is gone."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._timeout_s / LOOKS):
            self.look()
