"""DB-GPT's side: the controllers that this server registers with, asked as it would ask them."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from dbgpt_guanaco.doctor.findings import Finding, Status, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.server.addresses import advertised_address, literal_address
from dbgpt_guanaco.server.registration import check
from dbgpt_guanaco.settings import ClusterSettings

ASK_S = 4.0
MAX_ANSWER_BYTES = 1024 * 1024
# Heartbeats carry no time, but the page of models shows when one was heard.
SKEW_S = 30.0
LISTED = "/api/controller/models"
SEVERITY: tuple[Status, ...] = ("ok", "warning", "failure")


def controllers(setup: Setup) -> Finding:
    """Ask every controller who it knows, and find out what would be registered there."""
    settings = setup.settings
    if not settings.cluster.controllers:
        return ok("GUANACO_CONTROLLER names none; DB-GPT can be pointed at this server itself")
    listening = (settings.server.host, settings.server.port)
    check(settings, listening)  # a setting that keeps this server from registering
    found = [
        _examine(address, settings.cluster, listening) for address in settings.cluster.controllers
    ]
    worst = max((finding.status for finding in found), key=SEVERITY.index)
    remedies = dict.fromkeys(finding.remedy for finding in found if finding.remedy)
    return Finding(worst, "\n".join(f.text for f in found), "\n".join(remedies))


def _examine(controller: str, cluster: ClusterSettings, listening: tuple[str, int]) -> Finding:
    try:
        host, port = advertised_address(cluster, listening, controller)
    except OSError as error:
        return failure(
            f"{controller}: there is no way to it ({error.strerror or error})",
            "mend the name in GUANACO_CONTROLLER, or this machine's network",
        )
    try:
        response = _ask(controller)
    except httpx.HTTPError as error:
        return failure(
            f"{controller} does not answer: {error or type(error).__name__}",
            "dbgpt start controller   # or mend GUANACO_CONTROLLER",
        )
    known = _instances(response)
    if known is None:
        return failure(
            f"{controller} answers {response.status_code}, and is no model controller",
            "set GUANACO_CONTROLLER to the controller's port, not to the web server's",
        )
    here = f"{controller} answers; this server is registered there as {host}:{port}"
    if skew := _clock_skew(response):
        return warning(f"{here}. Its clock differs by {skew:.0f} s", "timedatectl set-ntp true")
    if _is_loopback(host) and not _is_loopback(_host_of(controller)):
        return warning(
            f"{here}, which only this machine reaches",
            "set GUANACO_ADVERTISE_HOST to an address that DB-GPT reaches",
        )
    others = f", beside {len(known)} other{'s' if len(known) > 1 else ''}" if known else ""
    return ok(here + others)


def _ask(controller: str) -> httpx.Response:
    """Return the answer of a controller, cut off where it is longer than any list of models.

    Raises:
        httpx.HTTPError: There is none in time.
    """
    # Not by way of a proxy: the server itself asks directly, too.
    with (
        httpx.Client(
            trust_env=False, timeout=ASK_S, headers={"Accept-Encoding": "identity"}
        ) as client,
        client.stream("GET", controller + LISTED) as answer,
    ):
        text = next(answer.iter_raw(MAX_ANSWER_BYTES), b"")
        headers = {"date": answer.headers.get("date", "")}
        return httpx.Response(answer.status_code, content=text, headers=headers)


def _instances(response: httpx.Response) -> list[dict[str, Any]] | None:
    """Return the instances that a controller lists; None where it is none."""
    fields = {"model_name", "host", "port"}
    try:
        said = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    is_list = response.status_code == 200 and isinstance(said, list)
    if is_list and all(isinstance(one, dict) and one.keys() >= fields for one in said):
        return list(said)
    return None


def _clock_skew(response: httpx.Response) -> float:
    """Return by how many seconds the other clock differs; 0 where it is little or unknown."""
    with suppress(ValueError, TypeError):
        theirs = parsedate_to_datetime(response.headers["date"])
        skew = abs((datetime.now(UTC) - theirs).total_seconds())
        return skew if skew > SKEW_S else 0.0
    return 0.0


def _host_of(controller: str) -> str:
    return httpx.URL(controller).host


def _is_loopback(host: str) -> bool:
    address = literal_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
