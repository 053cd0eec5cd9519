"""A base and a LoRA → a model without LoRA."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dbgpt_guanaco.adapters.cards import MERGE, recorded_family, refuse_other_base
from dbgpt_guanaco.adapters.quantization import compute_dtype, quantization_config
from dbgpt_guanaco.checkpoints.codes import through_nf4
from dbgpt_guanaco.checkpoints.companions import copy_companions, library_versions, tokenizer_folder
from dbgpt_guanaco.checkpoints.layout import QuantizedWeight, quantized_weights
from dbgpt_guanaco.checkpoints.lora_weights import Delta, LoraWeights, open_lora
from dbgpt_guanaco.checkpoints.source import SourceModel, content_hash, open_source
from dbgpt_guanaco.checkpoints.writing import Advance, write_model
from dbgpt_guanaco.errors import ModelLoadError

Base = Literal["fp16", "dequantized"]


class Merging:
    """The recipe: ``W + scaling · B @ A`` in float32, stored in the base's dtype.

    Args:
        source: The 16-bit base.
        lora: Checked against it.
        lora_folder: Where it lies; its tokenizer comes before the base's.
        base: ``dequantized`` takes W through NF4 first, as QLoRA's training saw it.
        device: Where to compute.

    Raises:
        ModelLoadError: There is no tokenizer, or the base has no layers to quantize.
    """

    def __init__(
        self,
        source: SourceModel,
        lora: LoraWeights,
        lora_folder: Path,
        base: Base,
        device: torch.device,
    ) -> None:
        self.source, self._lora, self._device = source, lora, device
        self._quantized: Mapping[str, QuantizedWeight] = {}
        self._dtype = compute_dtype("auto", device)
        if base == "dequantized" and (wanted := quantization_config("nf4", self._dtype)):
            self._quantized = quantized_weights(source, wanted)
        self._tokenizer = tokenizer_folder(source.folder, lora_folder)
        self.job: Mapping[str, Any] = {
            "command": "merge",
            "base": source.folder.name,
            "base_sha256": content_hash([*source.files, source.folder / "config.json"]),
            "lora": lora_folder.name,
            "lora_sha256": content_hash(lora.files),
            "lora_config": dict(lora.config),
            "base_weights": base,
            "device": device.type,
            "family": recorded_family(lora_folder, source.folder),
            "versions": library_versions(),
            "tensors": {"merged": len(lora.deltas), "replaced": len(lora.replaced)},
        }

    def convert(self, name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See ``Recipe``."""
        if name in self._lora.replaced:
            return {name: self._lora.fetch(self._lora.replaced[name]).to(tensor.dtype)}
        delta = self._lora.deltas.get(name)
        if delta is None and name not in self._quantized:
            return {name: tensor}
        weight = self._base_weight(name, tensor.to(self._device))
        if delta:
            weight += self._delta(delta)
        merged = weight.to(tensor.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise ModelLoadError(f"{name}: the merged weight is not finite in {tensor.dtype}")
        return {name: merged}

    def finish(self, folder: Path) -> None:
        """See ``Recipe``."""
        config = self.source.config
        copy_companions(self.source.folder, self._tokenizer, folder, config.get("model_type", ""))
        (folder / MERGE).write_text(json.dumps(dict(self.job), indent=2))
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    def _base_weight(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the float32 weight that the delta is added to, a copy."""
        quantized = self._quantized.get(name)
        if quantized is None:
            return weight.to(torch.float32, copy=True)
        seen = through_nf4((weight.T if quantized.is_transposed else weight).to(self._dtype))
        return (seen.T if quantized.is_transposed else seen).float()

    def _delta(self, delta: Delta) -> torch.Tensor:
        a = self._lora.fetch(delta.a).to(self._device, torch.float32)
        b = self._lora.fetch(delta.b).to(self._device, torch.float32)
        product = (b @ a).mul_(delta.scaling)
        return product.T if delta.is_transposed else product


def open_merge(base: Path, lora: Path, weights: Base, device: torch.device) -> Merging:
    """Check that a LoRA fits a base; of the weights, nothing is changed yet.

    Raises:
        ModelLoadError: It does not, or one of them is damaged.
    """
    source = open_source(base)
    refuse_other_base(lora, base)
    return Merging(source, open_lora(lora, source), lora, weights, device)


def merge_lora(recipe: Merging, out: Path, advance: Advance) -> dict[str, Any]:
    """Write the merged model, and return its card.

    Raises:
        ModelLoadError: A weight cannot be merged.
        OutputError: It cannot be written.
    """
    write_model(recipe.source, recipe, out, advance)
    return dict(recipe.job)
