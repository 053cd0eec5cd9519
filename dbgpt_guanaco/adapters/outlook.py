"""All that ``plan`` says of one model: how it can be served here, and whether it can be trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dbgpt_guanaco.adapters.candidates import Candidate
from dbgpt_guanaco.adapters.machine import Machine
from dbgpt_guanaco.adapters.serving_plan import ServingPlan, plan_serving
from dbgpt_guanaco.adapters.training_memory import (
    TrainingPlan,
    TrainingRun,
    lora_parameters,
    plan_training,
)
from dbgpt_guanaco.settings import Quantization, Settings

KINDS: Sequence[Quantization] = ("nf4", "int8", "none")
# Lengths are tried in steps of so many tokens, up to the model's own context.
LENGTH_STEP = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to know of models.

    Attributes:
        machine: What they must fit.
        context_tokens: Prompt and answer; None is what the settings say, or the model's own.
        run: A training; None asks for none.
    """

    machine: Machine
    context_tokens: int | None = None
    run: TrainingRun | None = None


@dataclass(frozen=True, slots=True)
class TrainingOutlook:
    """Whether a training fits.

    Attributes:
        run: As it was asked for.
        longest_tokens: The longest sequence that would fit, with the rest as asked; 0 is none.
    """

    run: TrainingRun
    plan: TrainingPlan
    lora_parameters: int
    longest_tokens: int
    available_bytes: int

    @property
    def fits(self) -> bool:
        """It runs, perhaps with the optimizer's part coming and going."""
        return self.plan.least_bytes <= self.available_bytes

    @property
    def is_paging(self) -> bool:
        """It runs only because the optimizer's part may leave the GPU."""
        return self.fits and self.plan.total_bytes > self.available_bytes


@dataclass(frozen=True, slots=True)
class Outlook:
    """One model on one machine.

    Attributes:
        serving: One plan for each way to store the weights, the smallest first.
    """

    candidate: Candidate
    serving: Sequence[ServingPlan]
    training: TrainingOutlook | None

    @property
    def best(self) -> ServingPlan | None:
        """The way with the most bits that fits."""
        return next((plan for plan in reversed(self.serving) if plan.fits), None)

    def as_object(self) -> dict[str, Any]:
        """Return all of it as JSON would have it, in bytes and tokens."""
        candidate, shape = self.candidate, self.candidate.shape
        return {
            "name": candidate.name,
            "base": candidate.base,
            "known_from": candidate.known_from,
            "architecture": shape.family,
            "parameters": shape.parameters,
            "lora_bytes": candidate.lora_bytes,
            "context_tokens": shape.context_tokens,
            "kv_bytes_per_token": shape.kv_bytes_per_token,
            "serving": [_serving_object(plan) for plan in self.serving],
            "training": _training_object(self.training) if self.training else None,
        }


def look_at(candidate: Candidate, question: Question, settings: Settings) -> Outlook:
    """Answer a question about one model, by the rules of a server with these settings."""
    context = question.context_tokens or settings.model.context_tokens
    kinds = (candidate.stored,) if candidate.stored else KINDS
    serving = [
        plan_serving(candidate, kind, question.machine, context, settings.engine.kv_cache)
        for kind in kinds
    ]
    training = (
        _look_at_training(candidate, question.run, question.machine) if question.run else None
    )
    return Outlook(candidate, serving, training)


def _look_at_training(candidate: Candidate, run: TrainingRun, machine: Machine) -> TrainingOutlook:
    shape = candidate.shape
    if not machine.on_cuda:  # paged memory is CUDA's
        run = replace(run, optimizer="adamw_torch")

    def needed(tokens: int) -> int:
        longer = replace(run, tokens=tokens)
        return plan_training(shape, longer, on_cuda=machine.on_cuda).least_bytes

    least, most = 0, shape.context_tokens // LENGTH_STEP
    while least < most:  # longer never needs less
        middle = (least + most + 1) // 2
        if needed(middle * LENGTH_STEP) <= machine.available_bytes:
            least = middle
        else:
            most = middle - 1
    plan = plan_training(shape, run, on_cuda=machine.on_cuda)
    parameters = lora_parameters(shape, run.rank)
    return TrainingOutlook(run, plan, parameters, least * LENGTH_STEP, machine.available_bytes)


def _serving_object(plan: ServingPlan) -> dict[str, Any]:
    return {
        "quantization": plan.quantization,
        "fits": plan.fits,
        "weight_bytes": plan.memory.weight_bytes,
        "overhead_bytes": plan.memory.overhead_bytes,
        "context_tokens": plan.context_tokens,
        "needed_bytes": plan.needed_bytes,
        "cache_tokens": plan.cache_tokens,
        "largest_context": plan.largest_context,
        "streams": plan.streams,
    }


def _training_object(outlook: TrainingOutlook) -> dict[str, Any]:
    return {
        "fits": outlook.fits,
        "is_paging": outlook.is_paging,
        **asdict(outlook.run),
        **asdict(outlook.plan),
        "total_bytes": outlook.plan.total_bytes,
        "least_bytes": outlook.plan.least_bytes,
        "lora_parameters": outlook.lora_parameters,
        "longest_tokens": outlook.longest_tokens,
    }
