"""Visits to several servers → tok/s of each, and ours divided by each peer's, round by round.

Within a round the servers were measured one after the other, so a ratio is taken in each round
and the median of these is told: what slows the machine down for a while hits one round.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from benchmarks.measures import Answer, Ratios, Spread, Stage, Summary, compare, summarize


@dataclass(frozen=True, slots=True)
class Visit:
    """One server in one round, from its start to its end.

    Attributes:
        server: Name of the server.
        round_number: Counts from 1.
        stages: One for each number of clients; none if the server did not start.
        other_cores: For each stage, the cores that other programs kept busy.
        rss_bytes: Most memory the server held after a stage.
        problem: Why it did not start, with the end of its log; empty if it did.
    """

    server: str
    round_number: int
    stages: tuple[Stage, ...] = ()
    other_cores: tuple[float, ...] = ()
    rss_bytes: int = 0
    problem: str = ""


def last_words(problem: str) -> str:
    """Return what went wrong and the last line of the log, for a report."""
    first, *log = problem.splitlines() or [""]
    return f"{first.partition('. Its log')[0]}: {log[-1].strip()}" if log else first


@dataclass(frozen=True, slots=True)
class Range:
    """The median of some rounds, and how far they lie apart."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Range | None":
        """Return the range of the values there are, or None when there are none."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Rate:
    """What one server did under one number of clients.

    Attributes:
        tokens_per_s: Of the rounds; None where it answered nothing.
        ttft_s, itl_s: Over all rounds, in seconds.
        prompt_tokens, output_tokens: Of an answer, on average; None where nobody says.
        short_answers: Answers of fewer tokens than were asked for.
        errors: What failed, warm-up included, by kind; a server that did not start is one.
        other_cores: Cores that other programs used in the worst round.
    """

    server: str
    clients: int
    tokens_per_s: Range | None
    ttft_s: Spread | None
    itl_s: Spread | None
    prompt_tokens: float | None
    output_tokens: float | None
    answered: int
    short_answers: int
    errors: dict[str, int]
    other_cores: float | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours divided by a peer's in each round that both were measured in."""

    ours: str
    peer: str
    clients: int
    rounds: tuple[Ratios, ...]

    @property
    def tokens_per_s(self) -> Range | None:
        """Above 1 is good."""
        return Range.of(one.output_tokens_per_s for one in self.rounds)

    @property
    def ttft_p50(self) -> Range | None:
        """Below 1 is good."""
        return Range.of(one.ttft_p50 for one in self.rounds)


class Comparison:
    """All visits of one run.

    Args:
        visits: In the order they were made.
        max_tokens: Tokens that every answer was to have.
    """

    def __init__(self, visits: Sequence[Visit], max_tokens: int) -> None:
        self._visits, self._max_tokens = tuple(visits), max_tokens

    def rate(self, server: str, clients: int) -> Rate:
        """Return what a server did under a number of clients."""
        stages = self._stages(server, clients)
        pooled = summarize(stages)
        answers = [o for stage in stages for o in stage.outcomes if isinstance(o, Answer)]
        return Rate(
            server=server,
            clients=clients,
            tokens_per_s=Range.of(_rate_or_none(summarize([stage])) for stage in stages),
            ttft_s=pooled.ttft_s,
            itl_s=pooled.itl_s,
            prompt_tokens=_mean(answer.prompt_tokens for answer in answers),
            output_tokens=_mean(answer.output_tokens for answer in answers),
            answered=pooled.answered,
            short_answers=sum(a.output_tokens < self._max_tokens for a in answers),
            errors=self._errors(server, pooled),
            other_cores=max(self._other_cores(server, clients), default=None),
        )

    def _errors(self, server: str, pooled: Summary) -> dict[str, int]:
        absent = sum(bool(visit.problem) for visit in self._of(server))
        return (
            pooled.errors
            | {f"warm-up {kind}": count for kind, count in pooled.warmup_errors.items()}
            | ({"did not start": absent} if absent else {})
        )

    def ratio(self, ours: str, peer: str, clients: int) -> Ratio:
        """Divide ours by the peer's, in each round."""
        theirs = {stage.round_number: stage for stage in self._stages(peer, clients)}
        rounds = tuple(
            compare(summarize([stage]), summarize([theirs[stage.round_number]]))
            for stage in self._stages(ours, clients)
            if stage.round_number in theirs
        )
        return Ratio(ours, peer, clients, rounds)

    def rss_bytes(self, server: str) -> int:
        """Return the most memory that a server held."""
        return max((visit.rss_bytes for visit in self._of(server)), default=0)

    def _of(self, server: str) -> list[Visit]:
        return [visit for visit in self._visits if visit.server == server]

    def _stages(self, server: str, clients: int) -> list[Stage]:
        stages = chain.from_iterable(visit.stages for visit in self._of(server))
        return [stage for stage in stages if stage.streams == clients]

    def _other_cores(self, server: str, clients: int) -> list[float]:
        return [
            cores
            for visit in self._of(server)
            for stage, cores in zip(visit.stages, visit.other_cores, strict=True)
            if stage.streams == clients
        ]


def _rate_or_none(summary: Summary) -> float | None:
    return summary.output_tokens_per_s if summary.answered else None


def _mean(counts: Iterable[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return statistics.mean(known) if known else None
