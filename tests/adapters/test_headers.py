"""Headers of safetensors files, whole, damaged and hostile."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dbgpt_guanaco.adapters.headers import MAX_HEADER_BYTES, tensor_headers
from dbgpt_guanaco.errors import ModelLoadError


def test_headers_tell_name_shape_and_dtype_of_every_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "1.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "2.safetensors")

    assert tensor_headers(sorted(tmp_path.glob("*.safetensors"))) == [
        ("a", (2, 3), "F32"),
        ("b", (4,), "BF16"),
    ]


@pytest.mark.parametrize("kept", [-1, 200, 20, 8, 7, 0])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100, 3)}, path)
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ModelLoadError, match=r"model\.safetensors is .*cut short"):
        tensor_headers(sorted(tmp_path.glob("*.safetensors")))


@pytest.mark.parametrize("header", [b"not json", b"\xff\xfe\x00", b"[]", b'{"a": 1}', b'{"a": {}}'])
def test_a_header_that_is_damaged_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)

    with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged"):
        tensor_headers(sorted(tmp_path.glob("*.safetensors")))


def write(path: Path, data_bytes: int = 16, **tensors: Any) -> Path:
    """Write a file whose header may be a lie."""
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data_bytes))
    return path


WHOLE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data_offsets": [-8, 8]}, "size that is none"),
        ({"data_offsets": [16, 0]}, "size that is none"),
        ({"shape": [-2, -2]}, "size that is none"),
        ({"shape": [2.0, 2]}, "size that is none"),
        ({"shape": [True, 4]}, "size that is none"),
        ({"shape": [2**63, 2**63]}, "does not fill"),
        ({"shape": [2, 3]}, "does not fill"),
        ({"data_offsets": [0, 2**64]}, "does not fill"),
        ({"shape": "22"}, "size that is none"),
        ({"data_offsets": [0]}, "cannot be read"),
    ],
)
def test_numbers_that_lie_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = write(tmp_path / "model.safetensors", a=WHOLE | change)

    with pytest.raises(ModelLoadError, match=told):
        tensor_headers([path])


def test_a_tensor_of_an_unknown_dtype_must_still_lie_in_the_file(tmp_path: Path) -> None:
    lie = {"dtype": "F128", "shape": [1], "data_offsets": [0, 2**64]}

    with pytest.raises(ModelLoadError, match="cut short"):
        tensor_headers([write(tmp_path / "model.safetensors", a=lie)])


def test_two_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="share bytes"):
        tensor_headers([write(tmp_path / "model.safetensors", a=WHOLE, b=WHOLE)])


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**41)  # sparse: it takes no room on the disk

    with pytest.raises(ModelLoadError, match=f"more than {MAX_HEADER_BYTES}"):
        tensor_headers([path])


def test_a_header_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    header = b"[" * 500_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)

    with pytest.raises(ModelLoadError, match="cannot be read"):
        tensor_headers([path])
