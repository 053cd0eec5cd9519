"""How this server is part of a DB-GPT cluster."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import field_validator
from pydantic_settings import NoDecode

from dbgpt_guanaco.settings.fields import Group, Network, networks_of, parts_of, setting


class ClusterSettings(Group):
    """How this server is part of a DB-GPT cluster."""

    controllers: Annotated[tuple[str, ...], NoDecode] = setting(
        "GUANACO_CONTROLLER", (), "addresses of DB-GPT's model controllers, comma-separated"
    )
    advertise_host: str | None = setting(
        "GUANACO_ADVERTISE_HOST", None, "host under which DB-GPT reaches this server"
    )
    advertise_port: int | None = setting(
        "GUANACO_ADVERTISE_PORT",
        None,
        "port under which DB-GPT reaches this server, if not MODEL_PORT",
        ge=1,
        le=65535,
    )
    worker_networks: Annotated[tuple[Network, ...], NoDecode] = setting(
        "GUANACO_WORKER_NETWORKS",
        (),
        "networks whose workers may register here, comma-separated, such as 10.0.0.0/24",
    )

    @field_validator("controllers", mode="before")
    @classmethod
    def _split_controllers(cls, value: object) -> object:
        return parts_of(value)

    @field_validator("worker_networks", mode="before")
    @classmethod
    def _are_worker_networks(cls, value: object) -> object:
        return networks_of(value)

    @field_validator("controllers")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            url = urlsplit(address)
            is_plain = url.scheme in ("http", "https") and "@" not in url.netloc
            if not is_plain or not url.hostname or url.query or url.fragment or url.port == 0:
                raise ValueError(f"{address!r} is not an address such as http://10.0.0.5:8000")
        return tuple(address.rstrip("/") for address in value)

    @field_validator("advertise_host")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        looks_right = value is None or re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9.-]*|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*]?", value
        )
        if not looks_right or value in ("0.0.0.0", "::", "[::]"):  # noqa: S104  # refused here
            raise ValueError(f"{value!r} is not a host such as 10.0.0.5 or models.example")
        return value
