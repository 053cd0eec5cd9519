"""Known holes in the libraries that the Makefile installs: pip-audit over constraints.txt.

A hole ends with status 1. Where the service that knows of holes cannot be reached, or does not know
the packages, that is said, and nothing was shown. Run by ``make audit``.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
COMMAND = (
    "--requirement", "constraints.txt", "--no-deps", "--disable-pip",
    "--timeout", "5", "--progress-spinner", "off", "--format", "json",
)  # fmt: skip


def judge(output: str, errors: str) -> tuple[int, str]:
    """Return an exit status, and what there is to say, for what pip-audit wrote."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, TypeError, LookupError):
        last = errors.strip().rpartition("\n")[2] or "it said nothing"
        return 0, f"not audited: pip-audit could not ask anybody: {last}"
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    if holes:
        return 1, "\n".join(["known holes:", *holes])
    unknown = sum("skip_reason" in package for package in packages)
    if unknown == len(packages):
        return 0, f"not audited: the service knows none of the {unknown} packages"
    more = f"; {unknown} are not known to the service" if unknown else ""
    return 0, f"{len(packages) - unknown} packages have no known holes{more}"


def main() -> int:
    """Ask, and say what was heard."""
    program = Path(sys.executable).parent / "pip-audit"
    try:
        done = subprocess.run(
            [program, *COMMAND], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        status, told = judge(done.stdout, done.stderr)
    except FileNotFoundError:
        status, told = 0, "not audited: pip-audit is not installed"
    except subprocess.TimeoutExpired:
        status, told = 0, f"not audited: no answer within {TIMEOUT_S} s"
    sys.stdout.write(f"{told}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
