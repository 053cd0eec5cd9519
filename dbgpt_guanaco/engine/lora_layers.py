"""LoRAs on a model that many requests share: each token gets its own request's, or none.

A hook on every linear layer adds what the LoRAs say of the tokens of a pass. The model itself is
never changed, so nothing of one request can reach another, and its class stays what it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbgpt_guanaco.adapters.lora import Lora, LoraPair
from dbgpt_guanaco.engine.attention import Span

# Tokens of a pass: a range of them, or [N] their places.
Rows = slice | Tensor
ALL = slice(None)


class LoraLayers:
    """The linear layers of a model, with the LoRAs of the pass that is computed.

    Args:
        model: Gets a hook on every linear layer; ``remove`` takes them away.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self._pass: Mapping[Lora, Rows] = {}
        self._head_pass: Mapping[Lora, Rows] = {}
        head = model.get_output_embeddings()
        self._head = next((name for name, part in model.named_modules() if part is head), None)
        self._hooks = [
            part.register_forward_hook(AddLora(self, name))
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear)
        ]

    @contextmanager
    def applied(
        self, rows: Mapping[Lora, Rows], head_rows: Mapping[Lora, Rows] | None = None
    ) -> Iterator[None]:
        """Lay LoRAs on tokens of all passes within the block.

        Args:
            rows: Of the tokens that are computed.
            head_rows: Of those among them that reach the output head; None where all do.
        """
        self._pass, self._head_pass = rows, rows if head_rows is None else head_rows
        try:
            yield
        finally:
            self.apply({})

    def apply(self, rows: Mapping[Lora, Rows]) -> None:
        """Lay LoRAs on tokens of all passes from now on, at the head as in all layers."""
        self._pass = self._head_pass = rows

    def add(self, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Add to a layer's output [1, T, outputs] what the LoRAs of the pass say."""
        for lora, rows in (self._head_pass if name == self._head else self._pass).items():
            pair = lora.pairs.get(name)
            if pair:
                output = _added(output, inputs, rows, pair)
        return output

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


class AddLora:
    """A layer's hook; a class of its own, so that others can tell it from hooks they fear."""

    def __init__(self, layers: LoraLayers, name: str) -> None:
        self._layers, self._name = layers, name

    def __call__(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ANN401
        """Called by torch behind the layer."""
        return self._layers.add(self._name, inputs[0], output)


def rows_of(spans: Sequence[Span], device: torch.device) -> Mapping[Lora, Rows]:
    """Return which tokens of a pass get which LoRA."""
    found: dict[Lora, list[Span]] = {}
    for span in spans:
        if span.lora:
            found.setdefault(span.lora, []).append(span)
    return {lora: _rows(own, device) for lora, own in found.items()}


def head_rows_of(
    spans: Sequence[Span], wanted: Sequence[int] | None, device: torch.device
) -> Mapping[Lora, Rows]:
    """Return the same of the tokens that are wanted, which alone reach the head, in their order."""
    if wanted is None:
        return rows_of(spans, device)
    places: dict[Lora, list[int]] = {}
    for span in spans:
        if span.lora:
            own = range(span.start, span.start + span.count)
            found = [place for place, token in enumerate(wanted) if token in own]
            places.setdefault(span.lora, []).extend(found)
    return {
        lora: torch.tensor(own, dtype=torch.long, device=device)
        for lora, own in places.items()
        if own
    }


def _rows(spans: Sequence[Span], device: torch.device) -> Rows:
    start, end = spans[0].start, spans[-1].start + spans[-1].count
    if sum(span.count for span in spans) == end - start:
        return slice(start, end)
    places = [p for span in spans for p in range(span.start, span.start + span.count)]
    return torch.tensor(places, dtype=torch.long, device=device)


def _added(output: Tensor, inputs: Tensor, rows: Rows, pair: LoraPair) -> Tensor:
    own = inputs[:, rows].to(pair.a.dtype)
    more = functional.linear(functional.linear(own, pair.a), pair.b) * pair.scale
    output[:, rows] += more.to(output.dtype)
    return output
