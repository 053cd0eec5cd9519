"""What keeps an answer in a form: which tokens may follow, told as bits."""

from typing import Protocol

import torch
from torch import Tensor


class StructureMatcher(Protocol):
    """Follows one answer through its structure."""

    @property
    def is_over(self) -> bool:
        """Nothing but a stop token may follow."""
        ...

    def fill(self, bitmask: Tensor) -> None:
        """Write which tokens may come next: int32 [ceil(V / 32)], one bit each, lowest first.

        Raises:
            ValueError: None may.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn."""
        ...


def allowed(bitmask: Tensor, vocabulary_size: int) -> Tensor:
    """Return bits [B, ceil(V / 32)], int32, as booleans [B, V]."""
    places = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    bits = (bitmask[:, :, None] >> places) & 1  # [B, ceil(V / 32), 32]
    return bits.flatten(1)[:, :vocabulary_size].bool()
