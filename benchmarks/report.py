"""Stages → what people and programs read: tables on a terminal, one JSON document."""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.load import Load, Server
from benchmarks.measures import (
    Answer,
    Failure,
    Outcome,
    Ratios,
    Spread,
    Stage,
    Summary,
    compare,
    summarize,
)

SCHEMA_VERSION = 1
_MEASURES = (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("TPOT", "tpot_s"), ("E2E", "e2e_s"))
_TEXT_COLUMNS = {"server", "peer", "measure"}


@dataclass(frozen=True, slots=True)
class Result:
    """One server under one number of streams, all rounds together."""

    server: str
    streams: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our server against one peer under one number of streams.

    Attributes:
        ratios: Of all rounds pooled.
        rounds: Of each round alone, to show how far noise carries.
    """

    peer: str
    streams: int
    ratios: Ratios
    rounds: tuple[Ratios, ...]


class Report:
    """The results of one run. The first server is ours, all others are peers.

    With ``checks_length`` the notes name answers that ended before ``max_tokens``.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        load: Load,
        stages: Sequence[Stage],
        *,
        checks_length: bool = True,
    ) -> None:
        self.servers, self.load, self.stages = tuple(servers), load, tuple(stages)
        self._checks_length = checks_length
        self.results = [
            Result(server.name, streams, self._summarize(server.name, streams))
            for streams in load.streams
            for server in servers
        ]

    def _summarize(self, server: str, streams: int, round_number: int | None = None) -> Summary:
        return summarize(
            stage
            for stage in self.stages
            if (stage.server, stage.streams) == (server, streams)
            and round_number in (None, stage.round_number)
        )

    @property
    def has_failures(self) -> bool:
        """Whether any request failed, warm-up included."""
        return any(self.failures())

    def failures(self) -> Iterable[tuple[str, Failure]]:
        """Yield every failure with the name of its server."""
        for stage in self.stages:
            for outcome in (*stage.warmup_failures, *stage.outcomes):
                if isinstance(outcome, Failure):
                    yield stage.server, outcome

    def comparisons(self) -> list[Comparison]:
        """Return ours against every peer, in the order of the table."""
        ours, *peers = (server.name for server in self.servers)
        rounds = range(1, self.load.rounds + 1)
        return [
            Comparison(
                peer,
                streams,
                compare(self._summarize(ours, streams), self._summarize(peer, streams)),
                tuple(
                    compare(self._summarize(ours, streams, n), self._summarize(peer, streams, n))
                    for n in rounds
                ),
            )
            for streams in self.load.streams
            for peer in peers
        ]

    def notes(self) -> list[str]:
        """Return what a reader must know before trusting the numbers."""
        notes = []
        for server in self.servers:
            answers = [o for o in self._outcomes(server.name) if isinstance(o, Answer)]
            by_chunks = sum(answer.token_source == "chunks" for answer in answers)
            if by_chunks:
                notes.append(
                    f"{server.name}: {by_chunks} of {len(answers)} answers came without usage; "
                    "their tokens are counted as content chunks"
                )
            short = sum(answer.output_tokens < self.load.max_tokens for answer in answers)
            if self._checks_length and short:
                notes.append(
                    f"{server.name}: {short} of {len(answers)} answers ended before "
                    f"{self.load.max_tokens} tokens, so servers may have done unlike work"
                )
            resent = sum(answer.was_resent for answer in answers)
            if resent:
                notes.append(
                    f"{server.name}: {resent} of {len(answers)} requests were sent twice, because "
                    "it had closed a connection that was kept"
                )
        first = {(server, failure.kind): failure.detail for server, failure in self.failures()}
        notes += [f"{name}: {kind}, e.g. {detail}" for (name, kind), detail in first.items()]
        return notes

    def _outcomes(self, server: str) -> list[Outcome]:
        return [o for stage in self.stages if stage.server == server for o in stage.outcomes]

    def as_json(self, parameters: dict[str, object], *, has_raw: bool) -> dict[str, object]:
        """Return the whole run as plain values, times in seconds, keys of servers left out.

        Args:
            parameters: How the run was asked for, beyond the load itself.
            has_raw: Whether to write the numbers of every single request.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": asdict(self.load) | parameters,
            "servers": [{"name": s.name, "url": s.url, "model": s.model} for s in self.servers],
            "client": client_facts(),
            "results": [asdict(result) for result in self.results],
            "ratios": [asdict(comparison) for comparison in self.comparisons()],
            "stages": [_stage_as_json(stage, has_raw=has_raw) for stage in self.stages],
            "notes": self.notes(),
        }

    def print(self, console: Console) -> None:
        """Write the tables and the notes."""
        console.print(self._throughput_table())
        console.print(self._latency_table())
        if len(self.servers) > 1:
            console.print(self._ratio_table())
        for note in self.notes():
            console.print(f"note: {note}", markup=False, highlight=False)

    def _throughput_table(self) -> Table:
        table = _table("Throughput", "streams", "server", "ok", "failed", "req/s", "tok/s")
        for result in self.results:
            summary = result.summary
            errors = summary.errors | {f"warmup {k}": n for k, n in summary.warmup_errors.items()}
            _add_row(
                table,
                str(result.streams),
                result.server,
                str(summary.answered),
                ", ".join(f"{count} × {kind}" for kind, count in errors.items()) or "0",
                f"{summary.requests_per_s:.2f}",
                f"{summary.output_tokens_per_s:.1f}",
            )
        return table

    def _latency_table(self) -> Table:
        columns = ("streams", "server", "measure", "mean", "p50", "p90", "p99")
        table = _table("Latency in milliseconds", *columns)
        for result in self.results:
            for label, name in _MEASURES:
                spread: Spread | None = getattr(result.summary, name)
                numbers = (
                    [f"{1000 * n:.1f}" for n in (spread.mean, spread.p50, spread.p90, spread.p99)]
                    if spread
                    else ["–"] * 4
                )
                _add_row(table, str(result.streams), result.server, label, *numbers)
            table.add_section()
        return table

    def _ratio_table(self) -> Table:
        columns = ("streams", "peer", "tok/s (↑)", "TTFT p50 (↓)", "ITL p50 (↓)")
        table = _table(f"{self.servers[0].name} / peer", *columns)
        for comparison in self.comparisons():
            cells = [
                _ratio_cell(
                    getattr(comparison.ratios, name),
                    [getattr(ratios, name) for ratios in comparison.rounds],
                )
                for name in ("output_tokens_per_s", "ttft_p50", "itl_p50")
            ]
            _add_row(table, str(comparison.streams), comparison.peer, *cells)
        return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right")
    return table


def _add_row(table: Table, *cells: str) -> None:
    # As Text, or rich would take a peer called "[/]" for markup.
    table.add_row(*(Text(cell) for cell in cells))


def _ratio_cell(pooled: float | None, rounds: list[float | None]) -> str:
    """Write a ratio, with lowest and highest round behind it when there are several."""
    if pooled is None:
        return "–"
    known = [ratio for ratio in rounds if ratio is not None]
    spread = f" ({min(known):.2f}–{max(known):.2f})" if len(known) > 1 else ""
    return f"{pooled:.2f}{spread}"


def _stage_as_json(stage: Stage, *, has_raw: bool) -> dict[str, object]:
    summary: dict[str, object] = {
        "server": stage.server,
        "streams": stage.streams,
        "round": stage.round_number,
        "summary": asdict(summarize([stage])),
    }
    return summary | ({"requests": [asdict(o) for o in stage.outcomes]} if has_raw else {})


def client_facts() -> dict[str, object]:
    """Return what is known of the machine and the programs that measured."""
    return {
        "platform": platform.platform(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "httpx": metadata.version("httpx"),
        "dbgpt_guanaco": _version_or_none("dbgpt-guanaco"),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor, or its architecture where Linux does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version_or_none(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
