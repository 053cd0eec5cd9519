"""Will it fit? Answered from config and safetensors headers, before a weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dbgpt_guanaco.adapters.folder import weight_files
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import Quantization

GIB = 1024**3
# 4-bit codes, one uint8 absmax for 64 weights, one float32 for 256 of those (QLoRA §3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0
HALF_BYTES = 2.0
# CUDA context, activations, logits, the buffer that a dequantized matrix passes through.
CUDA_OVERHEAD_BYTES = int(1.5 * GIB)
CPU_OVERHEAD_BYTES = int(0.3 * GIB)
# bitsandbytes leaves the output head alone; embeddings are looked up, not multiplied.
UNQUANTIZED = ("embed", "lm_head", "wte", "wpe", "output_layer")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a model will take.

    Attributes:
        kv_bytes_per_token: Keys and values of one token, over all layers.
        overhead_bytes: What the device takes beside weights and cache.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    overhead_bytes: int

    def needed_bytes(self, context_tokens: int) -> int:
        """Return what one request of a full context needs."""
        kv_bytes = context_tokens * self.kv_bytes_per_token
        return self.weight_bytes + kv_bytes + self.overhead_bytes

    def kv_tokens(self, available_bytes: int) -> int:
        """Return how many tokens' keys and values fit beside the weights."""
        room = available_bytes - self.weight_bytes - self.overhead_bytes
        return max(0, room // self.kv_bytes_per_token)

    def check(self, context_tokens: int, available_bytes: int, device: str) -> None:
        """Refuse what does not fit.

        Raises:
            OutOfMemoryError: With every number, and what would fit.
        """
        if self.needed_bytes(context_tokens) <= available_bytes:
            return
        fits = self.kv_tokens(available_bytes)
        remedy = (
            f"MAX_POSITION_EMBEDDINGS={fits} would fit"
            if fits >= 256
            else "choose a smaller model, or a stronger quantization"
        )
        raise OutOfMemoryError(
            f"it does not fit {device}: {self.weight_bytes / GIB:.2f} GiB of weights, "
            f"{context_tokens * self.kv_bytes_per_token / GIB:.2f} GiB of cache for one context "
            f"of {context_tokens} tokens and {self.overhead_bytes / GIB:.2f} GiB of working room "
            f"need {self.needed_bytes(context_tokens) / GIB:.2f} GiB, and "
            f"{available_bytes / GIB:.2f} GiB are free; {remedy}"
        )


def plan_memory(
    folder: Path,
    config: Mapping[str, Any],
    quantization: Quantization,
    *,
    on_cuda: bool,
    lora: Path | None = None,
) -> MemoryPlan:
    """Predict what a model folder takes once loaded.

    Args:
        folder: A whole model; of its weights only the headers are read.
        config: Its ``config.json``.
        quantization: How linear weights will be stored, or already are.
        on_cuda: Whether a GPU's working room is to be counted.
        lora: Folder of a LoRA to be laid on it, kept in 16 bits.

    Raises:
        ModelLoadError: A header is damaged.
    """
    weight_bytes = sum(
        _stored_bytes(name, shape, dtype, quantization)
        for name, shape, dtype in tensor_headers(weight_files(folder))
    )
    if lora:
        weight_bytes += lora_bytes(lora)
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_bytes = 2 * int(config["num_hidden_layers"]) * kv_heads * head_size * int(HALF_BYTES)
    overhead = CUDA_OVERHEAD_BYTES if on_cuda else CPU_OVERHEAD_BYTES
    return MemoryPlan(math.ceil(weight_bytes), kv_bytes, overhead)


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the main memory that may still be taken: of the machine, or of its container.

    Linux ends a process that takes more than its container may have, however much the machine
    has left.
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    # The cache of files counts as used, and is given back when it is wanted.
    return max(0, min(available, limit - used + int(stat.get("inactive_file", 0))))


def lora_bytes(folder: Path) -> float:
    """Return what a LoRA takes in 16 bits; of a pickle only the size is known."""
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        return sum(math.prod(shape) * HALF_BYTES for _, shape, _ in tensor_headers([weights]))
    pickled = folder / "adapter_model.bin"
    return pickled.stat().st_size if pickled.is_file() else 0.0


def _stored_bytes(
    name: str, shape: tuple[int, ...], dtype: str, quantization: Quantization
) -> float:
    count = math.prod(shape)
    if dtype in ("U8", "I8"):  # codes of a checkpoint that is quantized already
        return count
    if len(shape) != 2 or any(part in name for part in UNQUANTIZED):
        return count * HALF_BYTES
    return count * {"nf4": NF4_BYTES, "int8": INT8_BYTES, "none": HALF_BYTES}[quantization]
