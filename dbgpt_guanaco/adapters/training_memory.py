"""Will the training fit? Predicted before a weight is read, part by part."""

from dataclasses import dataclass
from typing import Literal

from dbgpt_guanaco.adapters.memory import GIB, weight_bytes, working_room
from dbgpt_guanaco.adapters.shapes import ModelShape
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import Quantization

Optimizer = Literal["paged_adamw_32bit", "adamw_torch"]
# LoRA weights and their gradients are float32; Adam keeps two more numbers of each.
FLOAT_BYTES = 4
ADAM_BYTES = 8


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
        activation_bytes: What is kept of a pass for the gradient, and the layer in work.
        logit_bytes: The logits with what the loss makes of them.
        overhead_bytes: What the device takes beside.
        is_paged: The optimizer's part may leave the GPU for a while where it is short.
    """

    base_bytes: int
    lora_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logit_bytes: int
    overhead_bytes: int
    is_paged: bool

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.resident_bytes + self.optimizer_bytes

    @property
    def resident_bytes(self) -> int:
        """What must be there at the peak, whatever is paged."""
        kept = self.base_bytes + self.lora_bytes + self.gradient_bytes + self.overhead_bytes
        return kept + max(self.activation_bytes, self.logit_bytes)

    @property
    def least_bytes(self) -> int:
        """The smallest memory in which it runs."""
        return self.resident_bytes if self.is_paged else self.total_bytes

    def check(self, available_bytes: int, device: str) -> None:
        """Refuse what does not fit.

        Raises:
            OutOfMemoryError: With every number, and what to change.
        """
        if self.least_bytes <= available_bytes:
            return
        parts = (
            ("the base", self.base_bytes),
            ("LoRA weights, their gradients", self.lora_bytes + self.gradient_bytes),
            ("the optimizer", 0 if self.is_paged else self.optimizer_bytes),
            ("activations and logits", max(self.activation_bytes, self.logit_bytes)),
            ("working room", self.overhead_bytes),
        )
        listed = ", ".join(f"{size / GIB:.2f} GiB of {what}" for what, size in parts if size)
        raise OutOfMemoryError(
            f"the training does not fit {device}: {listed} need {self.least_bytes / GIB:.2f} GiB, "
            f"and {available_bytes / GIB:.2f} GiB are free; lower the length of a sequence, the "
            "micro-batch or the rank, or choose a smaller base"
        )


def plan_training(
    shape: ModelShape, run: TrainingRun, quantization: Quantization = "nf4", *, on_cuda: bool
) -> TrainingPlan:
    """Predict what a QLoRA training takes at its peak.

    Args:
        shape: Of the base; see ``read_shape``.
        run: How it is trained.
        quantization: How the base's linear weights are stored.
        on_cuda: Whether a GPU's working room is to be counted.
    """
    parameters = lora_parameters(shape, run.rank)
    return TrainingPlan(
        base_bytes=weight_bytes(shape, quantization, is_packed=False),
        lora_bytes=parameters * FLOAT_BYTES,
        gradient_bytes=parameters * FLOAT_BYTES,
        optimizer_bytes=parameters * ADAM_BYTES,
        activation_bytes=_activation_bytes(shape, run),
        logit_bytes=_logit_bytes(shape, run),
        overhead_bytes=working_room(on_cuda=on_cuda),
        is_paged=run.optimizer == "paged_adamw_32bit",
    )


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Return how many numbers A and B hold, on every linear layer but the head."""
    return sum(rank * (matrix.inputs + matrix.outputs) for matrix in shape.matrices)


def _activation_bytes(shape: ModelShape, run: TrainingRun) -> int:
    """Return what is kept of all layers' inputs, and the one layer that is computed again."""
    tokens = run.micro_batch * run.tokens
    inputs = shape.layers * tokens * shape.hidden * 2
    widths = sum(3 * m.inputs + 4 * m.outputs + 2 * run.rank for m in shape.matrices)
    layer = tokens * (widths // shape.layers + 20 * shape.hidden)
    dequantized = 2 * max((m.parameters for m in shape.matrices), default=0)
    if not run.recomputes:
        return inputs + shape.layers * layer + dequantized
    return inputs + layer + dequantized


def _logit_bytes(shape: ModelShape, run: TrainingRun) -> int:
    """Return what logits take in 16 bits, in 32, and as log-probabilities and gradient."""
    tokens = run.micro_batch * run.tokens
    inputs = shape.layers * tokens * shape.hidden * 2
    return inputs + tokens * shape.vocabulary * (2 + 4 + 4 + 4)
