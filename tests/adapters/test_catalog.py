import shutil
from pathlib import Path

import pytest
from tiny_models import make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.catalog import Catalog, Entry
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.machine import gpu_of


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    whole = make_model(make_bpe_tokenizer(tmp_path / "my-vicuna"))
    make_lora(tmp_path / "org/lora", base=str(whole))
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:-9])
    shutil.copytree(whole, tmp_path / "half.partial")
    (shutil.copytree(whole, tmp_path / "gone") / "model.safetensors").unlink()
    old = tmp_path / "guanaco-65b"
    old.mkdir()
    (old / "config.json").write_text("{}")
    (old / "pytorch_model.bin").write_bytes(b"x")
    return tmp_path


def entries(models_dir: Path, gpu: str = "24GB") -> dict[str, Entry]:
    catalog = Catalog(models_dir, default_registry(), gpu_of(gpu))
    return {entry.name: entry for entry in catalog.entries()}


def test_each_folder_is_told_for_what_it_is(models_dir: Path) -> None:
    found = entries(models_dir)

    kinds = {name: entry.kind for name, entry in found.items() if entry.disk_bytes is not None}
    assert kinds == {
        "my-vicuna": "model",
        "org/lora": "LoRA",
        "cut": "damaged",
        "gone": "damaged",
        "guanaco-65b": "pickles",
    }
    assert found["my-vicuna"].family == "vicuna"
    assert "cut short" in found["cut"].note
    assert found["gone"].note == "model.safetensors is missing"
    assert found["guanaco-65b"].note.startswith("dbgpt-guanaco convert ")
    lora, base = found["org/lora"].needed_bytes, found["my-vicuna"].needed_bytes
    assert lora is not None
    assert base is not None
    assert lora - base == 2 * 2 * 4 * (64 + 64)  # layers, 16 bits, rank, A and B


def test_known_names_that_are_not_here_say_whether_they_would_fit(models_dir: Path) -> None:
    found = entries(models_dir)

    assert found.keys() >= KNOWN_MODELS.keys()
    assert found["guanaco-33b"].fits is True
    assert found["guanaco-65b-merged"].fits is False
    assert entries(models_dir, "48GB")["guanaco-65b-merged"].fits is True
    merged, lora = found["guanaco-33b-merged"].needed_bytes, found["guanaco-33b"].needed_bytes
    assert merged is not None
    assert lora is not None
    assert 0.8 < (lora - merged) / 2**30 < 1.0


def test_without_a_models_folder_the_known_names_are_told(tmp_path: Path) -> None:
    assert entries(tmp_path / "none").keys() == KNOWN_MODELS.keys()
