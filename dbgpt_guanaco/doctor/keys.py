"""Who may use the server: keys, and where it can be reached from."""

from dbgpt_guanaco.doctor.findings import Finding, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.server.addresses import literal_address


def keys(setup: Setup) -> Finding:
    """Hold the keys against the address that the server listens on."""
    host = setup.settings.server.host
    address = literal_address(host)
    if address is not None and address.is_loopback:
        return ok(f"none are needed: only this machine reaches {host}")
    return warning(
        f"whoever reaches {host} can use the model, because there are no keys",
        "GUANACO_HOST=127.0.0.1, or a proxy before it that checks who asks",
    )
