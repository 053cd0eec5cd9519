"""Command line: how near decoding comes to what a GPU's memory allows, against transformers.

Run as ``python benchmarks/gpu.py --out FOLDER``; ``--tiny --device cpu`` tries it without a GPU.
Models are made of random weights, nothing is fetched.
"""

import gc
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.arguments import parse_streams
from benchmarks.gpu_checks import check_decode, check_prefill, compare_tokens
from benchmarks.gpu_decoders import (
    WARMUP,
    ContinuousBatching,
    Decoder,
    Generate,
    Ours,
    OursRecorded,
)
from benchmarks.gpu_engine import OursEngine
from benchmarks.gpu_models import SHAPES, TINY, Built, Shape, build
from benchmarks.gpu_report import GIB, Report, Row
from benchmarks.gpu_timing import measure_bandwidth
from benchmarks.load import BenchmarkError

DECODERS: dict[str, Any] = {
    "generate": Generate,
    "cb": ContinuousBatching,
    "eager": Ours,
    "graphs": OursRecorded,
    "engine": OursEngine,
}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in this order."""

    shapes: tuple[Shape, ...]
    decoders: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int


@app.command()
def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for JSON and Markdown.")],
    only: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Models: {', '.join(SHAPES)}.")
    ] = "7b,13b,33b",
    decoders: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(DECODERS)}.")
    ] = ",".join(DECODERS),
    batches: Annotated[str, typer.Option(metavar="N,N,…", help="Sequences at a time.")] = "1,8,32",
    contexts: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens before.")] = "512,2048",
    steps: Annotated[int, typer.Option(min=2, help="Steps that are timed.")] = 48,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A model of two small layers, to try this command.")
    ] = False,
    checks: Annotated[
        bool, typer.Option(help="Compare results with transformers and torch first.")
    ] = True,
) -> None:
    """Measure decode steps in one run; the results so far are written after each row.

    Exit code 0: done. 1: results differ from transformers' or torch's. 2: nothing was measured.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device; try --tiny --device cpu")
    try:
        plan = Plan(
            shapes=(TINY,) if tiny else tuple(SHAPES[name] for name in _names(only, SHAPES)),
            decoders=_names(decoders, DECODERS),
            batches=parse_streams(batches),
            contexts=parse_streams(contexts),
            steps=steps,
        )
    except BenchmarkError as error:
        raise typer.BadParameter(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    report = Report(torch.device(device), {"steps": steps, "warmup": WARMUP, "tiny": tiny})
    for told in measure(plan, report, has_checks=checks):
        report.save(out)
        print(told, flush=True)
    raise typer.Exit(code=0 if report.is_right else 1)


def measure(plan: Plan, report: Report, *, has_checks: bool) -> Iterator[str]:
    """Fill the report; a line after each result, the bandwidth first."""
    device = report.device
    report.bandwidth = measure_bandwidth(device)
    copy, read = report.bandwidth.copy / 1e12, report.bandwidth.read / 1e12
    yield f"memory: copy {copy:.3f} TB/s, read {read:.3f} TB/s"
    for number, shape in enumerate(plan.shapes):
        if has_checks and number == 0 and device.type == "cuda":
            yield from _check_kernels(plan, shape, report)
        built = build(shape, device)
        yield f"{shape.name}: built, {built.step_bytes / 1e9:.3f} GB of weights read by a step"
        if has_checks and number == 0:
            yield from _check_tokens(built, report)
        for context in plan.contexts:
            for batch in plan.batches:
                for name in plan.decoders:
                    row = _measure(built, DECODERS[name](built), batch, context, plan, report)
                    report.rows.append(row)
                    yield _told(row)
        del built
        _clean_up(device)


def _check_kernels(plan: Plan, shape: Shape, report: Report) -> Iterator[str]:
    for context in plan.contexts:
        for batch in plan.batches:
            report.kernels.append(check_decode(shape, batch, context, report.device))
            _clean_up(report.device)
            yield str(report.kernels[-1])
        report.kernels.append(check_prefill(shape, min(128, context), context, report.device))
        yield str(report.kernels[-1])


def _check_tokens(built: Built, report: Report) -> Iterator[str]:
    for ours in (Ours(built), OursRecorded(built)):
        report.agreements.append(compare_tokens(built, ours))
        yield str(report.agreements[-1])


def _measure(
    built: Built, decoder: Decoder, batch: int, context: int, plan: Plan, report: Report
) -> Row:
    device = report.device
    tokens = context + plan.steps + WARMUP + 1
    predicted = built.bytes_needed(batch, tokens)
    row = Row(built.shape.name, decoder.name, batch, context, predicted_gib=predicted / GIB)
    _clean_up(device)
    room = _room(device)
    if room is not None and predicted > room:
        return _with(row, note=f"does not fit: {room / GIB:.1f} GiB are there")
    try:
        seconds = decoder.step_seconds(batch, context, plan.steps)
    except torch.OutOfMemoryError:
        return _with(row, note="ran out of memory")
    except Exception as error:  # another library's failure must not end the run
        return _with(
            row, note=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    return _with(row, **_numbers(built, seconds, batch, context, report), **_memory(device))


def _numbers(
    built: Built, seconds: list[float], batch: int, context: int, report: Report
) -> dict[str, float]:
    median = statistics.median(seconds)
    tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else [median] * 9
    read = built.bytes_read(batch, context + WARMUP + len(seconds) / 2)
    limit = report.bandwidth.limit if report.bandwidth else float("nan")
    return {
        "steps": len(seconds),
        "step_ms": median * 1e3,
        "step_ms_p10": tenths[0] * 1e3,
        "step_ms_p90": tenths[-1] * 1e3,
        "tokens_per_s": batch / median,
        "bytes_per_step": read,
        "fraction": read / median / limit,
    }


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "device_gib": (total - free) / GIB,
    }


def _room(device: torch.device) -> int | None:
    """Return the bytes that this process may have; None where nobody knows."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def _clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _with(row: Row, **changes: float | str) -> Row:
    return replace(row, **changes)  # type: ignore[arg-type] # names are Row's own


def _told(row: Row) -> str:
    start = f"{row.model}, {row.decoder}, batch {row.batch}, context {row.context}: "
    if row.step_ms is None:
        return start + row.note
    speed = f"{row.tokens_per_s:.1f} tok/s, {row.fraction:.1%} of the limit"
    return f"{start}{row.step_ms:.3f} ms a step, {speed}"


def _names(word: str, known: dict[str, object] | dict[str, Shape]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in word.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchmarkError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    return names


if __name__ == "__main__":
    app()
