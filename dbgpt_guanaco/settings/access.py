"""Who may ask, from where, and how long they are waited for."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator
from pydantic_settings import NoDecode

from dbgpt_guanaco.settings.fields import Group, Network, networks_of, parts_of, setting

MIN_KEY_CHARACTERS = 16
# What a header may carry after "Bearer" (RFC 6750).
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")


def check_key(key: str) -> str:
    """Return a key that is long enough to be one. The message never holds it.

    Raises:
        ValueError: It is too short, or cannot stand in a header.
    """
    if len(key) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise ValueError(
            f"a key has at least {MIN_KEY_CHARACTERS} letters, digits or . _ ~ + / - and nothing "
            "else; `openssl rand -hex 32` makes one"
        )
    return key


class AccessSettings(Group):
    """Who may ask, from where, and how long they are waited for."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = setting(
        "GUANACO_API_KEYS", (), "keys of clients, comma-separated"
    )
    api_keys_file: Path | None = setting(
        "GUANACO_API_KEYS_FILE", None, "file of keys, one a line: name: key; read anew when changed"
    )
    admin_key: SecretStr | None = setting(
        "GUANACO_ADMIN_KEY", None, "key that may also load LoRAs over HTTP; without one nobody can"
    )
    allow_no_keys: bool = setting(
        "GUANACO_ALLOW_NO_KEYS", False, "listen on more than loopback although there is no key"
    )
    dbgpt_networks: Annotated[tuple[Network, ...], NoDecode] = setting(
        "GUANACO_DBGPT_NETWORKS",
        (),
        "networks whose DB-GPT needs no key, beside this machine, comma-separated",
    )
    metrics_networks: Annotated[tuple[Network, ...], NoDecode] = setting(
        "GUANACO_METRICS_NETWORKS", (), "networks that read /metrics without a key, comma-separated"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = setting(
        "GUANACO_ALLOWED_HOSTS",
        (),
        "further names under which clients without a key reach this server, comma-separated",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = setting(
        "GUANACO_CORS_ORIGINS", (), "origins of other web pages that may ask, comma-separated"
    )

    key_max_running: int | None = setting(
        "GUANACO_KEY_MAX_RUNNING", None, "answers that one key may have running", ge=1, le=10_000
    )
    key_tokens_per_minute: int | None = setting(
        "GUANACO_KEY_TOKENS_PER_MINUTE",
        None,
        "tokens that one key may use in a minute, of prompts and answers",
        ge=1,
        le=10**9,
    )
    head_s: float = setting(
        "GUANACO_HEADER_TIMEOUT", 15.0, "seconds for a request's headers to arrive", gt=0, le=3600
    )
    body_s: float = setting(
        "GUANACO_BODY_TIMEOUT", 60.0, "seconds for a request's body to arrive", gt=0, le=3600
    )
    reader_s: float = setting(
        "GUANACO_READER_TIMEOUT",
        30.0,
        "seconds after which a client that reads nothing of its answer is dropped",
        gt=0,
        le=3600,
    )

    @field_validator("api_keys", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return parts_of(value)

    @field_validator("dbgpt_networks", "metrics_networks", mode="before")
    @classmethod
    def _are_client_networks(cls, value: object) -> object:
        return networks_of(value)

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            check_key(key.get_secret_value())
        return value

    @field_validator("admin_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_key(value.get_secret_value())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host such as models.example, without a port")
        return tuple(host.lower() for host in value)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            url = urlsplit(origin)
            if url.scheme not in ("http", "https") or origin != f"{url.scheme}://{url.netloc}":
                raise ValueError(
                    f"{origin!r} is not an origin such as https://chat.example, without a path; "
                    "* is not taken"
                )
            if not url.hostname or "@" in origin or "*" in origin:
                raise ValueError(f"{origin!r} is not an origin such as https://chat.example")
        return tuple(origin.lower() for origin in value)

    @property
    def needs_keys(self) -> bool:
        """Clients have to show a key, because there is one to be shown."""
        return bool(self.api_keys or self.api_keys_file or self.admin_key)

    @property
    def has_quotas(self) -> bool:
        """Some use of a key is limited."""
        return self.key_max_running is not None or self.key_tokens_per_minute is not None
