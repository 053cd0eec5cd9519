"""What each sequence of a batch asks of a draw, on the host; and all of it, on the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dbgpt_guanaco.engine.race import Noise
from dbgpt_guanaco.engine.sampling import LEAST_TEMPERATURE
from dbgpt_guanaco.engine.structure import StructureMatcher
from dbgpt_guanaco.engine.transfer import send
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import SamplingParams


class Row:
    """How one sequence's tokens are drawn.

    Attributes:
        index: Its place in tables that hold a row for each sequence.
        noise: Its own random numbers.
        problem: Why its structure could not be followed any further.
        is_greedy: The likeliest token is taken.
        is_filtered: Unlikely tokens are not drawn at all.
        is_penalized: Tokens that stand there already are less likely, or more.
        is_plain: The model's logits are taken as they are.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        vocabulary_size: int,
        matcher: StructureMatcher | None = None,
    ) -> None:
        p = params
        self.index, self.params, self.matcher = index, params, matcher
        self.noise = Noise(p.seed, vocabulary_size)
        self.problem: InvalidRequestError | None = None
        self.is_greedy = p.temperature == 0
        self.is_filtered = bool(p.top_k or p.top_p < 1 or p.min_p or p.typical_p < 1)
        self.is_penalized = bool(
            p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty
        )
        self.is_plain = not (self.is_penalized or p.logit_bias or matcher)


class Asked:
    """What the rows of one draw ask for; the device gets it in one copy.

    Args:
        rows: N rows.
        broken: Places of those whose structure could not be followed.

    Attributes:
        penalized, free, filtered, told: Places of rows: with penalties, drawn from all tokens,
            from some, with log-probabilities.
    """

    def __init__(self, rows: Sequence[Row], broken: Sequence[int], device: torch.device) -> None:
        self.rows = rows
        numbered = list(enumerate(rows))
        self.penalized = [n for n, row in numbered if row.is_penalized]
        self.free = [n for n, row in numbered if not row.is_greedy and not row.is_filtered]
        self.filtered = [n for n, row in numbered if not row.is_greedy and row.is_filtered]
        self.told = [n for n, row in numbered if row.params.logprobs]
        tables: dict[str, Any] = {"index": [row.index for row in rows], "broken": broken}
        for name in ("penalized", "free", "filtered", "told"):
            tables[name] = getattr(self, name)
        tables |= _penalties([rows[n] for n in self.penalized]) | _biases(rows)
        tables |= _draws("free", [rows[n] for n in self.free])
        tables |= _draws("filtered", [rows[n] for n in self.filtered])
        tables["guided"] = [n for n, row in numbered if row.matcher]
        self._sent = send(device, **tables)

    def places(self, name: str) -> Tensor:
        """Return whole numbers, [n]."""
        return self._sent[name].long()

    def column(self, name: str) -> Tensor:
        """Return a number for each row, float32 [n, 1]."""
        return self._sent[name].float()[:, None]

    def table(self, name: str, rows: int) -> Tensor:
        """Return some numbers for each row, float64 [rows, …]."""
        return self._sent[name].view(rows, -1)


def _penalties(rows: Sequence[Row]) -> dict[str, Any]:
    params = [row.params for row in rows]
    return {
        "repetition": [p.repetition_penalty for p in params],
        "frequency": [p.frequency_penalty for p in params],
        "presence": [p.presence_penalty for p in params],
    }


def _biases(rows: Sequence[Row]) -> dict[str, Any]:
    pairs = [(n, *pair) for n, row in enumerate(rows) for pair in row.params.logit_bias.items()]
    columns: Any = zip(*pairs, strict=True) if pairs else ((), (), ())
    return dict(zip(("bias_rows", "bias_ids", "bias"), columns, strict=True))


def _draws(kind: str, rows: Sequence[Row]) -> dict[str, Any]:
    params = [row.params for row in rows]
    filters = [(p.top_k, p.top_p, p.min_p, p.typical_p) for p in params]
    return {
        f"{kind}_temperature": [max(p.temperature, LEAST_TEMPERATURE) for p in params],
        f"{kind}_noise": [row.noise.next() for row in rows],
        f"{kind}_filters": filters if kind == "filtered" else (),
    }
