"""Real products of bitsandbytes; made wrong on purpose, they are found out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dbgpt_guanaco.doctor import arithmetic
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ModelSettings, Settings

CPU = torch.device("cpu")
SETUP = Setup(settings=Settings(model=ModelSettings(device="cpu")))

Break = Callable[[Any], None]


def test_this_machine_multiplies_right() -> None:
    assert arithmetic.four_bit(SETUP).status == "ok"
    assert arithmetic.eight_bit(SETUP).status == "ok"


def swap_nibbles(layer: Any) -> None:
    codes = layer.weight.data
    layer.weight.data = (codes << 4) | (codes >> 4)


def forget_a_block(layer: Any) -> None:
    layer.weight.quant_state.absmax[:16] = 0


def wrong_scale(layer: Any) -> None:
    layer.weight.quant_state.state2.absmax *= 1.1


def not_a_number(layer: Any) -> None:
    layer.weight.quant_state.state2.absmax *= torch.nan


@pytest.mark.parametrize("dtype", arithmetic.DTYPES)
@pytest.mark.parametrize("spoil", [swap_nibbles, forget_a_block, wrong_scale, not_a_number])
def test_wrong_nf4_products_are_found_out(spoil: Break, dtype: torch.dtype) -> None:
    layer, plain = arithmetic.four_bit_layer(CPU, dtype)
    spoil(layer)

    assert not arithmetic.largest_error(layer, plain, dtype) <= arithmetic.NF4_ERROR


@pytest.mark.parametrize("dtype", arithmetic.DTYPES)
def test_wrong_int8_products_are_found_out(dtype: torch.dtype) -> None:
    layer, plain = arithmetic.eight_bit_layer(CPU)
    layer.weight.CB = layer.weight.CB.roll(1, dims=0)  # each output is its neighbour's

    assert not arithmetic.largest_error(layer, plain, dtype) <= arithmetic.INT8_ERROR


@pytest.mark.parametrize("check", [arithmetic.four_bit, arithmetic.eight_bit])
@pytest.mark.parametrize("error", [0.5, float("nan"), float("inf")])
def test_what_was_found_out_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[Setup], Finding], error: float
) -> None:
    monkeypatch.setattr(arithmetic, "largest_error", lambda *_: error)

    finding = check(SETUP)

    assert finding.status == "failure"
    assert "answers would be nonsense" in finding.text
    assert "--force-reinstall" in finding.remedy
