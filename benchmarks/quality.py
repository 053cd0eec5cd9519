"""Command line: what storing a model in fewer bits does to its answers.

Perplexity over texts that ship with this repository, and how often the most likely next token is
that of the same model in bfloat16.

    python benchmarks/quality.py
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoTokenizer
from transformers.utils import logging

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.facts import result_path, run_facts
from benchmarks.quality_report import HEAD, Report, Row, line_of
from benchmarks.quality_scores import Scores, measure, score
from benchmarks.quality_ways import STORAGES, WAYS, Way, sizes_of

TEXTS = Path(__file__).parent / "texts"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[
        Path, typer.Option(file_okay=False, exists=True, help="Folder of a model in 16 bits.")
    ] = Path("models/smollm2-135m-instruct"),
    texts: Annotated[
        Path, typer.Option(file_okay=False, exists=True, help="Folder of texts, *.txt.")
    ] = TEXTS,
    window: Annotated[int, typer.Option(min=2, help="Tokens of a pass.")] = 1024,
    stride: Annotated[int, typer.Option(min=1, help="Tokens between passes.")] = 512,
    only: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Storages: {', '.join(STORAGES)}.")
    ] = ",".join(STORAGES),
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Markdown; JSON and PNG go beside it.")
    ] = None,
) -> None:
    """Measure each way to store and to compute; all that is there is written after each.

    Exit code 0: done. 2: nothing was measured.
    """
    wanted = {name.strip() for name in only.split(",")}
    if unknown := sorted(wanted - STORAGES.keys()):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known are {', '.join(STORAGES)}")
    if stride >= window:
        raise typer.BadParameter(f"the stride, {stride}, is not below the window, {window}")
    logging.disable_progress_bar()
    tokenized = tokenize(model, texts)
    chosen = [way for n, way in enumerate(WAYS) if n == 0 or way.storage in wanted]
    report = Report(
        rows=(),
        texts=[(name, len(ids) - 1) for name, ids in tokenized],
        parameters={"model": model.name, "window": window, "stride": stride},
        facts=run_facts(),
    )
    path = out or result_path("quality-cpu")
    print(HEAD, flush=True)
    for row in run(model, [ids for _, ids in tokenized], chosen, window, stride):
        report = replace(report, rows=[*report.rows, row])
        report.save(path)
        print(line_of(row), flush=True)
    print(path)


def tokenize(model: Path, folder: Path) -> list[tuple[str, torch.Tensor]]:
    """Return name and ids of each text, without tokens that stand in no text."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise typer.BadParameter(f"{folder} holds no *.txt")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(ids) < 2:
            raise typer.BadParameter(f"{path} has {len(ids)} tokens; at least 2 are needed")
        found.append((path.stem, torch.tensor(ids)))
    return found


def run(
    folder: Path, texts: Sequence[torch.Tensor], ways: Sequence[Way], window: int, stride: int
) -> Iterator[Row]:
    """Measure all ways, the reference first; one model is in memory at a time."""
    sizes = sizes_of(folder)
    reference: Scores | None = None
    for way in ways:
        row = Row(way, sizes.bits_a_weight(way.storage), sizes.model_bytes(way.storage))
        if reason := way.why_not():
            yield replace(row, note=reason)
            continue
        scores = score(way.open(folder, window), texts, window, stride, reference=reference)
        reference = reference or scores
        yield replace(row, measured=measure(scores, reference))
        gc.collect()


if __name__ == "__main__":
    app()
