"""How far a long command is: rate and time left, on a terminal only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from dbgpt_guanaco.training.trainer import Step

# Where a bar cannot be drawn, a line is printed at most so often.
LINE_EVERY_S = 10


@contextmanager
def bytes_shown(
    console: Console, what: str, total_bytes: int, *, is_quiet: bool
) -> Iterator[Callable[[int], None]]:
    """Yield what is to be told of bytes that were done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    is_shown = console.is_terminal and not is_quiet
    with Progress(*columns, console=console, disable=not is_shown) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda done_bytes: progress.advance(task, done_bytes)


@contextmanager
def steps_shown(
    console: Console, total: int, *, is_quiet: bool
) -> Iterator[Callable[["Step"], None]]:
    """Yield what is to be told of steps that were made: a bar, or lines where nobody looks."""
    if is_quiet:
        yield lambda _: None
    elif not console.is_terminal:
        yield _StepLines(console)
    else:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            _StepTime(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield _StepBar(progress, total)


class _StepBar:
    """Moves a bar; it begins where an interrupted training ended, so that its pace is right."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._is_new = progress, True
        self._task = progress.add_task("", total=total, loss="–")

    def __call__(self, step: "Step") -> None:
        loss = f"{step.loss:.4f}"
        if self._is_new:
            self._progress.reset(self._task, total=step.total, completed=step.number, loss=loss)
        else:
            self._progress.update(self._task, completed=step.number, loss=loss)
        self._is_new = False


class _StepTime(ProgressColumn):
    """Seconds of a step."""

    def render(self, task: Task) -> Text:
        """Write the mean of the last steps."""
        speed = task.finished_speed or task.speed
        return Text(f"{1 / speed:.2f} s a step" if speed else "", style="progress.data.speed")


class _StepLines:
    """Prints a line for the first and the last step, and between them when time has passed."""

    def __init__(self, console: Console) -> None:
        self._console, self._first = console, 0
        self._begin = self._printed = time.monotonic()

    def __call__(self, step: "Step") -> None:
        now = time.monotonic()
        is_first = not self._first
        if is_first:
            self._begin, self._first = now, step.number
        elif step.number < step.total and now - self._printed < LINE_EVERY_S:
            return
        self._printed = now
        self._console.print(
            f"step {step.number} of {step.total}, loss {step.loss:.4f}{self._pace(step, now)}",
            soft_wrap=True,
            highlight=False,
        )

    def _pace(self, step: "Step", now: float) -> str:
        done = step.number - self._first
        if not done:
            return ""
        each_s = (now - self._begin) / done
        left = timedelta(seconds=round(each_s * (step.total - step.number)))
        return f", {each_s:.2f} s a step, {left} left"
