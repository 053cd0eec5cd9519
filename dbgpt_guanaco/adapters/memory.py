"""Will it fit? Answered from a model's shape, before a weight is read."""

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
from bitsandbytes.functional import has_avx512bf16

from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.shapes import Matrix, ModelShape
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import Quantization, memory_bytes

GIB = 1024**3
# QLoRA §3: 4-bit codes, one 8-bit absmax for 64 weights, one float32 for 256 of those.
NF4_BLOCK, ABSMAX_BLOCK = 64, 256
# float32: the 16 values of NF4; the 256 that an absmax may have, and their offset.
NF4_TABLE_BYTES, ABSMAX_TABLE_BYTES = 4 * 16, 4 * 257
# CUDA context, activations, logits, the buffer that a dequantized matrix passes through.
CUDA_OVERHEAD_BYTES = int(1.5 * GIB)
CPU_OVERHEAD_BYTES = int(0.3 * GIB)
# Share of the free memory that keys and values may take.
CACHE_SHARE = {"cpu": 0.5, "cuda": 0.9}
# On a CPU the memory belongs to other programs, too; a setting may allow more.
CPU_CACHE_BYTES = 2 * GIB


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

    def fits(self, context_tokens: int, available_bytes: int) -> bool:
        """Say whether one request of a full context fits."""
        return self.needed_bytes(context_tokens) <= available_bytes

    def kv_tokens(self, available_bytes: int) -> int:
        """Return how many tokens' keys and values fit beside the weights."""
        room = available_bytes - self.weight_bytes - self.overhead_bytes
        return max(0, room // self.kv_bytes_per_token)

    def check(self, context_tokens: int, available_bytes: int, device: str) -> None:
        """Refuse what does not fit.

        Raises:
            OutOfMemoryError: With every number, and what would fit.
        """
        if self.fits(context_tokens, available_bytes):
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
    shape: ModelShape, quantization: Quantization, *, on_cuda: bool, lora_bytes: int = 0
) -> MemoryPlan:
    """Predict what a model takes once loaded.

    Args:
        shape: Of the whole model; see ``read_shape``.
        quantization: How linear weights will be stored, or already are.
        on_cuda: Whether a GPU's working room is to be counted.
        lora_bytes: Of a LoRA that is to be laid on it; see ``lora_bytes_of``.
    """
    weights = weight_bytes(shape, quantization, is_packed=not on_cuda and _is_packing_cpu())
    return MemoryPlan(
        weight_bytes=weights + lora_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        overhead_bytes=working_room(on_cuda=on_cuda),
    )


def weight_bytes(shape: ModelShape, quantization: Quantization, *, is_packed: bool) -> int:
    """Return what a model's weights take in memory.

    Args:
        shape: Of the model.
        quantization: Of its linear layers.
        is_packed: NF4 is packed for a CPU, where one 16-bit absmax is kept for 64 weights.
    """
    kept = 2 * shape.kept_parameters
    return kept + sum(_matrix_bytes(m, quantization, is_packed) for m in shape.matrices)


def _matrix_bytes(matrix: Matrix, quantization: Quantization, is_packed: bool) -> int:
    if quantization == "none":
        return 2 * matrix.parameters
    if quantization == "int8":
        return matrix.parameters + 4 * matrix.outputs  # one float32 scale for each row
    blocks = -(-matrix.parameters // NF4_BLOCK)
    if is_packed:
        return matrix.parameters // 2 + 2 * blocks + NF4_TABLE_BYTES
    groups = -(-blocks // ABSMAX_BLOCK)
    return matrix.parameters // 2 + blocks + 4 * groups + NF4_TABLE_BYTES + ABSMAX_TABLE_BYTES


def working_room(*, on_cuda: bool) -> int:
    """Return what a device takes beside weights and what is computed."""
    return CUDA_OVERHEAD_BYTES if on_cuda else CPU_OVERHEAD_BYTES


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


def cache_tokens(
    free_bytes: int,
    kv_bytes_per_token: int,
    context_tokens: int,
    *,
    on_cuda: bool,
    cap: str | None = None,
) -> int:
    """Return for how many tokens the batching engine makes room beside a loaded model.

    Args:
        free_bytes: What is free once the weights are there.
        kv_bytes_per_token: Keys and values of one token.
        context_tokens: The longest context; so much is allowed on a CPU in any case.
        on_cuda: Where the cache is.
        cap: What somebody allows at most, such as ``4GiB``.
    """
    allowed = int(free_bytes * CACHE_SHARE["cuda" if on_cuda else "cpu"])
    if cap:
        allowed = min(allowed, memory_bytes(cap))
    elif not on_cuda:
        allowed = min(allowed, max(CPU_CACHE_BYTES, context_tokens * kv_bytes_per_token))
    return max(0, allowed // kv_bytes_per_token)


def lora_bytes_of(folder: Path | None) -> int:
    """Return what a LoRA takes in 16 bits; of a pickle only the size is known.

    Raises:
        ModelLoadError: A header is damaged.
    """
    if folder is None:
        return 0
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        return sum(2 * math.prod(shape) for _, shape, _ in tensor_headers([weights]))
    pickled = folder / "adapter_model.bin"
    return pickled.stat().st_size if pickled.is_file() else 0


def _is_packing_cpu() -> bool:
    return bool(has_avx512bf16())  # type: ignore[no-untyped-call]
