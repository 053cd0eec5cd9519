"""transformers' Trainer, told what this package wants of it, with snapshots that are whole."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dbgpt_guanaco.errors import TrainingError
from dbgpt_guanaco.training.examples import UNLEARNED, Example
from dbgpt_guanaco.training.hyperparameters import Hyperparameters
from dbgpt_guanaco.training.interruption import StopRequest
from dbgpt_guanaco.training.schedule import Schedule
from dbgpt_guanaco.training.snapshots import Snapshots
from dbgpt_guanaco.training.verification import check_saved


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step that was made.

    Attributes:
        number: From 1.
        total: Of all steps.
        loss: Mean over the learned tokens, in nats.
        gradient_norm: Before it was clipped.
    """

    number: int
    total: int
    loss: float
    gradient_norm: float
    learning_rate: float


Watch = Callable[[Step], None]


class QloraTrainer(Trainer):  # type: ignore[misc] # transformers has no types
    """Trains the LoRA weights of a model; the base stays as it is.

    Args:
        model: With trainable LoRA weights.
        schedule: What is learned when.
        how: The hyperparameters.
        snapshots: Where states are kept.
        save_every: Steps between two snapshots; the last step has one in any case.
        watch: Told every step.
        stop: Looked at after every step; then the state is saved and the training ends.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        schedule: Schedule,
        how: Hyperparameters,
        snapshots: Snapshots,
        save_every: int,
        watch: Watch,
        stop: StopRequest,
    ) -> None:
        arguments = training_arguments(model, schedule, how, snapshots.writing, save_every)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=schedule,
            data_collator=collate,
            callbacks=[_Watching(watch, stop)],
        )
        self.remove_callback(PrinterCallback)
        self._snapshots = snapshots

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        with self._snapshots.new(self.state.global_step):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, **_: object) -> None:
        save_lora(self.model, Path(output_dir or self.args.output_dir))

    @property
    def losses(self) -> list[Step]:
        """Every step so far, those before an interruption included."""
        return [
            Step(
                entry["step"],
                self.state.max_steps,
                entry["loss"],
                entry["grad_norm"],
                entry["learning_rate"],
            )
            for entry in self.state.log_history
            if "loss" in entry
        ]


def save_lora(model: Any, folder: Path) -> dict[str, int]:  # noqa: ANN401
    """Write LoRA weights and their configuration, and check what was written.

    Raises:
        TrainingError: It is not what is in memory.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return check_saved(folder, model)


def training_arguments(
    model: Any,  # noqa: ANN401
    schedule: Schedule,
    how: Hyperparameters,
    folder: Path,
    save_every: int,
) -> TrainingArguments:
    """Return what transformers must know."""
    on_cuda = model.device.type == "cuda"
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=how.micro_batch,
        gradient_accumulation_steps=how.accumulation,
        max_steps=schedule.steps,
        learning_rate=how.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=how.beta2,
        max_grad_norm=how.clip,
        optim=how.optimizer,
        activation_checkpointing=how.recomputes,
        activation_checkpointing_kwargs={"use_reentrant": False} if how.recomputes else None,
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        use_cpu=not on_cuda,
        seed=how.seed,
        # The schedule has the order.
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=save_every,
        logging_steps=1,
        # A loss that is not a number must be seen and not smoothed over.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Fill up to the longest, on the right: [B, T] each."""
    most = max(len(example.input_ids) for example in examples)

    def filled(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (most - len(row))] for row in rows])

    ids = [example.input_ids for example in examples]
    return {
        "input_ids": filled(ids, 0),
        "attention_mask": filled([[1] * len(row) for row in ids], 0),
        "labels": filled([example.labels for example in examples], UNLEARNED),
    }


class _Watching(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Tells of steps, and ends the training when it must."""

    def __init__(self, watch: Watch, stop: StopRequest) -> None:
        self._watch, self._stop = watch, stop

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._stop.is_made:
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = Step(
            state.global_step,
            state.max_steps,
            logs["loss"],
            logs.get("grad_norm", math.nan),
            logs["learning_rate"],
        )
        if not math.isfinite(step.loss):
            raise TrainingError(
                f"the loss is {step.loss} at step {step.number}; lower --learning-rate"
            )
        self._watch(step)
