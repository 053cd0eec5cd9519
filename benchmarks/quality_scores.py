"""Logits over a text → perplexity, and how far a model's answers are from another's.

A window slides over the text. Each window is one pass; of its logits only those count whose
tokens no window before has scored, so every token but a text's first is scored once. Such a token
has all of its text before it, or, where that is longer, at least ``window - stride`` tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# [T] token ids → [T, V], what comes after each.
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``begin`` to ``end`` of a text, of which those from ``scored`` on count."""

    begin: int
    end: int
    scored: int


def windows(tokens: int, size: int, stride: int) -> Iterator[Window]:
    """Yield windows over a text of so many tokens.

    Raises:
        ValueError: The text has no token to score, or windows would leave tokens out.
    """
    if tokens < 2:
        raise ValueError(f"a text of {tokens} tokens has none to score; at least 2 are needed")
    if not 0 < stride < size:
        raise ValueError(f"a stride of {stride} is not between 0 and the window of {size} tokens")
    end, scored = min(size, tokens), 1
    while scored < tokens:
        yield Window(max(0, end - size), end, scored)
        end, scored = min(end + stride, tokens), end


@dataclass(slots=True)
class Scores:
    """What a model says of some texts, one entry for each token that was scored.

    Attributes:
        log_probabilities: For each window of each text [n, V], if they were to be kept.
        losses: For each text [N], in nats.
        choices: For each text [N], the most likely tokens.
        divergences: [n] for each window, KL from the reference to this model, in nats.
    """

    log_probabilities: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)
    divergences: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def score(
    logits: Logits,
    texts: Sequence[Tensor],
    size: int,
    stride: int,
    *,
    reference: Scores | None = None,
) -> Scores:
    """Score texts with a model.

    Args:
        logits: The model.
        texts: Token ids, [T] each.
        size: Tokens of a window.
        stride: Tokens that a window goes on.
        reference: What to compare with; it kept its log-probabilities. None: this is one.
    """
    found, number = Scores(), 0
    for ids in texts:
        losses, choices = [], []
        for window in windows(len(ids), size, stride):
            seen = logits(ids[window.begin : window.end])[window.scored - 1 - window.begin : -1]
            log_p = torch.log_softmax(seen.float(), dim=-1)
            losses.append(-log_p.gather(1, ids[window.scored : window.end, None])[:, 0])
            choices.append(log_p.argmax(-1))
            if reference is None:
                found.log_probabilities.append(log_p)
            else:
                found.divergences.append(_kl(reference.log_probabilities[number], log_p))
            number += 1
        found.losses.append(torch.cat(losses))
        found.choices.append(torch.cat(choices))
    return found


def _kl(reference: Tensor, other: Tensor) -> Tensor:
    return (reference.exp() * (reference - other)).sum(-1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's quality.

    Attributes:
        perplexity: Over all texts together, each token with the same weight.
        perplexities: Of each text.
        loss_change: Mean loss minus the reference's, nats a token.
        loss_change_error: Twice its standard error, tokens taken as independent.
        agreement: Fraction of tokens whose most likely one is the reference's.
        kl: Mean KL from the reference, nats a token.
    """

    perplexity: float
    perplexities: tuple[float, ...]
    loss_change: float
    loss_change_error: float
    agreement: float
    kl: float


def measure(scores: Scores, reference: Scores) -> Measured:
    """Compare what a model says with what the reference says of the same texts."""
    losses = torch.cat(scores.losses).double()
    changes = losses - torch.cat(reference.losses).double()
    same = torch.cat(scores.choices) == torch.cat(reference.choices)
    kl = torch.cat(scores.divergences).double().mean() if scores.divergences else 0.0
    return Measured(
        perplexity=_perplexity(losses),
        perplexities=tuple(_perplexity(own.double()) for own in scores.losses),
        loss_change=float(changes.mean()),
        loss_change_error=float(2 * changes.std() / math.sqrt(len(changes))),
        agreement=float(same.double().mean()),
        kl=float(kl),
    )


def _perplexity(losses: Tensor) -> float:
    return math.exp(float(losses.mean()))
