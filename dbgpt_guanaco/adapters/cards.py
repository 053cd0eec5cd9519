"""What the cards in model folders say: which base a LoRA was trained on, and in which family.

``training.json``, ``merge.json`` and ``quantize.json`` are written by this package's commands. A
folder without a card is taken as it is.
"""

import logging
from pathlib import Path
from typing import Any

from dbgpt_guanaco.adapters.fingerprint import fingerprint
from dbgpt_guanaco.adapters.folder import read_json, weight_files
from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.settings import Quantization

logger = logging.getLogger(__name__)

TRAINING = "training.json"
MERGE = "merge.json"
QUANTIZE = "quantize.json"
# In the card of a quantized model: the fingerprint of what it was made from.
SOURCE_KEY = "source_fingerprint"


def recorded_family(*folders: Path | None) -> str | None:
    """Return the family that the first card which names one names.

    Raises:
        ModelLoadError: A card is damaged.
    """
    for folder in filter(None, folders):
        for name in (TRAINING, MERGE, QUANTIZE):
            if (folder / name).is_file() and (family := read_json(folder / name).get("family")):
                return str(family)
    return None


def refuse_other_base(lora: Path, base: Path) -> None:
    """Refuse what ``check_base`` refuses, and log what it doubts.

    Raises:
        ModelLoadError: As there.
    """
    if other := check_base(lora, base):
        logger.warning("the LoRA in %s says that it is for %r, not %s", lora, other, base)


def check_base(lora: Path, base: Path) -> str | None:
    """Hold a LoRA's card against the base that it is to be laid on.

    The base may lie elsewhere, be called otherwise or be quantized by this package's command.
    Where its weights cannot be told, as of somebody else's quantized model, nothing is refused.

    Returns:
        Without a card, the base that the LoRA's configuration names, where no folder's name in the
        path of this one is the same, nor what it was quantized from.

    Raises:
        ModelLoadError: It is another, or a file is damaged.
    """
    trained_on = _trained_on(lora)
    wanted = trained_on.get("fingerprint")
    if not wanted:
        return _other_name(lora, base)
    found = base_fingerprint(base)
    if found is not None and found != wanted:
        raise ModelLoadError(
            f"the LoRA in {lora} was trained on {trained_on.get('name', 'another base')}, and "
            f"{base} holds other weights (fingerprints {str(wanted)[:12]} and {found[:12]}); name "
            f"its own base, or remove {lora / TRAINING} if you mean it"
        )
    return None


def refuse_lost_lora(folder: Path, kind: Quantization) -> None:
    """Refuse to put a model into NF4 that was merged onto weights which come out of NF4.

    Those lie on the very values that NF4 has, so what a LoRA added is rounded away again: the
    demo model, taught a fact, answered as if it had never heard of it.

    Raises:
        ModelLoadError: It was merged so.
    """
    if kind != "nf4" or not (folder / MERGE).is_file():
        return
    if read_json(folder / MERGE).get("base_weights") == "dequantized":
        raise ModelLoadError(
            f"{folder} was merged with --base dequantized; NF4 would round away what the LoRA "
            "added. Keep 16 bits (GUANACO_QUANTIZATION=none), or merge with --base fp16"
        )


def base_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the 16-bit weights that a model folder holds or stems from.

    Returns:
        None where it cannot be told: of a quantized model whose card does not say it.

    Raises:
        ModelLoadError: A file is damaged.
    """
    if (folder / QUANTIZE).is_file():
        stated = read_json(folder / QUANTIZE).get(SOURCE_KEY)
        return stated if isinstance(stated, str) else None
    if read_json(folder / "config.json").get("quantization_config"):
        return None
    return fingerprint(weight_files(folder))


def _other_name(lora: Path, base: Path) -> str | None:
    named = read_json(lora / "adapter_config.json").get("base_model_name_or_path")
    names = [part.rpartition("--")[2] for part in base.parts]  # the hub's cache: models--org--name
    if (base / QUANTIZE).is_file():
        names.append(str(read_json(base / QUANTIZE).get("source")))
    is_known = not named or Path(str(named)).name.lower() in map(str.lower, names)
    return None if is_known else str(named)


def _trained_on(lora: Path) -> dict[str, Any]:
    if not (lora / TRAINING).is_file():
        return {}
    base = read_json(lora / TRAINING).get("base")
    return base if isinstance(base, dict) else {}
