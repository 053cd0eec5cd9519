"""A model's sizes, told before a weight is read: transformers builds it without any, and is asked.

Which layers are quantized differs from family to family, so nothing of that is imitated here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.quantizers import AutoHfQuantizer

from dbgpt_guanaco.adapters.foreign_code import check_code
from dbgpt_guanaco.adapters.quantization import quantization_config
from dbgpt_guanaco.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of a linear layer that quantization turns into codes."""

    name: str
    outputs: int
    inputs: int

    @property
    def parameters(self) -> int:
        """Its numbers."""
        return self.outputs * self.inputs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a causal model.

    Attributes:
        family: transformers' name of it, such as ``llama``.
        kv_heads: Heads that have keys of their own.
        context_tokens: The longest context that it was made for.
        matrices: What quantization turns into codes; without it they take 16 bits, too.
        kept_parameters: What stays in 16 bits in any case: embeddings, the head (once, if it is
            tied to them), norms and biases.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    matrices: tuple[Matrix, ...]
    kept_parameters: int

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        return sum(matrix.parameters for matrix in self.matrices) + self.kept_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


def read_shape(folder: Path) -> ModelShape:
    """Return the shape of a model folder, from its ``config.json`` alone.

    Raises:
        ModelLoadError: It cannot be used, or is of no causal model with attention.
    """
    return shape_of(read_config(folder))


def read_config(folder: Path, *, trusts_code: bool = False) -> Any:  # noqa: ANN401
    """Return transformers' configuration of a model folder.

    Args:
        folder: Of the model.
        trusts_code: The operator wants code to run that the folder brings.

    Raises:
        ModelLoadError: It cannot be used, or needs code that is not trusted.
    """
    check_code(folder, is_trusted=trusts_code)
    try:
        # Without a plain False, transformers asks the terminal whether to run the folder's code.
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusts_code
        )
    except Exception as error:  # transformers raises what it likes at a damaged file
        raise ModelLoadError(f"{folder}/config.json cannot be used: {error}") from error
    if not trusts_code:
        vars(config).pop("auto_map", None)  # what reads the config next need not decide again
    return config


def llama_shape(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> ModelShape:  # noqa: ANN401
    """Return the shape of a first LLaMA, or of one that differs from it in ``more``."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
    }
    return shape_of(LlamaConfig(**sizes | more))


def shape_of(config: Any, *, trusts_code: bool = False) -> ModelShape:  # noqa: ANN401
    """Return the shape that a configuration of transformers describes.

    Args:
        config: Of transformers.
        trusts_code: The operator wants code to run that the model's folder brings.

    Raises:
        ModelLoadError: It is of no causal model with attention.
    """
    text = config.get_text_config()
    _check_sizes(config, text)
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    matrices, kept = _weights(config, trusts_code=trusts_code)
    return ModelShape(
        family=str(config.model_type),
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        vocabulary=int(text.vocab_size),
        context_tokens=int(text.max_position_embeddings),
        matrices=matrices,
        kept_parameters=kept,
    )


def _check_sizes(config: Any, text: Any) -> None:  # noqa: ANN401
    needed = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    absent = [name for name in needed if not isinstance(getattr(text, name, None), int)]
    if absent:
        raise ModelLoadError(
            f"config.json of model type {config.model_type!r} lacks {', '.join(absent)}; only "
            "causal models with attention can be served"
        )


def _weights(config: Any, *, trusts_code: bool) -> tuple[tuple[Matrix, ...], int]:  # noqa: ANN401
    model = _without_weights(config, trusts_code=trusts_code)
    kinds = {name: type(module) for name, module in model.named_modules()}
    wanted = quantization_config("nf4", torch.bfloat16)
    AutoHfQuantizer.from_config(wanted, pre_quantized=False).preprocess_model(
        model, device_map=None
    )
    matrices = tuple(
        Matrix(name, module.out_features, module.in_features)
        for name, module in model.named_modules()
        if type(module) is not kinds.get(name) and isinstance(module, nn.Linear)
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    return matrices, total - sum(matrix.parameters for matrix in matrices)


def _without_weights(config: Any, *, trusts_code: bool) -> Any:  # noqa: ANN401
    # Else the model would come out quantized already.
    plain = type(config).from_dict({**config.to_dict(), "quantization_config": None})
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(plain, trust_remote_code=trusts_code)
    except Exception as error:  # transformers raises what it likes at a wrong config
        raise ModelLoadError(f"config.json describes no causal model: {error}") from error
