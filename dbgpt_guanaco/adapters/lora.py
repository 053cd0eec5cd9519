"""LoRA weights, laid on a base without merging."""

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from dbgpt_guanaco.errors import ModelLoadError

logger = logging.getLogger(__name__)


def lay_lora(model: Any, folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Put LoRA weights on a base, un-merged, in the dtype of the arithmetic.

    An old ``adapter_model.bin`` is a pickle; peft reads it with ``weights_only=True``.

    Raises:
        ModelLoadError: There are no weights, they do not fit the base, or all of B is zero.
    """
    if not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ModelLoadError(f"{folder} holds no adapter_model.safetensors and no .bin of it")
    try:
        with warnings.catch_warnings():
            # peft would lay half a LoRA with no more than a warning.
            warnings.filterwarnings("error", "Found missing adapter keys")
            laid = PeftModel.from_pretrained(model, folder, local_files_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, IndexError) as error:
        raise ModelLoadError(
            f"the LoRA in {folder} is damaged, or holds more than weights: {error}"
        ) from error
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        raise ModelLoadError(f"the LoRA in {folder} does not fit its base: {error}") from error
    weights = {name: p for name, p in laid.named_parameters() if ".lora_" in name}
    for weight in weights.values():  # peft keeps them in float32, for training
        weight.data = weight.data.to(dtype)
    b_weights = [p for name, p in weights.items() if ".lora_B." in name]
    if not any(bool(p.any()) for p in b_weights):
        raise ModelLoadError(f"the LoRA in {folder} is empty: every B matrix is zero")
    logger.info("LoRA %s: %d matrix pairs, un-merged", folder.name, len(b_weights))
    return laid
