"""What a model and its training take: from torch's own books, and from the operating system's."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dbgpt_guanaco.adapters.training_memory import TrainingRun

# Passes of one optimizer step, so that gradients of an earlier one are there at the peak.
PASSES = 2


def tensor_bytes(model: nn.Module) -> int:
    """Return what all tensors of a model take, with the constants of its quantization."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(model)}
    return sum(sizes.values())


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a model; bitsandbytes hides some in attributes of others."""
    for part in model.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None:
                continue
            yield tensor
            yield from _constants(tensor)


def _constants(weight: Any) -> Iterator[Tensor]:  # noqa: ANN401
    state = getattr(weight, "quant_state", None)
    if state is not None:
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.state2.absmax, state.state2.code, state.offset)
    if getattr(weight, "SCB", None) is not None:
        yield weight.SCB


def process_bytes(model: nn.Module | None = None) -> int:
    """Return the memory that belongs to this process alone.

    Pages of a weight file that were read and are not needed any more count as resident, too, until
    the kernel wants them back. So of mapped files only what a model's tensors lie in is counted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon") + (_mapped_bytes(model) if model else 0)


def _mapped_bytes(model: nn.Module) -> int:
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    spans = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
    ranges = [range(int(start, 16), int(end, 16)) for start, end in spans]
    found = {t.data_ptr(): t.nbytes for t in tensors(model)}
    return sum(size for start, size in found.items() if any(start in r for r in ranges))


def start_watching() -> Callable[[], int]:
    """Forget the process's largest size; → what tells by how much it has grown since at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    return lambda: _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Training:
    """A QLoRA training of random tokens, as the recipe has it.

    Args:
        base: A model that was not used for answers.
        run: How it is trained.
    """

    def __init__(self, base: Any, run: TrainingRun) -> None:  # noqa: ANN401
        for layer in base.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):  # it would pack what gradients need
                layer.support_avx512bf16_for_cpu = False
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=run.rank, lora_dropout=0.1, target_modules="all-linear"
        )
        self._device: torch.device = base.device
        self._model = get_peft_model(base, lora)
        if run.recomputes:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model.train()
        self._weights = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = _optimizer(run, self._weights)
        generator = torch.Generator().manual_seed(0)
        shape = (run.micro_batch, run.tokens)
        ids = torch.randint(0, base.config.vocab_size, shape, generator=generator)
        self._ids = ids.to(self._device)

    def step(self) -> None:
        """Make one optimizer step."""
        count = torch.tensor(PASSES * self._ids.numel(), device=self._device)
        for _ in range(PASSES):
            with torch.autocast(self._device.type, dtype=torch.bfloat16):
                output = self._model(
                    input_ids=self._ids, labels=self._ids, num_items_in_batch=count
                )
            loss = output.loss
            del output
            loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 0.3)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @property
    def kept_bytes(self) -> int:
        """What stays between two steps: base, LoRA and the optimizer's states."""
        states = self._optimizer.state.values()
        kept = [v for state in states for v in state.values() if isinstance(v, Tensor)]
        return tensor_bytes(self._model) + sum(t.nbytes for t in kept)


def _optimizer(run: TrainingRun, weights: list[Any]) -> Any:  # noqa: ANN401
    if run.optimizer == "adamw_torch":
        return torch.optim.AdamW(weights, lr=1e-4)
    import bitsandbytes

    optimizers: Any = bitsandbytes.optim
    return optimizers.PagedAdamW32bit(weights, lr=1e-4)


def peak_allocated(work: Callable[[], None]) -> int:
    """Return by how much torch's allocations on the CPU grow at most while something is done."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
