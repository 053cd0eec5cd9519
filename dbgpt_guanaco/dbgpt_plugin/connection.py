"""HTTP to the Guanaco server, and its failures in words for the person who chats."""

import ipaddress
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from dbgpt_guanaco import __version__
from dbgpt_guanaco.dbgpt_plugin.abandonment import AbandonmentWatch

CONNECT_S = 5.0
# The server breaks its silence every GUANACO_KEEP_ALIVE seconds, at most 60.
SILENCE_S = 120.0


class ServerError(Exception):
    """The server could not be asked, or refused. The text says what to do about it."""


class UnreachableServerError(ServerError):
    """Nothing answers at that address; it may be there soon."""


class EventReader:
    """Cuts a body of server-sent events into the JSON objects in it, however it arrives."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Return the objects that this chunk completes.

        Raises:
            ValueError: An event is not a JSON object.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return [_object(each) for each in data if each != b"[DONE]"]


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("an event is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("an event is not a JSON object")  # noqa: TRY004 - as json says it
    return value


@dataclass(frozen=True)
class Server:
    """Where a Guanaco server answers.

    Attributes:
        api_base: With the ``/v1``.
        api_key: Sent as a bearer token.
        http_proxy: Address of a proxy to it; empty for none, or for the environment's.

    Raises:
        ValueError: ``api_base`` is not an address.
    """

    api_base: str
    api_key: str = "EMPTY"
    http_proxy: str = ""

    def __post_init__(self) -> None:
        address = urlsplit(self.api_base)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"api_base {self.api_base!r} is not an address such as http://127.0.0.1:8000/v1"
            )
        object.__setattr__(self, "api_base", self.api_base.rstrip("/"))

    def get(self, path: str) -> Any:  # noqa: ANN401
        """Return the JSON at a path.

        Raises:
            ServerError: There is none.
        """
        with self._explained(CONNECT_S), httpx.Client(**self._options(CONNECT_S)) as client:
            return self._json_of(client.get(self.api_base + path))

    async def aget(self, path: str) -> Any:  # noqa: ANN401
        """Do as ``get``, without blocking."""
        with self._explained(CONNECT_S):
            async with httpx.AsyncClient(**self._options(CONNECT_S)) as client:
                return self._json_of(await client.get(self.api_base + path))

    def post_all(
        self, path: str, bodies: list[dict[str, Any]], *, patience_s: float = SILENCE_S
    ) -> list[Any]:
        """Post the bodies one after another, over one connection; return the JSON of each.

        Raises:
            ServerError: One of them had no answer.
        """
        with self._explained(patience_s), httpx.Client(**self._options(patience_s)) as client:
            return [
                self._json_of(client.post(self.api_base + path, content=_json(b))) for b in bodies
            ]

    async def apost_all(
        self, path: str, bodies: list[dict[str, Any]], *, patience_s: float = SILENCE_S
    ) -> list[Any]:
        """Do as ``post_all``, without blocking."""
        url = self.api_base + path
        with self._explained(patience_s):
            async with httpx.AsyncClient(**self._options(patience_s)) as client:
                return [
                    self._json_of(await client.post(url, content=_json(body))) for body in bodies
                ]

    async def stream(
        self, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the events of an answer, together those that arrived together.

        A reader that falls behind thus gets fewer, larger pieces instead of old ones. Close this
        generator to cancel the answer; it is also closed when nobody reads on.

        Raises:
            ServerError: The server refused, or went silent, or the answer broke off.
        """
        reader = EventReader()
        with self._explained(SILENCE_S):
            async with (
                httpx.AsyncClient(**self._options(SILENCE_S)) as client,
                client.stream("POST", self.api_base + path, content=_json(body)) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise ServerError(self._refusal(response))
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    raise ServerError(self._not_ours(response))
                with AbandonmentWatch(response.aclose) as watch:
                    watch.note_reader()
                    async for chunk in response.aiter_bytes():
                        try:
                            events = reader.feed(chunk)
                        except ValueError:
                            raise ServerError(self._not_ours(response)) from None
                        if events:
                            yield events
                            watch.note_reader()

    def _options(self, patience_s: float) -> dict[str, Any]:
        return {
            "headers": {
                "Authorization": f"Bearer {self.api_key}",
                "Content-Type": "application/json",
                "User-Agent": f"dbgpt-guanaco-plugin/{__version__}",
            },
            "timeout": httpx.Timeout(patience_s, connect=CONNECT_S),
            "proxy": self.http_proxy or None,
            # A proxy of the environment cannot reach this machine's own loopback.
            "trust_env": not _is_loopback(urlsplit(self.api_base).hostname),
            # Certificates take longer to load than a short answer takes.
            "verify": self.api_base.startswith("https:"),
        }

    @contextmanager
    def _explained(self, patience_s: float) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise UnreachableServerError(
                f"cannot reach the Guanaco server at {self.api_base}: {_reason(error)}; "
                "is it running?"
            ) from error
        except httpx.TimeoutException as error:
            raise ServerError(
                f"the Guanaco server at {self.api_base} was silent for {patience_s:g} s; "
                "its log may say why"
            ) from error
        except httpx.TransportError as error:
            raise ServerError(self.broken_off) from error

    def _json_of(self, response: httpx.Response) -> Any:  # noqa: ANN401
        if response.status_code != 200:
            raise ServerError(self._refusal(response))
        try:
            return response.json()
        except ValueError:
            raise ServerError(self._not_ours(response)) from None

    def _refusal(self, response: httpx.Response) -> str:
        status, told = response.status_code, _error_object(response)
        message = str(told.get("message") or "")
        if told.get("code") == "model_not_found":
            return f"{message} In DB-GPT's TOML, backend (or name) must be one that is known."
        if status == 404:
            return f"there is no {response.url} (404); is api_base right? It usually ends in /v1"
        if status in (401, 403):
            return f"the Guanaco server at {self.api_base} refused api_key ({status}): {message}"
        if status == 429:
            return message or f"the Guanaco server at {self.api_base} is busy; try again soon"
        return message or f"the Guanaco server at {self.api_base} answered {status}"

    def _not_ours(self, response: httpx.Response) -> str:
        kind = response.headers.get("content-type", "nothing known")
        return f"{response.url} answered {kind}, not as a Guanaco server does; is api_base right?"

    @property
    def broken_off(self) -> str:
        """What to say of an answer without an end."""
        return (
            f"the connection to the Guanaco server at {self.api_base} broke off "
            "before the answer was complete"
        )


def _json(body: dict[str, Any]) -> bytes:
    # ASCII: half a surrogate pair, as PDFs yield it, is the server's to refuse in words.
    return json.dumps(body).encode()


def _error_object(response: httpx.Response) -> dict[str, Any]:
    try:
        told = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return told if isinstance(told, dict) else {"message": told}


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _reason(error: BaseException | None) -> str:
    """Return what the system said: the libraries in between tell only that all attempts failed."""
    last = error
    while error is not None:
        if isinstance(error, httpx.ConnectTimeout):
            return f"no answer within {CONNECT_S:g} s"
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ConnectionRefusedError):
            return "connection refused"
        if isinstance(error, socket.gaierror):
            return "unknown host"
        last, error = error, error.__cause__ or error.__context__
    return str(last)
