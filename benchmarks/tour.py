"""Visits servers in turn: one runs at a time, is started, warmed up, measured and ended."""

import asyncio
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Visit
from benchmarks.load import BenchmarkError, Load, ask, open_client, run_stage
from benchmarks.measures import Failure, Stage, summarize
from benchmarks.peers.programs import Program
from benchmarks.processes import Clock, Running, free_port, running
from benchmarks.prompts import Prompts

Maker = Callable[[int], Program]  # of a program, for a port
_LEAST_REQUESTS = 2


@dataclass(frozen=True, slots=True)
class Tour:
    """What is visited, and what every server has to bear.

    Attributes:
        makers: One for each server.
        load: Its ``requests_per_stream`` is set by ``requests``.
        requests: Requests of one stage, unless that leaves a client with less than two.
        prompts: What is asked.
        tell: Takes a line of progress.
    """

    makers: Sequence[Maker]
    load: Load
    requests: int
    prompts: Prompts
    tell: Callable[[str], None]

    def visits(self) -> Iterator[Visit]:
        """Visit all, round by round, each round beginning with another one."""
        with tempfile.TemporaryDirectory() as logs:
            for round_number in range(1, self.load.rounds + 1):
                first = (round_number - 1) % len(self.makers)
                for make in (*self.makers[first:], *self.makers[:first]):
                    yield self.visit(make(free_port()), round_number, Path(logs))

    def visit(self, program: Program, round_number: int, logs: Path) -> Visit:
        """Start, measure and end one server; that it does not start is a finding, too."""
        log_file = logs / f"{program.name}-{round_number}.log"
        try:
            with running(program, log_file, self.load.timeout_s) as server:
                return asyncio.run(self._measure(server, round_number))
        except BenchmarkError as error:
            self.tell(str(error))
            return Visit(program.name, round_number, problem=str(error))

    async def _measure(self, running: Running, round_number: int) -> Visit:
        server = running.program.server
        await self._greet(running, f"first/{round_number}")
        stages, other_cores, rss_bytes = [], [], 0
        for clients in self.load.streams:
            clock, load = Clock(running), self.load_of(clients)
            stages.append(await run_stage(server, load, self.prompts, clients, round_number))
            other_cores.append(clock.other_cores)
            rss_bytes = max(rss_bytes, running.rss_bytes)
            self.tell(_line(stages[-1], other_cores[-1]))
        return Visit(server.name, round_number, tuple(stages), tuple(other_cores), rss_bytes)

    async def _greet(self, running: Running, key: str) -> None:
        """Let a server answer once: some set themselves up only then."""
        async with open_client(self.load.timeout_s, connections=1) as client:
            prompt = self.prompts.make(0, key)
            outcome = await ask(client, running.program.server, self.load, prompt)
        if isinstance(outcome, Failure):
            raise running.error(f"does not answer ({outcome.kind}, {outcome.detail})")

    def load_of(self, clients: int) -> Load:
        """Return the load of one stage."""
        requests = max(_LEAST_REQUESTS, math.ceil(self.requests / clients))
        return dataclasses.replace(self.load, requests_per_stream=requests)


def _line(stage: Stage, other_cores: float) -> str:
    summary = summarize([stage])
    return (
        f"round {stage.round_number}, {stage.server}, clients {stage.streams}: "
        f"{summary.answered} answered, {summary.failed} failed, "
        f"{summary.output_tokens_per_s:.1f} tok/s in {stage.duration_s:.1f} s, "
        f"other programs used {other_cores:.2f} cores"
    )
