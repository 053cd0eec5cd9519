"""What every group of settings is made of."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Network = IPv4Network | IPv6Network


def setting(name: str, default: Any, description: str, **limits: Any) -> Any:  # noqa: ANN401
    """Return a field that the environment gives under this name."""
    return Field(default, validation_alias=name, description=description, **limits)


class Group(BaseModel):
    """Settings that one layer takes. They are read by their names in code or in ``.env``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def parts_of(value: object) -> object:
    """Split what the environment gives as one comma-separated text."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def network_of(text: str) -> Network:
    """Read a network such as ``10.0.0.0/24``.

    Raises:
        ValueError: It is none.
    """
    try:
        return ip_network(text.strip())
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a network such as 10.0.0.0/24") from None


def networks_of(value: object) -> object:
    """Read the networks in what the environment gives as one comma-separated text."""
    if isinstance(value, str):
        return tuple(network_of(part) for part in value.split(",") if part.strip())
    return value


def memory_bytes(text: str) -> int:
    """Read a size such as ``22GiB``, ``16Gib`` (DB-GPT's spelling) or ``24GB``, in bytes.

    Raises:
        ValueError: It is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 22GiB")
    number, unit, binary = match.groups()
    step = 1024 if binary else 1000
    return int(float(number) * step ** ("KMGT".index(unit.upper()) + 1))
