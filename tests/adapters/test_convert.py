import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import WritesAFile, tiny_config
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dbgpt_guanaco.adapters import convert
from dbgpt_guanaco.adapters.convert import convert_pickled_weights
from dbgpt_guanaco.adapters.folder import missing_files
from dbgpt_guanaco.errors import ModelLoadError


def make_old_model(folder: Path, shards: int) -> dict[str, torch.Tensor]:
    """Write a model as it was in 2023, and return its tensors."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).to(torch.float16)
    model.config.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = model.state_dict()
    names = list(tensors)
    for number in range(shards):
        part = {name: tensors[name].clone() for name in names[number::shards]}
        part[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        torch.save(part, folder / old_name(number + 1, shards))
    return tensors


def old_name(number: int, count: int) -> str:
    return f"pytorch_model-{number:05}-of-{count:05}.bin" if count > 1 else "pytorch_model.bin"


def read(paths: list[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_tensor_comes_out_as_it_went_in(tmp_path: Path, shards: int) -> None:
    tensors = make_old_model(tmp_path, shards)

    written = convert_pickled_weights(tmp_path)

    assert len(written) == shards
    found = read(written)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("shards", [1, 2])
def test_the_folder_loads_without_its_pickles(tmp_path: Path, shards: int) -> None:
    tensors = make_old_model(tmp_path, shards)
    convert_pickled_weights(tmp_path)
    for path in tmp_path.glob("*.bin"):
        path.unlink()

    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, use_safetensors=True, dtype=torch.float16
    )

    assert missing_files(tmp_path) == []
    assert all(torch.equal(model.state_dict()[name], t) for name, t in tensors.items())


def test_the_index_says_where_each_tensor_is(tmp_path: Path) -> None:
    tensors = make_old_model(tmp_path, shards=2)

    written = convert_pickled_weights(tmp_path)

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {n: path.name for path in written for n in load_file(path)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_tensors_that_share_memory_become_separate(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": shared, "b": shared, "c": shared.T}, tmp_path / "pytorch_model.bin")

    found = read(convert_pickled_weights(tmp_path))

    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared)
    assert torch.equal(found["c"], shared.T)


def test_converting_twice_gives_the_same(tmp_path: Path) -> None:
    make_old_model(tmp_path, shards=2)

    first = {path: path.read_bytes() for path in convert_pickled_weights(tmp_path)}

    assert {path: path.read_bytes() for path in convert_pickled_weights(tmp_path)} == first


def test_a_malicious_pickle_is_refused_without_execution(tmp_path: Path) -> None:
    pickled = tmp_path / "pytorch_model.bin"
    torch.save({"weight": WritesAFile(tmp_path / "proof")}, pickled)

    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin is damaged, or holds more than"):
        convert_pickled_weights(tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["pytorch_model.bin"]
    torch.load(pickled, weights_only=False)
    assert (tmp_path / "proof").exists()  # it would have been, had it been executed


def test_a_malicious_second_shard_leaves_no_model(tmp_path: Path) -> None:
    make_old_model(tmp_path, shards=2)
    torch.save({"weight": WritesAFile(tmp_path / "proof")}, tmp_path / old_name(2, 2))

    with pytest.raises(ModelLoadError, match="pytorch_model-00002-of-00002"):
        convert_pickled_weights(tmp_path)

    assert not (tmp_path / "proof").exists()
    assert missing_files(tmp_path) == ["model.safetensors"]


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976638098\n"


@pytest.mark.parametrize(
    "content", [b"", b"text", LFS_POINTER, b"PK\x03\x04 no archive", b"\x80\x02}q\x00"]
)
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)

    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin is damaged"):
        convert_pickled_weights(tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"weight": "text"}, {"epoch": 3}])
def test_a_pickle_that_is_no_set_of_tensors_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin .*holds more than weights"):
        convert_pickled_weights(tmp_path)


def test_a_pickle_of_the_old_format_is_read(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": weight}, path, _use_new_zipfile_serialization=False)

    assert torch.equal(read(convert_pickled_weights(tmp_path))["weight"], weight)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("here", r"here holds no pytorch_model\*\.bin$"),
        ("done", r"done holds no pytorch_model\*\.bin; it holds safetensors already$"),
        ("nowhere", "there is no folder .*nowhere$"),
    ],
)
def test_without_pickles_there_is_nothing_to_convert(
    tmp_path: Path, folder: str, told: str
) -> None:
    for name, file in (("here", "adapter_model.bin"), ("done", "model.safetensors")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"")

    with pytest.raises(ModelLoadError, match=told):
        convert_pickled_weights(tmp_path / folder)


def test_each_file_is_logged_without_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_old_model(tmp_path, shards=1)

    with caplog.at_level(logging.INFO, logger=convert.__name__):
        convert_pickled_weights(tmp_path)

    assert caplog.messages == ["pytorch_model.bin → model.safetensors: 21 tensors"]
