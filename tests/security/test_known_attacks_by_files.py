"""Known attacks by files of a model that a stranger has made."""

import json
import struct
from contextlib import nullcontext
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from tiny_models import WritesAFile, make_lora, make_model

from dbgpt_guanaco.adapters.convert import read_pickled
from dbgpt_guanaco.adapters.download import download_model
from dbgpt_guanaco.adapters.foreign_code import check_code
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.lora import read_lora
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.checkpoints.layout import meta_model
from dbgpt_guanaco.engine.loras import find_below
from dbgpt_guanaco.errors import InvalidRequestError, ModelLoadError
from dbgpt_guanaco.settings import ModelSettings


def write_config(folder: Path, **lines: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(lines))
    return folder


def test_an_auto_map_is_refused(tmp_path: Path) -> None:
    """GHSA-nemotron-auto-map: a model's auto_map ran its code although that was not trusted."""
    folder = write_config(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Config"})

    with pytest.raises(ModelLoadError, match="such code is not run"):
        check_code(folder, is_trusted=False)


def test_a_config_does_not_trust_in_our_name(tmp_path: Path) -> None:
    """CVE-2026-5241: a part of a config said trust_remote_code, and was believed."""
    part = {"model_type": "own", "trust_remote_code": True}
    folder = write_config(tmp_path, model_type="llama", detector_config=part)

    with pytest.raises(ModelLoadError, match="never done here"):
        check_code(folder, is_trusted=False)


def test_a_config_names_no_kernel_of_the_hub(tmp_path: Path) -> None:
    """GHSA-nemotron-auto-map: another line of a config that has native code fetched and run."""
    folder = write_config(tmp_path, model_type="llama", attn_implementation="evil/kernel")

    with pytest.raises(ModelLoadError, match="never done here"):
        check_code(folder, is_trusted=True)


def test_a_pickle_is_read_as_weights_and_not_run(tmp_path: Path) -> None:
    """CVE-2025-3677: a checkpoint was a pickle, and loading it ran it."""
    proof = tmp_path / "proof"
    torch.save(WritesAFile(proof), tmp_path / "pytorch_model.bin")
    lora = make_lora(tmp_path / "lora", kind="bin")
    torch.save(WritesAFile(proof), lora / "adapter_model.bin")

    with pytest.raises(ModelLoadError):
        read_pickled(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError):
        read_lora(lora, meta_model(make_model(tmp_path / "base")), torch.bfloat16)
    assert not proof.exists()


def test_reading_as_weights_only_is_a_torch_s_that_does_so() -> None:
    """CVE-2025-3677: before torch 2.6 reading as weights only could be got round."""
    wanted = [Requirement(text) for text in requires("dbgpt-guanaco") or ()]
    (bound,) = (r.specifier for r in wanted if r.name == "torch")

    assert not bound.contains("2.5.1")


LIES = [
    {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
    {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]},
    {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
    {"dtype": "F32", "shape": [4], "data_offsets": [2**63, 2**63 + 16]},
    {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 2**64]},
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_no_number_of_a_header_is_believed(tmp_path: Path, lie: dict[str, Any]) -> None:
    """CVE-2025-53630, CVE-2026-27940, CVE-2026-33298: sizes in a file's header overflowed."""
    header = json.dumps({"a": lie}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))

    with pytest.raises(ModelLoadError, match=r"damaged|cut short"):
        tensor_headers([path])


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**64 - 8])
def test_no_length_of_a_header_is_believed(tmp_path: Path, length: int) -> None:
    """CVE-2025-53630: the length of the header itself."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + bytes(100))

    with pytest.raises(ModelLoadError, match="header is not whole"):
        tensor_headers([path])


def test_no_gguf_of_a_stranger_is_read(tmp_path: Path) -> None:
    """CVE-2024-23605, CVE-2026-27940: GGUF files are not read at all, but the demo's own."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(ModelLoadError, match="is not a whole model"):
        resolve(ModelSettings(name=str(tmp_path)))


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    """CVE-2024-37032: a name in a file became a path out of the model's folder."""
    folder = write_config(tmp_path / "model", model_type="llama")
    (tmp_path / "secret.safetensors").write_bytes(bytes(8))
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelLoadError, match="is not the name of a safetensors file"):
        resolve(ModelSettings(name=str(folder)))


@pytest.mark.parametrize("path", ["../secret", "link", "/etc", "..\\secret", "a\0b"])
def test_a_lora_s_path_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    """CVE-2024-37032, CVE-2026-103663, CVE-2026-35050: a path of the client's choice, or a link
    in a folder, led out of it."""
    make_lora(tmp_path / "secret")
    root = tmp_path / "loras"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidRequestError):
        find_below(root, path)


@pytest.mark.parametrize(
    "name", ["../a.json", "/a.json", "a/../../b.json", "..\\a.json", "C:\\a.json", "a\0.json"]
)
def test_a_file_on_the_hub_lands_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """CVE-2024-37032, CVE-2026-103663: a name that a registry gave became a path to write to."""
    listed = SimpleNamespace(sha="0123abc", siblings=[
        SimpleNamespace(rfilename="model.safetensors", size=8, lfs=None),
        SimpleNamespace(rfilename=name, size=8, lfs=None),
    ])  # fmt: skip
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: listed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    with pytest.raises(ModelLoadError, match="leads out of its folder"):
        download_model("evil/model", tmp_path / "models", lambda *_: nullcontext(lambda _: None))
