"""The losses of a training, as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dbgpt_guanaco.training.trainer import Step

TABLE = "loss.csv"
PICTURE = "loss.png"
# The line through the picture: a mean over this share of all steps.
SMOOTHED_SHARE = 0.05


def write_losses(steps: Sequence[Step], folder: Path) -> None:
    """Write ``loss.csv``, every number in full, and ``loss.png``."""
    with (folder / TABLE).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "loss", "gradient_norm", "learning_rate"])
        rows.writerows([s.number, s.loss, s.gradient_norm, s.learning_rate] for s in steps)
    _draw(steps).savefig(folder / PICTURE, dpi=120)


def _draw(steps: Sequence[Step]) -> Figure:
    numbers, losses = [s.number for s in steps], [s.loss for s in steps]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(numbers, losses, linewidth=0.8, alpha=0.5, label="each step")
    axes.plot(numbers, _smoothed(losses), linewidth=1.8, label="smoothed")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token of an answer")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return running means: each value with those shortly before it."""
    width = max(1, round(len(values) * SMOOTHED_SHARE))
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means
