"""What the process inherits: locale, clock, limits, proxies."""

import locale
import os
import resource
import sys
import time
from datetime import UTC, datetime
from urllib import request
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup

# Before this program was written.
LONG_PAST = datetime(2025, 1, 1, tzinfo=UTC)
LOOPBACK = ("127.0.0.1", "localhost")
# Slots, the queue, their connections, and what a process has open anyway.
FEW_FILES = 1024


def locale_and_clock(_: Setup) -> Finding:
    """Look for what garbles Chinese in logs, and for a clock that is wrong."""
    now = datetime.now(UTC)
    if now < LONG_PAST:
        return failure(
            f"the clock says {now:%Y-%m-%d}, which is past: certificates and DB-GPT's heartbeats "
            "will fail",
            "timedatectl set-ntp true",
        )
    used = {sys.stdout.encoding, locale.getpreferredencoding(False), sys.getfilesystemencoding()}
    other = sorted({name.lower().replace("_", "-") for name in used} - {"utf-8", "utf8"})
    if other:
        return warning(
            f"text is written and read as {', '.join(other)}: names and logs in Chinese break",
            "export PYTHONUTF8=1",
        )
    if zone := _unknown_zone():
        return warning(
            f"TZ={zone} is no time zone here, so times are UTC's. DB-GPT writes times without a "
            "zone, so both programs must agree",
            "export TZ=Asia/Shanghai   # or yours",
        )
    return ok(f"UTF-8, {time.strftime('%Y-%m-%d %H:%M %Z')}")


def _unknown_zone() -> str:
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name or name.startswith("/") or any(c in name for c in "0123456789,<"):
        return ""  # none, a file, or a rule such as CST-8
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return name
    return ""


def open_files(setup: Setup) -> Finding:
    """Hold the limit of open files against the connections that there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    engine = setup.settings.engine
    needed = max(FEW_FILES, 2 * (engine.slots + engine.queue_size) + 256)
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warning(
            f"this process may have {soft} files open, and each client takes one; {needed} are "
            "wanted. Past that, connections are refused",
            f"ulimit -n {needed}" if needed <= hard else f"LimitNOFILE={needed}   # in systemd",
        )
    return ok(f"{soft:,} allowed" if soft != resource.RLIM_INFINITY else "as many as there are")


def proxies(_: Setup) -> Finding:
    """Look for a proxy that would be asked for what is on this machine."""
    found = {
        name: url
        for name, url in request.getproxies_environment().items()
        if name in ("http", "all")
    }
    caught = [host for host in LOOPBACK if not request.proxy_bypass(host)]
    if found and caught:
        names = ", ".join(f"{name.upper()}_PROXY" for name in sorted(found))
        return warning(
            f"{names} is set, and NO_PROXY does not name {' and '.join(caught)}. Clients on this "
            "machine, DB-GPT too, then ask the proxy for this server, which cannot reach it",
            f"export NO_PROXY={','.join(filter(None, (os.environ.get('NO_PROXY'), *LOOPBACK)))}",
        )
    return ok("none that calls to this machine would take" if found else "none")
