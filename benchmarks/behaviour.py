"""Command line: what this server does under strain, measured over HTTP.

::

    python -m benchmarks.behaviour

Four questions: do running streams go on while a long prompt comes in; is a prefix that was there
computed again; does ``/health`` answer while prompts of 5 MB are refused; is everybody told
something when many more come than there are places?
"""

import asyncio
import dataclasses
import secrets
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.arguments import check_output
from benchmarks.behaviour_arithmetic import (
    Finding,
    as_table,
    judge_arrivals,
    judge_crowd,
    judge_health,
    judge_prefix,
)
from benchmarks.comparison import last_words
from benchmarks.facts import as_list, result_path, run_facts
from benchmarks.load import BenchmarkError, Load
from benchmarks.peers.programs import OURS, Program, Site, find_model
from benchmarks.processes import Running, end_like_ctrl_c, free_port, running
from benchmarks.strain import (
    LONG_PROMPT_WORDS,
    PREFIX_WORDS,
    STREAMS,
    arrival,
    crowd,
    neighbours_of_refusals,
    repeated_prefix,
)

# Places for the streams and for who comes.
_SLOTS = 2 * STREAMS
_STREAM_TOKENS = 320
_CROWD_TOKENS = 32
_HEALTH_QUESTIONS = 150

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """How often and with how many the questions are asked."""

    server: str
    model: str
    threads: int
    repeats: int
    clients: int
    places: int
    waves: int
    seed: int
    timeout_s: float

    def __post_init__(self) -> None:
        if self.server not in OURS:
            raise BenchmarkError(f"--server must be one of {', '.join(OURS)}, got {self.server!r}")

    def program(self, slots: int, **settings: str) -> Program:
        """Return our server with so many slots, and further settings."""
        site = Site(self.model, slots, self.threads, free_port())
        program = OURS[self.server](site)
        return dataclasses.replace(program, environment={**program.environment, **settings})


@app.command()
def main(
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Markdown; by default results/<date>-behaviour-cpu.md."),
    ] = None,
    server: Annotated[str, typer.Option(help="ours-nf4, ours-int8 or ours-none.")] = "ours-nf4",
    repeats: Annotated[int, typer.Option(min=1, help="Of the first two questions.")] = 5,
    clients: Annotated[int, typer.Option(min=1, help="That come at the same time.")] = 200,
    places: Annotated[int, typer.Option(min=1, help="For them; nobody may wait.")] = 8,
    waves: Annotated[int, typer.Option(min=2, help="How often they come.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads that the server gets.")] = 2,
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = Path(
        "models/smollm2-135m-instruct"
    ),
    timeout_s: Annotated[
        float, typer.Option(help="Longest time to start or to answer; longer is a failure.")
    ] = 120,
) -> None:
    """Put this server under strain and print what holds.

    Exit code 0: all claims hold. 1: one does not. 2: nothing was measured.
    """
    end_like_ctrl_c()
    seed = secrets.randbits(32)
    try:
        out = out or result_path("behaviour-cpu")
        check_output("--out", out)
        folder = find_model(model)
        trial = Trial(server, folder, threads, repeats, clients, places, waves, seed, timeout_s)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(code=2) from None
    print("three questions to one server …", file=sys.stderr, flush=True)
    findings = with_server(trial, trial.program(_SLOTS), streams_and_prefixes)
    print(f"{clients} clients …", file=sys.stderr, flush=True)
    # A small cache is written to all over by the first wave, and does not grow later.
    crowded = trial.program(places, GUANACO_QUEUE_SIZE="0", GUANACO_KV_CACHE="48MiB")
    findings += with_server(trial, crowded, many_clients)
    text = "\n".join([*header(trial), "", *as_table(findings)])
    out.write_text(f"# Behaviour under strain\n\n{text}\n", "utf-8")
    print(text)
    raise typer.Exit(code=0 if all(finding.holds for finding in findings) else 1)


Questions = Callable[[Trial, Running], Coroutine[Any, Any, list[Finding]]]


def with_server(trial: Trial, program: Program, ask: Questions) -> list[Finding]:
    """Start a server, ask, end it. What goes wrong is a finding, too."""
    with tempfile.TemporaryDirectory() as logs:
        try:
            with running(program, Path(logs) / "server.log", trial.timeout_s) as server:
                return asyncio.run(ask(trial, server))
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return [
                Finding("the server can be measured", last_words(str(error)), "yes", holds=False)
            ]


async def streams_and_prefixes(trial: Trial, running: Running) -> list[Finding]:
    """Ask the first three questions.

    Raises:
        BenchmarkError: A request failed.
    """
    server = running.program.server
    load = Load(max_tokens=_STREAM_TOKENS, timeout_s=trial.timeout_s)
    turns = range(trial.repeats + 1)
    # The first of each warms the server up.
    pairs = [await repeated_prefix(server, load, trial.seed, turn) for turn in turns][1:]
    arrivals = [await arrival(server, load, trial.seed, turn) for turn in turns][1:]
    neighbours = await neighbours_of_refusals(server, load, trial.seed, _HEALTH_QUESTIONS)
    return [*judge_arrivals(arrivals), judge_prefix(pairs), judge_health(neighbours)]


async def many_clients(trial: Trial, running: Running) -> list[Finding]:
    """Ask the fourth question, and whether the server answers afterwards.

    Raises:
        BenchmarkError: It does not answer afterwards.
    """
    server, seed = running.program.server, trial.seed
    load = Load(max_tokens=_CROWD_TOKENS, timeout_s=trial.timeout_s)
    waves = await crowd(server, load, trial.clients, trial.waves, seed, lambda: running.rss_bytes)
    await repeated_prefix(server, load, seed, 0)
    return judge_crowd(waves)


def header(trial: Trial) -> list[str]:
    """Write what the numbers depend on."""
    told = trial.program(_SLOTS)
    return as_list(
        run_facts()
        | {
            "server": f"{trial.server}, {told.weights}, {trial.threads} threads",
            "a long prompt": f"{LONG_PROMPT_WORDS} words while {STREAMS} streams of "
            f"{_STREAM_TOKENS} tokens run, {trial.repeats} times",
            "a prefix": f"{PREFIX_WORDS} words, a new one each time, {trial.repeats} times",
            "a crowd": f"{trial.clients} clients, {trial.places} places, no queue, "
            f"{_CROWD_TOKENS} tokens, {trial.waves} waves",
            "seed": trial.seed,
        }
    )


if __name__ == "__main__":
    app()
