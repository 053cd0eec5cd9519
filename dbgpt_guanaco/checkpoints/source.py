"""The model folder that a command reads: checked by names and headers, before anything is done."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbgpt_guanaco.adapters.folder import read_json, weight_files
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.resolve import checked
from dbgpt_guanaco.checkpoints.shards import file_hash
from dbgpt_guanaco.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A whole 16-bit or 32-bit model on disk.

    Attributes:
        config: Its ``config.json``.
        files: Its safetensors files.
        shapes: Of every tensor, by name.
        total_bytes: Of all files.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    total_bytes: int


def open_source(folder: Path) -> SourceModel:
    """Look at a model folder; of its weights only the headers are read.

    Raises:
        ModelLoadError: It is not whole, damaged, cut short or quantized.
    """
    checked(folder)
    config = read_json(folder / "config.json")
    stored = config.get("quantization_config")
    if stored:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise ModelLoadError(
            f"{folder} is quantized already (quant_method {method}); name the 16-bit model, "
            "because what quantization took away does not come back"
        )
    files = tuple(weight_files(folder))
    shapes = {name: shape for name, shape, _ in tensor_headers(files)}
    return SourceModel(folder, config, files, shapes, sum(f.stat().st_size for f in files))


def content_hash(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over names and contents of files, in hex."""
    lines = sorted(f"{file_hash(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
