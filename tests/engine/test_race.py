"""A race draws in proportion to weights, never what has none, and hardly differs by rounding."""

import math

import numpy
import pytest
import torch

from dbgpt_guanaco.engine.race import GROUP, Noise, likeliest, race

SIZES = (1, 40, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 7)
DRAWS = 20_000


def noise_of(seeds: list[int], size: int) -> torch.Tensor:
    return torch.from_numpy(numpy.stack([Noise(seed, size).next() for seed in seeds]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_the_likeliest_token_is_the_first_of_the_best(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    for factor in (1.0, 0.01):  # the smaller one makes ties everywhere
        scores = (torch.randn(50, size, generator=generator) * factor * 100).round().to(dtype)
        scores[3, size // 2] = math.nan
        scores[4, size // 3] = math.inf
        scores[5] = -math.inf

        assert likeliest(scores).tolist() == scores.argmax(dim=-1).tolist()


def test_no_rows_are_no_tokens() -> None:
    assert likeliest(torch.empty(0, 600)).tolist() == []
    assert race(torch.empty(0, 600), torch.empty(0, 3 + GROUP)).tolist() == []


@pytest.mark.parametrize("size", SIZES)
def test_a_token_without_weight_is_never_drawn_whatever_the_noise(size: int) -> None:
    """As early as numbers go beside as late as they go."""
    for only in {0, size // 2, size - 1}:
        weights = torch.zeros(1, size)
        weights[0, only] = 1e-30
        for others, own in ((5e-324, 1e3), (1e3, 5e-324), (5e-324, 5e-324)):
            noise = torch.full((1, -(-size // GROUP) + GROUP), others, dtype=torch.float64)
            noise[0, only // GROUP] = own
            noise[0, -GROUP + only % GROUP] = own

            assert race(weights, noise).tolist() == [only]


@pytest.mark.parametrize("broken", [math.nan, 0.0])
def test_rows_that_cannot_be_drawn_from_give_some_token(broken: float) -> None:
    """Their failure is told elsewhere; what stands here is the next step's input meanwhile."""
    size = GROUP + 3
    drawn = race(torch.full((4, size), broken), noise_of([1, 2, 3, 4], size))

    assert all(0 <= token < size for token in drawn.tolist())


def test_every_group_and_every_token_gets_its_share() -> None:
    size = 2 * GROUP + 9
    weights = torch.zeros(size)
    weights[[0, 5, GROUP - 1, GROUP, GROUP + 40, 2 * GROUP, size - 1]] = torch.tensor(
        [1.0, 2.0, 8.0, 4.0, 0.5, 2.5, 6.0]
    )
    own = Noise(4, size)
    noise = torch.from_numpy(numpy.stack([own.next() for _ in range(DRAWS)]))

    counts = torch.bincount(race(weights.expand(DRAWS, -1), noise), minlength=size).double()

    expected = (weights / weights.sum()).double() * DRAWS
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = float(((counts - expected) ** 2 / expected)[kept].sum())
    assert statistic < 32  # six degrees of freedom: passed by chance once in 60,000


def test_rounding_hardly_ever_changes_a_draw() -> None:
    """Logits of one text in two batches differ in their last digits."""
    size, seeds = 1000, list(range(4000))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(seeds), size, generator=generator)
    rounded = scores + 1e-4 * torch.randn(scores.shape, generator=generator)
    noise = noise_of(seeds, size)

    drawn = [race(s.softmax(dim=-1), noise) for s in (scores, rounded)]
    uniforms = torch.rand(len(seeds), 1, generator=generator)
    looked_up = [torch.searchsorted(s.softmax(-1).cumsum(-1), uniforms) for s in (scores, rounded)]

    differ, would_differ = (int((one != other).sum()) for one, other in (drawn, looked_up))
    assert differ <= 2 < 6 < would_differ


def test_a_seed_is_its_own() -> None:
    first = [Noise(seed, 40).next() for seed in (7, 7, 8, -7, None, None)]

    assert (first[0] == first[1]).all()
    for n, one in enumerate(first[1:]):
        for other in first[n + 2 :]:
            assert (one != other).any()
