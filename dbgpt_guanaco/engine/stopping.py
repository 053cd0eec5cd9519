"""Text → the text before the first stop string."""

from collections.abc import Iterable


class StopChecker:
    """Passes text through until a stop string appears.

    Text that could be the start of a stop string is held back until that is decided,
    so a client never sees part of one. What ``feed`` and ``flush`` return adds up to the
    text before the stop string that is complete first, however the input was split.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take new text, return what is now safe to show."""
        if self.stopped:
            return ""
        self._held += text
        found = [(i + len(s), i) for s in self._stop if (i := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            return self._take(start)
        return self._take(len(self._held) - self._undecided())

    def flush(self) -> str:
        """Return held-back text once no more input will come."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _undecided(self) -> int:
        """Length of the longest tail that is a proper prefix of a stop string."""
        return max(
            (n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n])),
            default=0,
        )
