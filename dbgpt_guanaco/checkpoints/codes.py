"""One weight → its codes and statistics, as bitsandbytes makes them while a model is loaded."""

from typing import Any

import torch
from bitsandbytes import functional

from dbgpt_guanaco.settings import Quantization

# As Params4bit has it on every device.
BLOCK = 64


def quantize_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return codes and their quant state: NF4, blocks of 64, double quantization."""
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return codes, state


def through_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Return what a model that was loaded in NF4 computes with."""
    codes, state = quantize_nf4(weight)
    restored: torch.Tensor = functional.dequantize_4bit(codes, state)
    return restored


def packed(name: str, weight: torch.Tensor, kind: Quantization) -> dict[str, torch.Tensor]:
    """Return the tensors that ``save_pretrained`` of a quantized model writes for a weight."""
    if kind == "nf4":
        codes, state = quantize_nf4(weight)
        statistics = state.as_dict(packed=True)
        return {name: codes} | {f"{name}.{part}": value for part, value in statistics.items()}
    # bitsandbytes takes int8 from 16 bits of this kind, whatever the model computes in.
    codes, scales, _ = functional.int8_vectorwise_quant(weight.contiguous().half())
    stem = name.removesuffix("weight")
    row_major = torch.tensor(0, dtype=torch.uint8)
    return {name: codes, f"{stem}SCB": scales, f"{stem}weight_format": row_major}
