import math
from dataclasses import fields
from typing import Any

import pytest

from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import (
    MAX_SEED,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    GenerationRequest,
    ModelCard,
    SamplingParams,
    TextDelta,
    Usage,
)

NUMBERS = [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
]

REFUSED: list[tuple[str, Any]] = [
    *[(name, value) for name in NUMBERS for value in (math.nan, math.inf, -math.inf)],
    ("temperature", -0.001),
    ("temperature", 100.001),
    ("top_p", 0.0),
    ("top_p", 1.001),
    ("top_p", -1.0),
    ("top_k", -1),
    ("top_k", MAX_SEED + 1),
    ("min_p", -0.001),
    ("min_p", 1.001),
    ("typical_p", 0.0),
    ("typical_p", 1.001),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 100.001),
    ("presence_penalty", -2.001),
    ("presence_penalty", 2.001),
    ("frequency_penalty", -2.001),
    ("frequency_penalty", 2.001),
    ("logit_bias", {0: 100.001}),
    ("logit_bias", {0: -100.001}),
    ("logit_bias", {0: math.nan}),
    ("logit_bias", {0: math.inf}),
    ("logit_bias", {-1: 0.0}),
    ("seed", MAX_SEED + 1),
    ("seed", -MAX_SEED - 1),
    ("max_new_tokens", 0),
    ("max_new_tokens", -1),
    ("stop", ("",)),
    ("stop", ("fine", "")),
    ("stop", ("x",) * (MAX_STOP_STRINGS + 1)),
    ("stop", ("x" * (MAX_STOP_CHARACTERS + 1),)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (2**31,)),
    ("stop_token_ids", (1,) * 65),
    ("top_logprobs", -1),
    ("top_logprobs", 21),
]

ACCEPTED: list[tuple[str, Any]] = [
    ("temperature", 0.0),
    ("temperature", 100.0),
    ("top_p", 1e-9),
    ("top_p", 1.0),
    ("top_k", 0),
    ("top_k", MAX_SEED),
    ("min_p", 0.0),
    ("min_p", 1.0),
    ("typical_p", 1e-9),
    ("typical_p", 1.0),
    ("repetition_penalty", 0.01),
    ("repetition_penalty", 100.0),
    ("presence_penalty", -2.0),
    ("presence_penalty", 2.0),
    ("frequency_penalty", -2.0),
    ("frequency_penalty", 2.0),
    ("logit_bias", {0: 100.0, 1: -100.0}),
    ("seed", None),
    ("seed", MAX_SEED),
    ("seed", -MAX_SEED),
    ("max_new_tokens", None),
    ("max_new_tokens", 1),
    ("stop", ("x" * MAX_STOP_CHARACTERS,) * MAX_STOP_STRINGS),
    ("stop_token_ids", (0, 2**31 - 1)),
    ("stop_token_ids", (1,) * 64),
    ("top_logprobs", 0),
    ("top_logprobs", 20),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    given: dict[str, Any] = {"logprobs": True, name: value}

    with pytest.raises(InvalidRequestError, match=f"^{name}: ") as caught:
        SamplingParams(**given)

    assert caught.value.parameter == name


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_a_value_on_the_border_is_accepted(name: str, value: object) -> None:
    given: dict[str, Any] = {"logprobs": True, name: value}

    assert getattr(SamplingParams(**given), name) == value


def test_every_field_is_tried() -> None:
    tried = {name for name, _ in REFUSED} & {name for name, _ in ACCEPTED}

    assert tried == {field.name for field in fields(SamplingParams)} - {"logprobs", "structure"}


def test_alternatives_without_logprobs_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"^top_logprobs: needs logprobs"):
        SamplingParams(top_logprobs=1)


def test_the_message_shows_the_number_that_was_given() -> None:
    with pytest.raises(InvalidRequestError, match=r"must be from 0 to 100, got -3\.5$"):
        SamplingParams(temperature=-3.5)


@pytest.mark.parametrize("prompt", ["", ()])
def test_an_empty_prompt_is_refused(prompt: str | tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"^prompt: is empty"):
        GenerationRequest(prompt, SamplingParams())


def test_truncation_to_fewer_than_no_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"^truncate_prompt_tokens: "):
        GenerationRequest("hello", SamplingParams(), truncate_prompt_tokens=-1)


@pytest.mark.parametrize("truncate", [None, 0, 1])
def test_truncation_may_be_off_automatic_or_a_number(truncate: int | None) -> None:
    request = GenerationRequest("hello", SamplingParams(), truncate_prompt_tokens=truncate)

    assert request.truncate_prompt_tokens == truncate


def test_usage_adds_up() -> None:
    assert Usage(prompt_tokens=3, completion_tokens=4).total_tokens == 7


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_a_delta_with_a_finish_reason_is_the_last(reason: Any) -> None:
    assert TextDelta("", Usage(1, 1), finish_reason=reason).is_last
    assert not TextDelta("", Usage(1, 1)).is_last


def test_a_model_answers_to_its_name_first_and_to_its_aliases() -> None:
    card = ModelCard(
        name="guanaco-7b",
        aliases=("gpt-3.5-turbo",),
        family="guanaco",
        quantization="nf4",
        compute_dtype="bfloat16",
        device="cpu",
        context_tokens=2048,
        weight_bytes=1,
    )

    assert card.names == ("guanaco-7b", "gpt-3.5-turbo")
