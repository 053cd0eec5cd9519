"""Who may use the server: keys, and where it can be reached from."""

from dbgpt_guanaco.doctor.configuration import privacy
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.addresses import is_loopback
from dbgpt_guanaco.server.keys import check_access


def keys(setup: Setup) -> Finding:
    """Hold the keys against the address that the server listens on."""
    access, host = setup.settings.access, setup.settings.server.host
    is_alone = host == "localhost" or is_loopback(host)
    try:
        found = check_access(access, "127.0.0.1" if is_alone else host)
    except ConfigurationError as error:
        return failure(str(error))
    if access.api_keys_file and (finding := privacy(access.api_keys_file)):
        return finding
    if access.needs_keys and not found.names:
        return warning(f"{access.api_keys_file} holds no key, so nobody can ask anything")
    if access.needs_keys:
        return ok(f"whoever asks needs one of {len(found.names)}: {', '.join(found.names)}")
    if is_alone:
        return ok(f"none are needed: only this machine reaches {host}")
    return warning(
        f"whoever reaches {host} can use the model, because there are no keys",
        "GUANACO_API_KEYS, or whatever GUANACO_ALLOW_NO_KEYS relies on",
    )
