"""Will the training fit? Predicted before a weight is read, part by part.

The counts of ``_Pass`` were read off torch's own books of its allocations, for LLaMA's layers
under bfloat16 autocast with peft's LoRA; ``test_training_memory.py`` reads them again.
"""

from dataclasses import dataclass
from typing import Literal

from dbgpt_guanaco.adapters.memory import GIB, weight_bytes
from dbgpt_guanaco.adapters.shapes import ModelShape
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import Quantization

Optimizer = Literal["paged_adamw_32bit", "adamw_torch"]
# LoRA weights and their gradients are float32; Adam keeps two more numbers of each.
FLOAT_BYTES = 4
ADAM_BYTES = 8
# CUDA's context, the workspaces of its libraries, holes between tensors. Not measured yet.
CUDA_ROOM_BYTES = GIB
# On a CPU gradients, which stay, are allocated between activations, which go, and the C library
# gives such holes back late. Fitted to the demo model: so much, and so many times one layer.
CPU_ROOM_BYTES = GIB // 8
CPU_ROOM_LAYERS = 5


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What of a training decides its memory.

    Attributes:
        rank: Of the LoRA, which lies on every linear layer but the head.
        micro_batch: Sequences that are computed at a time.
        tokens: Of the longest sequence.
        recomputes: Activations are computed again for the gradient instead of kept.
    """

    rank: int = 64
    micro_batch: int = 1
    tokens: int = 512
    optimizer: Optimizer = "paged_adamw_32bit"
    recomputes: bool = True


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Bytes that a training will take at its peak.

    Attributes:
        base_bytes: The frozen weights, as they are stored.
        lora_bytes: A and B.
        gradient_bytes: Of A and B.
        optimizer_bytes: What the optimizer keeps of A and B.
        activation_bytes: What is kept of every layer for the gradient.
        work_bytes: What comes on top at the fullest moment: the logits with what the loss makes
            of them, or one layer with its gradient.
        overhead_bytes: What the device takes beside.
        is_paged: The optimizer's part may leave the GPU for a while where it is short.
    """

    base_bytes: int
    lora_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    work_bytes: int
    overhead_bytes: int
    is_paged: bool

    @property
    def tensor_bytes(self) -> int:
        """All that torch allocates."""
        lora_bytes = self.lora_bytes + self.gradient_bytes + self.optimizer_bytes
        return self.base_bytes + lora_bytes + self.activation_bytes + self.work_bytes

    @property
    def total_bytes(self) -> int:
        """All that the device must have, if nothing is paged."""
        return self.tensor_bytes + self.overhead_bytes

    @property
    def least_bytes(self) -> int:
        """The smallest memory in which it runs; what is paged then comes and goes."""
        return self.total_bytes - (self.optimizer_bytes if self.is_paged else 0)

    def check(self, available_bytes: int, device: str) -> None:
        """Refuse what does not fit.

        Raises:
            OutOfMemoryError: With every number, and what to change.
        """
        if self.least_bytes <= available_bytes:
            return
        parts = {
            "the base": self.base_bytes,
            "LoRA weights and gradients": self.lora_bytes + self.gradient_bytes,
            "the optimizer": 0 if self.is_paged else self.optimizer_bytes,
            "activations and logits": self.activation_bytes + self.work_bytes,
            "working room": self.overhead_bytes,
        }
        listed = ", ".join(
            f"{size / GIB:.2f} GiB for {what}" for what, size in parts.items() if size
        )
        raise OutOfMemoryError(
            f"the training does not fit {device}: {listed} make {self.least_bytes / GIB:.2f} GiB, "
            f"and {available_bytes / GIB:.2f} GiB are free; take shorter sequences, fewer at a "
            "time, a smaller rank or a smaller base"
        )


