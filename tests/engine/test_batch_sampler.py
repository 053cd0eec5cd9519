"""Every draw of a batch is what transformers' own warpers allow, each row as it asks."""

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from dbgpt_guanaco.engine import filters
from dbgpt_guanaco.engine.batch_sampler import BatchSampler
from dbgpt_guanaco.engine.sampling import Sampler
from dbgpt_guanaco.types import SamplingParams

CPU = torch.device("cpu")
DRAWS = 20_000


def logits(rows: int, size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 2


def warped(scores: torch.Tensor, **p: Any) -> torch.Tensor:
    """Probabilities [V] as transformers' generate would draw from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(p.get("temperature", 1.0))])
    if "top_k" in p:
        warpers.append(TopKLogitsWarper(p["top_k"]))
    if "top_p" in p:
        warpers.append(TopPLogitsWarper(p["top_p"]))
    if "min_p" in p:
        warpers.append(MinPLogitsWarper(p["min_p"]))
    if "typical_p" in p:
        warpers.append(TypicalLogitsWarper(p["typical_p"]))
    probabilities: torch.Tensor = warpers(None, scores[None])[0].softmax(-1)
    return probabilities


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.02},
]


def chi_squared(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Return the statistic over outcomes expected five times or more, and their number - 1."""
    expected = probabilities * counts.sum()
    often = expected >= 5
    pooled_counts = torch.cat([counts[often], counts[~often].sum()[None]])
    pooled = torch.cat([expected[often], expected[~often].sum()[None]])
    kept = pooled > 0
    statistic = ((pooled_counts - pooled) ** 2 / pooled)[kept].sum()
    return float(statistic), int(kept.sum()) - 1


def bound(freedom: int) -> float:
    """Chi-squared quantile near 1 - 1e-6, by Wilson and Hilferty's approximation."""
    spread: float = (2 / (9 * freedom)) ** 0.5
    return float(freedom * (1 - 2 / (9 * freedom) + 4.75 * spread) ** 3 + 8)


def draw_many(case: dict[str, Any], scores: torch.Tensor) -> torch.Tensor:
    sampler = BatchSampler(len(scores), 500, CPU)
    rows = [sampler.open(SamplingParams(seed=n, **case), [1], None) for n in range(500)]
    batch = scores.expand(500, -1)
    drawn = [i for _ in range(DRAWS // 500) for i in sampler.draw(batch, rows).token_ids()]
    return torch.bincount(torch.tensor(drawn), minlength=len(scores)).double()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_are_distributed_as_transformers_draws(case: dict[str, Any]) -> None:
    scores = logits(1, size=300)[0]
    probabilities = warped(scores, **case).double()

    counts = draw_many(case, scores)

    assert counts[probabilities == 0].sum() == 0
    statistic, freedom = chi_squared(counts, probabilities)
    assert statistic < bound(freedom)
    # The bound can fail: a temperature that is off by a fifth is noticed.
    other = warped(scores, **case | {"temperature": case["temperature"] * 1.2}).double()
    statistic, freedom = chi_squared(counts, other.clamp(min=1e-9))
    assert statistic > bound(freedom)


def test_few_candidates_are_never_taken_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, case = logits(1)[0], {"temperature": 3.0, "top_p": 0.95}
    monkeypatch.setattr(filters, "CANDIDATES", (2, 4))

    counts = draw_many(case, scores)

    statistic, freedom = chi_squared(counts, warped(scores, **case).double())
    assert statistic < bound(freedom)


def test_a_seed_draws_the_same_in_any_company() -> None:
    sampler = BatchSampler(40, 12, CPU)
    steps = [logits(1, seed=n)[0] for n in range(30)]
    wanted = SamplingParams(temperature=1.0, top_p=0.9, seed=7)
    alone = sampler.open(wanted, [1], None)
    expected = [sampler.draw(s[None], [alone]).token_ids()[0] for s in steps]
    sampler.close(alone)
    others = [
        sampler.open(SamplingParams(temperature=1.0, top_k=n, seed=n), [1], None) for n in range(9)
    ]
    same = sampler.open(wanted, [1], None)

    found = []
    for n, s in enumerate(steps):
        batch = torch.stack([*logits(9, seed=n + 99)[: n % 9], s])
        found.append(sampler.draw(batch, [*others[: n % 9], same]).token_ids()[-1])

    assert found == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_seed_draws_the_same_in_both_engines(case: dict[str, Any]) -> None:
    size = 300
    batch = BatchSampler(size, 3, CPU)
    params = [SamplingParams(seed=seed, **case) for seed in (3, -4, 5)]
    rows = [batch.open(p, [1], None) for p in params]
    alone = [Sampler(p, size, CPU) for p in params]
    for step in range(40):
        scores = logits(3, size, seed=step)
        expected = [
            int(s(torch.tensor([[1]]), scores[n : n + 1]).argmax()) for n, s in enumerate(alone)
        ]

        assert batch.draw(scores, rows).token_ids() == expected


def test_log_probabilities_are_the_models_own_of_each_row_as_many_as_it_wants() -> None:
    scores = logits(3)
    params = [
        SamplingParams(temperature=0, logprobs=True, top_logprobs=2, logit_bias={3: 100.0}),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logprobs=True),
    ]
    sampler = BatchSampler(40, 3, CPU)
    drawn = sampler.draw(scores, [sampler.open(p, [1], None) for p in params])

    expected = scores.log_softmax(dim=-1)
    tokens = drawn.token_ids()
    first, none, last = (drawn.draws(n, token) for n, token in enumerate(tokens))
    best = expected[0].topk(2)
    assert tokens[0] == first[0].token_id == 3
    assert first[0].logprob == pytest.approx(float(expected[0, 3]))
    assert [token for token, _ in first[0].top] == best.indices.tolist()
    assert [value for _, value in first[0].top] == pytest.approx(best.values.tolist())
    assert none == ()
    assert last[0].logprob == pytest.approx(float(expected[2].max()))
    assert last[0].top == ()


def test_a_seed_and_its_negative_differ() -> None:
    sampler = BatchSampler(40, 2, CPU)
    rows = [sampler.open(SamplingParams(temperature=1.0, seed=s), [1], None) for s in (5, -5)]
    drawn = [sampler.draw(logits(1).expand(2, -1), rows).token_ids() for _ in range(20)]

    assert any(a != b for a, b in drawn)


def test_each_row_is_penalized_as_it_asks() -> None:
    scores = logits(4)
    prompt = [3, 4, 5]
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, repetition_penalty=5.0),
        SamplingParams(temperature=0, frequency_penalty=2.0, presence_penalty=1.0),
        SamplingParams(temperature=0, logit_bias={7: 100.0}),
    ]
    sampler = BatchSampler(40, 4, CPU)
    rows = [sampler.open(p, prompt, None) for p in params]
    texts: list[list[int]] = [list(prompt) for _ in params]
    for _ in range(12):
        tokens = sampler.draw(scores, rows).token_ids()
        expected = []
        for n, p in enumerate(params):
            own = scores[n : n + 1].clone()
            if p.repetition_penalty != 1:
                ids = torch.tensor([texts[n]])
                own = RepetitionPenaltyLogitsProcessor(p.repetition_penalty)(ids, own)
            answer = texts[n][len(prompt) :]
            for token in set(answer):
                own[0, token] -= p.frequency_penalty * answer.count(token) + p.presence_penalty
            for token, bias in p.logit_bias.items():
                own[0, token] += bias
            expected.append(int(own.argmax()))
        assert tokens == expected
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
    assert len(set(texts[2])) > 6


