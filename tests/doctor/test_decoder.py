"""The compiled decoder: not for this CPU, without a compiler, and built."""

from pathlib import Path

import pytest

from dbgpt_guanaco.doctor.decoder import cpu_decoder
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.settings import ModelSettings, Settings

SETUP = Setup(settings=Settings(model=ModelSettings(device="cpu")))


@pytest.fixture
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: " ".join(compiled.CPU_FLAGS))


def test_another_cpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: "fpu avx2")

    finding = cpu_decoder(SETUP)

    assert finding.status == "ok"
    assert "has no avx512f" in finding.text


@pytest.mark.usefixtures("_able")
def test_no_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)

    finding = cpu_decoder(SETUP)

    assert finding.status == "warning"
    assert "no C++ compiler was found" in finding.text
    assert finding.remedy == "sudo apt-get install g++"


@pytest.mark.usefixtures("_able")
def test_a_compiler_that_fails_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "broken++"
    compiler.write_text('#!/bin/sh\n[ "$2" ] || exit 0\necho "error: no header" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    finding = cpu_decoder(SETUP)

    assert finding.status == "warning"
    assert "error: no header" in finding.text


@pytest.mark.usefixtures("_able")
def test_a_cache_that_others_can_write_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dbgpt-guanaco").mkdir(mode=0o777)
    (tmp_path / "dbgpt-guanaco").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert "can be written by others" in cpu_decoder(SETUP).text


@pytest.mark.skipif(compiled.why_not() is not None, reason="no compiled decoder here")
def test_it_is_built_where_it_can_be() -> None:
    assert cpu_decoder(SETUP).text.startswith("compiled for this CPU")
