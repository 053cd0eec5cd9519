"""How weights are stored: settings → BitsAndBytesConfig."""

from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.settings import Quantization


def compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the arithmetic.

    bfloat16 has float32's range, so long sums cannot overflow; GPUs before Ampere lack it.
    """
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def quantization_config(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return what transformers needs to quantize while it loads; None keeps 16 bits.

    The compute dtype is always given: bitsandbytes' default, float32, has no tensor-core
    kernel.

    Source: QLoRA, arXiv 2305.14314: NF4, blocks of 64, double quantization.
    """
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else None


def stored_quantization(config: Any, folder: Path) -> Quantization | None:  # noqa: ANN401
    """Return how a checkpoint is quantized already; None if it is not.

    Args:
        config: Of transformers.
        folder: Where it comes from, for messages.

    Raises:
        ModelLoadError: In a way that cannot be served.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise ModelLoadError(f"{folder}/config.json: quantization_config is no object")
    if stored.get("quant_method") != "bitsandbytes":
        raise ModelLoadError(
            f"{folder} is quantized with {stored.get('quant_method')}; only bitsandbytes "
            "checkpoints and plain 16-bit ones can be served"
        )
    kind: Quantization = "nf4" if stored.get("load_in_4bit") else "int8"
    if kind == "nf4" and stored.get("bnb_4bit_quant_type") != "nf4":
        raise ModelLoadError(
            f"{folder} is stored as {stored.get('bnb_4bit_quant_type')}; of 4-bit checkpoints "
            "only nf4 can be served"
        )
    return kind