def test_a_row_that_is_taken_again_has_no_past() -> None:
    sampler = BatchSampler(40, 1, CPU)
    params = SamplingParams(temperature=0, presence_penalty=2.0)
    scores = logits(1)
    for _ in range(2):
        row = sampler.open(params, [1], None)
        assert sampler.draw(scores, [row]).token_ids() == [int(scores.argmax())]
        sampler.close(row)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_fail_their_row_alone(value: float) -> None:
    scores = logits(3)
    expected = scores.argmax(-1).tolist()
    scores[1, 4] = value
    sampler = BatchSampler(40, 3, CPU)
    rows = [sampler.open(SamplingParams(temperature=0), [1], None) for _ in range(3)]

    assert sampler.draw(scores, rows).token_ids() == [expected[0], -1, expected[2]]


class OnlyEven:
    """Lets through tokens of even numbers; breaks after some."""

    is_over = False

    def __init__(self, breaks: bool = False) -> None:
        self._breaks = breaks

    def fill(self, bitmask: torch.Tensor) -> None:
        if self._breaks:
            raise ValueError("nothing is allowed")
        bitmask.fill_(0x55555555)

    def accept(self, token_id: int) -> None: ...


def test_a_structure_leaves_only_what_it_allows_and_breaks_alone() -> None:
    sampler = BatchSampler(40, 4, CPU)
    hot = SamplingParams(temperature=5.0, seed=1)
    rows = [
        sampler.open(hot, [1], OnlyEven()),
        sampler.open(hot, [1], None),
        sampler.open(hot, [1], OnlyEven(breaks=True)),
    ]
    drawn = [sampler.draw(logits(3, seed=n), rows).token_ids() for n in range(40)]

    assert all(a % 2 == 0 for a, _, _ in drawn)
    assert any(b % 2 for _, b, _ in drawn)
    assert {c for _, _, c in drawn} == {-1}
