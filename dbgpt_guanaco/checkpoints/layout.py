"""The modules of a model, from its config alone: built on the meta device, without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from dbgpt_guanaco.adapters.shapes import read_config
from dbgpt_guanaco.checkpoints.source import SourceModel
from dbgpt_guanaco.errors import ModelLoadError


def meta_model(folder: Path) -> Any:  # noqa: ANN401
    """Build a folder's model without weights.

    Raises:
        ModelLoadError: Its config cannot be used.
    """
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes at a damaged file
        raise ModelLoadError(f"{folder}/config.json cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Names of a model's parameters → names in its files, which may lack or bring a prefix.

    Attributes:
        source: The files.
        prefix: Of the model without its head, such as ``transformer``.
    """

    source: SourceModel
    prefix: str

    def find(self, parameter: str) -> str:
        """Return the name under which the files hold a parameter.

        Raises:
            ModelLoadError: They do not.
        """
        bare = parameter.removeprefix(f"{self.prefix}.")
        for name in (parameter, bare, f"{self.prefix}.{parameter}"):
            if name in self.source.shapes:
                return name
        raise ModelLoadError(
            f"{self.source.folder} holds no tensor {parameter}; its files name things otherwise "
            "than the model does, or parts are missing"
        )


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight that transformers quantizes while it loads.

    Attributes:
        is_transposed: It is stored as [in, out] and quantized as [out, in].
    """

    is_transposed: bool


def quantized_weights(
    source: SourceModel, config: BitsAndBytesConfig
) -> Mapping[str, QuantizedWeight]:
    """Return the weights that transformers itself would quantize, by their names in the files.

    Raises:
        ModelLoadError: The config cannot be used, or the files lack one of them.
    """
    model = meta_model(source.folder)
    names = TensorNames(source, model.base_model_prefix)
    kinds = {name: type(module) for name, module in model.named_modules()}
    # Asked, not imitated: which layers are left alone differs from family to family.
    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(
        model, device_map=None
    )
    found: dict[str, QuantizedWeight] = {}
    for name, module in model.named_modules():
        if type(module) is kinds.get(name):
            continue
        tensor = names.find(f"{name}.weight")
        is_transposed = kinds[name] is Conv1D
        stored = source.shapes[tensor]
        expected = (module.out_features, module.in_features)
        if (stored[::-1] if is_transposed else stored) != expected:
            raise ModelLoadError(
                f"{source.folder}: {tensor} has shape {list(stored)}, but config.json asks for "
                f"{list(expected)}"
            )
        found[tensor] = QuantizedWeight(is_transposed)
    if not found:
        raise ModelLoadError(f"{source.folder} has no linear layers to quantize")
    return found
