import sys
from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAI, Script, serving

from benchmarks.behaviour import Trial, streams_and_prefixes, with_server
from benchmarks.behaviour_arithmetic import (
    Arrival,
    Neighbours,
    Wave,
    as_table,
    judge_arrivals,
    judge_crowd,
    judge_health,
    judge_prefix,
)
from benchmarks.load import BenchmarkError, Load, Server
from benchmarks.measures import Answer, Failure, Outcome
from benchmarks.peers.programs import Program
from benchmarks.processes import free_port
from benchmarks.strain import arrival, crowd, repeated_prefix

ANSWER = Answer((0.1,), 0.1, 1, "usage")
REFUSAL = Failure("http 429", "busy", 0.1, retry_after="2")
LOAD = Load(timeout_s=20)
TRIAL = Trial("ours-nf4", "m", 2, 1, 1, 1, 2, seed=0, timeout_s=5)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOpenAI]:
    scripts = {
        "lasting": Script(pieces=("a",) * 150, gap_s=0.01),
        "short": Script(),
        "busy": Script(status=429, retry_after="2"),
    }
    with serving(**scripts) as fake:
        yield fake


def server(fake: FakeOpenAI, name: str) -> Server:
    return Server(name, fake.url(name), "fake")


# Two streams; the second begins late. The prompt is sent at 5 and answered at 7.
ARRIVAL = Arrival(
    outputs_s=((0.0, 1.0, 3.0, 4.0, 5.0, 8.0, 9.0), (2.0, 3.0, 4.0, 5.5, 6.5, 10.0)),
    sent_s=5.0,
    answered_s=7.0,
)


def test_gaps_are_quiet_between_the_last_beginning_and_the_prompt() -> None:
    assert sorted(ARRIVAL.quiet_gaps_s) == [1.0] * 4


def test_gaps_are_disturbed_where_they_overlap_the_prompt() -> None:
    assert sorted(ARRIVAL.disturbed_gaps_s) == [1.0, 1.5, 3.0, 3.5]
    assert len(ARRIVAL.all_gaps_s) == 11


@pytest.mark.parametrize(("pause_s", "holds"), [(2.5, True), (3.5, False)])
def test_streams_may_wait_three_times_as_long_as_usual(pause_s: float, holds: bool) -> None:
    outputs_s = (0.0, 1.0, 2.0, 3.0, 3.0 + pause_s, 4.0 + pause_s)
    seen = Arrival((outputs_s,), sent_s=3.1, answered_s=3.2)

    assert [finding.holds for finding in judge_arrivals([seen])] == [holds, holds]


@pytest.mark.parametrize(("warm_s", "holds"), [(0.1, True), (0.3, False)])
def test_a_known_prefix_has_to_be_five_times_faster(warm_s: float, holds: bool) -> None:
    cold, warm = (Answer((s,), s, 1, "usage", 1200, None, 1100) for s in (1.0, warm_s))

    finding = judge_prefix([(cold, warm)])

    assert finding.holds is holds
    assert "1100 of 1200" in finding.measured


@pytest.mark.parametrize(
    ("slow_s", "refusals", "holds"),
    [(0.04, (413,), True), (0.06, (413,), False), (0.04, (413, 200), False), (0.04, (), False)],
)
def test_health_has_to_come_at_once_beside_refusals(
    slow_s: float, refusals: tuple[int, ...], holds: bool
) -> None:
    finding = judge_health(Neighbours((0.001,) * 98 + (slow_s,) * 2, refusals))

    assert finding.holds is holds


@pytest.mark.parametrize(
    ("outcomes", "holds"),
    [
        ([ANSWER, REFUSAL], True),
        ([ANSWER, Failure("http 429", "busy", 0.1)], False),
        ([ANSWER, Failure("http 429", "busy", 0.1, retry_after="")], False),
        ([ANSWER, Failure("timeout", "", 5.0)], False),
        ([REFUSAL, REFUSAL], False),
    ],
    ids=["told all", "not when to come back", "empty header", "one hangs", "nobody answered"],
)
def test_everybody_has_to_be_told_something(outcomes: list[Outcome], holds: bool) -> None:
    everybody, memory = judge_crowd([Wave(tuple(outcomes), 100), Wave(tuple(outcomes), 101)])

    assert everybody.holds is holds
    assert memory.holds


def test_memory_must_not_grow_from_wave_to_wave() -> None:
    _, memory = judge_crowd([Wave((ANSWER,), 100 * 2**20), Wave((ANSWER,), 110 * 2**20)])

    assert not memory.holds
    assert "100 → 110 MiB" in memory.measured
    assert "| **no** |" in as_table([memory])[-1]


async def test_a_long_prompt_comes_while_eight_streams_run(fake: FakeOpenAI) -> None:
    seen = await arrival(server(fake, "lasting"), LOAD, 1, 1)

    assert len(seen.outputs_s) == 8
    assert all(outputs[31] <= seen.sent_s < outputs[-1] for outputs in seen.outputs_s)
    assert seen.quiet_gaps_s
    assert seen.disturbed_gaps_s


@pytest.mark.parametrize(
    ("name", "message"), [("short", "a stream ended"), ("busy", "a request failed: http 429")]
)
async def test_streams_that_do_not_last_are_told(fake: FakeOpenAI, name: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        await arrival(server(fake, name), LOAD, 1, 1)


async def test_both_questions_stand_behind_the_same_prefix(fake: FakeOpenAI) -> None:
    fake.forget()

    await repeated_prefix(server(fake, "short"), LOAD, 1, 1)

    _, cold, warm = fake.prompts_of("short")
    assert cold != warm
    assert cold.split("\n\n")[0] == warm.split("\n\n")[0]
    assert len(cold.split()) > 1200


async def test_a_crowd_comes_at_once_and_again(fake: FakeOpenAI) -> None:
    memory = iter((5, 6))

    waves = await crowd(server(fake, "busy"), LOAD, 20, 2, 1, lambda: next(memory))

    assert [len(wave.outcomes) for wave in waves] == [20, 20]
    assert [wave.rss_bytes for wave in waves] == [5, 6]
    assert {o.retry_after for wave in waves for o in wave.outcomes if isinstance(o, Failure)} == {
        "2"
    }


def test_a_server_that_does_not_start_is_no_success() -> None:
    command = (sys.executable, "-c", "raise SystemExit('no model here')")
    program = Program("ours", "none", command, "fake", free_port())

    [finding] = with_server(TRIAL, program, streams_and_prefixes)

    assert not finding.holds
    assert finding.measured == "ours ended with status 1: no model here"
