import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from dbgpt_guanaco.adapters.cpu_linear import flatten_inputs


def test_results_and_shapes_stay_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))
    inputs = [torch.randn(1, 1, 6), torch.randn(2, 3, 6), torch.randn(4, 6)]
    expected = [model(x) for x in inputs]

    assert flatten_inputs(model) == 2

    for x, before in zip(inputs, expected, strict=True):
        assert torch.allclose(model(x), before, atol=1e-6)
        assert model(x).shape == before.shape


def test_a_single_token_is_multiplied_as_a_matrix() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    flatten_inputs(model)

    with torch.profiler.profile() as profile:
        model(torch.randn(1, 1, 6))

    assert "aten::bmm" not in {event.key for event in profile.key_averages()}


def test_quantized_layers_are_left_alone() -> None:
    quantized: nn.Module = Linear4bit(64, 64, bias=False)  # type: ignore[no-untyped-call]
    model = nn.Sequential(quantized)

    assert flatten_inputs(model) == 0
