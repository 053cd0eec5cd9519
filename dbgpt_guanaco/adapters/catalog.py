"""Which models there are: in the models folder, and by known names. No weight is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dbgpt_guanaco.adapters.family import OWN_TEMPLATE
from dbgpt_guanaco.adapters.folder import is_lora, missing_files, read_json
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.known import KNOWN_MODELS, guanaco_lora_bytes, known_shape
from dbgpt_guanaco.adapters.machine import Machine
from dbgpt_guanaco.adapters.memory import lora_bytes_of, plan_memory
from dbgpt_guanaco.adapters.registry import AdapterRegistry
from dbgpt_guanaco.adapters.resolve import base_of
from dbgpt_guanaco.adapters.shapes import ModelShape, read_shape
from dbgpt_guanaco.errors import GuanacoError, UnknownModelError
from dbgpt_guanaco.settings import Quantization

Kind = Literal["model", "nf4 checkpoint", "int8 checkpoint", "LoRA", "pickles", "damaged", "known"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that could be served.

    Attributes:
        name: What LLM_MODEL takes.
        family: Its adapter, or ``own template``; None where nothing is known of it.
        disk_bytes: Of its folder; None where it is not here.
        needed_bytes: Weights, one full context and working room, in NF4 unless it is stored
            otherwise. None where it is not known.
        fits: Whether the machine has so much free.
        note: What is wrong, or what it goes with.
    """

    name: str
    kind: Kind
    family: str | None
    disk_bytes: int | None
    needed_bytes: int | None
    fits: bool | None
    note: str = ""


class Catalog:
    """Lists models.

    Args:
        models_dir: Where they are kept.
        registry: All families.
        machine: What they must fit.
    """

    def __init__(self, models_dir: Path, registry: AdapterRegistry, machine: Machine) -> None:
        self._models_dir, self._registry, self._machine = models_dir, registry, machine

    def entries(self) -> list[Entry]:
        """Return what is in the models folder, then the known names that are not in it."""
        here = [self._found(folder) for folder in _folders(self._models_dir)]
        names = {entry.name for entry in here}
        return [*here, *(self._known(name) for name in KNOWN_MODELS if name not in names)]

    def _found(self, folder: Path) -> Entry:
        name = folder.relative_to(self._models_dir).as_posix()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        try:
            return (
                self._lora(name, folder, size)
                if is_lora(folder)
                else self._whole(name, folder, size)
            )
        except (GuanacoError, OSError) as error:
            reason = str(error).partition("\n")[0]
            return Entry(name, "damaged", None, size, None, None, reason)

    def _whole(self, name: str, folder: Path, size: int) -> Entry:
        missing = missing_files(folder)
        if missing and any(folder.glob("pytorch_model*.bin")):
            return Entry(
                name, "pickles", self._family(name), size, None, None,
                f"dbgpt-guanaco convert {folder}",
            )  # fmt: skip
        if missing:
            return Entry(name, "damaged", None, size, None, None, f"{missing[0]} is missing")
        tensor_headers(sorted(folder.glob("*.safetensors")))  # a file that was cut short
        kind, quantization = _stored(read_json(folder / "config.json"))
        needed = self._needed(read_shape(folder), quantization)
        return self._entry(name, kind, size, needed)

    def _lora(self, name: str, folder: Path, size: int) -> Entry:
        known = KNOWN_MODELS.get(name)
        base = known.base if known and known.base else base_of(folder)
        shape = _shape_of_base(base, self._models_dir) or known_shape(name)
        needed = self._needed(shape, "nf4") + lora_bytes_of(folder) if shape else None
        return self._entry(name, "LoRA", size, needed, note=f"on {base}")

    def _known(self, name: str) -> Entry:
        known, shape = KNOWN_MODELS[name], known_shape(name)
        needed = self._needed(shape, "nf4") if shape else None
        if needed and shape and known.base:
            needed += guanaco_lora_bytes(shape)
        note = f"{known.hub} on {known.base}" if known.base else known.hub
        return self._entry(name, "known", None, needed, note=note)

    def _entry(
        self, name: str, kind: Kind, size: int | None, needed: int | None, note: str = ""
    ) -> Entry:
        fits = None if needed is None else needed <= self._machine.available_bytes
        return Entry(name, kind, self._family(name), size, needed, fits, note)

    def _needed(self, shape: ModelShape, quantization: Quantization) -> int:
        plan = plan_memory(shape, quantization, on_cuda=self._machine.on_cuda)
        return plan.needed_bytes(shape.context_tokens)

    def _family(self, name: str) -> str:
        try:
            return self._registry.find(name).name
        except UnknownModelError:
            return OWN_TEMPLATE


def _folders(models_dir: Path) -> Iterator[Path]:
    """Yield the folders that hold a model, also those that are named org/name."""
    for folder in sorted(models_dir.iterdir()) if models_dir.is_dir() else ():
        if not folder.is_dir() or folder.name.startswith(".") or folder.suffix == ".partial":
            continue
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        if any(path.is_file() for path in folder.iterdir()) or not inner:
            yield folder
        else:
            yield from (path for path in inner if path.suffix != ".partial")


def _stored(config: dict[str, Any]) -> tuple[Kind, Quantization]:
    stored = config.get("quantization_config")
    if not isinstance(stored, dict):
        return "model", "nf4"
    return ("nf4 checkpoint", "nf4") if stored.get("load_in_4bit") else ("int8 checkpoint", "int8")


def _shape_of_base(base: str, models_dir: Path) -> ModelShape | None:
    for folder in (Path(base).expanduser(), models_dir / base):
        if (folder / "config.json").is_file():
            return read_shape(folder)
    return None
