"""Connections that are given up when the other end does nothing: the sockets below the requests.

uvicorn waits for ever for the rest of a request's head, and for a client to read. Here each has a
time. When a connection is given up, its request hears that the client has left, so whatever it was
doing ends as it does for a browser that is closed.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from dbgpt_guanaco.server.connection_limit import ConnectionLimit

logger = logging.getLogger(__name__)

# A client that is silent while nothing is sent to it is asked after so many seconds whether it is
# still there, then so often in such distances.
ASK_AFTER_S, ASK_EVERY_S, ASK_TIMES = 30, 10, 3
# The kernel takes no more than so many bytes that it cannot send yet. The rest waits here, where it
# is seen whether the client reads; without this, megabytes would have to wait first.
UNSENT_BYTES = 65_536


class PatientConnection(H11Protocol):
    """An HTTP connection with an end to its patience.

    Args:
        config: uvicorn's, as the next three.
        server_state: Of all connections.
        app_state: For the application.
        _loop: That it runs in.
        head_s: Seconds for the head of a request to arrive, and for a refused body to end.
        reader_s: Seconds in which a client must read something of what waits for it.
        limit: Of the connections of this server.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_s: float,
        reader_s: float,
        limit: ConnectionLimit,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._reader_s, self._unread, self._limit = reader_s, 0, limit
        self._head_alarm = Alarm(self.loop, head_s, self._give_up)
        self._reader_alarm = Alarm(self.loop, reader_s, self._check_reader)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Begin to wait for a request."""
        super().connection_made(transport)
        notice_dead_peers(transport.get_extra_info("socket"), self._reader_s)
        self._head_alarm.set()
        self._limit.enter(self)

    @property
    def is_idle(self) -> bool:
        """No request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take what came. Between two requests it is a part of a head, or of a refused body."""
        super().data_received(data)
        self._limit.note(self, is_idle=self.is_idle)
        if self.is_idle:
            self._head_alarm.set()
        else:
            self._head_alarm.clear()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have come already."""
        super().on_response_complete()
        self._limit.note(self, is_idle=self.is_idle)

    def pause_writing(self) -> None:
        """See whether the client reads, now that something waits for it."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._reader_alarm.set()

    def resume_writing(self) -> None:
        """Leave a client alone that has read."""
        super().resume_writing()
        self._reader_alarm.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._head_alarm.clear()
        self._reader_alarm.clear()
        self._limit.leave(self)
        super().connection_lost(exc)

    def make_room(self) -> None:
        """See ``Connection``; the end of an answer may still be on its way."""
        self.transport.close()

    def _check_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread:  # slowly, but it reads
            self._unread = unread
            self._reader_alarm.set()
            return
        host = self.client[0] if self.client else "a client"
        logger.info("%s has read nothing for %g s: the connection is dropped", host, self._reader_s)
        self._give_up()

    def _give_up(self) -> None:
        """Close without waiting for what was not sent; nobody would take it."""
        self.transport.abort()


class Alarm:
    """Calls something once, some seconds after it was set."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]
    ) -> None:
        self._loop, self._seconds, self._ring = loop, seconds, ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Set it, unless it is."""
        if not self._timer:
            self._timer = self._loop.call_later(self._seconds, self._on_time)

    def clear(self) -> None:
        """Let it not ring."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        self._ring()


def notice_dead_peers(connection: socket.socket, unread_s: float) -> None:
    """Let the kernel end a connection whose other end is gone, where it knows how.

    Args:
        connection: An accepted one.
        unread_s: For how long what was sent may stay unacknowledged.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": ASK_AFTER_S,
        "TCP_KEEPINTVL": ASK_EVERY_S,
        "TCP_KEEPCNT": ASK_TIMES,
        "TCP_USER_TIMEOUT": round(1000 * unread_s),
        "TCP_NOTSENT_LOWAT": UNSENT_BYTES,
    }
    for name, value in wanted.items():
        option = getattr(socket, name, None)  # not every system has them all
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
