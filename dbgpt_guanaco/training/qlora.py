"""A base in NF4 with trainable LoRA weights on it, safe to be trained and evaluated on a CPU."""

import logging
import warnings
from collections.abc import Collection
from typing import Any

from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed

from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.training.hyperparameters import Hyperparameters

logger = logging.getLogger(__name__)


def keep_unpacked(model: nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights, for as long as the model lives.

    On a CPU with AVX-512 and bfloat16 the first pass that needs no gradient repacks every 4-bit
    weight in place, for a kernel that has no way back: a gradient that is computed afterwards,
    or a state that is saved, is wrong without a word.

    Returns:
        How many layers were told.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise ModelLoadError("this model has been used for answers; training needs a fresh one")
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def lay_lora(base: Any, base_name: str, how: Hyperparameters) -> Any:  # noqa: ANN401
    """Lay fresh LoRA weights on every linear layer of a base but its head.

    A is random and B is zero, so that nothing has changed yet. They are in float32, whatever the
    base is in.

    Args:
        base: Nothing of it will be trained.
        base_name: Written into the LoRA's configuration.
        how: Rank, alpha, dropout and seed.

    Raises:
        ModelLoadError: There are no such layers.
    """
    keep_unpacked(base)
    set_seed(how.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that transformers has given up
            model = get_peft_model(base, lora_config(how))
    except ValueError as error:
        raise ModelLoadError(f"no LoRA can be laid on this base: {error}") from error
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    config.target_modules = _short_names(config.target_modules, model)
    return model


def _short_names(targets: Collection[str], model: nn.Module) -> list[str]:
    """Return the last parts of names where they say the same, as ``q_proj``, sorted."""
    short = {name.rpartition(".")[2] for name in targets}
    # A layer with a LoRA is no nn.Linear any more, so these have none.
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    others = {name.rpartition(".")[2] for name in linear}
    return sorted(targets if short & others else short)


def lora_config(how: Hyperparameters) -> LoraConfig:
    """Return peft's configuration of a LoRA."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        target_modules="all-linear",
        bias="none",
    )
