"""LoRA weights, read and held against the base that they are for. They are never merged here."""

import logging
import math
import pickle
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dbgpt_guanaco.adapters.folder import read_json
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.errors import ModelLoadError

logger = logging.getLogger(__name__)

# peft writes names as its wrapped model has them; some tools leave the adapter's name in.
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# What changes a model in another way than by products of A and B.
_OTHER_WAYS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """What is added to a linear layer: y + scale · B(A x).

    Attributes:
        a: [rank, inputs].
        b: [outputs, rank].
        scale: alpha / rank, or alpha / √rank where the LoRA says so.
    """

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Lora:
    """LoRA weights that fit a base. Each reading is an object of its own, equal to no other.

    Attributes:
        name: Of its folder.
        pairs: By the name of the layer in the base.
        key: Names this reading, also when it is gone.
    """

    name: str
    pairs: Mapping[str, LoraPair]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def num_bytes(self) -> int:
        """What it takes beside its base."""
        return sum(t.nbytes for pair in self.pairs.values() for t in (pair.a, pair.b))


def read_lora(folder: Path, base: nn.Module, dtype: torch.dtype) -> Lora:
    """Read LoRA weights for a base, to the devices where its layers are.

    An old ``adapter_model.bin`` is a pickle; it is read as weights only.

    Args:
        folder: As peft saves it.
        base: The model; nothing of it is changed.
        dtype: Of the arithmetic.

    Raises:
        ModelLoadError: There are no weights, they do not fit the base, all of B is zero, or it
            is more than products of A and B.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    matrices = _by_layer(folder, tensors)
    layers = {name: part for name, part in base.named_modules() if isinstance(part, nn.Linear)}
    _check_layers(folder, config, matrices, layers)
    pairs = {}
    for name, (a, b) in matrices.items():
        pair = LoraPair(a, b, _scale(config, name, a.shape[0]))
        _check_rank(folder, config, name, a)
        pairs[name] = _fitted(folder, name, pair, layers[name], dtype)
    if not any(bool(pair.b.any()) for pair in pairs.values()):
        raise ModelLoadError(f"the LoRA in {folder} is empty: every B matrix is zero")
    logger.info("LoRA %s: %d matrix pairs, un-merged", folder.name, len(pairs))
    return Lora(folder.name, pairs)


def check_fit(folder: Path, base: nn.Module) -> int:
    """Hold a LoRA against a base by names and shapes; of its weights only the headers are read.

    Args:
        folder: As peft saves it.
        base: The model, which needs no weights: it may be on the meta device.

    Returns:
        How many pairs of A and B there are.

    Raises:
        ModelLoadError: It is damaged or does not fit.
    """
    config = _read_config(folder)
    weights = folder / "adapter_model.safetensors"
    tensors = (
        {n: torch.empty(shape, device="meta") for n, shape, _ in tensor_headers([weights])}
        if weights.is_file()
        else _read_tensors(folder)  # a pickle has no header
    )
    matrices = _by_layer(folder, tensors)
    layers = {name: part for name, part in base.named_modules() if isinstance(part, nn.Linear)}
    _check_layers(folder, config, matrices, layers)
    for name, (a, b) in matrices.items():
        _check_rank(folder, config, name, a)
        _check_shapes(folder, name, a, b, layers[name])
    return len(matrices)


def _read_config(folder: Path) -> LoraConfig:
    given = read_json(folder / "adapter_config.json")
    if given.get("peft_type", "LORA") != "LORA":
        raise ModelLoadError(f"{folder} is a {given['peft_type']} of peft, and no LoRA")
    other = [name for name in _OTHER_WAYS if given.get(name)]
    if given.get("bias", "none") != "none":
        other.append("bias")
    if other:
        raise ModelLoadError(
            f"the LoRA in {folder} is not only products of A and B ({', '.join(other)}); merge it "
            "with its base by the tool that made it"
        )
    known = {name: value for name, value in given.items() if name in _config_fields()}
    try:
        return LoraConfig(**known)
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"{folder}/adapter_config.json cannot be used: {error}") from error


def _config_fields() -> Iterable[str]:
    return LoraConfig.__dataclass_fields__.keys() - {"runtime_config"}


def _read_tensors(folder: Path) -> Mapping[str, Tensor]:
    weights, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if not weights.is_file() and not pickled.is_file():
        raise ModelLoadError(f"{folder} holds no adapter_model.safetensors and no .bin of it")
    try:
        if weights.is_file():
            return load_file(weights)
        found = torch.load(pickled, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
    ) as error:
        raise ModelLoadError(
            f"the LoRA in {folder} is damaged, or holds more than weights: {error}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ModelLoadError(f"the LoRA in {folder} holds more than weights")
    return found


def _by_layer(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of each layer.

    Raises:
        ModelLoadError: A tensor is neither, or one of them is alone.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if not match or tensor.dim() != 2:
            raise _unfit(folder, f"{name} of shape {list(tensor.shape)} is no matrix A or B")
        found.setdefault(match[1], {})[match[2]] = tensor
    alone = [name for name, pair in found.items() if len(pair) != 2]
    if alone:
        raise _unfit(folder, f"{_some(alone)} have only one of A and B")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _check_layers(
    folder: Path, config: LoraConfig, found: Iterable[str], layers: Mapping[str, Any]
) -> None:
    absent = [name for name in found if name not in layers]
    if absent:
        raise _unfit(folder, f"it is for layers that the base has not: {_some(absent)}")
    missing = [
        name
        for name in layers
        if name not in found and config.target_modules and check_target_module_exists(config, name)
    ]
    if missing:
        raise _unfit(folder, f"weights are missing for {_some(missing)}")
    unnamed = [name for name in found if not check_target_module_exists(config, name)]
    if unnamed and config.target_modules:
        raise _unfit(folder, f"its adapter_config.json does not name {_some(unnamed)}")
    if not found:
        raise _unfit(folder, "it is for none of the base's layers")


def _scale(config: LoraConfig, name: str, rank: int) -> float:
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _fitted(
    folder: Path, name: str, pair: LoraPair, layer: nn.Linear, dtype: torch.dtype
) -> LoraPair:
    _check_shapes(folder, name, pair.a, pair.b, layer)
    a, b = (t.to(layer.weight.device, dtype).contiguous() for t in (pair.a, pair.b))
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise _unfit(folder, f"there are numbers in {name} that are not finite")
    return replace(pair, a=a, b=b)


def _check_rank(folder: Path, config: LoraConfig, name: str, a: Tensor) -> None:
    ranks = config.rank_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config.r)
    if a.shape[0] != rank:
        raise _unfit(folder, f"{name} has rank {a.shape[0]}, adapter_config.json says {rank}")


def _check_shapes(folder: Path, name: str, a: Tensor, b: Tensor, layer: nn.Linear) -> None:
    rank = a.shape[0]
    wanted = ((rank, layer.in_features), (layer.out_features, rank))
    shapes = (tuple(a.shape), tuple(b.shape))
    if shapes != wanted or not rank:
        raise _unfit(folder, f"size mismatch at {name}: A and B are {shapes}, not {wanted}")


def _unfit(folder: Path, why: str) -> ModelLoadError:
    return ModelLoadError(f"the LoRA in {folder} does not fit its base: {why}")


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{', '.join(listed[:3])}{f' and {len(listed) - 3} more' if len(listed) > 3 else ''}"
