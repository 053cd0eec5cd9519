"""What a server would make of a memory: the rules by which it refuses, asked beforehand."""

from dataclasses import dataclass

from dbgpt_guanaco.adapters.candidates import Candidate
from dbgpt_guanaco.adapters.machine import Machine
from dbgpt_guanaco.adapters.memory import MemoryPlan, cache_tokens, plan_memory
from dbgpt_guanaco.settings import Quantization


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """One way to hold a model's weights, on one machine.

    Attributes:
        context_tokens: Prompt and answer, as asked for.
        available_bytes: What is free.
        cache_tokens: Tokens whose keys and values fit, over all that run.
    """

    quantization: Quantization
    memory: MemoryPlan
    context_tokens: int
    available_bytes: int
    cache_tokens: int

    @property
    def needed_bytes(self) -> int:
        """What one request of a full context needs."""
        return self.memory.needed_bytes(self.context_tokens)

    @property
    def fits(self) -> bool:
        """The server would not refuse."""
        return self.memory.fits(self.context_tokens, self.available_bytes)

    @property
    def largest_context(self) -> int:
        """The longest context that the server would take, up to the one asked for."""
        return min(self.context_tokens, self.cache_tokens)

    @property
    def streams(self) -> int:
        """Answers that can run at a time, each with a full context."""
        return self.cache_tokens // self.context_tokens


def plan_serving(
    candidate: Candidate,
    quantization: Quantization,
    machine: Machine,
    context_tokens: int | None = None,
    kv_cache: str | None = None,
) -> ServingPlan:
    """Predict how a model would be served.

    Args:
        candidate: The model.
        quantization: How its linear weights are stored.
        machine: What it must fit.
        context_tokens: Prompt and answer; the model's own context is used if it is shorter.
        kv_cache: The most that keys and values may take, such as ``4GiB``.
    """
    shape = candidate.shape
    context = min(shape.context_tokens, context_tokens or shape.context_tokens)
    plan = plan_memory(
        shape, quantization, on_cuda=machine.on_cuda, lora_bytes=candidate.lora_bytes
    )
    # On a GPU the engine leaves room for its largest step, which it rehearses; here it is guessed.
    step_bytes = plan.overhead_bytes if machine.on_cuda else 0
    room = cache_tokens(
        machine.available_bytes - plan.weight_bytes - step_bytes,
        plan.kv_bytes_per_token,
        context,
        on_cuda=machine.on_cuda,
        cap=kv_cache,
    )
    tokens = min(plan.kv_tokens(machine.available_bytes), room)
    return ServingPlan(quantization, plan, context, machine.available_bytes, tokens)
