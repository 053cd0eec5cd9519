"""A course, carried out: base → trained LoRA → folder that the server takes, checked on the way."""

import gc
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.checkpoints.partial import PartialModel, partial_model
from dbgpt_guanaco.errors import OutOfMemoryError, TrainingStopped
from dbgpt_guanaco.training.card import write_card
from dbgpt_guanaco.training.course import Course
from dbgpt_guanaco.training.curve import write_losses
from dbgpt_guanaco.training.interruption import signals_ask
from dbgpt_guanaco.training.qlora import keep_unpacked, lay_lora
from dbgpt_guanaco.training.resumption import SNAPSHOTS, has_snapshot
from dbgpt_guanaco.training.schedule import Schedule
from dbgpt_guanaco.training.snapshots import Snapshots, step_of
from dbgpt_guanaco.training.trainer import QloraTrainer, Step, Watch, save_lora
from dbgpt_guanaco.training.verification import check_reloaded, logits_of

logger = logging.getLogger(__name__)

# So many tokens of the first example are what a saved LoRA is compared on.
PROBE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Learned:
    """What is left of a training when its model is gone.

    Attributes:
        losses: Of every step.
        probe: A text.
        logits: What the model in training gave for it, [T, V].
        checks: What was found when the LoRA was written.
        resumed_after: The step after which an interrupted run was gone on with.
    """

    losses: list[Step]
    probe: tuple[int, ...]
    logits: torch.Tensor
    checks: Mapping[str, float]
    resumed_after: int | None


def run_course(course: Course, out: Path, save_every: int, watch: Watch) -> dict[str, Any]:
    """Train, and write the LoRA's folder; what an earlier run of the same job did is gone on with.

    Args:
        course: What to learn.
        out: Folder to make.
        save_every: Steps between two states that an interrupted run can go on from.
        watch: Told every step.

    Returns:
        The card.

    Raises:
        TrainingStopped: By Ctrl-C; the state is saved.
        TrainingError: The loss is not finite, or what was saved is not what was learned.
        OutOfMemoryError: It did not fit after all.
        OutputError: It cannot be written.
    """
    begin = time.monotonic()
    with partial_model(out, course.job, is_worth_keeping=has_snapshot) as partial:
        snapshots = Snapshots(partial.root / SNAPSHOTS)
        snapshots.clear_unfinished()
        try:
            learned = _learn(course, partial.folder, snapshots, save_every, watch)
            # One base is in memory at a time: the trained one is gone by now.
            card = _finish(course, learned, partial, begin)
        except BaseException:
            shutil.rmtree(partial.folder, ignore_errors=True)  # it must not be taken for a LoRA
            if not has_snapshot(partial.root):  # also after Ctrl-C
                shutil.rmtree(partial.root, ignore_errors=True)
            raise
        partial.publish()
    return card


def _learn(
    course: Course, folder: Path, snapshots: Snapshots, save_every: int, watch: Watch
) -> Learned:
    """Train, and write the LoRA."""
    model = lay_lora(_load_base(course), course.base.name, course.how)
    schedule = Schedule(course.examples, course.how)
    newest = snapshots.newest()
    with signals_ask() as stop, memory_told():
        trainer = QloraTrainer(model, schedule, course.how, snapshots, save_every, watch, stop)
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if trainer.state.global_step < schedule.steps:
        raise TrainingStopped(trainer.state.global_step, schedule.steps)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that got so far
    checks = save_lora(model, folder)
    probe = course.examples[0].input_ids[:PROBE_TOKENS]
    done = step_of(newest) if newest else None
    return Learned(trainer.losses, probe, logits_of(model, probe), checks, done)


def _finish(
    course: Course, learned: Learned, partial: PartialModel, begin: float
) -> dict[str, Any]:
    """Lay what was written on a fresh base and compare, then write what stands beside it."""
    _free()
    reloaded = check_reloaded(partial.folder, _load_base(course), learned.probe, learned.logits)
    card = {
        **course.job,
        "checks": {**learned.checks, **reloaded},
        "metrics": {
            "steps": learned.losses[-1].number,
            "first_loss": learned.losses[0].loss,
            "last_loss": learned.losses[-1].loss,
            "resumed_after_step": learned.resumed_after,
            "seconds": round(time.monotonic() - begin, 1),
        },
    }
    course.family.tokenizer.save_pretrained(partial.folder)
    write_losses(learned.losses, partial.folder)
    write_card(card, partial.folder, partial.out.name)
    return card


def _load_base(course: Course) -> Any:  # noqa: ANN401
    model = load_model(course.source, course.settings, default_registry()).model
    keep_unpacked(model)
    return model


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_told() -> Iterator[None]:
    """Turn what torch raises when memory ends into one clear error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "the GPU ran out of memory while training; lower --micro-batch or --max-tokens"
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            "the machine ran out of memory while training; lower --micro-batch or --max-tokens"
        ) from error
