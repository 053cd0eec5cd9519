"""Safetensors files, read and written tensor by tensor: memory holds one tensor, not a shard."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open

from dbgpt_guanaco.errors import ModelLoadError

# As safetensors names them.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file, in the order of its data, so that a disk reads ahead.

    The file is mapped, so what was read counts as resident until the next file is opened.

    Raises:
        ModelLoadError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.offset_keys():
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelLoadError(f"{path} is damaged: {error}") from None


class ShardWriter:
    """Writes one safetensors file, a tensor at a time.

    The header stands first and is known last: room is left for it and filled with spaces, which
    the format allows. The same tensors in the same order give the same bytes.

    Args:
        path: File to write; it is no safetensors file before ``close``.
        header_bytes: Room for the header, a multiple of 8.
    """

    def __init__(self, path: Path, header_bytes: int) -> None:
        self._path, self._header_bytes = path, header_bytes
        self._file = path.open("wb")
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        self._file.seek(8 + header_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._close()
            return
        with suppress(OSError):  # a full disk refuses what is still buffered; that is told already
            self._file.close()

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Write a tensor, and return its bytes."""
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        begin, self._end = self._end, self._end + data.numel()
        self._header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self._end],
        }
        self._file.write(data.numpy().tobytes())
        return data.numel()

    def _close(self) -> None:
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._header_bytes:
            raise ValueError(f"{self._path}: a header of {len(header)} bytes has no room")
        with self._file:
            self._file.seek(0)
            self._file.write(self._header_bytes.to_bytes(8, "little"))
            self._file.write(header.ljust(self._header_bytes))
            self._file.flush()
            os.fsync(self._file.fileno())


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
