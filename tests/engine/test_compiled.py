"""Code is compiled once, kept where nobody else can put any, and missing it is no failure."""

import os
import stat
from pathlib import Path

import pytest

from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.errors import ConfigurationError

SOURCE = 'extern "C" int guanaco_answer() { return 42; }\n'

needs_compiler = pytest.mark.skipif(
    "compiler" in (compiled.why_not() or ""), reason="no C++ compiler"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "answer.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(compiled, "_SOURCES", tmp_path / "sources")
    monkeypatch.setattr(compiled, "FLAGS", ("-shared", "-fPIC"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def kept(home: Path) -> list[Path]:
    return sorted((home / "cache" / "dbgpt-guanaco").iterdir())


@needs_compiler
def test_a_library_is_built_once_and_again_when_its_source_changes(home: Path) -> None:
    assert compiled.load("answer.cpp", []).guanaco_answer() == 42
    first = kept(home)
    written = first[0].stat().st_mtime_ns
    compiled.load("answer.cpp", [])
    assert kept(home) == first
    assert first[0].stat().st_mtime_ns == written
    changed = SOURCE.replace("42", "43")
    (home / "sources" / "answer.cpp").write_text(changed, encoding="utf-8")
    assert compiled.load("answer.cpp", []).guanaco_answer() == 43


@needs_compiler
def test_folder_and_library_are_nobody_elses(home: Path) -> None:
    compiled.load("answer.cpp", [])
    for path in (*kept(home), home / "cache" / "dbgpt-guanaco"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "library"])
def test_code_that_others_could_have_written_is_not_run(home: Path, what: str) -> None:
    compiled.load("answer.cpp", [])
    path = home / "cache" / "dbgpt-guanaco" if what == "folder" else kept(home)[0]
    path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        compiled.load("answer.cpp", [])


@needs_compiler
def test_a_link_is_not_followed(home: Path) -> None:
    compiled.load("answer.cpp", [])
    library = kept(home)[0]
    library.rename(home / "elsewhere.so")
    library.symlink_to(home / "elsewhere.so")
    with pytest.raises(ConfigurationError, match="is a link"):
        compiled.load("answer.cpp", [])


@needs_compiler
def test_a_failing_compiler_is_told_and_leaves_nothing_behind(home: Path) -> None:
    (home / "sources" / "answer.cpp").write_text("no such thing;", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="failed with code"):
        compiled.load("answer.cpp", [])
    assert kept(home) == []


@needs_compiler
def test_a_folder_that_cannot_be_made_is_told(home: Path) -> None:
    (home / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        compiled.load("answer.cpp", [])


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: " ".join(compiled.CPU_FLAGS))
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "no-such-compiler" in (compiled.why_not() or "")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", os.devnull)
    assert "install one" in (compiled.why_not() or "")


def test_what_the_cpu_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: "fpu avx512f avx512bw avx512dq")
    assert compiled.why_not() == "the CPU has no avx512vl"
