import math
from typing import Any

import pytest

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.training.hyperparameters import Hyperparameters, defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("alpha", 0),
        ("dropout", 1.0),
        ("dropout", math.nan),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("batch", 0),
        ("micro_batch", 0),
        ("micro_batch", 17),
        ("micro_batch", 3),
        ("max_tokens", 15),
        ("epochs", 0.0),
        ("epochs", math.nan),
        ("max_steps", 0),
        ("beta2", 1.0),
        ("clip", 0.0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Hyperparameters(**{name: value})

    option = "--" + name.replace("_", "-")
    assert str(refused.value).startswith(f"{option} is {value}; it must be ")


@pytest.mark.parametrize(
    ("billions", "learning_rate", "dropout"),
    [(0.1, 2e-4, 0.1), (6.7, 2e-4, 0.1), (13.1, 2e-4, 0.1), (32.5, 1e-4, 0.05), (65, 1e-4, 0.05)],
)
def test_a_large_base_is_trained_more_carefully(
    billions: float, learning_rate: float, dropout: float
) -> None:
    how = Hyperparameters(**defaults(int(billions * 1e9), on_cuda=True))

    assert (how.learning_rate, how.dropout) == (learning_rate, dropout)


@pytest.mark.parametrize(
    ("on_cuda", "optimizer"), [(True, "paged_adamw_32bit"), (False, "adamw_torch")]
)
def test_the_optimizer_is_paged_where_there_is_a_gpu(on_cuda: bool, optimizer: str) -> None:
    assert defaults(7_000_000_000, on_cuda=on_cuda)["optimizer"] == optimizer


def test_the_defaults_are_the_papers() -> None:
    how = Hyperparameters()

    assert (how.rank, how.alpha, how.batch, how.clip, how.beta2) == (64, 16, 16, 0.3, 0.999)
    assert (how.accumulation, how.recomputes, how.groups_by_length) == (16, True, True)
