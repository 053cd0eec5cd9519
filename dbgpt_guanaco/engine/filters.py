"""Weights without the tokens that top_k, top_p, min_p and typical_p drop, each row as it asks.

Sorting a whole vocabulary costs more than everything else of a draw, and few tokens say nearly
everything, so they are looked at first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import TypicalLogitsWarper

from dbgpt_guanaco.types import SamplingParams

# How many of the likeliest tokens are looked at before all of them are.
CANDIDATES = (128, 1024)
# Where nobody may look whether they were enough: of requests with so small a top_k they are.
SURE_TOP_K = 256


def filtered(weights: Tensor, asked: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Drop what each row does not want.

    Args:
        weights: [n, V] that add up to 1.
        asked: [n, 4], float64: top_k, top_p, min_p and typical_p.
        params: The same, on the host.

    Returns:
        [n, V], 0 where a token is dropped.
    """
    size = weights.shape[-1]
    if weights.device.type != "cpu":
        is_sure = all(0 < p.top_k <= SURE_TOP_K for p in params)
        return _kept(weights, asked, params, CANDIDATES[-1] if is_sure else size)[0]
    kept, is_enough = _kept(weights, asked, params, CANDIDATES[0])
    left = (~is_enough).nonzero()[:, 0]
    for count in (*CANDIDATES[1:], size):
        if len(left):
            kept[left], is_enough = _kept(weights[left], asked[left], params, count)
            left = left[~is_enough]
    return kept


def _kept(
    weights: Tensor, asked: Tensor, params: Sequence[SamplingParams], count: int
) -> tuple[Tensor, Tensor]:
    """Return what is left [n, V] by a look at the likeliest, and of each row if they were enough.

    The rows may be fewer than ``params``.
    """
    found, ids, is_enough = _filter(weights, asked, count)
    kept = torch.zeros_like(weights).scatter_(1, ids, _typical(found, asked, params))
    return kept, is_enough


def _filter(weights: Tensor, asked: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Apply top_k, top_p and min_p, as transformers' warpers do one after the other.

    Args:
        weights: [n, V].
        asked: [n, 4].
        count: C, how many of the likeliest tokens to look at.

    Returns:
        Weights [n, C], best first, 0 for what is dropped; their tokens; whether C were enough.
    """
    size, count = weights.shape[-1], min(count, weights.shape[-1])
    values, ids = weights.topk(count) if count < size else weights.sort(descending=True)
    top_k, top_p, min_p = (asked[:, n, None] for n in range(3))
    k = top_k.long()
    is_cut = (k > 0) & (k < size)
    kth = values.gather(1, k.clamp(1, count) - 1)
    # Ties with the k-th stay, as in transformers.
    values = values * ((values >= kth) | ~is_cut)
    shares = torch.where(is_cut, values / values.sum(dim=-1, keepdim=True), values)
    before = shares.cumsum(dim=-1) - shares
    in_p = (before < top_p) | (top_p >= 1)
    in_p[:, 0] = True
    values = values * (in_p & (shares >= min_p * shares[:, :1]))
    is_enough = (values[:, -1] == 0) & ~(is_cut & (k > count))[:, 0]
    return values, ids, is_enough if count < size else torch.ones_like(is_enough)


def _typical(weights: Tensor, asked: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    for mass in {p.typical_p for p in params} - {1.0}:
        dropped = TypicalLogitsWarper(mass)(None, weights.log()).isneginf()
        weights = weights.masked_fill(dropped & (asked[:, 3:] == mass), 0)
    return weights
