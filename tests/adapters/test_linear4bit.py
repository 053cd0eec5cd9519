"""Every layer of 4-bit weights is called in one place."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_model
from torch import Tensor, nn

from dbgpt_guanaco.adapters import default_registry, linear4bit
from dbgpt_guanaco.adapters.linear4bit import route_calls
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.engine import llama_layout
from dbgpt_guanaco.settings import ModelSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("tiny") / "tiny", head_dim=32)
    make_bpe_tokenizer(folder, CHAT_TEMPLATE)
    return folder


@pytest.fixture
def load(folder: Path) -> Any:
    def loaded() -> Any:
        settings = ModelSettings(name="tiny", quantization_override="nf4", device="cpu")
        source = ModelSource("tiny", folder, None, ("tiny",))
        return load_model(source, settings, default_registry()).model

    return loaded


@torch.no_grad()
def test_every_such_layer_of_a_loaded_model_is_called_here(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def watched(layer: Any, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        called.append(layer)
        return multiply(layer, input)

    multiply = linear4bit.multiply
    monkeypatch.setattr(linear4bit, "multiply", watched)
    model = load()
    layers = [part for part in model.modules() if isinstance(part, Linear4bit)]

    model(torch.tensor([[1, 2, 3]]))

    assert len(layers) == 14
    assert set(called) == set(layers)


@torch.no_grad()
def test_what_they_compute_stays_the_same() -> None:
    torch.manual_seed(0)
    plain: Any = Linear4bit(64, 96, compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    layer = plain.to("cpu").eval()
    model = nn.Sequential(layer)
    inputs = [torch.randn(1, 1, 64), torch.randn(2, 3, 64)]
    expected = [model(x) for x in inputs]

    assert route_calls(model) == 1

    assert all(torch.equal(model(x), before) for x, before in zip(inputs, expected, strict=True))
    twin: Any = copy.deepcopy(model)
    assert twin[0].forward.args[0] is twin[0]


def test_other_layers_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8))

    assert route_calls(model) == 0
    assert "forward" not in vars(model[0])


def test_the_compiled_decoder_knows_this_call_and_no_other(load: Any) -> None:
    model = load()
    assert "call of" not in str(llama_layout.why_not(model))

    layer = model.model.layers[1].mlp.up_proj
    layer.forward = lambda x: x

    assert "somebody replaced the call of model.layers.1.mlp.up_proj" in str(
        llama_layout.why_not(model)
    )
