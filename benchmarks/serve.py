"""Command line: measure a running OpenAI-compatible server, alone or against peers.

Run as ``python benchmarks/serve.py`` or ``python -m benchmarks.serve``.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.arguments import (
    Target,
    check_output,
    parse_streams,
    parse_targets,
    read_questions,
)
from benchmarks.load import BenchmarkError, Load, Server, find_model, run
from benchmarks.measures import Stage, summarize
from benchmarks.prompts import QUESTIONS, Prompts
from benchmarks.report import Report

_EXAMPLE = (
    "Example: python benchmarks/serve.py --url http://127.0.0.1:8000 "
    "--peer other=http://127.0.0.1:8080 --streams 1,4,8 --rounds 3 "
    "--json out.json --picture out.png"
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog=_EXAMPLE)
def serve(
    url: Annotated[str, typer.Option(help="Our server: scheme, host and port.")],
    model: Annotated[
        str | None, typer.Option(help="Model to ask; by default the only one the server lists.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL[,MODEL]", help="A server to compare with; may repeat."),
    ] = None,
    streams: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of concurrent clients, a stage each.")
    ] = "1,4,8",
    requests_per_stream: Annotated[
        int, typer.Option(min=1, help="Requests each client sends, one after the other.")
    ] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most output tokens of an answer.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=0, help="Words of filler before a question, about a token each.")
    ] = 0,
    shared_prefix: Annotated[
        bool, typer.Option("--shared-prefix", help="The same filler text for all requests.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Questions to ask, one a line, UTF-8."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides filler texts; by default new ones in every run.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    endpoint: Annotated[
        str, typer.Option(help="Path that ends in /chat/completions or /completions.")
    ] = "/v1/chat/completions",
    api_key: Annotated[
        str | None, typer.Option(help="Sent to --url only.", envvar="BENCHMARK_API_KEY")
    ] = None,
    peer_key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="Key of a peer, sent to it only; may repeat."),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests each client sends before a stage is measured.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each stage is repeated.")] = 1,
    timeout_s: Annotated[float, typer.Option(help="Longest time for one request, seconds.")] = 300,
    json_path: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write everything here.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write every single request to --json, too.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the results into this PNG.")
    ] = None,
    ignore_eos_check: Annotated[
        bool, typer.Option("--ignore-eos-check", help="Accept answers shorter than --max-tokens.")
    ] = False,
) -> None:
    """Measure tokens/s, TTFT, ITL, TPOT and E2E of a server, at the client.

    Exit code 0: all requests were answered. 1: some failed. 2: nothing was measured.
    """
    try:
        _refuse_idle("--raw", raw, "--json", json_path)
        _refuse_idle("--shared-prefix", shared_prefix, "--prompt-tokens", prompt_tokens)
        _refuse_idle("--seed", seed is not None, "--prompt-tokens", prompt_tokens)
        check_output("--json", json_path)
        check_output("--picture", picture, package="matplotlib")
        load = Load(
            streams=parse_streams(streams),
            requests_per_stream=requests_per_stream,
            warmup=warmup,
            rounds=rounds,
            max_tokens=max_tokens,
            temperature=temperature,
            endpoint=endpoint,
            timeout_s=timeout_s,
        )
        asked = Prompts(
            questions=read_questions(prompts) if prompts else QUESTIONS,
            prefix_words=prompt_tokens,
            is_prefix_shared=shared_prefix,
            # New texts in every run, or a server's prefix cache would know them from the last.
            seed=secrets.randbits(32) if seed is None else seed,
        )
        ours = Target("ours", url, model, api_key)
        targets = parse_targets(ours, peer or [], peer_key or [], endpoint)
        servers, stages = asyncio.run(measure(targets, load, asked, Console(stderr=True)))
    except BenchmarkError as error:
        raise typer.BadParameter(str(error)) from None
    report = Report(servers, load, stages, checks_length=not ignore_eos_check)
    report.print(Console())
    if json_path:
        document = report.as_json(_parameters_of(asked, prompts), has_raw=raw)
        json_path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", "utf-8")
    if picture:
        _draw(report, picture)
    raise typer.Exit(code=1 if report.has_failures else 0)


async def measure(
    targets: Sequence[Target], load: Load, prompts: Prompts, progress: Console
) -> tuple[list[Server], list[Stage]]:
    """Run the load against all targets, with a line on ``progress`` for each stage."""
    servers = [
        Server(t.name, t.url, t.model or await find_model(t.url, load, t.api_key), t.api_key)
        for t in targets
    ]

    def tell(stage: Stage) -> None:
        summary = summarize([stage])
        progress.print(
            f"{stage.server}, streams {stage.streams}, round {stage.round_number}: "
            f"{summary.answered} answered, {summary.failed} failed, "
            f"{summary.output_tokens_per_s:.1f} tok/s in {stage.duration_s:.1f} s",
            markup=False,
            highlight=False,
        )

    return servers, await run(servers, load, prompts, tell)


def _refuse_idle(option: str, is_given: object, needed: str, needed_value: object) -> None:
    if is_given and not needed_value:
        raise BenchmarkError(f"{option} has no effect without {needed}")


def _parameters_of(prompts: Prompts, path: Path | None) -> dict[str, object]:
    return {
        "prompts": "built-in" if path is None else path.name,
        "prompt_tokens": prompts.prefix_words,
        "shared_prefix": prompts.is_prefix_shared,
        "seed": prompts.seed,
    }


def _draw(report: Report, path: Path) -> None:
    # matplotlib is slow to import and needed for nothing else.
    from benchmarks.picture import save_picture

    save_picture(report.results, path)


if __name__ == "__main__":
    app()
