"""Can the server listen where it is told to? If not, who has the port?"""

import contextlib
import errno
import socket
from typing import Any

import httpx
import psutil

from dbgpt_guanaco.doctor.findings import Finding, failure, ok
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.server.addresses import as_url_host, literal_address

ASK_S = 2.0
NEAR = 50
UNPRIVILEGED = 7999
MAX_ANSWER_BYTES = 65_536
# What our own /health says, among other things: with a model, and while it is loaded.
OUR_FIELDS = ({"status", "model", "running", "waiting"}, {"status", "stage", "seconds"})


def port(setup: Setup) -> Finding:
    """Take the port as the server would, and give it back."""
    host, number = setup.settings.server.host, setup.settings.server.port
    try:
        with _bound(host, number):
            return ok(f"{host}:{number} is free" if number else f"any free one on {host}")
    except socket.gaierror as error:
        return failure(f"GUANACO_HOST={host} is no address: {error.strerror}", _LOOPBACK)
    except OSError as error:
        return _why_not(host, number, error)


_LOOPBACK = "GUANACO_HOST=127.0.0.1"


def _bound(host: str, number: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, number))
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(host: str, number: int, error: OSError) -> Finding:
    if error.errno == errno.EADDRNOTAVAIL:
        return failure(f"GUANACO_HOST={host} is no address of this machine", _LOOPBACK)
    if error.errno == errno.EACCES:
        return failure(
            f"port {number} needs the rights of root",
            f"MODEL_PORT={_free_port(host, UNPRIVILEGED)}",
        )
    if error.errno != errno.EADDRINUSE:
        return failure(f"{host}:{number} cannot be listened on: {error.strerror}", _LOOPBACK)
    if said := _our_health(host, number):
        what = said.get("model") or said.get("stage")
        return ok(f"a server of this kind runs there already, {said['status']}: {what}")
    return failure(
        f"{host}:{number} is taken by {_holder(number)}", f"MODEL_PORT={_free_port(host, number)}"
    )


def _our_health(host: str, number: int) -> dict[str, Any] | None:
    """Return what ``/health`` says there, if it is one of ours."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        # Not by way of a proxy: it is this machine.
        with (
            httpx.Client(trust_env=False, timeout=ASK_S) as client,
            client.stream("GET", f"http://{_reached(host)}:{number}/health") as answer,
        ):
            text = next(answer.iter_raw(MAX_ANSWER_BYTES), b"")
        said = httpx.Response(200, content=text).json()
        if isinstance(said, dict) and any(said.keys() >= fields for fields in OUR_FIELDS):
            return said
    return None


def _reached(host: str) -> str:
    """Return how this machine reaches what listens there, in the form of a URL."""
    address = literal_address(host)
    if address is not None and address.is_unspecified:
        return "[::1]" if address.version == 6 else "127.0.0.1"
    return as_url_host(host)


def _holder(number: int) -> str:
    """Return which process listens on a port, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("inet"):
            is_there = getattr(found.laddr, "port", None) == number
            if is_there and found.status == psutil.CONN_LISTEN and found.pid:
                process = psutil.Process(found.pid)
                return f"{' '.join(process.cmdline())[:200] or process.name()} (pid {found.pid})"
    return f"another user's program (as root:  ss -ltnp 'sport = :{number}'  tells which)"


def _free_port(host: str, above: int) -> int:
    """Return a port near one that is taken, or any."""
    for number in (*range(above + 1, above + NEAR), 0):
        with contextlib.suppress(OSError, OverflowError), _bound(host, number) as listener:
            free: int = listener.getsockname()[1]
            return free
    return above + 1
