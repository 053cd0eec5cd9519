"""``dbgpt-guanaco doctor``."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from dbgpt_guanaco.doctor.checks import CHECKS, Check
from dbgpt_guanaco.doctor.findings import Finding, Status, skipped
from dbgpt_guanaco.doctor.running import examine

SHOWN: dict[Status, tuple[str, str]] = {
    "ok": ("OK", "green"),
    "warning": ("WARNING", "yellow"),
    "failure": ("FAILURE", "bold red"),
    "skipped": ("–", "dim"),
}
STATUS_WIDTH, NAME_WIDTH = 9, 19
INDENT = " " * (STATUS_WIDTH + NAME_WIDTH)
WIDEST = 120


def doctor(
    deep: Annotated[bool, typer.Option(help="also read all weights and compare checksums")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Examine this machine and this configuration, and say what to do about what is wrong.

    Reads the settings that ``serve`` would read here. Fetches, changes and serves nothing.
    Ends with 1 where something fails, with 0 where all is well or there are only warnings.

    Example:  LLM_MODEL=guanaco-33b-merged dbgpt-guanaco doctor
    """
    console = Console()
    found: dict[Check, Finding] = {}

    def tell(check: Check, finding: Finding) -> None:
        found[check] = finding
        if not as_json and finding.status != "skipped":
            for line in lines_of(check.name, finding, console):
                console.print(line, soft_wrap=True)

    examine(CHECKS, tell, is_deep=deep)
    statuses = [finding.status for finding in found.values()]
    if as_json:
        typer.echo(json.dumps(as_object(found), ensure_ascii=False, indent=2))
    else:
        for reason, names in left_out(found).items():
            finding = skipped(f"{', '.join(names)}: {reason}")
            for line in lines_of("not looked at", finding, console):
                console.print(line, soft_wrap=True)
        console.print(summary(statuses), soft_wrap=True)
    raise typer.Exit(1 if "failure" in statuses else 0)


def left_out(found: Mapping[Check, Finding]) -> dict[str, list[str]]:
    """Return the names of checks that could say nothing, by the reason."""
    reasons: dict[str, list[str]] = {}
    for check, finding in found.items():
        if finding.status == "skipped":
            reasons.setdefault(finding.text, []).append(check.name)
    return reasons


def lines_of(name: str, finding: Finding, console: Console) -> Iterator[Text]:
    """Yield a finding for a person: text folded, commands whole so that they can be copied."""
    word, style = SHOWN[finding.status]
    head = Text.assemble((f"{word:<{STATUS_WIDTH}}", style), f"{name:<{NAME_WIDTH}}")
    text = [part for line in finding.text.splitlines() for part in _folded(line, console)]
    yield head + Text(text[0] if text else "")
    yield from (Text(INDENT + line) for line in text[1:])
    for line in finding.remedy.splitlines():
        yield Text.assemble(INDENT, ("→ ", style), (line, "bold"))


def _folded(line: str, console: Console) -> list[str]:
    width = min(console.width, WIDEST) - len(INDENT) if console.is_terminal else 0
    if width < STATUS_WIDTH:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def as_object(found: dict[Check, Finding]) -> dict[str, object]:
    """Return all findings as JSON would have them."""
    statuses = [finding.status for finding in found.values()]
    worst = next((s for s in ("failure", "warning") if s in statuses), "ok")
    checks = [{"check": check.name, **asdict(finding)} for check, finding in found.items()]
    return {"status": worst, "checks": checks}


def summary(statuses: list[Status]) -> str:
    """Return how many of each there are, in a sentence."""
    failures, warnings = statuses.count("failure"), statuses.count("warning")
    told = [
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in ((failures, "failure"), (warnings, "warning"))
        if count
    ]
    return " and ".join(told) or "nothing is amiss"
