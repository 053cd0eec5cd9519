"""Which example comes when: the whole course of the training, fixed before it begins.

So going on after an interruption is nothing but going on in a list.
"""

import math
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from dbgpt_guanaco.training.examples import Example
from dbgpt_guanaco.training.hyperparameters import Hyperparameters


class Schedule(Dataset[Example]):
    """Examples in the order in which they are learned, all rounds in one row.

    Args:
        examples: Each of them comes once in a round.
        how: The same examples and hyperparameters give the same row.
    """

    def __init__(self, examples: Sequence[Example], how: Hyperparameters) -> None:
        self._examples = examples
        self.steps = _steps(len(examples), how)
        self._order = _order([len(e.input_ids) for e in examples], self.steps * how.batch, how)
        if how.max_steps is None:  # the last step of the last round may hold fewer
            del self._order[max(1, math.ceil(len(examples) * how.epochs)) :]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        return self._examples[self._order[index]]


def _steps(count: int, how: Hyperparameters) -> int:
    return how.max_steps or math.ceil(max(1, math.ceil(count * how.epochs)) / how.batch)


def _order(lengths: Sequence[int], needed: int, how: Hyperparameters) -> list[int]:
    generator = torch.Generator().manual_seed(how.seed)
    order: list[int] = []
    while len(order) < needed:
        if how.groups_by_length:
            order += get_length_grouped_indices(lengths, how.batch, generator=generator)
        else:
            order += torch.randperm(len(lengths), generator=generator).tolist()
    return order[:needed]
