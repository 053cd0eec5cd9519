"""Who may use the server: keys, who can read them, and who is let in without one."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from dbgpt_guanaco.doctor import configuration
from dbgpt_guanaco.doctor.findings import Finding, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.server.addresses import literal_address
from dbgpt_guanaco.settings import Settings

# A network with more addresses than this is nobody's own.
WIDEST = {4: 8, 6: 16}


def keys(setup: Setup) -> Finding:
    """Read the keys as the server does, and look for who else comes in."""
    settings = setup.settings
    host = "127.0.0.1" if settings.server.host == "localhost" else settings.server.host
    address = literal_address(host)
    is_alone = address is not None and address.is_loopback
    access: Any = getattr(settings, "access", None)
    if access is None:
        return _without_keys(host, is_alone=is_alone)
    # Refuses what would let strangers in, two keys that are the same, a file that cannot be read.
    found = import_module("dbgpt_guanaco.server.access").check_access(access, host)
    file = access.api_keys_file
    if file and (problem := configuration.privacy(file)):
        return problem
    if problems := [*_wide(settings, access), *_nobody(access, found)]:
        return warning("\n".join(problems))
    if not access.needs_keys:
        return _without_keys(host, is_alone=is_alone)
    return ok(f"{len(found.names)}: {', '.join(found.names)}")


def _without_keys(host: str, *, is_alone: bool) -> Finding:
    if is_alone:
        return ok(f"none are needed: only this machine reaches {host}")
    return warning(
        f"whoever reaches {host} can use the model, because there are no keys",
        "GUANACO_HOST=127.0.0.1   # or a proxy before it that checks who asks",
    )


def _wide(settings: Settings, access: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the networks that let almost everybody in without a key."""
    lists = {
        "GUANACO_DBGPT_NETWORKS": access.dbgpt_networks,
        "GUANACO_WORKER_NETWORKS": settings.cluster.worker_networks,
        "GUANACO_METRICS_NETWORKS": access.metrics_networks,
    }
    for name, networks in lists.items():
        for network in networks:
            if network.prefixlen < WIDEST[network.version]:
                yield f"{name}={network} lets in almost everybody; name the machines that you know"


def _nobody(access: Any, found: Any) -> Iterator[str]:  # noqa: ANN401
    if access.needs_keys and not found.names:
        yield f"GUANACO_API_KEYS_FILE={access.api_keys_file} holds no key, so nobody gets in"
