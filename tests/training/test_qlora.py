from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from tiny_models import make_bpe_tokenizer, make_model
from torch import nn
from transformers import AutoModelForCausalLM

from dbgpt_guanaco.adapters.quantization import quantization_config
from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.training.hyperparameters import Hyperparameters
from dbgpt_guanaco.training.qlora import keep_unpacked, lay_lora

IDS = torch.arange(3, 35)[None]
HOW = Hyperparameters(rank=4, dropout=0.0)

REPACKS = has_avx512bf16()  # type: ignore[no-untyped-call] # bitsandbytes has no types
repacks = pytest.mark.skipif(not REPACKS, reason="this CPU has no kernel to repack for")


@pytest.fixture
def base(tmp_path: Path) -> Any:
    folder = make_bpe_tokenizer(make_model(tmp_path / "base"))
    config = quantization_config("nf4", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16
    )
    model.requires_grad_(False)
    return model


def look(model: Any) -> torch.Tensor:
    """Let a model answer, as an evaluation does."""
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def gradients(model: Any) -> list[torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def codes(model: nn.Module) -> list[torch.Tensor]:
    return [m.weight.detach().clone() for m in model.modules() if isinstance(m, Linear4bit)]


def alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_evaluation_changes_no_weight_and_no_gradient(base: Any) -> None:
    model = lay_lora(base, "base", HOW)
    stored, learned = codes(model), gradients(model)

    look(model)

    assert alike(codes(model), stored)
    assert alike(gradients(model), learned)
    assert any(bool(gradient.any()) for gradient in learned)


@repacks
def test_without_that_care_an_evaluation_changes_the_weights(base: Any) -> None:
    stored = codes(base)

    look(base)

    assert not alike(codes(base), stored)


@repacks
def test_a_model_that_has_answered_is_refused(base: Any) -> None:
    look(base)

    with pytest.raises(ModelLoadError, match="training needs a fresh one"):
        keep_unpacked(base)


def test_every_linear_layer_but_the_head_is_trained_and_nothing_else(base: Any) -> None:
    layers = sum(isinstance(module, Linear4bit) for module in base.modules())

    model = lay_lora(base, "base", HOW)

    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * layers == 2 * 2 * 7
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    parts = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert model.peft_config["default"].target_modules == parts


def test_it_begins_as_the_base_and_the_seed_decides_how_it_goes_on(base: Any) -> None:
    keep_unpacked(base)
    before = look(base)

    model = lay_lora(base, "base", HOW)

    assert torch.equal(look(model), before)
    drawn = [p.detach().clone() for n, p in model.named_parameters() if ".lora_A." in n]
    for seed, is_same in ((0, True), (1, False)):
        again = lay_lora(model.unload(), "base", Hyperparameters(rank=4, seed=seed))
        other = [p.detach() for n, p in again.named_parameters() if ".lora_A." in n]
        assert alike(drawn, other) == is_same
        model = again
