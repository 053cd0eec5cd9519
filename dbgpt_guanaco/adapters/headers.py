"""The headers of safetensors files: what is in them, without reading a weight."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path

from dbgpt_guanaco.errors import ModelLoadError


def tensor_headers(files: Iterable[Path]) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and dtype of every tensor of safetensors files, from their headers.

    Raises:
        ModelLoadError: A header is damaged, or a file ends before its header or its data does.
    """
    found = []
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if 8 + length > size:
                raise ModelLoadError(f"{path} is damaged or cut short: its header is not whole")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                end = max((t["data_offsets"][1] for t in header.values()), default=0)
                found += [(n, tuple(t["shape"]), str(t["dtype"])) for n, t in header.items()]
            except (ValueError, TypeError, LookupError):
                raise ModelLoadError(f"{path} is damaged: its header cannot be read") from None
        if 8 + length + end > size:
            raise ModelLoadError(
                f"{path} is cut short: {size} bytes of {8 + length + end}; fetch it again"
            )
    return found
