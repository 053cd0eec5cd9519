"""What storing weights in fewer bits costs → Markdown for people, JSON for programs, a picture."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.facts import as_list
from benchmarks.quality_scores import Measured
from benchmarks.quality_ways import (
    BITSANDBYTES,
    COMPILED,
    FLOAT32,
    RESTORED,
    TORCH,
    Way,
)

MIB = 2**20
# Colours of Okabe and Ito, as in picture.py.
_COLOURS = {
    FLOAT32: "#999999",
    TORCH: "#0072B2",
    BITSANDBYTES: "#E69F00",
    RESTORED: "#009E73",
    COMPILED: "#CC79A7",
}
HEAD = (
    "| weights | arithmetic | bits a weight | MiB | perplexity | change of the loss | "
    "agreement | KL |"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to store and to compute.

    Attributes:
        bits: Of a weight in the linear layers.
        model_bytes: Of all weights.
        measured: None where it was not.
        note: Why not.
    """

    way: Way
    bits: float
    model_bytes: float
    measured: Measured | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A run so far.

    Attributes:
        texts: Name and scored tokens of each text.
        parameters: What was asked for.
        facts: When, where, with what.
    """

    rows: Sequence[Row]
    texts: Sequence[tuple[str, int]]
    parameters: dict[str, object]
    facts: dict[str, object]

    def save(self, path: Path) -> None:
        """Write ``path`` and beside it the JSON and the picture of the same name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = path.with_suffix(".png")
        path.write_text(self.as_markdown(picture.name), encoding="utf-8")
        path.with_suffix(".json").write_text(self.as_json(), encoding="utf-8")
        save_picture(self.rows, picture)

    def as_json(self) -> str:
        """Return all numbers."""
        content = {
            "schema_version": 1,
            **self.facts,
            "parameters": self.parameters,
            "texts": dict(self.texts),
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(content, indent=2) + "\n"

    def as_markdown(self, picture: str) -> str:
        """Return everything as text and tables."""
        asked = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        texts = ", ".join(f"{name} {tokens}" for name, tokens in self.texts)
        return "\n".join(
            [
                "# What fewer bits a weight cost",
                "",
                *as_list(self.facts),
                f"- asked for: {asked}",
                f"- scored tokens: {texts}",
                "",
                f"![perplexity, agreement and bits]({picture})",
                "",
                *_explained(),
                "",
                *self._table(),
                "",
                "Perplexity of each text:",
                "",
                *self._by_text(),
                "",
            ]
        )

    def _table(self) -> list[str]:
        return [HEAD, "|---|---|" + "---:|" * 6, *map(line_of, self.rows)]

    def _by_text(self) -> list[str]:
        names = [name for name, _ in self.texts]
        lines = [
            f"| weights | arithmetic | {' | '.join(names)} |",
            "|---|---|" + "---:|" * len(names),
        ]
        for row in self.rows:
            if row.measured:
                own = " | ".join(f"{value:.2f}" for value in row.measured.perplexities)
                lines.append(f"| {row.way.storage} | {row.way.arithmetic} | {own} |")
        return lines


def _explained() -> list[str]:
    return [
        f"`{TORCH}` with bf16 weights is the reference. `{BITSANDBYTES}` multiplies with codes as",
        "they are, in its kernels for this CPU, which round scales and sums their own way (4 bits:",
        f"scales to bfloat16); `{RESTORED}` turns codes back into bfloat16 weights once, so that",
        f"only the storage differs; `{COMPILED}` is what answers requests on this CPU. Bits are",
        "those of the linear layers with their constants (blocks of 64), MiB those of the whole",
        "model with its embeddings in 16 bits. The change of the loss, nats a token, has twice its",
        "standard error behind it; agreement is how often the most likely next token is the",
        "reference's, KL is from the reference, nats a token.",
    ]


def line_of(row: Row) -> str:
    """Return a row of the table."""
    start = [row.way.storage, row.way.arithmetic, f"{row.bits:.3f}", f"{row.model_bytes / MIB:.0f}"]
    if row.measured is None:
        return "| " + " | ".join([*start, row.note, "", "", ""]) + " |"
    m = row.measured
    change = f"{m.loss_change:+.4f} ± {m.loss_change_error:.4f}"
    told = [f"{m.perplexity:.2f}", change, f"{m.agreement:.1%}", f"{m.kl:.4f}"]
    return "| " + " | ".join([*start, *told]) + " |"


def save_picture(rows: Sequence[Row], path: Path) -> None:
    """Draw perplexity, agreement and bits of all rows that have numbers, the first one on top."""
    shown = [row for row in rows if row.measured]
    figure = Figure(figsize=(13, 1.6 + 0.36 * len(shown)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    perplexity, agreement, bits = figure.subplots(1, 3, sharey=True)
    _draw(perplexity, shown, lambda row: row.measured.perplexity if row.measured else 0, "{:.2f}")
    perplexity.set_title("Perplexity (lower is better)")
    _draw(
        agreement, shown, lambda row: 100 * row.measured.agreement if row.measured else 0, "{:.1f}"
    )
    agreement.set_title("Greedy agreement with bf16, % (higher is better)")
    _draw(bits, shown, lambda row: row.bits, "{:.3g}")
    bits.set_title("Bits a weight, linear layers")
    perplexity.set_yticks(range(len(shown)), [row.way.storage for row in shown])
    perplexity.invert_yaxis()
    handles, labels = perplexity.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, format="png")


def _draw(axes: Axes, rows: Sequence[Row], value_of: Callable[[Row], float], form: str) -> None:
    """Draw a bar for each row, coloured by its arithmetic, its value at the end."""
    seen: set[str] = set()
    for place, row in enumerate(rows):
        arithmetic = row.way.arithmetic
        bar = axes.barh(
            place,
            value_of(row),
            height=0.7,
            color=_COLOURS[arithmetic],
            label="_" if arithmetic in seen else arithmetic,
            zorder=2,
        )
        seen.add(arithmetic)
        axes.bar_label(bar, [form.format(value_of(row))], padding=3, fontsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
