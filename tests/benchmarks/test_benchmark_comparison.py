import json

import pytest

from benchmarks.comparison import Comparison, Visit, last_words
from benchmarks.comparison_report import Findings
from benchmarks.load import Load
from benchmarks.measures import Answer, Failure, Outcome, Stage
from benchmarks.peers.programs import Program

TIMEOUT = Failure("timeout", "no answer", 1.0)
LOG = "peer ended with status 1. Its log ends:\nTraceback\n  File x\nOSError: no such file\n"


def answer(tokens: int = 10, ttft_s: float = 0.1, pieces: int | None = None) -> Answer:
    outputs_s = tuple(ttft_s + n / 100 for n in range(pieces or tokens))
    return Answer(outputs_s, outputs_s[-1], tokens, "usage", prompt_tokens=7)


def visit(server: str, round_number: int, *outcomes: Outcome, clients: int = 1) -> Visit:
    stage = Stage(server, clients, round_number, 1.0, outcomes)
    return Visit(server, round_number, (stage,), (0.25,), 2**20)


def findings(*visits: Visit, clients: tuple[int, ...] = (1,)) -> Findings:
    names = dict.fromkeys(visit.server for visit in visits)
    programs = tuple(Program(name, "bf16", ("serve", name), "m", 1) for name in names)
    facts: dict[str, object] = {"machine": "a small one"}
    return Findings(programs, ("ours",), Load(streams=clients, max_tokens=10), visits, facts)


def test_ours_is_divided_by_the_peer_in_each_round() -> None:
    tokens = {"ours": (20, 30, 90), "peer": (10, 10, 10)}
    visits = [visit(name, n, answer(t)) for name in tokens for n, t in enumerate(tokens[name], 1)]

    ratio = Comparison(visits, 10).ratio("ours", "peer", 1)

    assert ratio.tokens_per_s is not None
    assert ratio.tokens_per_s.median == pytest.approx(3)
    assert (ratio.tokens_per_s.lowest, ratio.tokens_per_s.highest) == pytest.approx((2, 9))


def test_times_are_divided_too() -> None:
    visits = [visit("ours", 1, answer(ttft_s=0.1)), visit("peer", 1, answer(ttft_s=0.4))]

    ratio = Comparison(visits, 10).ratio("ours", "peer", 1)

    assert ratio.ttft_p50 is not None
    assert ratio.ttft_p50.median == pytest.approx(0.25)


def test_a_round_that_one_side_missed_has_no_ratio() -> None:
    visits = [
        visit("ours", 1, answer(20)),
        Visit("peer", 1, problem=LOG),
        visit("ours", 2, answer(20)),
        visit("peer", 2, answer(10)),
        visit("ours", 3, answer(20)),
        visit("peer", 3, TIMEOUT),
    ]

    ratio = Comparison(visits, 10).ratio("ours", "peer", 1)

    assert [one.output_tokens_per_s for one in ratio.rounds] == [pytest.approx(2), None]


def test_numbers_of_clients_are_not_mixed() -> None:
    visits = [visit("ours", 1, answer(20)), visit("ours", 1, answer(80), clients=8)]

    rates = [Comparison(visits, 10).rate("ours", clients).tokens_per_s for clients in (1, 8)]

    assert [rate.median for rate in rates if rate] == pytest.approx([20, 80])


def test_a_server_that_did_not_start_stands_in_the_tables_with_its_last_words() -> None:
    found = findings(visit("ours", 1, answer()), Visit("peer", 1, problem=LOG))

    text = found.as_markdown()

    assert found.has_failures
    assert "| 1 | peer | – | – | – | – / – | 0 | 1 × did not start |" in text
    assert "- peer, round 1: peer ended with status 1: OSError: no such file" in text
    assert "| 1 | ours | – |" in text


def test_failed_requests_are_counted_warm_up_included() -> None:
    stage = Stage("ours", 1, 1, 1.0, (answer(), TIMEOUT), (Failure("http 503", "", 0.1),))

    rate = Comparison([Visit("ours", 1, (stage,), (0.0,))], 10).rate("ours", 1)

    assert rate.errors == {"timeout": 1, "warm-up http 503": 1}
    assert rate.answered == 1


def test_a_run_without_failures_says_so() -> None:
    found = findings(visit("ours", 1, answer()), visit("peer", 1, answer()))

    assert not found.has_failures
    assert "| 1 | ours | 10.0 (10.0–10.0) | 100 / 100 ms | 10 / 10 ms | 7 / 10 | 1 | 0 |" in (
        found.as_markdown()
    )
    assert "## Notes" not in found.as_markdown()


def test_unlike_work_is_noted() -> None:
    text = findings(
        visit("ours", 1, answer(9)), visit("peer", 1, answer(10, pieces=2))
    ).as_markdown()

    assert "1 (1 short)" in text
    assert "ours: 1 of 1 answers ended before 10 tokens" in text
    assert "peer: 10 tokens came in 2 pieces" in text
    assert "ours: 9 tokens" not in text


def test_json_holds_what_the_tables_hold() -> None:
    found = findings(
        visit("ours", 1, answer(20)), visit("peer", 1, answer(10)), Visit("peer", 2, problem=LOG)
    )

    document = json.loads(json.dumps(found.as_json(), allow_nan=False))

    assert document["facts"] == {"machine": "a small one"}
    assert document["rates"][1]["errors"] == {"did not start": 1}
    assert document["ratios"][0]["rounds"][0]["output_tokens_per_s"] == pytest.approx(2)
    assert document["visits"][2]["problem"].endswith("OSError: no such file")


def test_without_peers_there_are_no_ratios() -> None:
    alone = findings(visit("ours", 1, answer()))

    assert "ours / peer" not in alone.as_markdown()
    assert "ours / peer" in findings(*alone.visits, visit("peer", 1, answer())).as_markdown()


def test_a_problem_without_a_log_is_told_whole() -> None:
    assert last_words("peer is gone") == "peer is gone"
