"""Where a model is computed, and how much memory there is."""

from dataclasses import dataclass

import torch

from dbgpt_guanaco.adapters.memory import free_memory_bytes
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import ModelSettings, memory_bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model must fit, this machine or one that somebody asks about.

    Attributes:
        name: For the person who reads it.
        available_bytes: Memory that is free, over all GPUs.
    """

    name: str
    on_cuda: bool
    available_bytes: int


def this_machine(settings: ModelSettings) -> Machine:
    """Return the machine that a server with these settings would find.

    Raises:
        ConfigurationError: They ask for a GPU, and there is none.
    """
    device = find_device(settings)
    is_cuda = device.type == "cuda"
    return Machine(device_name(device), is_cuda, available_bytes(device, settings))


def gpu_of(size: str) -> Machine:
    """Return a machine whose GPU has so much memory free, such as ``24GB``.

    Raises:
        ConfigurationError: It is not a size.
    """
    try:
        return Machine(f"a GPU with {size}", on_cuda=True, available_bytes=memory_bytes(size))
    except ValueError as error:
        raise ConfigurationError(f"--gpu: {error}") from None


def find_device(settings: ModelSettings) -> torch.device:
    """Return where to compute.

    Raises:
        ConfigurationError: A GPU is asked for, and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("GUANACO_DEVICE=cuda, but torch sees no CUDA device")
    has_cuda = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if has_cuda else "cpu")


def device_name(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} × {names[0]}" if len(names) > 1 else names[0]


def available_bytes(device: torch.device, settings: ModelSettings) -> int:
    """Return how much memory is free, over all GPUs."""
    if device.type == "cpu":
        return free_memory_bytes()
    return sum(gpu_bytes(index, settings) for index in range(torch.cuda.device_count()))


def gpu_bytes(index: int, settings: ModelSettings) -> int:
    """Return how much of a GPU may be used: what is free, capped by MAX_GPU_MEMORY."""
    free = torch.cuda.mem_get_info(index)[0]
    return min(free, memory_bytes(settings.max_gpu_memory)) if settings.max_gpu_memory else free
