"""bitsandbytes' kernels on this very device, held against plain arithmetic.

A kernel that is wrong here, because its library was built for another device, makes a model talk
nonsense without any error.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn

from dbgpt_guanaco.doctor.findings import Finding, failure, ok
from dbgpt_guanaco.doctor.setup import Setup

INPUTS, OUTPUTS = 512, 256
# One token and a few: they go through different kernels.
ROWS = (1, 16)
DTYPES = (torch.bfloat16, torch.float16)
# As a share of the largest product. bfloat16's rounding makes 0.3 % of it.
NF4_ERROR = 0.01
# int8 rounds weights and inputs to 1 in 127 each, which makes 0.8 %.
INT8_ERROR = 0.03
REINSTALL = "python -m pip install --force-reinstall --no-deps bitsandbytes"


def four_bit(setup: Setup) -> Finding:
    """Multiply NF4 weights with double quantization, in both dtypes."""
    device = device_of(setup)
    errors = {dtype: largest_error(*four_bit_layer(device, dtype), dtype) for dtype in DTYPES}
    return _judge("NF4", device, errors, NF4_ERROR)


def eight_bit(setup: Setup) -> Finding:
    """Multiply int8 weights, as GUANACO_QUANTIZATION=int8 does."""
    device = device_of(setup)
    errors = {dtype: largest_error(*eight_bit_layer(device), dtype) for dtype in DTYPES}
    return _judge("int8", device, errors, INT8_ERROR)


def device_of(setup: Setup) -> torch.device:
    """Return where the model will be; a GPU that is asked for and absent is another check's."""
    is_wanted = setup.settings.model.device != "cpu"
    return torch.device("cuda" if is_wanted and torch.cuda.is_available() else "cpu")


def four_bit_layer(device: torch.device, dtype: torch.dtype) -> tuple[Any, Tensor]:
    """Return a random layer as the server makes them, and its weights dequantized, [out, in]."""
    kind: Any = Linear4bit  # without types of its own
    layer = kind(
        INPUTS, OUTPUTS, bias=False, compute_dtype=dtype, compress_statistics=True,
        quant_type="nf4",
    )  # fmt: skip
    weight = _random(0, OUTPUTS, INPUTS).to(dtype)
    layer.weight = Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    layer.to(device)
    # Before any product: on a CPU the first one packs the weights anew.
    plain = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer, plain.float().clone()


def eight_bit_layer(device: torch.device) -> tuple[Any, Tensor]:
    """Return a random layer as the server makes them, and the weights it was made from."""
    weight = _random(0, OUTPUTS, INPUTS)
    layer: Any = Linear8bitLt(INPUTS, OUTPUTS, bias=False, has_fp16_weights=False)
    weights: Any = Int8Params
    layer.weight = weights(weight.half(), requires_grad=False, has_fp16_weights=False)
    layer.to(device)
    return layer, weight.to(device)


@torch.no_grad()
def largest_error(layer: nn.Module, plain: Tensor, dtype: torch.dtype) -> float:
    """Return how far a layer's products are from those of plain float32 weights.

    Returns:
        The largest difference as a share of the largest product; NaN where one is NaN.
    """
    errors = []
    for seed, rows in enumerate(ROWS, 1):
        x = _random(seed, rows, INPUTS).to(plain.device, dtype)  # [T, in]
        expected = x.float() @ plain.T  # [T, out]
        errors.append((layer(x).float() - expected).abs().max() / expected.abs().max())
    return float(torch.stack(errors).max())


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _judge(
    kind: str, device: torch.device, errors: dict[torch.dtype, float], most: float
) -> Finding:
    told = ", ".join(f"{str(d).removeprefix('torch.')} by {e:.2%}" for d, e in errors.items())
    if all(error <= most for error in errors.values()):  # false for NaN, too
        return ok(f"{kind} on {device} differs from float32: {told}")
    return failure(
        f"{kind} products on {device} are wrong, answers would be nonsense. They differ from "
        f"float32: {told}; rounding makes less than {most:.0%}",
        REINSTALL,
    )
