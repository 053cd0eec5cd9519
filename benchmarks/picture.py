"""Results → one PNG: throughput, TTFT and ITL by number of streams."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.measures import Spread, Summary
from benchmarks.report import Result

# Colours of Okabe and Ito: told apart also without red or green.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_GROUP_WIDTH = 0.8
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}


def save_picture(results: Sequence[Result], path: Path) -> None:
    """Draw all results into ``path``. A server without a value leaves a gap."""
    figure = Figure(figsize=(13, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    throughput, ttft, itl = figure.subplots(1, 3)
    _draw_bars(throughput, results, lambda s: s.output_tokens_per_s if s.answered else None)
    throughput.set_title("Output tokens/s, all streams (higher is better)")
    for axes, name, spread_of in (
        (ttft, "TTFT", lambda s: s.ttft_s),
        (itl, "ITL", lambda s: s.itl_s),
    ):
        _draw_spreads(axes, results, spread_of)
        axes.set_title(f"{name} in ms: bar p50, mark p99 (lower is better)")
    _draw_legend(figure, throughput)
    figure.savefig(path, format="png")


def _draw_bars(
    axes: Axes, results: Sequence[Result], value_of: Callable[[Summary], float | None]
) -> None:
    """Draw one bar for each result, grouped by number of streams."""
    streams = list(dict.fromkeys(result.streams for result in results))
    servers = list(dict.fromkeys(result.server for result in results))
    for result in results:
        value = value_of(result.summary)
        place = servers.index(result.server)
        bars = axes.bar(
            _place_of(result, streams, servers),
            value or 0.0,
            width=_GROUP_WIDTH / len(servers),
            color=_COLOURS[place % len(_COLOURS)],
            label=result.server if result.streams == streams[0] else "_",
            zorder=2,
        )
        text = "no data" if value is None else _short(value)
        # In the middle and on white: above the bar it would collide with the p99 mark.
        axes.bar_label(bars, [text], label_type="center", fontsize=7, zorder=4, bbox=_LABEL_BOX)
    axes.set_xticks(range(len(streams)), [str(number) for number in streams])
    axes.set_xlabel("concurrent streams")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)


def _draw_spreads(
    axes: Axes, results: Sequence[Result], spread_of: Callable[[Summary], Spread | None]
) -> None:
    """Draw p50 as bars and p99 as a mark on a thin line above each, in milliseconds."""
    streams = list(dict.fromkeys(result.streams for result in results))
    servers = list(dict.fromkeys(result.server for result in results))

    def p50_ms(summary: Summary) -> float | None:
        spread = spread_of(summary)
        return 1000 * spread.p50 if spread else None

    for result in results:
        if spread := spread_of(result.summary):
            place = _place_of(result, streams, servers)
            p50, p99 = 1000 * spread.p50, 1000 * spread.p99
            axes.vlines(place, p50, p99, color="#444444", linewidth=1, zorder=3)
            axes.plot(place, p99, marker="_", markersize=11, color="#444444", zorder=3)
    _draw_bars(axes, results, p50_ms)


def _place_of(result: Result, streams: list[int], servers: list[str]) -> float:
    """Return the x of a bar: groups stand at 0, 1, 2 …, servers side by side around them."""
    width = _GROUP_WIDTH / len(servers)
    offset = (servers.index(result.server) - (len(servers) - 1) / 2) * width
    return streams.index(result.streams) + offset


def _draw_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
