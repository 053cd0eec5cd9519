"""Weights → drawn tokens; scores → the likeliest ones. Both engines choose their tokens here.

A draw is an exponential race: where each token takes the time Exp(1) / weight, each is the first
as often as its share of the weights says, and one without weight never arrives. It is run in two
heats, first between groups of tokens, then within the group that won. That takes some hundred
random numbers, not one for each token of a vocabulary.

Logits that are rounded otherwise, because of other rows in a batch, change a token only where two
are first at about the same time. Looking up a number in sums over all tokens would make each of
their borders such a place.
"""

import hashlib
import secrets
from typing import Any

import numpy
import torch
from torch import Tensor

# Tokens of a group. Of a vocabulary of 50,000 there are then about as many groups.
GROUP = 256


class Noise:
    """The random numbers of one sequence, which belong to its seed and to nobody else.

    Args:
        seed: Any whole number; None takes one that nobody knows.
        vocabulary_size: V, of the weights among which is drawn.
    """

    def __init__(self, seed: int | None, vocabulary_size: int) -> None:
        word = str(secrets.randbits(128) if seed is None else seed).encode()
        key = int.from_bytes(hashlib.blake2b(word, digest_size=16).digest(), "little")
        self._random = numpy.random.Generator(numpy.random.Philox(key=key))
        self._count = -(-vocabulary_size // GROUP) + GROUP

    def next(self) -> Any:  # noqa: ANN401 - numpy's types are not torch's
        """Return what the next draw takes: Exp(1) for each group, then for each place in one."""
        return self._random.standard_exponential(self._count)


def race(weights: Tensor, noise: Tensor) -> Tensor:
    """Draw a token of each row.

    Args:
        weights: [N, V], from 0; what they add up to does not matter.
        noise: Of each row what ``Noise.next`` gave.

    Returns:
        [N]
    """
    groups = noise.shape[1] - GROUP
    masses = torch.cat([part.sum(dim=-1) for part in _groups(weights)], dim=1)  # [N, groups]
    ids = _members((noise[:, :groups] / masses).argmin(dim=-1))  # [N, GROUP]
    size = weights.shape[-1]
    own = weights.gather(1, ids.clamp(max=size - 1)).masked_fill(ids >= size, 0)
    return _pick(ids, (noise[:, groups:] / own).argmin(dim=-1), size)


def likeliest(scores: Tensor) -> Tensor:
    """Return the first token of each row of [N, V] whose score is the largest; NaN is larger.

    It is ``argmax``, which torch computes several times more slowly, above all in bfloat16.
    """
    best = torch.cat([part.amax(dim=-1) for part in _groups(scores)], dim=1)  # [N, groups]
    ids = _members(best.argmax(dim=-1))
    size = scores.shape[-1]
    own = scores.gather(1, ids.clamp(max=size - 1))
    return _pick(ids, own.argmax(dim=-1), size)


def _groups(rows: Tensor) -> list[Tensor]:
    """Split [N, V] into [N, groups, GROUP] and what is left, [N, 1, fewer], without a copy."""
    groups = rows.shape[-1] // GROUP
    whole = groups * GROUP
    parts = [rows[:, :whole].view(len(rows), groups, GROUP), rows[:, None, whole:]]
    return [part for part in parts if part.shape[1] * part.shape[2]]


def _members(groups: Tensor) -> Tensor:
    """Return the tokens [N, GROUP] of groups [N]; the last group's may lie behind the end."""
    return groups[:, None] * GROUP + torch.arange(GROUP, device=groups.device)


def _pick(ids: Tensor, places: Tensor, size: int) -> Tensor:
    # Where no number was finite, any token will do: its row is told to have failed.
    return ids.gather(1, places[:, None])[:, 0].clamp(max=size - 1)
