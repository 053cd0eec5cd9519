"""Under which host and port others reach this server, in the form that DB-GPT puts into a URL."""

import errno
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import ClusterSettings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def own_address(request: Request, cluster: ClusterSettings) -> tuple[str, int]:
    """Return this server's host and port as this client reaches them.

    What was set wins; else it is the local end of the connection, which the kernel knows. The
    Host header is the client's own words and is not read.
    """
    local_host, local_port = request.scope.get("server") or ("127.0.0.1", None)
    return (
        as_url_host(cluster.advertise_host or local_host),
        cluster.advertise_port or local_port or 80,
    )


def as_url_host(host: str) -> str:
    """Return a host as it stands in a URL: DB-GPT writes ``http://{host}:{port}`` around it."""
    address = literal_address(host)
    if address is None:
        return host
    return f"[{address}]" if address.version == 6 else str(address)


def literal_address(host: str) -> IPAddress | None:
    """Read an address, with brackets or without; an IPv4 address mapped into IPv6 becomes one.

    Returns:
        None for a name, which would have to be looked up.
    """
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def advertised_address(
    cluster: ClusterSettings, listening: tuple[str, int], controller: str
) -> tuple[str, int]:
    """Return the host and port to register with a controller.

    What was set wins, then the address that this server listens on. One that listens on every
    address takes the one from which the way to that controller starts.

    Args:
        cluster: May set the host, the port or both.
        listening: Address and port of the listening socket.
        controller: Its address, such as ``http://10.0.0.5:8000``.

    Raises:
        ConfigurationError: Nobody on another machine could reach this server.
        OSError: There is no way to the controller yet, or its name is not known yet.
    """
    host, port = listening
    if cluster.advertise_host:
        host = cluster.advertise_host
    elif ipaddress.ip_address(host).is_unspecified:
        host = _start_of_the_way(controller, is_ipv4=":" not in host)
    elif is_loopback(host) and not _is_on_this_machine(controller):
        raise ConfigurationError(
            f"the controller {controller} is on another machine, and this server listens on "
            f"{host}, which only this machine reaches. Set GUANACO_HOST=0.0.0.0 to be reached "
            "from others, or GUANACO_ADVERTISE_HOST to the host under which a proxy passes "
            "requests on to this server"
        )
    return as_url_host(host), cluster.advertise_port or port


def _start_of_the_way(controller: str, *, is_ipv4: bool) -> str:
    for family, remote in _addresses_of(controller):
        if is_ipv4 and family != socket.AF_INET:
            continue
        local = local_end(family, remote)
        if local and (is_loopback(remote[0]) or not is_loopback(local)):
            return local
    raise OSError(errno.ENETUNREACH, f"there is no way to {controller}")


def local_end(family: socket.AddressFamily, remote: tuple[Any, ...]) -> str | None:
    """Return the address that connections to a remote one start from; None where none can.

    Connecting a datagram socket sends nothing: the kernel only chooses the way.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(remote)
        except OSError:
            return None
        local: str = probe.getsockname()[0]
        return local


def _is_on_this_machine(controller: str) -> bool:
    try:
        return all(is_loopback(remote[0]) for _, remote in _addresses_of(controller))
    except OSError:
        return False  # a name that nobody knows yet: no reason to believe that it is here


def _addresses_of(controller: str) -> list[tuple[socket.AddressFamily, Any]]:
    url = urlsplit(controller)
    port = url.port or (443 if url.scheme == "https" else 80)
    found = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
    return [(family, remote) for family, _, _, _, remote in found]


def is_loopback(host: str) -> bool:
    """Say whether an address is one that only this machine reaches."""
    address = literal_address(host)
    return address is not None and address.is_loopback
