"""Headers of safetensors files, read without a weight.

The files may be hostile. A number in a header decides how much is read or allocated later, so each
is held against the file's true size before it is used.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from dbgpt_guanaco.errors import ModelLoadError

LENGTH_BYTES = 8
# As the safetensors library has it.
MAX_HEADER_BYTES = 100_000_000
# Bits of one number. What is not here is not checked for size, and transformers loads none of it.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip

TensorHeader = tuple[str, tuple[int, ...], str]


def tensor_headers(files: Iterable[Path]) -> list[TensorHeader]:
    """Return name, shape and dtype of every tensor of safetensors files, from their headers.

    Raises:
        ModelLoadError: A header is damaged, or a file ends before its header or its data does.
    """
    return [found for path in files for found in _headers_of(path)]


def data_bytes(path: Path) -> int:
    """Return how many bytes of a safetensors file are data and not its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    return path.stat().st_size - LENGTH_BYTES - length


def _headers_of(path: Path) -> list[TensorHeader]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        length = int.from_bytes(prefix, "little") if len(prefix) == LENGTH_BYTES else size
        if LENGTH_BYTES + length > size:
            raise ModelLoadError(f"{path} is damaged or cut short: its header is not whole")
        if length > MAX_HEADER_BYTES:
            _refuse(path, f"its header has {length} bytes, more than {MAX_HEADER_BYTES}")
        found, end = _parse(path, file.read(length))
    if LENGTH_BYTES + length + end > size:
        raise ModelLoadError(
            f"{path} is cut short: {size} bytes of {LENGTH_BYTES + length + end}; fetch it again"
        )
    return found


def _parse(path: Path, text: bytes) -> tuple[list[TensorHeader], int]:
    """Return the tensors, and where the data of the last one ends."""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = [_span(path, name, tensor) for name, tensor in header.items()]
        found = [(n, tuple(t["shape"]), str(t["dtype"])) for n, t in header.items()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ModelLoadError(f"{path} is damaged: its header cannot be read") from None
    last = 0
    for begin, end in sorted(spans):
        if begin < last:
            _refuse(path, "two tensors share bytes")
        last = end
    return found, last


def _span(path: Path, name: str, tensor: dict[str, Any]) -> tuple[int, int]:
    """Return where a tensor's data is, counted from the end of the header."""
    begin, end = tensor["data_offsets"]
    shape = tensor["shape"]
    numbers = [begin, end, *shape]
    if not all(type(number) is int and number >= 0 for number in numbers) or begin > end:
        _refuse(path, f"{name} has a size that is none")
    bits = BITS.get(str(tensor["dtype"]))
    if bits and math.prod(shape) * bits != (end - begin) * 8:
        _refuse(path, f"{name} of shape {shape} does not fill its {end - begin} bytes")
    return begin, end


def _refuse(path: Path, problem: str) -> NoReturn:
    raise ModelLoadError(f"{path} is damaged: {problem}")
