"""LoRAs as compiled code takes them: matrices laid out for it, and who of a pass gets which."""

import ctypes
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from dbgpt_guanaco.adapters.lora import Lora, LoraPair
from dbgpt_guanaco.engine.attention import Span
from dbgpt_guanaco.engine.kernels.decoder_structs import LOW_STEP, PROJECTIONS, Pair

_LAYER = re.compile(rf"model\.layers\.(\d+)\.(?:self_attn|mlp)\.({'|'.join(PROJECTIONS)})_proj")
MAX_RUN = 64  # tokens that are computed together
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Laid:
    """The LoRAs of a pass. All of it must live until the pass is over.

    Attributes:
        tables: Pairs of every layer, for each LoRA of the pass; None where there is no LoRA.
        token_loras: [T] which of them a token gets, or ``NOBODY``.
        runs: Start, count and LoRA of neighbouring tokens that share one.
        width: Room for the products of A, per token and layer.
        kept: What compiled code points to.
    """

    tables: Any
    token_loras: "array[int]"
    runs: "array[int]"
    width: int
    kept: tuple[object, ...] = ()

    @property
    def num_runs(self) -> int:
        """How many runs there are."""
        return len(self.runs) // 3


NOTHING = Laid(None, array("i"), array("i"), 0)


@dataclass(frozen=True, slots=True)
class _Table:
    """One LoRA: its pairs, layer by layer, and the tensors behind them."""

    pairs: Any
    width: int
    kept: tuple[Tensor, ...]


class LoraTables:
    """Lays out LoRAs when they are first used; forgets those that nobody has any more.

    Args:
        num_layers: Decoder layers of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._tables: WeakKeyDictionary[Lora, _Table] = WeakKeyDictionary()

    def knows(self, lora: Lora) -> bool:
        """Say whether a LoRA is only for layers that compiled code computes."""
        return all(_LAYER.fullmatch(name) for name in lora.pairs)

    def lay(self, spans: Sequence[Span]) -> Laid:
        """Return what compiled code is to be told of the LoRAs of a pass."""
        loras = list(dict.fromkeys(span.lora for span in spans if span.lora))
        if not loras:
            return NOTHING
        tables = [self._table(lora) for lora in loras]
        pointers = (ctypes.POINTER(Pair) * len(tables))(*(t.pairs for t in tables))
        token_loras, runs = array("i"), array("i")
        for span in spans:
            number = loras.index(span.lora) if span.lora else NOBODY
            token_loras.extend([number] * span.count)
            if number != NOBODY:
                _extend(runs, span, number)
        return Laid(pointers, token_loras, runs, max(t.width for t in tables), tuple(tables))

    def _table(self, lora: Lora) -> _Table:
        table = self._tables.get(lora)
        if table is None:
            table = self._tables[lora] = self._laid_out(lora)
        return table

    def _laid_out(self, lora: Lora) -> _Table:
        pairs, kept = (Pair * (self._num_layers * len(PROJECTIONS)))(), []
        for name, pair in lora.pairs.items():
            match = _LAYER.fullmatch(name)
            if not match:
                raise ValueError(f"{name} is not computed here")
            place = int(match[1]) * len(PROJECTIONS) + PROJECTIONS.index(match[2])
            a, b = _matrices(pair)
            pairs[place] = Pair(a.data_ptr(), b.data_ptr(), a.shape[0], pair.scale)
            kept += [a, b]
        ranks = [pair.rank for pair in pairs]
        width = -(-max(ranks, default=0) // LOW_STEP) * LOW_STEP
        return _Table(pairs, width, tuple(kept))


def _extend(runs: "array[int]", span: Span, number: int) -> None:
    """Add a span's tokens; those of the same LoRA right before them are joined."""
    start, left = span.start, span.count
    if runs and runs[-1] == number and runs[-3] + runs[-2] == start:
        joined = min(left, MAX_RUN - runs[-2])
        runs[-2] += joined
        start, left = start + joined, left - joined
    while left:
        count = min(left, MAX_RUN)
        runs.extend((start, count, number))
        start, left = start + count, left - count


def _matrices(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """Return A [rank, inputs] and B [rank / 2, outputs, 2], in bfloat16, ranks in twos.

    That is how products of two numbers at a time want B; its outputs are padded to 32.
    """
    rank, outputs = pair.a.shape[0], pair.b.shape[0]
    odd, more = rank % 2, -outputs % 32
    a = functional.pad(pair.a, (0, 0, 0, odd)).to(torch.bfloat16).contiguous()
    b = functional.pad(pair.b, (0, odd, 0, more)).to(torch.bfloat16)  # [outputs, rank]
    return a, b.view(outputs + more, -1, 2).transpose(0, 1).contiguous()
