"""Code that a model's folder brings, or names elsewhere. None of it runs unless a setting says so.

Asked before any library reads the folder, so that what a library makes of these lines, now or in
its next version, does not decide whether somebody else's code runs here.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from dbgpt_guanaco.adapters.folder import read_json
from dbgpt_guanaco.errors import ModelLoadError

logger = logging.getLogger(__name__)

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
# transformers takes a value with a slash for a repository on the hub, whose native code it fetches.
_KERNELS = tuple(f"{_}{what}_implementation" for _ in ("", "_") for what in ("attn", "experts"))
# "owner/repository--module.Class": of another repository, in whatever state that is today.
_OF_ANOTHER = "--"


@dataclass(frozen=True, slots=True)
class ForeignCode:
    """A line that wants code to be run.

    Attributes:
        file: Name of the JSON file.
        key: ``auto_map``, or another that leads to code.
        reference: What it names.
    """

    file: str
    key: str
    reference: str

    def __str__(self) -> str:
        return f"{self.file} says {self.key}: {self.reference}"


def find_code(folder: Path) -> tuple[ForeignCode, ...]:
    """Return every line of a model's JSON files that wants code to be run.

    Raises:
        ModelLoadError: A file is damaged.
    """
    return tuple(
        ForeignCode(name, key, reference)
        for name in (CONFIG, TOKENIZER_CONFIG)
        if (folder / name).is_file()
        for key, reference in _references(read_json(folder / name))
    )


def check_code(folder: Path, *, is_trusted: bool) -> None:
    """Refuse a folder that needs code which is not transformers' own.

    A model of a type that transformers has itself is computed by transformers, whatever code
    lies beside it; that code is not looked at.

    Args:
        folder: Of a model, a LoRA or an embedding model.
        is_trusted: The operator wants the folder's own code to run.

    Raises:
        ModelLoadError: It needs such code and is not trusted, or names code elsewhere.
    """
    found = find_code(folder)
    for line in found:
        if line.key != "auto_map":
            raise ModelLoadError(
                f"{folder}/{line}. That would fetch code from elsewhere and run it, which is never "
                "done here; take that line out of the file"
            )
        if is_trusted and _OF_ANOTHER in line.reference:
            raise ModelLoadError(
                f"{folder}/{line}, code of another repository, which may change from day to day. "
                "Put that code into the folder and name it without what stands before the --"
            )
    if not found:
        return
    listed = "; ".join(map(str, found))
    if is_trusted:
        logger.warning(
            "GUANACO_TRUST_REMOTE_CODE: CODE OF %s RUNS IN THIS SERVER, with all that this server "
            "may do: %s",
            folder,
            listed,
        )
    elif missing := [line for line in found if not _is_known(folder, line.file)]:
        raise ModelLoadError(
            f"{folder} can be loaded only with code that it brings ({missing[0]}), and such code "
            "is not run. Take a model of a type that transformers has itself. If you have read "
            "that code and trust it with all that this server may do, "
            "GUANACO_TRUST_REMOTE_CODE=true runs it"
        )
    else:
        logger.warning("%s brings code, which is not run: %s", folder, listed)


def _references(value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield what leads to code, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "auto_map":
            yield from ((key, text) for text in _texts(item))
        elif key == "trust_remote_code" and item:
            yield key, str(item).lower()
        elif key in _KERNELS:
            yield from ((key, text) for text in _texts(item) if "/" in text)
        else:
            yield from _references(item)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_known(folder: Path, file: str) -> bool:
    """Say whether transformers itself has what a file with an ``auto_map`` asks for."""
    said = read_json(folder / file)
    if file == CONFIG:
        return str(said.get("model_type")) in CONFIG_MAPPING_NAMES
    name = str(said.get("tokenizer_class") or "").removesuffix("Fast")
    return bool(name) and any(tokenizer_class_from_name(n) for n in (name, f"{name}Fast"))
