"""Numbers from the host to the device and back, without either waiting for the other."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor


def to_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return int64 [N] on the device."""
    return pinned_copy(torch.tensor(numbers, dtype=torch.long), device)


def send(device: torch.device, **tables: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Send lists of numbers, or rows of them, in one copy.

    Returns:
        Each under its own name, float64 and flat.
    """
    arrays = [numpy.asarray(table, dtype=numpy.float64).ravel() for table in tables.values()]
    found = pinned_copy(torch.from_numpy(numpy.concatenate(arrays)), device)
    parts = torch.split(found, [len(array) for array in arrays])
    return dict(zip(tables, parts, strict=True))


def fetch(tensor: Tensor) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """Return a tensor on the host, and what has happened once its numbers are there.

    On a CPU that is the tensor itself, and there is nothing to wait for.
    """
    if tensor.device.type != "cuda":
        return tensor, None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch leaves it so
    ready.record()
    return host, ready


def pinned_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on the device."""
    if device.type == "cuda":
        # From memory that may be paged out, even an asynchronous copy makes the host wait.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
