"""Samples of a server under soak → findings. Pure arithmetic: no clock, no network."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.behaviour_arithmetic import Finding
from benchmarks.measures import percentile

MOST_GROWTH = 0.02
FREE_WITHIN_S = "0.25"  # a bucket's bound
FREE_SHARE = 0.99
# A connection to a controller, one that was closed this moment; not one for each client.
MOST_FILES = 5
# What comes before is warming up: caches fill, threads and pools are made.
WARM_SHARE, WARM_S = 0.5, 120.0
LEFT = (
    "left before an answer",
    "left within an answer",
    "read slowly and left",
    "read nothing",
    "broke off a request",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A server at one moment.

    Attributes:
        at_s: Since the first client came.
        health_s: How long ``/health`` took.
        blocks_held: Blocks of keys and values that requests hold.
        departures: Requests whose client left, by the upper bound of the seconds until their place
            was free: so many took that long or less.
    """

    at_s: float
    health_s: float
    running: int
    waiting: int
    blocks_held: int
    rss_bytes: int
    open_files: int
    departures: Mapping[str, int]

    @property
    def is_empty(self) -> bool:
        """Nobody runs, nobody waits, nobody holds a block."""
        return self.running == self.waiting == self.blocks_held == 0


def judge(
    samples: Sequence[Sample], seen: Mapping[str, int], wrong: Mapping[str, int]
) -> list[Finding]:
    """Say what holds.

    Args:
        samples: In order; the last one was taken when all clients had gone.
        seen: What clients did and saw.
        wrong: Of these, what must not happen.
    """
    last = samples[-1]
    held = f"{last.running} run, {last.waiting} wait, {last.blocks_held} blocks are held"
    left = sum(seen.get(kind, 0) for kind in LEFT)
    failures = "; ".join(f"{count} × {what}" for what, count in wrong.items()) or "none"
    return [
        Finding("failures and hangs that clients saw", failures, "none", holds=not wrong),
        Finding("after the last client", held, "nothing is held", holds=last.is_empty),
        _memory(samples),
        _departures(last),
        _health(samples),
        _files(samples),
        Finding("clients that left in some way", f"{left:,}", "more than 0", holds=left > 0),
    ]


def _memory(samples: Sequence[Sample]) -> Finding:
    """Compare resident memory at both ends of the time after the warm-up."""
    warm_s = min(WARM_S, WARM_SHARE * samples[-1].at_s)
    warm = [sample.rss_bytes for sample in samples if sample.at_s >= warm_s]
    tenth = max(1, len(warm) // 10)
    first, last = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
    growth = last / first - 1
    return Finding(
        f"resident memory after the first {warm_s:.0f} s",
        f"{first / 2**20:.0f} → {last / 2**20:.0f} MiB, {100 * growth:+.1f} %",
        f"grows by less than {100 * MOST_GROWTH:g} %",
        holds=growth < MOST_GROWTH,
    )


def _files(samples: Sequence[Sample]) -> Finding:
    """Compare open files before the crowd and after it."""
    first, last = samples[0].open_files, samples[-1].open_files
    return Finding(
        "open files and connections, before the crowd and after it",
        f"{first} → {last}",
        f"at most {MOST_FILES} more",
        holds=last - first <= MOST_FILES,
    )


def _departures(last: Sample) -> Finding:
    count, in_time = last.departures["+Inf"], last.departures[FREE_WITHIN_S]
    share = in_time / count if count else 0.0
    return Finding(
        f"places free within {1000 * float(FREE_WITHIN_S):.0f} ms of a client's leaving",
        f"{in_time:,} of {count:,}, {100 * share:.2f} %",
        f"at least {100 * FREE_SHARE:g} %",
        holds=share >= FREE_SHARE,
    )


def _health(samples: Sequence[Sample]) -> Finding:
    """A remark: the clients of a soak share the processor with the server."""
    p99_s = percentile([sample.health_s for sample in samples], 99)
    return Finding(
        "`/health` as the crowd's neighbour sees it, p99",
        f"{1000 * p99_s:.0f} ms",
        "no target here",
        holds=True,
    )
