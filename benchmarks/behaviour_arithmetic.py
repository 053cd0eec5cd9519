"""What was seen of a server under strain → findings. Pure arithmetic: no clock, no network."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.measures import Answer, Failure, Outcome, percentile

MOST_GAP = 3.0
LEAST_SPEEDUP = 5.0
MOST_GROWTH = 0.05
REFUSED = "http 429"
MOST_HEALTH_S = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim, what was measured, and whether it holds."""

    claim: str
    measured: str
    target: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    """Streams that ran while a long prompt came; times in seconds of one clock.

    Attributes:
        outputs_s: For each stream, when its pieces of text arrived.
        sent_s: When the long prompt was sent.
        answered_s: When its first piece of text arrived.
    """

    outputs_s: tuple[tuple[float, ...], ...]
    sent_s: float
    answered_s: float

    @property
    def quiet_gaps_s(self) -> list[float]:
        """Gaps between all streams having begun and the long prompt."""
        begun_s = max(outputs[0] for outputs in self.outputs_s)
        return [b - a for a, b in self._gaps() if begun_s <= a and b <= self.sent_s]

    @property
    def disturbed_gaps_s(self) -> list[float]:
        """Gaps that overlap the time in which the long prompt was computed."""
        return [b - a for a, b in self._gaps() if b > self.sent_s and a < self.answered_s]

    @property
    def all_gaps_s(self) -> list[float]:
        """Every gap."""
        return [b - a for a, b in self._gaps()]

    def _gaps(self) -> list[tuple[float, float]]:
        return [gap for outputs in self.outputs_s for gap in pairwise(outputs)]


def judge_arrivals(arrivals: Sequence[Arrival]) -> list[Finding]:
    """Compare the gaps of others with the median gap: over whole answers, and at the worst."""
    whole = [percentile(a.all_gaps_s, 99) / statistics.median(a.all_gaps_s) for a in arrivals]
    worst = [
        percentile(a.disturbed_gaps_s, 99) / statistics.median(a.quiet_gaps_s) for a in arrivals
    ]
    quiet_s = statistics.median(statistics.median(a.quiet_gaps_s) for a in arrivals)
    wait_s = statistics.median(a.answered_s - a.sent_s for a in arrivals)
    return [
        _at_most(
            "p99 gap of the other streams / median gap, both over whole answers",
            whole,
            f"its own first token after {wait_s:.2f} s",
        ),
        _at_most(
            "p99 gap while the prompt is computed / median gap before it came",
            worst,
            f"median gap before it {1000 * quiet_s:.1f} ms",
        ),
    ]


def _at_most(claim: str, ratios: Sequence[float], more: str) -> Finding:
    median = statistics.median(ratios)
    return Finding(claim, f"{_told(ratios)}; {more}", f"at most {MOST_GAP:g}", median <= MOST_GAP)


def judge_prefix(pairs: Sequence[tuple[Answer, Answer]]) -> Finding:
    """Compare first tokens of a prompt whose prefix is new with one whose prefix was there."""
    speedups = [cold.ttft_s / warm.ttft_s for cold, warm in pairs]
    cold_s = statistics.median(cold.ttft_s for cold, _ in pairs)
    warm_s = statistics.median(warm.ttft_s for _, warm in pairs)
    cached = statistics.median(warm.cached_tokens or 0 for _, warm in pairs)
    tokens = statistics.median(warm.prompt_tokens or 0 for _, warm in pairs)
    return Finding(
        "TTFT of a new prefix / TTFT of the same prefix again",
        f"{_told(speedups)}; {1000 * cold_s:,.0f} ms / {1000 * warm_s:,.0f} ms, "
        f"{cached:.0f} of {tokens:.0f} prompt tokens were cached",
        f"at least {LEAST_SPEEDUP:g}",
        statistics.median(speedups) >= LEAST_SPEEDUP,
    )


@dataclass(frozen=True, slots=True)
class Wave:
    """Many clients that asked at the same time, and the server's memory after them."""

    outcomes: tuple[Outcome, ...]
    rss_bytes: int


def judge_crowd(waves: Sequence[Wave]) -> list[Finding]:
    """Ask whether each client got an answer or a refusal, and whether memory stayed."""
    outcomes = [outcome for wave in waves for outcome in wave.outcomes]
    kinds = Counter(_kind(outcome) for outcome in outcomes)
    good = kinds["answered"] + kinds[REFUSED]
    refused = [o for o in outcomes if isinstance(o, Failure) and o.kind == REFUSED]
    slowest_s = max((refusal.after_s for refusal in refused), default=0.0)
    # The first wave fills pools that stay.
    before, after = waves[0].rss_bytes, waves[-1].rss_bytes
    growth = after / before - 1
    return [
        Finding(
            f"{len(waves[0].outcomes)} clients at once, {len(waves)} times: "
            "all are answered, or refused with 429 and Retry-After",
            f"{', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}; "
            f"slowest refusal after {slowest_s:.2f} s",
            "all",
            good == len(outcomes) and kinds["answered"] > 0,
        ),
        Finding(
            "resident memory after the last wave / after the first",
            f"{100 * growth:+.1f} %; {before / 2**20:,.0f} → {after / 2**20:,.0f} MiB",
            f"at most +{100 * MOST_GROWTH:g} %",
            growth <= MOST_GROWTH,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What ``/health`` took while streams ran and long prompts were refused.

    Attributes:
        health_s: Of each question to ``/health``, in seconds.
        refusals: Status of each long prompt's response.
    """

    health_s: tuple[float, ...]
    refusals: tuple[int, ...]


def judge_health(neighbours: Neighbours) -> Finding:
    """Ask whether ``/health`` came at once, and whether there was something to refuse."""
    p99_s = percentile(neighbours.health_s, 99)
    are_refused = set(neighbours.refusals) == {413}
    statuses = ", ".join(f"{n} × {status}" for status, n in Counter(neighbours.refusals).items())
    median_s = statistics.median(neighbours.health_s)
    return Finding(
        "p99 of `/health` while streams run and prompts of 5 MB are refused",
        f"{1000 * p99_s:.0f} ms of {len(neighbours.health_s)}, median {1000 * median_s:.1f} ms, "
        f"longest {1000 * max(neighbours.health_s):.0f} ms; refusals: {statuses or 'none'}",
        f"under {1000 * MOST_HEALTH_S:.0f} ms",
        p99_s < MOST_HEALTH_S and are_refused,
    )


def _kind(outcome: Outcome) -> str:
    if isinstance(outcome, Answer):
        return "answered"
    if outcome.kind == REFUSED and not (outcome.retry_after or "").isdecimal():
        return f"{REFUSED} without Retry-After"
    return outcome.kind


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def as_table(findings: Sequence[Finding]) -> list[str]:
    """Write a row for each finding."""
    return [
        "| claim | measured: median (lowest–highest) | target | holds |",
        "|---|---|---|---|",
        *(f"| {f.claim} | {f.measured} | {f.target} | {_holds(f)} |" for f in findings),
    ]


def _holds(finding: Finding) -> str:
    return "yes" if finding.holds else "**no**"
