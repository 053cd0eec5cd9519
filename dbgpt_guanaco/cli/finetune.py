"""``dbgpt-guanaco finetune``."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from dbgpt_guanaco.cli.messages import errors_told
from dbgpt_guanaco.cli.progress import steps_shown
from dbgpt_guanaco.errors import TrainingStopped

if TYPE_CHECKING:
    from dbgpt_guanaco.training.course import Course

# What a shell reports of a program that Ctrl-C has ended.
INTERRUPTED = 130
TRAINING, RECIPE = "Training", "Recipe, by default the QLoRA paper's"


def finetune(
    base: Annotated[str, typer.Argument(help="the 16-bit model: a folder or a name")],
    data: Annotated[Path, typer.Argument(help="JSONL of conversations")],
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist")],
    resume: Annotated[bool, typer.Option("--resume", help="go on after an interruption")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave out lines that are no conversations")
    ] = False,
    family: Annotated[
        str | None, typer.Option(help="write prompts as this family, else by name")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="where to compute")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="steps between two saved states")] = 50,
    epochs: Annotated[
        float | None, typer.Option(help="rounds through the data (3)", rich_help_panel=TRAINING)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="steps, instead of epochs", rich_help_panel=TRAINING)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="longest sequence (512)", rich_help_panel=TRAINING)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="sequences of one step (16)", rich_help_panel=TRAINING)
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="of them at a time (1)", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of all that is random (0)", rich_help_panel=TRAINING)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="of the LoRA (64)", rich_help_panel=RECIPE)
    ] = None,
    alpha: Annotated[
        int | None, typer.Option(help="scales by alpha / rank (16)", rich_help_panel=RECIPE)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="before A (0.1, above 13B 0.05)", rich_help_panel=RECIPE),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="constant (2e-4, above 13B 1e-4)", rich_help_panel=RECIPE)
    ] = None,
    beta2: Annotated[
        float | None, typer.Option(help="of Adam (0.999)", rich_help_panel=RECIPE)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="largest gradient norm (0.3)", rich_help_panel=RECIPE)
    ] = None,
    optimizer: Annotated[
        Literal["paged_adamw_32bit", "adamw_torch"] | None,
        typer.Option(help="paged on a GPU, else plain", rich_help_panel=RECIPE),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(help="compute activations again to save memory (on)", rich_help_panel=RECIPE),
    ] = None,
    group_by_length: Annotated[
        bool | None,
        typer.Option(help="sequences of a like length together (on)", rich_help_panel=RECIPE),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Teach a base conversations: train a LoRA on it in 4 bits (QLoRA).

    Each line of DATA is one conversation: {"messages": […]}, ShareGPT, Alpaca or OpenAssistant.
    Ctrl-C ends the training after the running step; --resume goes on exactly.

    Example:  dbgpt-guanaco finetune huggyllama/llama-7b talks.jsonl --out models/guanaco-7b-mine
    """
    options = {
        "epochs": epochs,
        "max_steps": max_steps,
        "max_tokens": max_tokens,
        "batch": batch,
        "micro_batch": micro_batch,
        "seed": seed,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "learning_rate": learning_rate,
        "beta2": beta2,
        "clip": clip,
        "optimizer": optimizer,
        "recomputes": gradient_checkpointing,
        "groups_by_length": group_by_length,
    }
    with errors_told() as console, stops_told(console, out):
        from transformers.utils.logging import disable_progress_bar

        from dbgpt_guanaco.checkpoints.partial import refuse_existing
        from dbgpt_guanaco.environment import load_settings
        from dbgpt_guanaco.training.course import plan_course
        from dbgpt_guanaco.training.finetuning import run_course
        from dbgpt_guanaco.training.resumption import (
            interrupted_step,
            refuse_interrupted,
            refuse_to_resume_another,
        )

        if as_json or not console.is_terminal:
            disable_progress_bar()  # a log is no place for it
        refuse_existing(out)
        if not resume:
            refuse_interrupted(out)
        settings = load_settings().model
        settings = settings.model_copy(update={"device": device or settings.device})
        course = plan_course(base, data, out, settings, options, family=family, skips_bad=skip_bad)
        if resume:
            refuse_to_resume_another(out, course.job)
        if not as_json:
            _tell_plan(console, course, interrupted_step(out))
        with steps_shown(console, course.steps, is_quiet=as_json) as watch:
            card = run_course(course, out, save_every, watch)
        if as_json:
            typer.echo(json.dumps({**card, "out": str(out)}))
        else:
            _tell(console, out, card)


@contextmanager
def stops_told(console: Console, out: Path) -> Iterator[None]:
    """End the command with how to go on when somebody has ended the training."""
    try:
        yield
    except (TrainingStopped, KeyboardInterrupt) as stopped:
        from dbgpt_guanaco.training.resumption import interrupted_step

        step = interrupted_step(out)
        again = shlex.join([a for a in sys.argv[1:] if a != "--resume"])
        what = str(stopped) or f"ended at once; the state of step {step} is saved"
        lines = [f"{what}; go on with", f"  dbgpt-guanaco {again} --resume"]
        if step is None:
            lines = ["ended before a state was saved; nothing was left behind"]
        for line in lines:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _tell_plan(console: Console, course: "Course", done: int | None) -> None:
    from dbgpt_guanaco.adapters.family import OWN_TEMPLATE

    job = course.job
    base, data, how, family = (job[k] for k in ("base", "data", "hyperparameters", "family"))
    left_out = ", ".join(
        f"{data[key]} {what}"
        for key, what in (
            ("bad_lines", "bad lines left out"),
            ("cut", f"cut at {how['max_tokens']} tokens"),
            ("dropped", "too long and left out"),
            ("unfit", "answers that do not go on from their prompt left out"),
            ("strange", "left out because the base has no embedding for a token"),
            ("split", "taught one answer at a time"),
        )
        if data[key]
    )
    lines = {
        "base": f"{base['name']}, {base['parameters']:,} parameters, in "
        f"{job['quantization']} on {job['device']}; prompts by "
        + (f"the family {family}" if family != OWN_TEMPLATE else "its own chat template"),
        "data": f"{data['conversations']} conversations: {data['examples']} examples, "
        f"{data['tokens']:,} tokens, {data['learned_tokens']:,} of them learned"
        + (f"; {left_out}" if left_out else ""),
        "memory": f"about {course.memory.total_bytes / 2**30:.1f} GiB at its peak",
        "training": f"{course.steps} steps of {how['batch']} sequences; rank {how['rank']}, "
        f"learning rate {how['learning_rate']:g}, {how['optimizer']}"
        + (f"; goes on after step {done}" if done else ""),
    }
    for name, text in lines.items():
        console.print(f"{name:9}{text}", soft_wrap=True, markup=False, highlight=False)


def _tell(console: Console, out: Path, card: Mapping[str, Any]) -> None:
    metrics, checks = card["metrics"], card["checks"]
    for line in (
        f"{out}: loss {metrics['first_loss']:.3f} → {metrics['last_loss']:.3f} in "
        f"{metrics['steps']} steps and {metrics['seconds']:,.0f} s",
        f"read back: {checks['tensors']} tensors, logits differ by at most "
        f"{checks['logit_difference']:.2g}; serve it with",
        f"  LLM_MODEL={out} dbgpt-guanaco serve",
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
