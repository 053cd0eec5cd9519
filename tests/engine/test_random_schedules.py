"""Whatever else goes on, everybody gets the answer that they would get alone."""

from collections import Counter

from random_schedules import Run

SEEDS = 2000
EVENTS = (
    "cached tokens",
    "cancelled in decode",
    "cancelled in prefill",
    "cancelled outside",
    "cancelled waiting",
    "chunked prefills",
    "evicted blocks",
    "failed steps",
    "halved steps",
    "mixed steps",
    "preemptions",
    "recomputed answers",
    "shared blocks",
    "shared within a step",
    "stopped",
)


def test_thousands_of_random_schedules() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        run = Run(seed)
        try:
            run.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        seen += run.seen
    assert seen["finished"] > 5 * SEEDS / 2
    assert [event for event in EVENTS if seen[event] < SEEDS / 20] == []
