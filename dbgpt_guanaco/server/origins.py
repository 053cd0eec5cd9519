"""Web pages of others, which a browser lets send requests to any address that it reaches.

Such a page cannot read answers of this server, but some routes here read JSON whatever its content
type, so a mere POST from it would make the model work (cross-site requests). And a page whose name
its owner lets point to this machine is, to the browser, a page of this server (DNS rebinding). The
one is seen by the Origin header, which browsers send and programs do not, the other by the Host
header, which then holds a name that is not this server's.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from dbgpt_guanaco.server.addresses import literal_address


class Pages:
    """Whose web pages may ask.

    Args:
        origins: Of pages from elsewhere, such as ``https://chat.example``.
        hosts: Names of this server, beside every address and ``localhost``.
    """

    def __init__(self, origins: Iterable[str], hosts: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._hosts = frozenset({"localhost", *(host.lower() for host in hosts)})

    def may_send(self, origin: str | None, host: str | None) -> bool:
        """Say whether a request is no page's, is a page's of this server, or a listed one's."""
        if origin is None or origin.lower() in self._origins:
            return True
        return bool(host) and _is_same(origin, host or "")

    def knows_host(self, host: str | None) -> bool:
        """Say whether a Host header names this server; no browser leaves it out.

        An address is right whichever it is: only a name can be made to point elsewhere.
        """
        if host is None:
            return True
        name = _name_in(host)
        return name in self._hosts or literal_address(name) is not None


def _is_same(origin: str, host: str) -> bool:
    """Say whether a page's origin is what the Host header names.

    The scheme is not compared: a proxy may take off TLS. ``null``, which a page sends that has
    something to hide, is nobody's.
    """
    scheme, _, netloc = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and host.lower().removesuffix(port) == netloc


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""
