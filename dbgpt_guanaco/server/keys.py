"""Which keys there are and whose they are. Only their hashes are kept, and only names are logged.

A file of keys is read anew when it has changed, so that a key is given or taken back while the
server runs. What cannot be read then changes nothing: the keys that were there remain.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.addresses import is_loopback
from dbgpt_guanaco.settings import AccessSettings, check_key

logger = logging.getLogger(__name__)

# A changed file is noticed by the first request after so many seconds.
LOOK_EVERY_S = 1.0
_LINE = re.compile(r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}?)\s*:\s*)?(?P<key>[^\s:]+)")
_MAY_BE_READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: For logs; the key itself is in none.
        identity: Differs where the keys differ; empty for all who have none.
        has_key: It is one of this server's keys.
        is_admin: The key is the admin's.
    """

    name: str
    identity: str = ""
    has_key: bool = False
    is_admin: bool = False


NOBODY = Caller("without a key")


class Keys:
    """The keys of this server.

    Args:
        settings: The keys, and where a file of them is.
        clock: Seconds that never go back.

    Raises:
        ConfigurationError: The file cannot be read, a line of it is no key, or two are the same.
    """

    def __init__(
        self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._file = clock, settings.api_keys_file
        self._set = _merged({}, _keys_of(settings))
        self._read = self._set
        self._seen: tuple[int, ...] | None = None
        self._next_look = clock() + LOOK_EVERY_S
        if self._file:
            self._look(self._file)

    @property
    def names(self) -> tuple[str, ...]:
        """Whose keys there are."""
        return tuple(caller.name for caller in self._read.values())

    def find(self, key: str) -> Caller | None:
        """Return whose key it is, after a comparison with every key, so that time tells nothing."""
        given = _hash(key)
        found = None
        for known, caller in self._read.items():
            if hmac.compare_digest(given, known):
                found = caller
        return found

    async def refresh(self) -> None:
        """Read the file again if it has changed; looks at most once a second."""
        if not self._file or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_EVERY_S
        try:
            await asyncio.to_thread(self._look, self._file)
        except ConfigurationError as error:
            logger.error("the keys remain as they were: %s", error)  # noqa: TRY400  # no bug

    def _look(self, file: Path) -> None:
        try:
            found = file.stat()
            version = (found.st_ctime_ns, found.st_size, found.st_ino)
            if version == self._seen:
                return
            text = file.read_text(encoding="utf-8")
            self._seen = version
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigurationError(f"GUANACO_API_KEYS_FILE={file}: {reason}") from None
        if found.st_mode & _MAY_BE_READ_BY_OTHERS:
            logger.warning("other users of this machine can read the keys: chmod 600 %s", file)
        self._read = _merged(self._set, _keys_in(file, text))
        logger.info("keys: %s", ", ".join(self.names) or "none")


def check_access(settings: AccessSettings, address: str) -> Keys:
    """Read the keys, before the model takes its minutes.

    Args:
        settings: Who may ask.
        address: Where the server listens.

    Raises:
        ConfigurationError: The keys cannot be read, or strangers could ask without one.
    """
    if not (settings.needs_keys or settings.allow_no_keys or is_loopback(address)):
        raise ConfigurationError(
            f"{address} is reached from other machines, and there is no key: whoever reaches it "
            "could use the model. Set "
            "GUANACO_API_KEYS (`openssl rand -hex 32` makes a key) or GUANACO_API_KEYS_FILE, or "
            "listen on GUANACO_HOST=127.0.0.1. Where something else keeps strangers away, such as "
            "a firewall or a proxy that checks who asks, GUANACO_ALLOW_NO_KEYS=true starts anyway"
        )
    if settings.has_quotas and not settings.needs_keys:
        raise ConfigurationError(
            "GUANACO_KEY_MAX_RUNNING and GUANACO_KEY_TOKENS_PER_MINUTE limit keys, and there is "
            "none: set GUANACO_API_KEYS or GUANACO_API_KEYS_FILE"
        )
    return Keys(settings)


def _keys_of(settings: AccessSettings) -> Iterator[tuple[bytes, Caller]]:
    for place, key in enumerate(settings.api_keys, 1):
        digest = _hash(key.get_secret_value())
        yield digest, Caller(f"key {place} of GUANACO_API_KEYS", digest.hex(), has_key=True)
    if settings.admin_key:
        digest = _hash(settings.admin_key.get_secret_value())
        yield digest, Caller("admin", digest.hex(), has_key=True, is_admin=True)


def _keys_in(file: Path, text: str) -> Iterator[tuple[bytes, Caller]]:
    """Read ``name: key`` or ``key`` from each line; ``#`` begins a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        match = _LINE.fullmatch(said)
        try:
            if not match:
                raise ValueError("write `name: key`, or a key alone")  # noqa: TRY301
            digest = _hash(check_key(match["key"]))
        except ValueError as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from None
        yield digest, Caller(match["name"] or f"line {number}", digest.hex(), has_key=True)


def _merged(
    given: dict[bytes, Caller], read: Iterator[tuple[bytes, Caller]]
) -> dict[bytes, Caller]:
    merged = dict(given)
    for digest, caller in read:
        if digest in merged:
            raise ConfigurationError(
                f"{merged[digest].name!r} and {caller.name!r} have the same key; give each its own"
            )
        merged[digest] = caller
    return merged


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
