"""How much memory a device has free, what a computation takes of it, and what an error keeps."""

import gc
import inspect
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch

from dbgpt_guanaco.adapters.memory import free_memory_bytes

_MAY_GO_ON = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Memory(Protocol):
    """The memory of one device."""

    def free(self) -> int:
        """Return the bytes that nobody has."""
        ...

    def peak(self, compute: Callable[[], object]) -> int:
        """Compute something; return the most bytes that it took beside what was there before.

        Raises:
            torch.OutOfMemoryError: It does not fit.
        """
        ...


class HostMemory:
    """A CPU's. A step takes little of it beside what is left to other programs anyway."""

    def free(self) -> int:
        """See ``Memory``."""
        return free_memory_bytes()

    def peak(self, compute: Callable[[], object]) -> int:  # noqa: ARG002 - it is not worth the time
        """Return 0, without computing."""
        return 0


class CudaMemory:
    """A GPU's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """See ``Memory``; what torch keeps without need is given back first."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])

    def peak(self, compute: Callable[[], object]) -> int:
        """See ``Memory``."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        compute()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device)) - before


def memory_of(device: torch.device) -> Memory:
    """Return the memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


def forget_frames(error: BaseException | None) -> None:
    """Let an error, and those that it came from, keep nothing alive that failed code held.

    Whoever waits for an answer gets the error, and with its frames every tensor in them. Frames
    of coroutines and generators are left alone: they are the readers', and may go on.
    """
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if not frame.f_code.co_flags & _MAY_GO_ON:
                    with suppress(RuntimeError):  # it runs: it has caught the error
                        frame.clear()
            left += [one.__cause__, one.__context__]
    gc.collect()
