"""A model's files: whole, cut short, damaged, with code or pickles beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_model

from dbgpt_guanaco.checkpoints.shards import file_hash
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ModelSettings, Settings

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder() -> Path:
    return make_bpe_tokenizer(make_model(Path("models/tiny")), CHAT_TEMPLATE)


@pytest.fixture
def sharded() -> Path:
    return make_bpe_tokenizer(make_model(Path("models/tiny"), max_shard="100KB"), CHAT_TEMPLATE)


def examined(*, is_deep: bool = False, **settings: Any) -> Finding:
    model = ModelSettings(name="tiny", **settings)
    setup = Setup(settings=Settings(model=model), is_deep=is_deep)
    return run_check("dbgpt_guanaco.doctor.weights.files", setup)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_whole_files_are_right(folder: Path) -> None:
    finding = examined()

    assert finding.status == "ok"
    assert "tensors in 1 file" in finding.text


def test_whole_shards_are_right(sharded: Path) -> None:
    assert examined().status == "ok"
    assert len(shards(sharded)) > 2


@pytest.mark.parametrize("lost_bytes", [1, 1000])
def test_a_shard_that_is_cut_short_is_a_failure(sharded: Path, lost_bytes: int) -> None:
    path = shards(sharded)[1]
    path.write_bytes(path.read_bytes()[:-lost_bytes])

    finding = examined()

    assert finding.status == "failure"
    assert f"{path} is cut short" in finding.text


def test_a_shard_of_another_model_is_a_failure(sharded: Path) -> None:
    first, second = shards(sharded)[:2]
    first.write_bytes(second.read_bytes())

    finding = examined()

    assert finding.status == "failure"
    assert "a tensor is in two files" in finding.text


def test_a_shard_that_lacks_what_the_index_promises_is_a_failure(sharded: Path) -> None:
    path = shards(sharded)[0]
    tensors = load_file(path)
    lost = min(tensors)
    save_file(
        {name: t for name, t in tensors.items() if name != lost} | {"other": tensors[lost]}, path
    )

    finding = examined()

    assert finding.status == "failure"
    assert f"lacks 1 tensors that {INDEX} promises, such as {lost}" in finding.text


def test_sizes_that_differ_from_the_index_are_a_warning(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["metadata"]["total_size"] *= 2
    (sharded / INDEX).write_text(json.dumps(index))

    finding = examined()

    assert finding.status == "warning"
    assert "bytes of tensors" in finding.text


def test_a_config_that_cannot_be_read_is_a_failure(folder: Path) -> None:
    (folder / "config.json").write_text("{")

    assert "config.json is damaged" in examined().text


def test_pickles_beside_the_weights_are_a_warning(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"")

    finding = examined()

    assert finding.status == "warning"
    assert finding.remedy == "rm models/tiny/pytorch_model.bin"


def test_code_that_is_not_run_is_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.A"}}))

    finding = examined()

    assert finding.status == "warning"
    assert "Its own code is not run: config.json says auto_map: own.A" in finding.text


def test_code_that_a_model_needs_is_a_failure(folder: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.A"}}
    (folder / "config.json").write_text(json.dumps(own))

    finding = examined()

    assert finding.status == "failure"
    assert "GUANACO_TRUST_REMOTE_CODE" in finding.text


def note_checksum(path: Path, checksum: str) -> None:
    """Write what the hub's client keeps of a file that it fetched."""
    folder = path.parent / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{path.name}.metadata").write_text(f"0123abc\n{checksum}\n1764000000.0\n")


def test_a_deep_look_compares_checksums(sharded: Path) -> None:
    for path in shards(sharded):
        note_checksum(path, file_hash(path))

    assert examined(is_deep=True).text.endswith("each with the hub's checksum")


def test_a_bit_that_flipped_is_found_by_a_deep_look_only(sharded: Path) -> None:
    path = shards(sharded)[1]
    note_checksum(path, file_hash(path))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    assert examined().status == "ok"
    finding = examined(is_deep=True)
    assert finding.status == "failure"
    assert f"{path} is not what was fetched" in finding.text


def test_in_the_hub_s_cache_a_file_is_named_by_its_checksum(folder: Path) -> None:
    weights = folder / "model.safetensors"
    blob = folder.parent / file_hash(weights)
    weights.rename(blob)
    weights.symlink_to(blob.absolute())

    assert examined(is_deep=True).text.endswith("each with the hub's checksum")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert examined(is_deep=True).status == "failure"


def test_without_a_checksum_to_compare_the_file_s_own_is_told(folder: Path) -> None:
    finding = examined(is_deep=True)

    assert finding.status == "ok"
    assert f"model.safetensors {file_hash(folder / 'model.safetensors')}" in finding.text


def test_a_model_that_is_not_there_is_another_check_s() -> None:
    assert examined().status == "skipped"
