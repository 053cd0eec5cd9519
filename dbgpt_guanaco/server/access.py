"""Who is let in. Every request passes here first, and what is not allowed below is denied.

A route that is added anywhere needs a key from its first day; to open one, it is written into one
of the lists of this file, which a test compares with all routes there are.
"""

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from dbgpt_guanaco.errors import (
    AccessDeniedError,
    ForeignPageError,
    GuanacoError,
)
from dbgpt_guanaco.server.addresses import literal_address
from dbgpt_guanaco.server.exchange import KEY_NAME
from dbgpt_guanaco.server.keys import NOBODY, Caller, Keys
from dbgpt_guanaco.server.origins import Pages
from dbgpt_guanaco.server.refusals import refusal
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings, Network

# For everybody: whether the server is up, and the files of the chat page, which hold nothing of
# anyone's. The page asks its reader for a key.
OPEN = ("/health", "/ready", "/", "/page/*")
# DB-GPT's clients cannot send a key here, so it counts from where they call: from this machine,
# or from GUANACO_DBGPT_NETWORKS. Workers that may register have to reach the controller, too.
DBGPT = ("/api/worker/*", "/generate_stream", "/generate", "/embedding")
CONTROLLER = ("/api/controller/*", "/api/health")
# From GUANACO_METRICS_NETWORKS.
METRICS = ("/metrics",)

LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
# Who sends one of these is a proxy, and speaks for somebody at another address.
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Access:
    """ASGI middleware that denies by default, and tells the routes who asks (see ``Caller``).

    Args:
        app: What is behind it.
        settings: Keys, networks, hosts and origins.
        cluster: Networks of workers, and the host under which others reach this server.
        keys: Those that are accepted.
        host: That the server listens on; it may be a name.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: AccessSettings,
        cluster: ClusterSettings,
        keys: Keys,
        host: str,
    ) -> None:
        self._app, self._settings, self._cluster, self._keys = app, settings, cluster, keys
        hosts = (host, cluster.advertise_host or "", *settings.allowed_hosts)
        self._pages = Pages(settings.cors_origins, [name for name in hosts if name])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = Request(scope)  # refuses websockets: there are none
        try:
            request.state.caller = caller = await self._admit(request)
        except GuanacoError as error:
            await refusal(request, error)(scope, receive, send)
        else:
            scope[KEY_NAME] = caller.name if caller.has_key else None
            await self._app(scope, receive, send)

    async def _admit(self, request: Request) -> Caller:
        """Return who asks.

        Raises:
            AccessDeniedError: A key is needed, and none of ours was sent.
            ForeignPageError: It comes from a web page that is not ours.
        """
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if not self._pages.may_send(origin, host):
            raise ForeignPageError(
                f"a web page of {origin} may not send requests to this server; "
                "GUANACO_CORS_ORIGINS would allow it"
            )
        if self._settings.needs_keys:
            if caller := await self._find(request):
                return caller
            if covers(OPEN, request.scope["path"]):
                return NOBODY
            if not self._needs_no_key(request):
                raise AccessDeniedError(_what_is_needed(request))
        if not self._pages.knows_host(host):
            raise ForeignPageError(
                f"{host} is no name of this server; GUANACO_ALLOWED_HOSTS would add it"
            )
        return _anybody(request)

    async def _find(self, request: Request) -> Caller | None:
        await self._keys.refresh()
        return self._keys.find(bearer(request))

    def _needs_no_key(self, request: Request) -> bool:
        """Say whether the connection comes from where this path is open to."""
        address = literal_address(request.client.host) if request.client else None
        if address is None or any(name in request.headers for name in FORWARDED):
            return False
        path, networks = request.scope["path"], list[Network]()
        if covers(METRICS, path):
            networks += self._settings.metrics_networks
        if covers((*DBGPT, *CONTROLLER), path):
            networks += (*LOOPBACK, *self._settings.dbgpt_networks)
        if covers(CONTROLLER, path):
            networks += self._cluster.worker_networks
        return any(address in network for network in networks)


def covers(paths: Iterable[str], path: str) -> bool:
    """Say whether one of the lists above has a path; ``*`` stands for the rest of one."""
    return any(
        path == listed or (listed.endswith("*") and path.startswith(listed[:-1]))
        for listed in paths
    )


def bearer(request: Request) -> str:
    """Return the key that was sent, or nothing."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _anybody(request: Request) -> Caller:
    """Return who asks where no key is looked at; a proxy before this server may look at it.

    Whoever shares a cache can tell from the time of an answer whether a text was sent before, so
    those who send different keys share none.
    """
    sent = request.headers.get("authorization", "")
    return Caller(NOBODY.name, hashlib.sha256(sent.encode()).hexdigest() if sent else "")


def _what_is_needed(request: Request) -> str:
    needed = "this needs a key of this server, as Authorization: Bearer …"
    if covers((*DBGPT, *CONTROLLER), request.scope["path"]):
        address = request.client.host if request.client else "an unknown address"
        needed += (
            f". DB-GPT, which sends none, is let in from networks in GUANACO_DBGPT_NETWORKS; "
            f"this came from {address}"
        )
    return needed
