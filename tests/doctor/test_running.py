"""No check can end the others, hold them up, or garble what they say."""

import os
from pathlib import Path

import psutil
import pytest

from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.checks import CHECKS, Check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.running import examine
from dbgpt_guanaco.doctor.setup import Setup

FAST_S = 20.0


@pytest.fixture(autouse=True)
def _child_finds_the_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))


def found(*names: str, limit_s: float = FAST_S, is_deep: bool = False) -> dict[str, Finding]:
    told: dict[str, Finding] = {}
    checks = [Check(name, f"checks_for_tests.{name}", limit_s, limit_s) for name in names]
    examine(checks, lambda check, finding: told.update({check.name: finding}), is_deep=is_deep)
    assert list(told) == list(names)
    return told


def test_findings_come_in_order_and_in_any_language() -> None:
    assert found("well", "talks") == {
        "well": Finding("ok", "一切正常"),
        "talks": Finding("warning", "it said so", "tell it to be quiet"),
    }


def test_a_check_that_crashes_costs_its_own_line_only() -> None:
    told = found("well", "crashes", "exits", "talks")

    assert [finding.status for finding in told.values()] == ["ok", "failure", "failure", "warning"]
    assert told["crashes"].text.startswith("it was ended by SIGILL, in ")
    assert "checks_for_tests.py" in told["crashes"].text
    assert told["exits"].text == "it ended with status 3: a library gives up"


def test_a_check_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    limits_s = {"well": FAST_S, "hangs": 2.0, "talks": FAST_S}
    checks = [Check(name, f"checks_for_tests.{name}", s, s) for name, s in limits_s.items()]
    told: dict[str, Finding] = {}

    examine(checks, lambda check, finding: told.update({check.name: finding}))

    assert told["hangs"] == Finding("failure", "it was not done within 2 s")
    assert told["talks"].status == "warning"
    assert not is_running(int((tmp_path / "pid").read_text()))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_deep_look_is_told_to_every_check() -> None:
    assert found("is_deep", is_deep=True)["is_deep"].text == "True"
    assert found("is_deep")["is_deep"].text == "False"


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("raises", "failure", "KeyError: 'lost'"),
        ("refuses", "failure", "the model is damaged"),
        ("lacks", "failure", "no_such_library"),
        ("skips", "skipped", "something else first"),
        ("says_nothing", "failure", "it found nothing"),
        ("no_such_check", "failure", "no_such_check"),
    ],
)
def test_whatever_goes_wrong_in_a_check_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, name: str, status: str, text: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    finding = run_check(f"checks_for_tests.{name}", Setup())

    assert finding.status == status
    assert text in finding.text


def test_a_library_that_is_broken_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    setup = Setup()

    first, again = (run_check("checks_for_tests.lacks", setup) for _ in range(2))

    assert first.status == "failure"
    assert first.remedy.endswith("pip install --force-reinstall no_such_library")
    assert again == Finding("skipped", "a library must be mended first")


def test_every_listed_check_is_there_once() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, name = check.function.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[name]), name)), check
