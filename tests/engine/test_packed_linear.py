"""A packed layer gives the same, whichever instructions its CPU has."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn

from dbgpt_guanaco.engine.kernels import compiled, decoder_structs
from dbgpt_guanaco.engine.kernels.decoder_structs import NF4, Linear
from dbgpt_guanaco.engine.packed_linear import multiply, pack, route_call

pytestmark = pytest.mark.skipif(compiled.why_not() is not None, reason=str(compiled.why_not()))
INPUTS, OUTPUTS = 192, 96


@pytest.fixture(scope="module", params=["this CPU's instructions", "none for bfloat16"])
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "none for bfloat16":
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            patch.setenv("CXX", "g++ -mno-avx512bf16")
        yield decoder_structs.load()


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(2)
    plain = nn.Linear(INPUTS, OUTPUTS, dtype=torch.bfloat16)
    made: Any = Linear4bit(INPUTS, OUTPUTS, compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call] # bitsandbytes has no types
    made.weight = Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = nn.Parameter(plain.bias.data, requires_grad=False)
    return made.to("cpu").eval()


def described(layer: Any) -> Linear:
    state = pack(layer)
    return Linear(
        weight=layer.weight.data.data_ptr(),
        scales=state.absmax.data_ptr(),
        bias=layer.bias.data_ptr(),
        inputs=INPUTS,
        outputs=OUTPUTS,
        kind=NF4,
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 9, 64, 65, 130])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_multiplies_with_the_weights_that_were_stored(
    library: Any, layer: Any, rows: int, dtype: torch.dtype
) -> None:
    weights = dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    x = torch.randn(rows, INPUTS).to(torch.bfloat16)
    expected = x.double() @ weights.T + layer.bias.double()

    found = multiply(library, described(layer), x[None].to(dtype))

    assert found.shape == (1, rows, OUTPUTS)
    assert found.dtype == dtype
    # Values and scales have eight bits each, and so has the result: 0.0029 was seen.
    assert (found[0] - expected).norm() < 2**-8 * expected.norm()


def test_a_row_gives_the_same_bits_in_every_batch(library: Any, layer: Any) -> None:
    weights, x = described(layer), torch.randn(70, INPUTS).to(torch.bfloat16)

    together = multiply(library, weights, x)

    alone = torch.cat([multiply(library, weights, row[None]) for row in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none(library: Any, layer: Any, value: float) -> None:
    x = torch.zeros(1, INPUTS, dtype=torch.bfloat16)
    x[0, 5] = value

    assert not multiply(library, described(layer), x).isfinite().any()


@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_layer_is_routed_only_where_bitsandbytes_has_no_kernel(
    library: Any, layer: Any, has_kernel: bool
) -> None:
    weights, x = described(layer), torch.randn(3, INPUTS).to(torch.bfloat16)
    layer.support_avx512bf16_for_cpu = has_kernel

    route_call(layer, library, weights)

    assert ("forward" in vars(layer)) is not has_kernel
    if not has_kernel:
        assert torch.equal(layer(x), multiply(library, weights, x))
