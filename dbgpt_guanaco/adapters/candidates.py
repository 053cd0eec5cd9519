"""A name → what is known of that model without its weights: from here, by heart, or the hub."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from dbgpt_guanaco.adapters.folder import is_lora, weight_files
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.hub_headers import HubModel, asked_hub
from dbgpt_guanaco.adapters.known import (
    KNOWN_MODELS,
    KnownModel,
    guanaco_lora_bytes,
    known_shape,
)
from dbgpt_guanaco.adapters.memory import lora_bytes_of
from dbgpt_guanaco.adapters.quantization import stored_quantization
from dbgpt_guanaco.adapters.resolve import (
    base_of,
    checked,
    find_cached,
    is_hub_name,
    no_such_name,
)
from dbgpt_guanaco.adapters.shapes import ModelShape, read_config, shape_of
from dbgpt_guanaco.errors import GuanacoError, ModelLoadError
from dbgpt_guanaco.settings import ModelSettings, Quantization

logger = logging.getLogger(__name__)

# A header may count what a model ties together, or leaves out, and still be whole.
TOLERATED_LACK = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that somebody thinks of serving, or of training.

    Attributes:
        shape: Of the model, or of the base under a LoRA.
        known_from: Where that was read.
        stored: How its weights are quantized already; None if they are not.
        base: The name of the base, for a LoRA.
        lora_bytes: What the LoRA takes beside its base.
    """

    name: str
    shape: ModelShape
    known_from: str
    stored: Quantization | None = None
    base: str | None = None
    lora_bytes: int = 0


def known_candidates(settings: ModelSettings) -> list[Candidate]:
    """Return all known models; the hub is not asked.

    A folder that is damaged is passed over, for what is known of its name.
    """
    own = settings.model_copy(update={"base_model": None})  # of one LoRA, not of all
    found = []
    for name, known in KNOWN_MODELS.items():
        try:
            found.append(find_candidate(name, own))
        except GuanacoError as error:
            logger.warning("%s: %s", name, str(error).partition("\n")[0])
            found.append(_by_heart(name, known))
    return found


def find_candidate(name: str, settings: ModelSettings) -> Candidate:
    """Find what is known of a model. No weight is read or fetched.

    Args:
        name: A folder, a known name or a hub name.
        settings: Where models are kept, and the base of a LoRA that does not name its own.

    Raises:
        ModelNotFoundError: It is nowhere; the text says where it was looked for.
        ModelLoadError: Its files cannot be used.
    """
    known = KNOWN_MODELS.get(name)
    folder = _local_folder(name, known, settings)
    if folder:
        return _from_folder(name, folder, known, settings)
    if known:
        return _by_heart(name, known)
    if shape := known_shape(name):
        return Candidate(name, shape, "known sizes")
    if is_hub_name(name):
        with asked_hub(name) as model:
            return _from_hub(name, model, settings)
    looked_in = [f"folder {folder}" for folder in _folders(name, settings)]
    raise no_such_name(name, [*looked_in, f"known names: {', '.join(KNOWN_MODELS)}"])


def _local_folder(name: str, known: KnownModel | None, settings: ModelSettings) -> Path | None:
    for folder in _folders(name, settings):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    hub = known.hub if known else name
    return find_cached(hub) if is_hub_name(hub) else None


def _folders(name: str, settings: ModelSettings) -> tuple[Path, ...]:
    return tuple(dict.fromkeys((Path(name).expanduser(), settings.models_dir / name)))


def _from_folder(
    name: str, folder: Path, known: KnownModel | None, settings: ModelSettings
) -> Candidate:
    if is_lora(folder):
        base = settings.base_model or (known.base if known and known.base else base_of(folder))
        return _on_base(name, base, lora_bytes_of(folder), settings)
    tensor_headers(weight_files(checked(folder)))  # a file that was cut short is found here
    config = read_config(folder)
    stored = stored_quantization(config, folder)
    return Candidate(name, shape_of(config), f"folder {folder}", stored)


def _by_heart(name: str, known: KnownModel) -> Candidate:
    shape = known_shape(name)
    if shape is None:
        raise ModelLoadError(f"the shape of {known.hub} is not known; this is a mistake of ours")
    size = guanaco_lora_bytes(shape) if known.base else 0
    return Candidate(name, shape, "known sizes", base=known.base, lora_bytes=size)


def _from_hub(name: str, model: HubModel, settings: ModelSettings) -> Candidate:
    if is_lora(model.folder):
        base = settings.base_model or base_of(model.folder)
        size = 2 * model.parameters if model.parameters else model.weight_bytes
        return _on_base(name, base, size, settings)
    if not (model.folder / "config.json").is_file():
        raise ModelLoadError(f"{name} has no config.json on the hub; it is no model")
    config = read_config(model.folder)
    shape, stored = shape_of(config), stored_quantization(config, Path(name))
    if stored is None and model.parameters is not None:
        _check_whole(name, shape, model.parameters)
    return Candidate(name, shape, "the hub", stored)


def _on_base(name: str, base: str, size: int, settings: ModelSettings) -> Candidate:
    found = find_candidate(base, settings)
    if found.base:
        raise ModelLoadError(f"{base}, the base of {name}, is a LoRA itself")
    return replace(found, name=name, base=base, lora_bytes=size)


def _check_whole(name: str, shape: ModelShape, parameters: int) -> None:
    if parameters < (1 - TOLERATED_LACK) * shape.parameters:
        raise ModelLoadError(
            f"{name}: its safetensors files on the hub hold {parameters:,} numbers, and its "
            f"config.json asks for {shape.parameters:,}; parts are missing"
        )
