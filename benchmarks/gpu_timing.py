"""Times on a device, and how fast its memory is."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second: a copy counts what is read and what is written.

    A step is compared with the larger of the two.
    """

    copy: float
    read: float

    @property
    def limit(self) -> float:
        """What no kernel that reads memory can pass."""
        return max(self.copy, self.read)


def seconds_of(call: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Return how long each of some calls took, one behind the other, on the device's clock."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(times):
            call()
            marks.append(time.perf_counter())
        return [later - earlier for earlier, later in pairwise(marks)]
    kind: Any = torch.cuda.Event  # torch leaves it without types
    events = [kind(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [float(earlier.elapsed_time(later)) / 1000 for earlier, later in pairwise(events)]


def measure_bandwidth(device: torch.device) -> Bandwidth:
    """Copy and add up tensors that no cache holds; the median of many times each."""
    number = 2**30 if device.type == "cuda" else 2**22
    source = torch.ones(number // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source), device)
    read = min(_median(source.sum, device), _median(source.amax, device))
    return Bandwidth(2 * source.nbytes / copy, source.nbytes / read)


def _median(call: Callable[[], object], device: torch.device) -> float:
    seconds_of(call, 3, device)
    return statistics.median(seconds_of(call, 21, device))
