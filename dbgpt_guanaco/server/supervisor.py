"""Tells systemd, where that has started this process with Type=notify, how the process is."""

import contextlib
import socket
from collections.abc import Mapping


class Supervisor:
    """Who started this process and wants to hear of it; often nobody.

    Args:
        environment: The environment of this process, which names the supervisor's socket.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        named = environment.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte of a name that is in no file system.
        self._address = "\0" + named[1:] if named.startswith("@") else named

    def tell(self, message: str) -> None:
        """Send a message such as ``READY=1``. Never waits; a supervisor that is away misses it."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
