from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.load import Load, Server
from benchmarks.measures import Answer, Failure, Stage
from benchmarks.report import Report, cpu_model

OURS, PEER = (Server(name, f"http://{name}", "m") for name in ("ours", "peer"))
TIMEOUT = Failure("timeout", "no answer", 1.0)


def answer(tokens: int) -> Answer:
    return Answer((0.1, 0.2), 0.2, tokens, "usage")


def stage(server: str, round_number: int, tokens: int) -> Stage:
    return Stage(server, 1, round_number, 1.0, (answer(tokens),))


def shown(report: Report) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        report.print(console)
    return capture.get()


@pytest.mark.parametrize(
    ("warmup", "measured", "expected"),
    [((), (answer(5),), False), ((TIMEOUT,), (answer(5),), True), ((), (TIMEOUT,), True)],
    ids=["none failed", "a warm-up failed", "a measured one failed"],
)
def test_every_failure_is_seen(
    warmup: tuple[Failure, ...], measured: tuple[Answer | Failure, ...], expected: bool
) -> None:
    report = Report([OURS], Load(streams=(1,)), [Stage("ours", 1, 1, 1.0, measured, warmup)])

    assert report.has_failures is expected
    assert ("timeout" in shown(report)) is expected


def test_ratios_are_given_for_all_rounds_and_for_each() -> None:
    stages = [
        stage("ours", 1, 20),
        stage("peer", 1, 10),
        stage("ours", 2, 30),
        stage("peer", 2, 10),
    ]
    report = Report([OURS, PEER], Load(streams=(1,), rounds=2), stages)

    [comparison] = report.comparisons()

    assert comparison.ratios.output_tokens_per_s == pytest.approx(2.5)
    assert [r.output_tokens_per_s for r in comparison.rounds] == pytest.approx([2.0, 3.0])
    assert "2.50 (2.00–3.00)" in shown(report)


def test_every_peer_is_compared_at_every_number_of_streams() -> None:
    other = Server("other", "http://other", "m")
    report = Report([OURS, PEER, other], Load(streams=(1, 4)), [])

    pairs = [(comparison.streams, comparison.peer) for comparison in report.comparisons()]

    assert pairs == [(1, "peer"), (1, "other"), (4, "peer"), (4, "other")]


def test_markup_in_names_and_messages_is_shown_as_it_is() -> None:
    failure = Failure("http 500", "[red]boom[/red] [/]", 0.1)

    peer = Server("[/]", "http://peer", "m")

    text = shown(Report([OURS, peer], Load(streams=(1,)), [Stage("ours", 1, 1, 1.0, (failure,))]))

    assert "[red]boom[/red] [/]" in text
    assert "│ [/]" in text


def test_the_processor_has_a_name_also_without_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert cpu_model(cpuinfo)

    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU\n", encoding="utf-8")
    assert cpu_model(cpuinfo) == "Fast CPU"
