"""What is in a model's folder, told from names and small JSON files."""

import json
from pathlib import Path, PurePath
from typing import Any

from dbgpt_guanaco.errors import ModelLoadError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
SAFETENSORS = ".safetensors"
# A tokenizer's file may be larger, but is not read here.
MAX_JSON_BYTES = 64 * 1024 * 1024


def is_lora(folder: Path) -> bool:
    """Say whether a folder holds LoRA weights and no model."""
    return (folder / "adapter_config.json").is_file()


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a model is loaded from; others beside them do not count.

    Raises:
        ModelLoadError: The index is damaged.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelLoadError(f"{folder / INDEX} is damaged: it has no weight_map")
        return [
            folder / name for name in sorted({_file_name(folder, n) for n in weight_map.values()})
        ]
    # A shard without its index is no model: a conversion or a download ended early.
    return [folder / WHOLE]


def _file_name(folder: Path, name: object) -> str:
    """Return a name that an index gives to a file, if it is one: a path could lead anywhere."""
    text = name if isinstance(name, str) else ""
    is_plain = text == PurePath(text).name and text.isprintable() and "\\" not in text
    if not is_plain or not text.endswith(SAFETENSORS):
        raise ModelLoadError(
            f"{folder / INDEX} is damaged: {name!r} is not the name of a safetensors file beside it"
        )
    return text


def missing_files(folder: Path) -> list[str]:
    """Return what a model folder lacks to be loaded, by file name.

    Raises:
        ModelLoadError: The index is damaged.
    """
    if not (folder / "config.json").is_file():
        return ["config.json"]
    return [path.name for path in weight_files(folder) if not path.is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelLoadError: The file is damaged.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelLoadError(f"{path} is damaged: it is larger than {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelLoadError(f"{path} is damaged: it is not JSON; fetch it again") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is damaged: it is not a JSON object; fetch it again")
    return value
