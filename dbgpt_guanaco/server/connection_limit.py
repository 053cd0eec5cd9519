"""How many connections there may be, and which is closed when there are more.

Each costs an open file. Without a bound whoever opens enough of them, and sends nothing, keeps
everybody else out; and what has to open a file, such as a LoRA, fails.
"""

import contextlib
import logging
import time
from collections import OrderedDict
from typing import Protocol

try:
    import resource
except ImportError:  # there is none on Windows, and no such limit
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MOST_FILES = 65_536
# The rest is for what the process opens itself, and for connections that come all at once.
SHARE = 0.5
TELL_EVERY_S = 60.0


class Connection(Protocol):
    """What can be closed."""

    def make_room(self) -> None:
        """Close it, once what waits is sent."""
        ...


class ConnectionLimit:
    """Keeps count; closes the connection that has been idle for longest when there are too many.

    Idle is who has sent no whole head of a request since the last answer.

    Args:
        most: Connections at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = set[Connection]()
        self._idle = OrderedDict[Connection, None]()
        self._told_at = float("-inf")

    def enter(self, connection: Connection) -> None:
        """Let one in, and close another if need be; itself where all others are busy."""
        self._open.add(connection)
        self._idle[connection] = None
        while len(self._open) > self._most and self._idle:
            oldest, _ = self._idle.popitem(last=False)
            self._open.discard(oldest)
            self._tell()
            oldest.make_room()

    def note(self, connection: Connection, *, is_idle: bool) -> None:
        """Hear what one does; idle for longer it becomes by bytes that are no head."""
        if not is_idle:
            self._idle.pop(connection, None)
        elif connection in self._open:
            self._idle.setdefault(connection)

    def leave(self, connection: Connection) -> None:
        """Hear that one is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            logger.warning(
                "%s connections are open, as many as there may be; the one that was idle longest "
                "is closed for each new one",
                self._most,
            )


def most_connections() -> int:
    """Let this process open as many files as it may, and return how many may be connections."""
    if resource is None:
        return int(SHARE * MOST_FILES)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return int(SHARE * MOST_FILES)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        # macOS names no hard limit, and has one.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return int(SHARE * soft)
