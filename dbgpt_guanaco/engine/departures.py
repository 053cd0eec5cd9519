"""How long a place stays taken after its client has left: a cancel waits for a step."""

import time
from bisect import bisect_left

from dbgpt_guanaco.types import DEPARTURE_BOUNDS_S


class Departures:
    """Counts the cancelled requests that had a slot, by the time until it was free again.

    Attributes:
        counts: Of each of ``DEPARTURE_BOUNDS_S``, and of what is longer.
        sum_s: All these times together.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(DEPARTURE_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, cancelled_at_s: float) -> None:
        """Count one that is free now.

        Args:
            cancelled_at_s: When its client left, by ``time.monotonic``.
        """
        took_s = time.monotonic() - cancelled_at_s
        self.counts[bisect_left(DEPARTURE_BOUNDS_S, took_s)] += 1
        self.sum_s += took_s
