"""``dbgpt-guanaco download`` in a process of its own, with the real huggingface_hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running
from tiny_models import make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters.folder import missing_files

CLI = "from dbgpt_guanaco.cli import app; app()"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    model = make_model(make_bpe_tokenizer(tmp_path / "model", "{{ messages }}"))
    lora = make_lora(tmp_path / "lora", base="org/base")
    whole = contents(model)
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    unwanted = {"pytorch_model.bin": b"pickle", "model.gguf": b"other", "README.md": b"text"}
    files = {
        "org/base": whole | unwanted,
        "org/lora": contents(lora),
        "org/pickled": pickled,
        "org/leads-out": whole | {"../out.json": b"{}"},
    }
    with running(FakeHub(files)) as started:
        yield started


def download(
    hub: FakeHub, folder: Path, name: str, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GUANACO_"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GUANACO_MODELS_DIR": str(folder / "models"),
        "GUANACO_DEVICE": "cpu",
        "no_proxy": "127.0.0.1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", CLI, "download", name, "--json"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_lora_comes_with_its_base_and_without_what_is_not_loaded(
    hub: FakeHub, tmp_path: Path
) -> None:
    done = download(hub, tmp_path, "org/lora")

    assert done.returncode == 0, done.stderr
    models = tmp_path / "models"
    assert json.loads(done.stdout)["folders"] == [
        str(models / "org/lora"),
        str(models / "org/base"),
    ]
    assert missing_files(models / "org/base") == []
    names = {path.name for path in (models / "org/base").iterdir()}
    assert names.isdisjoint({"pytorch_model.bin", "model.gguf", "README.md", ".cache"})
    assert contents(models / "org/lora") == hub.files["org/lora"]
    assert not list(models.rglob("*.partial"))


def test_what_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    """huggingface_hub writes in pieces of 10 MiB, so the model is larger."""
    folder = make_bpe_tokenizer(tmp_path / "model", "{{ messages }}")
    model = make_model(folder, hidden_size=768, intermediate_size=2048, num_attention_heads=8)
    with running(FakeHub({"org/base": contents(model)})) as hub:
        hub.breaks_after = 11 * 2**20
        done = download(hub, tmp_path, "org/base")

    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={10 * 2**20}-"]
    assert contents(tmp_path / "models/org/base") == contents(model)


def test_a_wrong_checksum_is_refused_and_the_next_run_mends_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    right = hub.files["org/base"]["model.safetensors"]
    hub.told["model.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])

    done = download(hub, tmp_path, "org/base")

    assert done.returncode == 2
    assert "the checksum of model.safetensors is not the hub's" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models/org/base").exists()
    hub.told.clear()
    assert download(hub, tmp_path, "org/base").returncode == 0
    assert contents(tmp_path / "models/org/base")["model.safetensors"] == right


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/none", "hub org/none"),
        ("org/pickled", "only pickled weights"),
        ("org/leads-out", "leads out of its folder"),
        ("guanako-7b", "Did you mean guanaco-7b?"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_message(
    hub: FakeHub, tmp_path: Path, name: str, told: str
) -> None:
    done = download(hub, tmp_path, name)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_offline_nothing_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "org/base", HF_HUB_OFFLINE="1")

    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbgpt_guanaco.adapters.download import HubFile, _check_room
    from dbgpt_guanaco.errors import ConfigurationError

    files = [HubFile("model.safetensors", 2**60, None)]
    with pytest.raises(ConfigurationError, match="GUANACO_MODELS_DIR"):
        _check_room(tmp_path, tmp_path / "x.partial", files)
