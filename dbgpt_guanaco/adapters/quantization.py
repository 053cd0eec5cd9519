"""How weights are stored: settings → BitsAndBytesConfig."""

import torch
from transformers import BitsAndBytesConfig

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