def plan_training(
    shape: ModelShape, run: TrainingRun, quantization: Quantization = "nf4", *, on_cuda: bool
) -> TrainingPlan:
    """Predict what a QLoRA training takes at its peak.

    Args:
        shape: Of the base; see ``read_shape``.
        run: How it is trained.
        quantization: How the base's linear weights are stored.
        on_cuda: Where it is trained.
    """
    parameters = lora_parameters(shape, run.rank)
    one = _Pass(shape, run, on_cuda)
    overhead = CUDA_ROOM_BYTES if on_cuda else CPU_ROOM_BYTES + CPU_ROOM_LAYERS * one.layer_bytes
    return TrainingPlan(
        base_bytes=weight_bytes(shape, quantization, is_packed=False),
        lora_bytes=parameters * FLOAT_BYTES,
        gradient_bytes=parameters * FLOAT_BYTES,
        optimizer_bytes=parameters * ADAM_BYTES,
        activation_bytes=one.kept_bytes,
        work_bytes=one.work_bytes,
        overhead_bytes=overhead,
        is_paged=run.optimizer == "paged_adamw_32bit",
    )


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Return how many numbers A and B hold, on every linear layer but the head."""
    return sum(rank * (matrix.inputs + matrix.outputs) for matrix in shape.matrices)


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass forward and backward, in bytes."""

    shape: ModelShape
    run: TrainingRun
    on_cuda: bool

    @property
    def kept_bytes(self) -> int:
        """Of every layer its input, or all that its gradient needs; and who sees whom."""
        tokens, layers = self._tokens, self.shape.layers
        each = 2 * self.shape.hidden if self.run.recomputes else self._saved_width
        # Sequences of different lengths need a mask, and attention a copy of it in 16 bits.
        mask = 3 * tokens * self.run.tokens if self.run.micro_batch > 1 else 0
        return layers * tokens * each + mask

    @property
    def work_bytes(self) -> int:
        return max(*self._logit_bytes, self.layer_bytes, self._optimizer_step_bytes)

    @property
    def layer_bytes(self) -> int:
        """One layer that is computed again, with gradients under way and a matrix in 16 bits."""
        widest = max((m.inputs for m in self.shape.matrices), default=0)
        width = 10 * self.shape.hidden + 10 * widest
        casts = self._cast_bytes
        if self.run.recomputes:
            width += self._saved_width
            casts //= self.shape.layers
        return self._tokens * width + casts + 2 * self._largest

    @property
    def _tokens(self) -> int:
        return self.run.micro_batch * self.run.tokens

    @property
    def _saved_width(self) -> int:
        """Bytes a token that one layer keeps for its gradient."""
        shape, count = self.shape, len(self.shape.matrices)
        inputs = sum(m.inputs for m in shape.matrices) // shape.layers
        widest = max((m.inputs for m in shape.matrices), default=0)
        # Dropout keeps a byte on a GPU; on a CPU the factor itself, in float32.
        lora = inputs * (2 + (1 if self.on_cuda else 4)) + 2 * self.run.rank * count // shape.layers
        keys = shape.kv_heads * shape.head_size
        attention, mlp, norms = 4 * (shape.hidden + keys), 6 * widest, 8 * shape.hidden
        return lora + attention + mlp + norms

    @property
    def _logit_bytes(self) -> tuple[int, int]:
        """At the loss: in 16 bits, float32, and as log-probabilities. After it: three float32."""
        logits = self._tokens * self.shape.vocabulary
        return self._cast_bytes + 10 * logits, 12 * logits

    @property
    def _cast_bytes(self) -> int:
        """Autocast's copies of A and B in 16 bits, which live as long as a pass forward."""
        return 2 * lora_parameters(self.shape, self.run.rank)

    @property
    def _optimizer_step_bytes(self) -> int:
        """On a GPU torch's Adam makes a copy of what it divides by, of all weights at once."""
        if self.run.optimizer == "paged_adamw_32bit" or not self.on_cuda:
            return 0
        return FLOAT_BYTES * lora_parameters(self.shape, self.run.rank)

    @property
    def _largest(self) -> int:
        return max((m.parameters for m in self.shape.matrices), default=0)
