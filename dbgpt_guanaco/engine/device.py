"""What an engine has taken of its device."""

import torch


def device_bytes(device: torch.device) -> int:
    """Return the memory that this process holds on its GPUs; 0 on a CPU. Waits for no GPU work."""
    if device.type != "cuda":
        return 0
    return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))
