"""What is made of pip-audit's answer: a hole fails, silence is said and does not."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parent.parent.parent / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = spec_from_file_location("audit", PATH)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {
    "name": "starlette",
    "version": "0.49.0",
    "vulns": [{"id": "CVE-2025-62727", "fix_versions": ["0.49.1"], "aliases": []}],
}
UNKNOWN = {"name": "peft", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "told"),
    [
        ([GOOD], 0, "1 packages have no known holes"),
        ([GOOD, UNKNOWN], 0, "1 packages have no known holes; 1 are not known to the service"),
        ([UNKNOWN], 0, "not audited: the service knows none of the 1 packages"),
        ([BAD, UNKNOWN], 1, "starlette 0.49.0: CVE-2025-62727, mended in 0.49.1"),
    ],
)
def test_an_answer_is_judged(audit: Any, packages: list[Any], status: int, told: str) -> None:
    found = audit.judge(json.dumps({"dependencies": packages, "fixes": []}), "")

    assert found[0] == status
    assert told in found[1]


@pytest.mark.parametrize("output", ["", "no JSON", "[]", "{}"])
def test_no_answer_is_said_and_does_not_fail(audit: Any, output: str) -> None:
    assert audit.judge(output, "Traceback\nConnectionError: no way\n") == (
        0,
        "not audited: pip-audit could not ask anybody: ConnectionError: no way",
    )
