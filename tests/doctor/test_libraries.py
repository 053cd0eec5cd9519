"""Python and its libraries, old, missing and dangerous."""

import importlib.metadata
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from dbgpt_guanaco.doctor import libraries
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import NotCheckedError
from dbgpt_guanaco.doctor.setup import Setup

REAL = importlib.metadata.version
Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Return what sets versions of packages; None is not installed."""

    def make(**versions: str | None) -> None:
        def version(name: str) -> str:
            found = versions.get(name.replace("-", "_"), "as it is")
            if found is None:
                raise PackageNotFoundError(name)
            return REAL(name) if found == "as it is" else found

        monkeypatch.setattr(libraries, "version", version)

    return make


def test_this_interpreter_is_right() -> None:
    assert libraries.python(Setup()).status == "ok"


@pytest.mark.parametrize("old", ["3.10.14", "2.7.18"])
def test_an_old_python_is_a_failure(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    monkeypatch.setattr("platform.python_version", lambda: old)

    finding = libraries.python(Setup())

    assert finding.status == "failure"
    assert f"Python {old} runs this, and >=3.11 is needed" in finding.text
    assert "PYTHON=python3.11" in finding.remedy


def test_another_system_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert libraries.python(Setup()).status == "warning"


def test_these_libraries_are_new_enough() -> None:
    finding = libraries.versions(Setup())

    assert finding.status == "ok"
    assert f"torch {REAL('torch')}" in finding.text


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"torch": "2.5.1+cu121"}, "torch is 2.5.1+cu121, and >=2.11 is needed"),
        ({"bitsandbytes": "0.43.0"}, "bitsandbytes is 0.43.0, and >=0.50 is needed"),
        ({"starlette": "0.49.0"}, "starlette is 0.49.0, and >=0.49.1 is needed"),
        ({"peft": None}, "peft is not installed"),
    ],
)
def test_a_library_that_is_old_or_missing_is_a_failure(
    pretend: Pretend, versions: dict[str, Any], told: str
) -> None:
    pretend(**versions)

    finding = libraries.versions(Setup())

    assert finding.status == "failure"
    assert finding.text == told
    assert finding.remedy.startswith(f"{sys.executable} -m pip install '{next(iter(versions))}>=")


def test_a_package_that_is_only_a_folder_has_no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "DISTRIBUTION", "no-such-distribution")

    with pytest.raises(NotCheckedError, match="is not installed"):
        libraries.versions(Setup())


def test_native_code_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.native_code(Setup()).status == "ok"
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    finding = run_check("dbgpt_guanaco.doctor.libraries.native_code", Setup())

    assert finding.status == "failure"
    assert "bitsandbytes" in finding.text


def test_the_package_kernels_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.kernels_package(Setup()).status == "ok"
    monkeypatch.setattr(libraries, "find_spec", {"kernels": object()}.get)

    finding = libraries.kernels_package(Setup())

    assert finding.status == "warning"
    assert finding.remedy == f"{sys.executable} -m pip uninstall -y kernels"


@pytest.mark.parametrize(
    ("dbgpt", "status", "told"),
    [
        (None, "ok", "DB-GPT is not in this interpreter"),
        ("0.8.2", "ok", 'can use the plugin: provider = "guanaco"'),
        ("0.9.0", "ok", "(tested with 0.8.2)"),
        ("0.6.3", "warning", "older than 0.7 and has no plugins"),
    ],
)
def test_a_db_gpt_beside_us_is_told(
    pretend: Pretend, dbgpt: str | None, status: str, told: str
) -> None:
    pretend(dbgpt=dbgpt)

    finding = libraries.plugin(Setup())

    assert finding.status == status
    assert told in finding.text
