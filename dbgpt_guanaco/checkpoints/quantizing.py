"""A 16-bit model → an NF4 or int8 checkpoint that starts without being quantized again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dbgpt_guanaco.adapters.cards import QUANTIZE, SOURCE_KEY, recorded_family, refuse_lost_lora
from dbgpt_guanaco.adapters.fingerprint import fingerprint
from dbgpt_guanaco.adapters.quantization import compute_dtype, quantization_config
from dbgpt_guanaco.checkpoints.codes import packed
from dbgpt_guanaco.checkpoints.companions import copy_companions, library_versions, tokenizer_folder
from dbgpt_guanaco.checkpoints.layout import quantized_weights
from dbgpt_guanaco.checkpoints.source import SourceModel, content_hash
from dbgpt_guanaco.checkpoints.writing import Advance, write_model
from dbgpt_guanaco.settings import Quantization


class Quantizing:
    """The recipe: linear layers become codes, everything else the dtype of the arithmetic.

    Codes and statistics equal those that loading the 16-bit model computes, bit for bit.

    Args:
        source: The 16-bit model.
        kind: ``nf4`` or ``int8``.
        device: Where to quantize.

    Raises:
        ModelLoadError: The model has no tokenizer, or its files do not fit its config.
    """

    def __init__(self, source: SourceModel, kind: Quantization, device: torch.device) -> None:
        refuse_lost_lora(source.folder, kind)
        self._source, self._kind, self._device = source, kind, device
        self._dtype = compute_dtype("auto", device)
        wanted = quantization_config(kind, self._dtype)
        if wanted is None:
            raise ValueError(f"{kind} is no quantization")
        self._stored_config: dict[str, Any] = wanted.to_dict()
        self._quantized = quantized_weights(source, wanted)
        self._tokenizer = tokenizer_folder(source.folder, None)
        self.job: Mapping[str, Any] = {
            "command": "quantize",
            "source": source.folder.name,
            "source_sha256": content_hash([*source.files, source.folder / "config.json"]),
            SOURCE_KEY: fingerprint(source.files),
            "family": recorded_family(source.folder),
            "to": kind,
            "compute_dtype": str(self._dtype).removeprefix("torch."),
            "device": device.type,
            "versions": library_versions(),
        }

    def convert(self, name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See ``Recipe``."""
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)  # as loading does, before it quantizes
        if name not in self._quantized:
            return {name: tensor}
        weight = tensor.T if self._quantized[name].is_transposed else tensor
        return packed(name, weight.to(self._device), self._kind)

    def finish(self, folder: Path) -> None:
        """See ``Recipe``."""
        config = dict(self._source.config)
        copy_companions(self._source.folder, self._tokenizer, folder, config.get("model_type", ""))
        card = {**self.job, "quantized_tensors": len(self._quantized)}
        (folder / QUANTIZE).write_text(json.dumps(card, indent=2))
        config.pop("torch_dtype", None)
        config |= {"dtype": self.job["compute_dtype"], "quantization_config": self._stored_config}
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def quantize_model(
    source: SourceModel, kind: Quantization, out: Path, device: torch.device, advance: Advance
) -> Mapping[str, Any]:
    """Write a quantized copy of a model, and return its card.

    Raises:
        ModelLoadError: The model cannot be quantized.
        OutputError: The copy cannot be written.
    """
    recipe = Quantizing(source, kind, device)
    write_model(source, recipe, out, advance)
    return recipe.job
