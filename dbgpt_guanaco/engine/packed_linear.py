"""NF4 layers in the order that a CPU's vector units want, which bitsandbytes calls packed.

On a CPU with instructions for bfloat16 it packs at a layer's first call, and has a kernel for that.
On others it would write out every weight in 16 bits at every call; there a packed layer is called
here, by the kernel of the compiled decoder.
"""

import ctypes
import importlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dbgpt_guanaco.engine.kernels.decoder_structs import Linear


def pack(layer: Any) -> Any:  # noqa: ANN401
    """Pack a layer's weights, once, as its own call would have packed them.

    Returns:
        The state that stands beside them: scales in ``absmax`` are [inputs / 64, outputs].
    """
    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        convert = importlib.import_module("bitsandbytes.functional")._convert_weight_packed_for_cpu
        layer.weight.data, state = convert(layer.weight.data, state)
    return state


def route_call(layer: Any, library: ctypes.CDLL, weights: Linear) -> None:  # noqa: ANN401
    """Let a packed layer compute here if bitsandbytes has no kernel for it.

    Args:
        layer: Packed; owns what ``weights`` points to.
        library: See ``decoder_structs.load``.
        weights: The layer's.
    """
    if not layer.support_avx512bf16_for_cpu:
        layer.forward = partial(multiply, library, weights)


def multiply(library: ctypes.CDLL, weights: Linear, input: Tensor) -> Tensor:  # noqa: A002
    """Compute a layer's output [..., outputs] from [..., inputs], in bfloat16."""
    rows = input.reshape(-1, weights.inputs).to(torch.bfloat16).contiguous()
    output = torch.empty((len(rows), weights.outputs), dtype=torch.bfloat16)
    library.guanaco_multiply(
        weights, rows.data_ptr(), len(rows), output.data_ptr(), torch.get_num_threads()
    )
    return output.view(*input.shape[:-1], weights.outputs).to(input.dtype)
