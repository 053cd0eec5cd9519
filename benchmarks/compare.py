"""Command line: start this server and its peers in turn on one machine, and measure each.

::

    python -m benchmarks.peers.install
    python -m benchmarks.compare

One server runs at a time: started, warmed up, measured with each number of clients, ended. A
round does so with every server, so that noise of the machine hits all alike.
"""

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.arguments import check_output, parse_streams
from benchmarks.comparison import Visit
from benchmarks.comparison_report import Findings
from benchmarks.facts import result_path, run_facts
from benchmarks.load import BenchmarkError, Load
from benchmarks.peers.programs import Program, Site, find_model, find_program
from benchmarks.processes import end_like_ctrl_c
from benchmarks.prompts import Prompts
from benchmarks.tour import Maker, Tour

# Stands for a port in the report: each start takes a free one.
_TOLD_PORT = 8000

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Markdown; by default results/<date>-peers-cpu.md."),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="All numbers, for programs.")
    ] = None,
    ours: Annotated[
        str, typer.Option(metavar="NAME,…", help="Ours: ours-nf4, ours-int8, ours-none.")
    ] = "ours-nf4,ours-none",
    peers: Annotated[
        str, typer.Option(metavar="NAME,…", help="What ours are divided by; may be empty.")
    ] = "ours-streaming,transformers,vllm,llama.cpp,llama.cpp-native",
    clients: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of concurrent clients, a stage each.")
    ] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="How often each server is measured.")] = 5,
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of a stage; each client sends 2 at least.")
    ] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Output tokens of an answer.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=0, help="Words of filler before each question, never the same.")
    ] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads that each server gets.")] = 2,
    model: Annotated[Path, typer.Option(help="The model, for all but llama.cpp.")] = Path(
        "models/smollm2-135m-instruct"
    ),
    timeout_s: Annotated[float, typer.Option(help="Longest time to start, or to answer.")] = 300,
) -> None:
    """Measure tokens/s of this server and of its peers, and divide.

    Exit code 0: all requests were answered. 1: a request failed or a server did not start.
    2: nothing was measured.
    """
    end_like_ctrl_c()
    try:
        load = Load(
            streams=parse_streams(clients),
            rounds=rounds,
            max_tokens=max_tokens,
            timeout_s=timeout_s,
        )
        # New texts in every run; in every round others, so no server remembers them.
        prompts = Prompts(prefix_words=prompt_tokens, seed=secrets.randbits(32))
        site = partial(Site, find_model(model), max(load.streams), threads)
        makers = describe(_names(ours), _names(peers), site)
        out = out or result_path("peers-cpu")
        check_output("--out", out)
        check_output("--json", json_path)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(code=2) from None
    programs = tuple(make(_TOLD_PORT) for make in makers)
    tour = Tour(makers, load, requests, prompts, partial(print, file=sys.stderr, flush=True))
    facts, visits = facts_of(tour, threads), list[Visit]()
    for visit in tour.visits():
        visits.append(visit)
        reached = {"round": f"{visit.round_number} of {rounds}"}
        findings = Findings(programs, tuple(_names(ours)), load, tuple(visits), facts | reached)
        # After each visit: a run that is cut off has not been in vain.
        write(findings, out, json_path)
    print(findings.as_markdown())
    raise typer.Exit(code=1 if findings.has_failures else 0)


def describe(ours: Sequence[str], peers: Sequence[str], site: Callable[[int], Site]) -> list[Maker]:
    """Return what makes the programs, ours first.

    Raises:
        BenchmarkError: A name is unknown or twice there, or a peer is not installed.
    """
    names = [*ours, *peers]
    if not ours or len(set(names)) != len(names):
        raise BenchmarkError("--ours must name a server, and no server may be named twice")
    return [_maker(find_program(name), site) for name in names]


def _maker(make: Callable[[Site], Program], site: Callable[[int], Site]) -> Maker:
    return lambda port: make(site(port))


def write(findings: Findings, out: Path, json_path: Path | None) -> None:
    """Write what was found so far."""
    date = findings.facts["date"]
    out.write_text(f"# Peers on a CPU, {date}\n\n{findings.as_markdown()}", "utf-8")
    if json_path:
        text = json.dumps(findings.as_json(), indent=2, allow_nan=False)
        json_path.write_text(f"{text}\n", "utf-8")


def facts_of(tour: Tour, threads: int) -> dict[str, object]:
    """Return what the numbers depend on: machine, versions, parameters."""
    load, prompts = tour.load, tour.prompts
    each = (f"{tour.load_of(n).requests_per_stream} of each of {n}" for n in load.streams)
    return run_facts() | {
        "threads of each server": threads,
        "requests, by clients": f"{', '.join(each)}; before them {load.warmup} to warm up",
        "answers": f"{load.max_tokens} tokens, temperature {load.temperature:g}",
        "prompts": f"{prompts.prefix_words} words of filler and a question, seed {prompts.seed}",
    }


def _names(word: str) -> list[str]:
    return [name.strip() for name in word.split(",") if name.strip()]


if __name__ == "__main__":
    app()
