from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model, tiny_config
from transformers import AutoModelForCausalLM

from benchmarks.measured_memory import Training, peak_allocated
from dbgpt_guanaco.adapters.known import LLAMA_SIZES
from dbgpt_guanaco.adapters.memory import GIB
from dbgpt_guanaco.adapters.quantization import quantization_config
from dbgpt_guanaco.adapters.shapes import llama_shape, shape_of
from dbgpt_guanaco.adapters.training_memory import TrainingPlan, TrainingRun, plan_training
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.errors import OutOfMemoryError

# QLoRA, arXiv 2305.14314: bytes at batch 1 and 512 tokens, with gradient checkpointing.
PAPER = {"7b": 6.9e9, "13b": 11.3e9, "33b": 24.7e9, "65b": 45.0e9}
# Layers decide where the vocabulary is small, logits where it is large.
LAYERS = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 128}
# A CPU without instructions for bfloat16 needs one copy of the largest matrix less where nothing is
# recomputed: up to 5.3 % less than predicted was seen there, and nowhere more.
MOST_ABOVE = 0.055 if compiled.missing_cpu_flags("avx512_bf16") else 0.05
LOGITS = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 8192}


# peft asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("sizes", "run"),
    [
        (LAYERS, TrainingRun(rank=8, tokens=256)),
        (LAYERS, TrainingRun(rank=32, tokens=128, micro_batch=2)),
        (LAYERS, TrainingRun(rank=64, tokens=16)),
        (LAYERS, TrainingRun(rank=8, tokens=128, recomputes=False)),
        (LOGITS, TrainingRun(rank=16, tokens=128)),
    ],
)
def test_the_peak_is_predicted_within_five_percent(
    tmp_path: Path, sizes: dict[str, Any], run: TrainingRun
) -> None:
    run = replace(run, optimizer="adamw_torch")
    folder = make_model(tmp_path, **sizes)
    base = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantization_config("nf4", torch.bfloat16),
        device_map={"": "cpu"},
    )
    training = Training(base, run)
    training.step()  # from here on the optimizer has its states

    measured = training.kept_bytes + peak_allocated(training.step)

    plan = plan_training(shape_of(tiny_config(**sizes)), run, on_cuda=False)
    assert -0.05 <= plan.tensor_bytes / measured - 1 <= MOST_ABOVE


def of_paper(size: str) -> TrainingPlan:
    return plan_training(llama_shape(*LLAMA_SIZES[size]), TrainingRun(), on_cuda=True)


@pytest.mark.parametrize(("size", "told"), PAPER.items())
def test_the_papers_memory_is_met_within_eleven_percent(size: str, told: float) -> None:
    assert of_paper(size).tensor_bytes == pytest.approx(told, rel=0.11)


@pytest.mark.parametrize(("size", "told"), PAPER.items())
def test_with_the_papers_lora_in_sixteen_bits_it_is_met_within_eight(
    size: str, told: float
) -> None:
    """There A, B and their gradients are bfloat16; here they are float32, as peft makes them."""
    plan = of_paper(size)

    half = plan.tensor_bytes - (plan.lora_bytes + plan.gradient_bytes) // 2

    assert half == pytest.approx(told, rel=0.08)


def test_a_33b_model_trains_on_a_24_gb_card_only_with_a_paged_optimizer() -> None:
    plan = of_paper("33b")

    plan.check(int(24e9), "cuda")
    with pytest.raises(OutOfMemoryError):
        replace(plan, is_paged=False).check(int(24e9), "cuda")


PLAN = TrainingPlan(
    base_bytes=4 * GIB,
    lora_bytes=GIB,
    gradient_bytes=GIB,
    optimizer_bytes=2 * GIB,
    activation_bytes=GIB,
    work_bytes=GIB,
    overhead_bytes=GIB,
    is_paged=False,
)


def test_what_fits_exactly_is_accepted_and_one_byte_less_is_not() -> None:
    assert PLAN.total_bytes == 11 * GIB
    PLAN.check(11 * GIB, "cpu")
    with pytest.raises(OutOfMemoryError):
        PLAN.check(11 * GIB - 1, "cpu")


def test_paged_states_need_not_be_there() -> None:
    replace(PLAN, is_paged=True).check(9 * GIB, "cuda")


def test_a_refusal_tells_every_number() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        PLAN.check(6 * GIB, "cuda")

    assert str(caught.value) == (
        "the training does not fit cuda: 4.00 GiB for the base, 2.00 GiB for LoRA weights and "
        "gradients, 2.00 GiB for the optimizer, 2.00 GiB for activations and logits, 1.00 GiB for "
        "working room make 11.00 GiB, and 6.00 GiB are free; take shorter sequences, fewer at a "
        "time, a smaller rank or a smaller base"
    )


@pytest.mark.parametrize("change", [{"rank": 65}, {"tokens": 513}, {"micro_batch": 2}])
def test_more_of_anything_needs_more(change: dict[str, int]) -> None:
    shape = llama_shape(*LLAMA_SIZES["7b"])
    run = TrainingRun()

    def needed(run: TrainingRun) -> int:
        return plan_training(shape, run, on_cuda=True).total_bytes

    assert needed(replace(run, **change)) > needed(run)  # type: ignore[arg-type] # all are ints
    assert needed(replace(run, recomputes=False)) > needed(run)
