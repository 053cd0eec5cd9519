"""A comparison → Markdown for people and JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.comparison import Comparison, Range, Rate, Ratio, Visit, last_words
from benchmarks.facts import as_list
from benchmarks.load import Load
from benchmarks.measures import Answer, Spread, Stage, summarize
from benchmarks.peers.programs import Program
from benchmarks.report import Report

# Fewer pieces of text for each token than this, and gaps between pieces are none between tokens.
_PIECES_A_TOKEN = 0.9


@dataclass(frozen=True, slots=True)
class Findings:
    """What a run was, and what it found so far.

    Attributes:
        programs: In the order of the tables.
        ours: Names of those that are divided by the others.
        load: What each had to bear.
        visits: In the order they were made.
        facts: Machine, versions and parameters, by name.
    """

    programs: tuple[Program, ...]
    ours: tuple[str, ...]
    load: Load
    visits: tuple[Visit, ...]
    facts: dict[str, object]

    @property
    def comparison(self) -> Comparison:
        """The arithmetic."""
        return Comparison(self.visits, self.load.max_tokens)

    @property
    def stages(self) -> list[Stage]:
        """All that was measured."""
        return [stage for visit in self.visits for stage in visit.stages]

    def rates(self) -> list[Rate]:
        """Return what each server did, by number of clients."""
        return [
            self.comparison.rate(program.name, clients)
            for clients in self.load.streams
            for program in self.programs
        ]

    def ratios(self) -> list[Ratio]:
        """Return each of ours divided by each of the others, by number of clients."""
        peers = [program.name for program in self.programs if program.name not in self.ours]
        return [
            self.comparison.ratio(one, peer, clients)
            for clients in self.load.streams
            for one in self.ours
            for peer in peers
        ]

    @property
    def has_failures(self) -> bool:
        """Whether a request failed or a server did not start."""
        return any(rate.errors for rate in self.rates())

    def notes(self) -> list[str]:
        """Return what a reader must know before trusting the numbers."""
        servers = [program.server for program in self.programs]
        notes = [
            f"{visit.server}, round {visit.round_number}: {last_words(visit.problem)}"
            for visit in self.visits
            if visit.problem
        ]
        notes += Report(servers, self.load, self.stages).notes()
        return notes + [note for p in self.programs if (note := self._packing_note(p.name))]

    def _packing_note(self, server: str) -> str:
        answers = [
            outcome
            for stage in self.stages
            if stage.server == server
            for outcome in stage.outcomes
            if isinstance(outcome, Answer)
        ]
        tokens = sum(answer.output_tokens for answer in answers)
        pieces = sum(len(answer.outputs_s) for answer in answers)
        if pieces >= _PIECES_A_TOKEN * tokens:
            return ""
        return f"{server}: {tokens} tokens came in {pieces} pieces; ITL is between pieces"

    def as_json(self) -> dict[str, object]:
        """Return everything but single requests as plain values, times in seconds."""
        return {
            "facts": self.facts,
            "load": asdict(self.load),
            "programs": [_program_as_json(program) for program in self.programs],
            "rates": [asdict(rate) for rate in self.rates()],
            "ratios": [asdict(ratio) for ratio in self.ratios()],
            "visits": [_visit_as_json(visit) for visit in self.visits],
            "notes": self.notes(),
        }

    def as_markdown(self) -> str:
        """Return the tables, what the servers were, and what a reader must know."""
        parts = [*as_list(self.facts), "", *rate_table(self.rates())]
        ratios = self.ratios()
        for title, name in (
            ("tok/s, ours / peer (above 1: ours gives more)", "tokens_per_s"),
            ("TTFT p50, ours / peer (below 1: ours is sooner)", "ttft_p50"),
        ):
            parts += ["", f"## {title}", "", *ratio_table(ratios, name)] if ratios else []
        parts += ["", "## Servers", ""]
        for program in self.programs:
            rss = self.comparison.rss_bytes(program.name) / 2**20
            versions = f"; {', '.join(program.versions)}" if program.versions else ""
            parts += [f"- **{program.name}**: {program.weights}, {rss:,.0f} MiB{versions}"]
            parts += [f"  `{program.told}`, requests with `{json.dumps(dict(program.extra))}`"]
        notes = self.notes()
        parts += ["", "## Notes", "", *(f"- {note}" for note in notes)] if notes else []
        return "\n".join(parts) + "\n"


def rate_table(rates: Sequence[Rate]) -> list[str]:
    """Write a row for each server under each load; medians with lowest and highest round."""
    return [
        "| clients | server | tok/s | TTFT p50 / p99 | ITL p50 / p99 | tokens in / out "
        "| answered | errors | other programs |",
        "|---:|---|---:|---:|---:|---:|---:|---|---:|",
        *(
            f"| {rate.clients} | {rate.server} | {_range(rate.tokens_per_s, 1)} "
            f"| {_times(rate.ttft_s)} | {_times(rate.itl_s)} "
            f"| {_number(rate.prompt_tokens)} / {_number(rate.output_tokens)} "
            f"| {_answered(rate)} | {_errors(rate)} | {_number(rate.other_cores, 2)} cores |"
            for rate in rates
        ),
    ]


def ratio_table(ratios: Sequence[Ratio], name: str) -> list[str]:
    """Write one property of ratios, a row for each of ours and a column for each peer."""
    peers = list(dict.fromkeys(ratio.peer for ratio in ratios))
    cells = {(r.clients, r.ours, r.peer): _range(getattr(r, name), 2) for r in ratios}
    rows = dict.fromkeys((ratio.clients, ratio.ours) for ratio in ratios)
    return [
        f"| clients | | {' | '.join(f'/ {peer}' for peer in peers)} |",
        f"|---:|---|{'---:|' * len(peers)}",
        *(
            f"| {clients} | {ours} | "
            f"{' | '.join(cells.get((clients, ours, peer), '–') for peer in peers)} |"
            for clients, ours in rows
        ),
    ]


def _program_as_json(program: Program) -> dict[str, object]:
    return {
        "name": program.name,
        "weights": program.weights,
        "command": program.told,
        "versions": program.versions,
        "extra": dict(program.extra),
    }


def _visit_as_json(visit: Visit) -> dict[str, object]:
    stages = [
        {"clients": stage.streams, "other_cores": cores, "summary": asdict(summarize([stage]))}
        for stage, cores in zip(visit.stages, visit.other_cores, strict=True)
    ]
    return {
        "server": visit.server,
        "round": visit.round_number,
        "rss_bytes": visit.rss_bytes,
        "problem": last_words(visit.problem),
        "stages": stages,
    }


def _range(value: Range | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value.median:.{digits}f} ({value.lowest:.{digits}f}–{value.highest:.{digits}f})"


def _times(spread: Spread | None) -> str:
    return f"{1000 * spread.p50:,.0f} / {1000 * spread.p99:,.0f} ms" if spread else "–"


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _answered(rate: Rate) -> str:
    return (
        f"{rate.answered} ({rate.short_answers} short)"
        if rate.short_answers
        else f"{rate.answered}"
    )


def _errors(rate: Rate) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in rate.errors.items()) or "0"
