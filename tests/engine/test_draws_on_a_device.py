"""A draw never looks at the device's numbers, so no step waits for one; without a device at hand.

Tensors on ``meta`` have no numbers: whatever asks for one of them raises.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dbgpt_guanaco.engine.batch_sampler import BatchSampler
from dbgpt_guanaco.types import SamplingParams

META = torch.device("meta")
SIZE = 3000


class EvenOnly:
    """Lets through tokens of even numbers."""

    is_over = False

    def fill(self, bitmask: torch.Tensor) -> None:
        bitmask.fill_(0x55555555)

    def accept(self, token_id: int) -> None: ...


class CountsCopies(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it so
    """Counts what goes to the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self.sent: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in (*args, result) if isinstance(one, torch.Tensor)]
        places = {one.device.type for one in tensors}
        self.sent += {"cpu", "meta"} <= places
        return result


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.7},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9, "min_p": 0.1},
    "typical_p": {"typical_p": 0.5},
    "penalties": {"temperature": 0, "repetition_penalty": 1.2, "frequency_penalty": 1.0},
    "bias": {"temperature": 0, "logit_bias": {7: 3.0, 9: -100.0}},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
}


def copies(params: list[SamplingParams], matchers: list[Any]) -> int:
    sampler = BatchSampler(SIZE, len(params), META)
    rows = [sampler.open(p, [1, 2], m) for p, m in zip(params, matchers, strict=True)]
    logits = torch.empty(len(params), SIZE, dtype=torch.bfloat16, device=META)
    counts = CountsCopies()
    with counts:
        drawn = sampler.draw(logits, rows)
    assert drawn.numbers.device == META
    return counts.sent


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_takes_one_copy_and_no_look(kind: str) -> None:
    assert copies([SamplingParams(**KINDS[kind])] * 3, [None] * 3) == 1


def test_a_mixed_batch_takes_one_copy_too_and_one_for_structures() -> None:
    params = [SamplingParams(**kind) for kind in KINDS.values()]

    assert copies(params, [None] * len(params)) == 1
    assert copies(params, [EvenOnly(), *[None] * (len(params) - 1)]) == 2
