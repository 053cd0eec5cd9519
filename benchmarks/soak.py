"""Command line: a server among people with bad habits, for as long as you like.

::

    python -m benchmarks.soak --seconds 1200

Clients read, leave, read slowly, never read, send nonsense and break off; the controller is killed
and comes back. In the end every place and block is free, memory has not grown, and nobody saw a
failure.
"""

import asyncio
import contextlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.arguments import check_output
from benchmarks.behaviour_arithmetic import Finding, as_table
from benchmarks.facts import as_list, result_path, run_facts
from benchmarks.load import BenchmarkError
from benchmarks.peers.programs import OURS, Program, Site, find_model
from benchmarks.processes import Running, end_like_ctrl_c, free_port, running
from benchmarks.soak_arithmetic import Sample, judge
from benchmarks.soak_clients import Client, Log

ROOT = Path(__file__).resolve().parents[1]
_SLOTS, _QUEUE = 8, 2
KV_CACHE = "96MiB"
_SAMPLE_S = 1.0
# The controller lives and is dead for so long, in turn.
_CONTROLLER_S = (20.0, 7.0)
_CALM_S = 30.0

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Soak:
    """One run.

    Attributes:
        seconds: How long clients come.
        clients: At a time.
        model: Folder of the model.
        seed: Decides what clients do.
    """

    seconds: float
    clients: int
    model: str
    seed: int
    threads: int = 2

    def program(self, controller_port: int) -> Program:
        """Return our server, which reports to a controller and drops readers soon."""
        program = OURS["ours-nf4"](Site(self.model, _SLOTS, self.threads, free_port()))
        settings = {
            "GUANACO_QUEUE_SIZE": str(_QUEUE),
            # Memory of the cache is taken where it is written to first. A small one is written to
            # all over in the first seconds, so what grows later is something else.
            "GUANACO_KV_CACHE": KV_CACHE,
            "GUANACO_READER_TIMEOUT": "5",
            "GUANACO_HEADER_TIMEOUT": "5",
            "GUANACO_BODY_TIMEOUT": "5",
            "GUANACO_CONTROLLER": f"http://127.0.0.1:{controller_port}",
        }
        return replace(program, environment={**program.environment, **settings})


@app.command()
def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long clients come.")] = 120,
    clients: Annotated[int, typer.Option(min=1, help="At a time.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Markdown; by default results/<date>-soak-cpu.md."),
    ] = None,
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = Path(
        "models/smollm2-135m-instruct"
    ),
    seed: Annotated[int | None, typer.Option(help="Of an earlier run, to see it again.")] = None,
) -> None:
    """Soak this server and print what holds.

    Exit code 0: all claims hold. 1: one does not. 2: nothing was measured.
    """
    end_like_ctrl_c()
    try:
        out = out or result_path("soak-cpu")
        check_output("--out", out)
        chosen = secrets.randbits(32) if seed is None else seed
        soak = Soak(seconds, clients, find_model(model), chosen)
        samples, log = run(soak)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(code=2) from None
    findings = judge(samples, log.seen, log.wrong)
    text = report(soak, findings, log)
    out.write_text(f"# Soak\n\n{text}\n", "utf-8")
    print(text)
    raise typer.Exit(code=0 if all(finding.holds for finding in findings) else 1)


def run(soak: Soak) -> tuple[list[Sample], Log]:
    """Start a server and a controller, and let the clients in.

    Raises:
        BenchmarkError: The server did not start, or ended.
    """
    controller_port = free_port()
    with tempfile.TemporaryDirectory() as logs:
        program = soak.program(controller_port)
        with running(program, Path(logs) / "server.log", timeout_s=120) as server:
            return asyncio.run(_live(soak, server, controller_port))


async def _live(soak: Soak, server: Running, controller_port: int) -> tuple[list[Sample], Log]:
    port, log = server.program.port, Log()
    began_s = time.monotonic()
    until_s = began_s + soak.seconds
    lives = [
        Client(port, server.program.model, number, soak.seed, log).live(until_s)
        for number in range(soak.clients)
    ]
    async with httpx.AsyncClient(
        base_url=server.program.server.url, timeout=30, trust_env=False
    ) as asker:
        samples = [await _sample(asker, began_s)]
        crowd = asyncio.ensure_future(asyncio.gather(*lives))
        controller = asyncio.create_task(_live_and_die(controller_port))
        try:
            while not crowd.done():
                samples.append(await _sample(asker, began_s))
                await asyncio.sleep(_SAMPLE_S)
            await crowd
        except httpx.HTTPError as error:
            raise server.error(f"did not answer: {error!r}") from None
        finally:
            crowd.cancel()
            controller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await controller
        samples.append(await _calm(asker, began_s))
    return samples, log


async def _calm(asker: httpx.AsyncClient, began_s: float) -> Sample:
    """Wait until nobody runs or waits, or the patience is at its end."""
    deadline_s = time.monotonic() + _CALM_S
    while True:
        sample = await _sample(asker, began_s)
        if sample.is_empty or time.monotonic() > deadline_s:
            return sample
        await asyncio.sleep(_SAMPLE_S / 4)


async def _live_and_die(port: int) -> None:
    """Keep a controller, kill it, start it again."""
    alive_s, dead_s = _CONTROLLER_S
    while True:
        with _controller(port):
            await asyncio.sleep(alive_s)
        await asyncio.sleep(dead_s)


@contextlib.contextmanager
def _controller(port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.stand_in_controller", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _sample(asker: httpx.AsyncClient, began_s: float) -> Sample:
    asked_s = time.monotonic()
    health = (await asker.get("/health")).json()
    took_s = time.monotonic() - asked_s
    text = (await asker.get("/metrics")).text
    values = {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = "guanaco_request_cancel_time_seconds_bucket"
    return Sample(
        at_s=asked_s - began_s,
        health_s=took_s,
        running=health["running"],
        waiting=health["waiting"],
        blocks_held=health["kv_blocks"] - health["kv_blocks_free"],
        rss_bytes=int(values["process_resident_memory_bytes", ""]),
        open_files=int(values["process_open_fds", ""]),
        departures={le: int(count) for (n, le), count in values.items() if n == name},
    )


def report(soak: Soak, findings: list[Finding], log: Log) -> str:
    """Write the findings, and what the clients did."""
    facts = run_facts() | {
        "server": f"ours-nf4, {_SLOTS} places, {_QUEUE} may wait, {KV_CACHE} of keys and values, "
        f"{soak.threads} threads",
        "clients": f"{soak.clients} at a time for {soak.seconds:g} s",
        "controller": "lives {:g} s, is killed and away for {:g} s".format(*_CONTROLLER_S),
        "seed": soak.seed,
    }
    seen = [f"| {what} | {count:,} |" for what, count in log.seen.most_common()]
    wrong = [f"| **{what}** | {count:,} |" for what, count in log.wrong.most_common()]
    table = ["| what clients did or saw | how often |", "|---|---:|", *seen, *wrong]
    return "\n".join([*as_list(facts), "", *as_table(findings), "", *table])


if __name__ == "__main__":
    app()
