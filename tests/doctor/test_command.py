"""``dbgpt-guanaco doctor`` as a person, and a program, uses it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dbgpt_guanaco.cli import app, doctor
from dbgpt_guanaco.doctor.checks import CHECKS
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, skipped, warning

ROOT = Path(__file__).parent.parent.parent
BROKEN = failure("a line\nand another", "mend --it\nor --that")


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what decides the findings, one for each first check."""

    def decide(*findings: Finding) -> None:
        def examine(checks: Any, tell: Any, *, is_deep: bool) -> None:
            for check, finding in zip(checks, findings, strict=False):
                tell(check, finding)

        monkeypatch.setattr("dbgpt_guanaco.cli.doctor.examine", examine)

    return decide


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout


def test_findings_are_lines_with_their_remedies(find: Any) -> None:
    find(
        ok("3.11"),
        warning("odd", "fix it"),
        BROKEN,
        skipped("later"),
        ok("UTF-8"),
        skipped("later"),
    )

    code, out = run()

    assert code == 1
    assert out.splitlines() == [
        "OK       Python             3.11",
        "WARNING  libraries          odd",
        "                            → fix it",
        "FAILURE  native code        a line",
        "                            and another",
        "                            → mend --it",
        "                            → or --that",
        "OK       DB-GPT's plugin    UTF-8",
        "–        not looked at      package kernels, locale and clock: later",
        "1 failure and 1 warning",
    ]


@pytest.mark.parametrize(
    ("findings", "code", "told"),
    [
        ([ok("a"), ok("b")], 0, "nothing is amiss"),
        ([ok("a"), warning("b"), warning("c")], 0, "2 warnings"),
        ([warning("a"), BROKEN], 1, "1 failure and 1 warning"),
        ([skipped("a")], 0, "nothing is amiss"),
    ],
)
def test_only_failures_count(find: Any, findings: list[Finding], code: int, told: str) -> None:
    find(*findings)

    exit_code, out = run()

    assert exit_code == code
    assert out.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("findings", "worst"), [([ok("a")], "ok"), ([warning("a")], "warning"), ([BROKEN], "failure")]
)
def test_json_has_all_of_it(find: Any, findings: list[Finding], worst: str) -> None:
    find(*findings)

    said = json.loads(run("--json")[1])

    assert said["status"] == worst
    assert said["checks"][0]["check"] == "Python"
    assert Finding(**{k: v for k, v in said["checks"][0].items() if k != "check"}) == findings[0]


@pytest.mark.parametrize("arguments", [["--nope"], ["more"], ["--json", "x"]])
def test_a_wrong_call_ends_with_2(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_a_command_is_never_folded_and_text_is() -> None:
    console = Console(width=60, force_terminal=True)
    remedy = "a command " + "that is very long " * 9
    finding = warning("words " * 20, remedy)

    lines = [line.plain for line in doctor.lines_of(CHECKS[0].name, finding, console)]

    assert all(len(line) <= 60 for line in lines[:-1])
    assert lines[-1].endswith(remedy)


def test_names_of_checks_leave_room() -> None:
    assert max(len(check.name) for check in CHECKS) < doctor.NAME_WIDTH


def test_the_whole_of_it_with_the_demo_model(tmp_path: Path) -> None:
    """What a newcomer sees: 25 lines, nothing amiss, and soon."""
    (tmp_path / ".env").write_text(
        f"GUANACO_MODELS_DIR={ROOT / 'models'}\nGUANACO_DEVICE=cpu\nMODEL_PORT=0\n"
    )
    (tmp_path / ".env").chmod(0o600)
    start = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", "from dbgpt_guanaco.cli import app; app()", "doctor", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    said = json.loads(done.stdout)
    lines = {each["check"]: each for each in said["checks"]}
    assert list(lines) == [check.name for check in CHECKS]
    assert done.returncode == 0, said
    assert {each["status"] for each in lines.values()} <= {"ok", "warning"}, said
    assert re.fullmatch(r"smollm2-135m-instruct: .*models/smollm2.*", lines["model"]["text"])
    assert time.monotonic() - start < 120  # far less on a machine that is not busy
