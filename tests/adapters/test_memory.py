from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny_models import lora_weights, make_bpe_tokenizer, make_lora, make_model, tiny_config

from benchmarks.measured_memory import tensor_bytes
from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.memory import (
    CPU_OVERHEAD_BYTES,
    CUDA_OVERHEAD_BYTES,
    GIB,
    MemoryPlan,
    free_memory_bytes,
    lora_bytes_of,
    plan_memory,
)
from dbgpt_guanaco.adapters.resolve import ModelSource, resolve
from dbgpt_guanaco.adapters.shapes import llama_shape, read_shape, shape_of
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import DEMO_MODEL, ModelSettings, Quantization

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose linear weights dominate, as in a real one."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder, hidden_size=256, intermediate_size=1024, num_key_value_heads=4)
    return make_bpe_tokenizer(folder)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_weights_are_predicted_within_five_percent(
    wide_model: Path, quantization: Quantization
) -> None:
    settings = ModelSettings(name="x", adapter="vicuna", quantization_override=quantization)
    loaded = load_model(ModelSource("x", wide_model, None, ("x",)), settings, default_registry())

    plan = plan_memory(read_shape(wide_model), quantization, on_cuda=False)

    assert plan.weight_bytes == pytest.approx(loaded.card.weight_bytes, rel=0.05)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_demo_model_is_predicted_within_five_percent(quantization: Quantization) -> None:
    folder = ROOT / "models" / DEMO_MODEL
    settings = ModelSettings(
        models_dir=ROOT / "models", device="cpu", quantization_override=quantization
    )
    loaded = load_model(resolve(settings), settings, default_registry())
    with torch.no_grad():  # a CPU packs 4-bit weights at the first pass
        loaded.model(input_ids=torch.tensor([[1, 2]]))

    plan = plan_memory(read_shape(folder), quantization, on_cuda=False)

    assert plan.weight_bytes == pytest.approx(tensor_bytes(loaded.model), rel=0.05)


def test_keys_and_values_are_counted_in_every_layer_and_kv_head() -> None:
    def kv_bytes(**changes: int | None) -> int:
        shape = shape_of(
            tiny_config(**{"num_hidden_layers": 3, "num_attention_heads": 8} | changes)
        )
        return plan_memory(shape, "none", on_cuda=False).kv_bytes_per_token

    assert kv_bytes(num_key_value_heads=2) == 2 * 3 * 2 * 8 * 2
    assert kv_bytes(num_key_value_heads=None) == 2 * 3 * 8 * 8 * 2
    assert kv_bytes(num_key_value_heads=2, head_dim=16) == 2 * 3 * 2 * 16 * 2


def test_a_gpu_needs_more_working_room(wide_model: Path) -> None:
    shape = read_shape(wide_model)

    on_cpu = plan_memory(shape, "int8", on_cuda=False)
    on_gpu = plan_memory(shape, "int8", on_cuda=True)

    assert on_cpu.overhead_bytes == CPU_OVERHEAD_BYTES
    assert on_gpu.overhead_bytes == CUDA_OVERHEAD_BYTES > CPU_OVERHEAD_BYTES
    assert on_cpu.weight_bytes == on_gpu.weight_bytes


def test_a_lora_is_counted_in_sixteen_bits(wide_model: Path, tmp_path: Path) -> None:
    shape = read_shape(wide_model)
    weights = lora_weights(width=256)
    safe = make_lora(tmp_path / "safe", weights)
    pickled = make_lora(tmp_path / "pickled", weights, kind="bin")

    def weight_bytes(lora: Path | None) -> int:
        return plan_memory(shape, "nf4", on_cuda=False, lora_bytes=lora_bytes_of(lora)).weight_bytes

    added = weight_bytes(safe) - weight_bytes(None)
    assert added == sum(2 * tensor.numel() for tensor in weights.values())
    assert weight_bytes(pickled) - weight_bytes(None) >= added


def test_guanaco_33b_fits_a_24_gib_card_in_nf4_only() -> None:
    shape = llama_shape(hidden=6656, intermediate=17_920, layers=60, heads=52)

    plan = plan_memory(shape, "nf4", on_cuda=True)

    assert 16 * GIB < plan.weight_bytes < 16.5 * GIB
    plan.check(2048, 24 * GIB, "cuda")
    heavier: list[Quantization] = ["int8", "none"]
    for quantization in heavier:
        with pytest.raises(OutOfMemoryError):
            plan_memory(shape, quantization, on_cuda=True).check(16, 24 * GIB, "cuda")


PLAN = MemoryPlan(weight_bytes=4 * GIB, kv_bytes_per_token=GIB // 1024, overhead_bytes=GIB)


def test_what_fits_exactly_is_accepted_and_one_byte_less_is_not() -> None:
    needed = PLAN.needed_bytes(2048)

    assert needed == 7 * GIB
    PLAN.check(2048, needed, "cpu")
    with pytest.raises(OutOfMemoryError):
        PLAN.check(2048, needed - 1, "cpu")


def test_a_refusal_tells_every_number_and_the_context_that_fits() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        PLAN.check(4096, 6 * GIB, "cuda")

    assert str(caught.value) == (
        "it does not fit cuda: 4.00 GiB of weights, 4.00 GiB of cache for one context of 4096 "
        "tokens and 1.00 GiB of working room need 9.00 GiB, and 6.00 GiB are free; "
        "MAX_POSITION_EMBEDDINGS=1024 would fit"
    )
    PLAN.check(1024, 6 * GIB, "cuda")


def test_a_context_too_small_to_talk_in_is_not_advised() -> None:
    with pytest.raises(OutOfMemoryError, match="choose a smaller model, or a stronger quantiz"):
        PLAN.check(4096, 5 * GIB + GIB // 8, "cuda")


@pytest.mark.parametrize(
    ("available", "tokens"),
    [(0, 0), (5 * GIB, 0), (5 * GIB + GIB // 1024, 1), (6 * GIB, 1024)],
)
def test_tokens_that_fit_beside_the_weights(available: int, tokens: int) -> None:
    assert PLAN.kv_tokens(available) == tokens


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        (str(4 * GIB), 3 * GIB, 0, GIB),
        (str(4 * GIB), 3 * GIB, 2 * GIB, 3 * GIB),  # files that are only cached are given back
        (str(4 * GIB), 5 * GIB, 0, 0),
        (str(64 * GIB), 3 * GIB, 0, 8 * GIB),  # the machine has no more
        ("max", 3 * GIB, 0, 8 * GIB),
    ],
)
def test_a_container_s_limit_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    used: int,
    cached: int,
    free: int,
) -> None:
    memory = SimpleNamespace(available=8 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")

    assert free_memory_bytes(tmp_path) == free


def test_without_a_container_the_machine_s_memory_counts(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path / "none") == pytest.approx(
        psutil.virtual_memory().available, rel=0.2
    )
