"""Are these the weights that a LoRA was trained on? Told without reading them all."""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from dbgpt_guanaco.adapters.headers import tensor_headers

# Of each tensor so many bytes are read at its beginning, its middle and its end.
SAMPLE_BYTES = 256


def fingerprint(files: Iterable[Path]) -> str:
    """Return a SHA-256 over the names, shapes and dtypes of tensors and a sample of their bytes.

    It is the same however the tensors are spread over files. A model that was trained further
    differs in every layer, so a sample of each tells it; it is no proof against forgery.

    Raises:
        ModelLoadError: A file is damaged or cut short.
    """
    files = list(files)
    tensor_headers(files)  # for its checks
    lines = sorted(line for path in files for line in _tensor_lines(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensor_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            sample = hashlib.sha256()
            begin, end = tensor["data_offsets"]
            for at in (begin, (begin + end) // 2, max(begin, end - SAMPLE_BYTES)):
                file.seek(8 + length + at)
                sample.update(file.read(min(SAMPLE_BYTES, end - at)))
            yield f"{name} {tensor['dtype']} {tensor['shape']} {sample.hexdigest()}"
