"""The one place where layers of 4-bit weights are called; the door for a kernel of our own."""

from functools import partial
from typing import Any

from torch import Tensor, nn


def route_calls(model: nn.Module) -> int:
    """Let every 4-bit layer of a model compute by ``multiply``.

    Returns:
        How many layers were changed.
    """
    layers: list[Any] = [part for part in model.modules() if is_linear4bit(part)]
    for layer in layers:
        layer.forward = partial(multiply, layer)
    return len(layers)


def multiply(layer: Any, input: Tensor) -> Tensor:  # noqa: A002, ANN401 - torch's own name
    """Compute a layer's output [..., outputs] as bitsandbytes does."""
    output: Tensor = type(layer).forward(layer, input)
    return output


def is_linear4bit(part: nn.Module) -> bool:
    """Say whether a layer is bitsandbytes' of 4-bit weights, without an import of it."""
    return type(part).__name__ == "Linear4bit" and isinstance(part, nn.Linear)
