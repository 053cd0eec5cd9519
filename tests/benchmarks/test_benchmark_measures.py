import pytest

from benchmarks.measures import (
    Answer,
    Failure,
    Spread,
    Stage,
    compare,
    percentile,
    summarize,
)


def answer(*outputs_s: float, tokens: int, e2e_s: float | None = None) -> Answer:
    return Answer(outputs_s, outputs_s[-1] if e2e_s is None else e2e_s, tokens, "usage")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 99, 5.0),
        ([1.0, 3.0], 50, 2.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0, 1.0),
        ([1.0, 2.0, 3.0, 4.0], 100, 4.0),
        ([float(n) for n in range(1, 12)], 90, 10.0),
        ([float(n) for n in range(101)], 99, 99.0),
        ([0.0, 10.0], 99, 9.9),
    ],
)
def test_percentile_interpolates(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
def test_percentile_refuses_what_is_none(percent: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 100\]"):
        percentile([1.0], percent)


def test_no_values_have_no_spread() -> None:
    assert Spread.of([]) is None


def test_spread_holds_mean_and_percentiles() -> None:
    spread = Spread.of([0.0, 0.0, 0.0, 4.0])

    assert spread is not None
    assert (spread.mean, spread.p50) == (1.0, 0.0)
    assert (spread.p90, spread.p99) == pytest.approx((2.8, 3.88))


@pytest.mark.parametrize(
    ("outputs_s", "tokens", "e2e_s", "ttft_s", "itls_s", "tpot_s"),
    [
        ((0.5,), 1, 0.5, 0.5, [], None),
        ((0.5,), 0, 0.5, 0.5, [], None),
        ((0.5, 0.6, 0.8), 3, 0.8, 0.5, [0.1, 0.2], 0.15),
        # Two tokens in the second piece: ITL counts pieces, TPOT counts tokens.
        ((0.5, 0.8), 3, 0.8, 0.5, [0.3], 0.15),
        # The finish chunk came later than the last text.
        ((1.0, 1.5), 2, 2.0, 1.0, [0.5], 1.0),
    ],
)
def test_times_of_one_answer(
    outputs_s: tuple[float, ...],
    tokens: int,
    e2e_s: float,
    ttft_s: float,
    itls_s: list[float],
    tpot_s: float | None,
) -> None:
    one = answer(*outputs_s, tokens=tokens, e2e_s=e2e_s)

    assert one.ttft_s == ttft_s
    assert one.itls_s == pytest.approx(itls_s)
    assert one.tpot_s == (None if tpot_s is None else pytest.approx(tpot_s))


def test_an_answer_without_output_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="at least one output"):
        Answer((), 1.0, 0, "usage")


def test_rounds_are_pooled_and_failures_keep_their_time() -> None:
    stages = [
        Stage("ours", 2, 1, 2.0, (answer(0.1, 0.2, tokens=10), Failure("timeout", "", 2.0))),
        Stage("ours", 2, 2, 3.0, (answer(0.3, 0.7, tokens=20),), (Failure("http 503", "", 0.1),)),
    ]

    summary = summarize(stages)

    assert (summary.answered, summary.failed) == (2, 1)
    assert summary.errors == {"timeout": 1}
    assert summary.warmup_errors == {"http 503": 1}
    assert summary.requests_per_s == pytest.approx(2 / 5)
    assert summary.output_tokens_per_s == pytest.approx(30 / 5)
    assert summary.itl_s is not None
    assert summary.itl_s.mean == pytest.approx(0.25)


def test_a_stage_of_errors_has_no_times() -> None:
    summary = summarize([Stage("ours", 1, 1, 1.0, (Failure("http 500", "", 0.1),))])

    assert summary.failed == 1
    assert summary.output_tokens_per_s == 0
    assert (summary.ttft_s, summary.itl_s, summary.tpot_s, summary.e2e_s) == (None,) * 4


def test_ratio_is_ours_divided_by_the_peers() -> None:
    ours = summarize([Stage("ours", 1, 1, 1.0, (answer(0.1, 0.2, tokens=30),))])
    peer = summarize([Stage("peer", 1, 1, 1.0, (answer(0.2, 0.6, tokens=20),))])

    ratios = compare(ours, peer)

    assert ratios.output_tokens_per_s == pytest.approx(1.5)
    assert ratios.ttft_p50 == pytest.approx(0.5)
    assert ratios.itl_p50 == pytest.approx(0.25)


@pytest.mark.parametrize("failed_side", ["ours", "peer"])
def test_a_side_without_answers_has_no_ratio(failed_side: str) -> None:
    good = summarize([Stage("a", 1, 1, 1.0, (answer(0.1, 0.2, tokens=30),))])
    bad = summarize([Stage("b", 1, 1, 1.0, (Failure("timeout", "", 1.0),))])

    ratios = compare(bad, good) if failed_side == "ours" else compare(good, bad)

    assert (ratios.output_tokens_per_s, ratios.ttft_p50, ratios.itl_p50) == (None,) * 3
