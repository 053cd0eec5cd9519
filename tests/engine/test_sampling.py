from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from dbgpt_guanaco.engine.sampling import Sampler
from dbgpt_guanaco.types import SamplingParams

DEVICE = torch.device("cpu")
IDS = torch.tensor([[1, 2, 3]])
LOGITS = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0]])
DRAWS = 4000


def draw(params: SamplingParams, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    sampler = Sampler(params, logits.shape[-1], DEVICE)
    return [int(sampler(IDS, logits).argmax()) for _ in range(count)]


@pytest.mark.parametrize(
    ("values", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        ({"typical_p": 0.6}, [TypicalLogitsWarper(0.6)]),
        (
            {"temperature": 1.7, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
            [
                TemperatureLogitsWarper(1.7),
                TopKLogitsWarper(6),
                TopPLogitsWarper(0.9),
                MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_draws_follow_transformers_warpers(values: dict[str, Any], warpers: list[Any]) -> None:
    params = SamplingParams(**({"temperature": 1.0, "seed": 1} | values))
    expected = LogitsProcessorList(warpers)(IDS, LOGITS.clone()).softmax(-1)[0]

    seen = Counter(draw(params, DRAWS))

    assert set(seen) <= set(expected.nonzero().flatten().tolist())
    likely = [i for i in range(8) if expected[i] > 0.001]
    chi_squared = sum(
        (seen[i] - DRAWS * float(expected[i])) ** 2 / (DRAWS * float(expected[i])) for i in likely
    )
    # 24.3 is passed by chance once in 1,000 tables of eight; a wrong warper gives hundreds.
    assert chi_squared < 24.3


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(draw(SamplingParams(temperature=0, top_k=2), 20)) == {0}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest_too(temperature: float) -> None:
    assert set(draw(SamplingParams(temperature=temperature), 20, LOGITS * 20)) == {0}


def test_a_seed_repeats_its_draws_whatever_else_is_drawn() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    alone = draw(params, 50)
    sampler, other = Sampler(params, 8, DEVICE), Sampler(SamplingParams(seed=4), 8, DEVICE)
    torch.manual_seed(99)

    crowded = []
    for _ in range(50):
        other(IDS, LOGITS)
        torch.rand(3)
        crowded.append(int(sampler(IDS, LOGITS).argmax()))

    assert crowded == alone
    assert draw(SamplingParams(temperature=1.0, seed=5), 50) != alone


def test_a_negative_seed_is_a_seed() -> None:
    params = SamplingParams(temperature=1.0, seed=-5)

    assert draw(params, 20) == draw(params, 20)


def test_the_logits_are_left_as_they_were() -> None:
    logits = LOGITS.clone()

    draw(SamplingParams(temperature=0.5, top_k=2, repetition_penalty=2.0, seed=1), 3, logits)

    assert torch.equal(logits, LOGITS)


def test_presence_counts_once_and_frequency_each_time() -> None:
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=0.7), 8, DEVICE)
    frequency = Sampler(SamplingParams(temperature=0, frequency_penalty=0.3), 8, DEVICE)

    # 2.0, 1.5, 1.0, 0.5 less 0.7 for each that was there: 1.3, 0.8, 0.3 …
    assert [int(presence(IDS, LOGITS).argmax()) for _ in range(4)] == [0, 1, 0, 0]
    # Tokens 0 and 1 sink by 0.3 a time until they meet.
    assert [int(frequency(IDS, LOGITS).argmax()) for _ in range(5)] == [0, 0, 1, 0, 1]


def test_penalties_do_not_count_the_prompt() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=2.0), 8, DEVICE)

    assert int(sampler(torch.tensor([[0, 0, 0]]), LOGITS).argmax()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[0, 5] = bad

    with pytest.raises(FloatingPointError):
        draw(SamplingParams(temperature=temperature), 1, logits)


def test_logprobs_are_taken_before_any_warping() -> None:
    params = SamplingParams(
        temperature=0.1, logit_bias={3: 100.0}, logprobs=True, top_logprobs=2, seed=1
    )
    sampler = Sampler(params, 8, DEVICE)
    sampler(IDS, LOGITS)

    (told,) = sampler.draws
    expected = LOGITS[0].log_softmax(-1)
    assert told.token_id == 3
    assert told.logprob == pytest.approx(float(expected[3]))
    assert [i for i, _ in told.top] == [0, 1]
    assert [value for _, value in told.top] == pytest.approx([float(expected[i]) for i in (0, 1)])
