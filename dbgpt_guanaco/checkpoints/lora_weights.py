"""A LoRA's files → one delta for each weight, checked against the base before anything is done.

peft says what belongs where: it lays the LoRA on the base's modules without weights, and what it
then has room for must be what the files hold, no tensor less and no tensor more. peft alone would
drop what is left over without a word.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open

from dbgpt_guanaco.adapters.convert import read_pickled
from dbgpt_guanaco.adapters.folder import is_lora, read_json
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.checkpoints.layout import TensorNames, meta_model
from dbgpt_guanaco.checkpoints.source import SourceModel
from dbgpt_guanaco.errors import ModelLoadError

# What merging honours, and what says nothing about the weights. Anything else must be unset.
HONOURED = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out",
    "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "layers_pattern", "bias", "init_lora_weights",
}  # fmt: skip
SILENT = {
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "auto_mapping", "peft_version", "loftq_config", "eva_config", "corda_config", "megatron_core",
    "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
    "merge_weights", "enable_lora",
}  # fmt: skip
# Others change the base itself before training, so that a delta alone is not what was trained.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

Fetch = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to one weight: ``scaling · B @ A``.

    Attributes:
        a: Name of A, [rank, in].
        b: Name of B, [out, rank].
        is_transposed: The weight is stored as [in, out].
    """

    a: str
    b: str
    scaling: float
    is_transposed: bool


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A LoRA that fits its base.

    Attributes:
        fetch: Reads one tensor by name.
        deltas: What is added, by the weight's name in the base's files.
        replaced: Names of tensors that take the place of the base's, by the names of those.
        files: Whose content decides the result.
        config: Its ``adapter_config.json``.
    """

    fetch: Fetch
    deltas: Mapping[str, Delta]
    replaced: Mapping[str, str]
    files: tuple[Path, ...]
    config: Mapping[str, Any]


def open_lora(folder: Path, source: SourceModel) -> LoraWeights:
    """Read a LoRA's headers and lay them on the base.

    Raises:
        ModelLoadError: It is no LoRA, damaged, of a kind that cannot be merged, or does not fit.
    """
    if not is_lora(folder):
        raise ModelLoadError(f"{folder} holds no adapter_config.json and so no LoRA")
    config = read_json(folder / "adapter_config.json")
    _refuse_unknown(folder, config)
    path, shapes, fetch = _open_weights(folder)
    laid = _lay(folder, source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base is not where its name says
        expected = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(laid).items()}
    _compare(folder, shapes, expected)
    names = TensorNames(source, laid.get_base_model().base_model_prefix)
    deltas, replaced = _deltas(laid, names), _replaced(laid, names)
    _refuse_tied(folder, laid.get_base_model(), names, [*deltas, *replaced])
    if not any(bool(fetch(delta.b).any()) for delta in deltas.values()):
        raise ModelLoadError(f"the LoRA in {folder} is empty: every B matrix is zero")
    return LoraWeights(fetch, deltas, replaced, (path, folder / "adapter_config.json"), config)


def _refuse_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelLoadError(f"{folder} is of peft_type {kind}; only LORA can be merged")
    if config.get("bias") not in (None, "none"):
        raise ModelLoadError(f"{folder} has bias={config['bias']!r}; only 'none' can be merged")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise ModelLoadError(
            f"{folder} has init_lora_weights={start!r}, which changed the base; convert it to a "
            "plain LoRA with peft's path_initial_model_for_weight_conversion first"
        )
    unknown = sorted(k for k, value in config.items() if value and k not in HONOURED | SILENT)
    if unknown:
        raise ModelLoadError(f"{folder} uses {', '.join(unknown)}, which cannot be merged")


def _open_weights(folder: Path) -> tuple[Path, dict[str, tuple[int, ...]], Fetch]:
    path = folder / "adapter_model.safetensors"
    if path.is_file():
        shapes = {name: shape for name, shape, _ in tensor_headers([path])}
        return path, shapes, lambda name: _fetch(path, name)
    path = folder / "adapter_model.bin"
    if not path.is_file():
        raise ModelLoadError(f"{folder} holds no adapter_model.safetensors and no .bin of it")
    tensors = read_pickled(path)
    return path, {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__


def _fetch(path: Path, name: str) -> torch.Tensor:
    # Opened for each tensor: what stays mapped would add up in memory.
    with safe_open(path, framework="pt", device="cpu") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _lay(folder: Path, source: SourceModel) -> Any:  # noqa: ANN401
    """Lay a LoRA's config on the base without weights."""
    base = meta_model(source.folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Conv1D turns fan_in_fan_out on: it is read off
            config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
            config.init_lora_weights = False  # the weights come from the file
            with torch.device("meta"):
                return PeftModel(base, config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelLoadError(f"the LoRA in {folder} does not fit its base: {error}") from error


def _compare(
    folder: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a tensor too many, too few or of another shape.

    Raises:
        ModelLoadError: With the first names of each kind.
    """
    problems = []
    if unused := sorted(found.keys() - expected.keys()):
        problems.append(f"{len(unused)} tensors belong to no target module: {_some(unused)}")
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    wrong = [
        name for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]
    ]
    if wrong:
        shown = [f"{n} is {list(found[n])} and should be {list(expected[n])}" for n in wrong]
        problems.append(f"{len(wrong)} tensors have another shape or rank: {_some(shown)}")
    if problems:
        raise ModelLoadError(f"the LoRA in {folder} does not fit its base: {'; '.join(problems)}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "")


def _deltas(laid: Any, names: TensorNames) -> dict[str, Delta]:  # noqa: ANN401
    found = {}
    for path, layer in laid.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if "default" not in layer.lora_A:
            raise ModelLoadError(f"the LoRA changes {path}, an embedding; that cannot be merged")
        weight = names.find(f"{path}.weight")
        stem = f"base_model.model.{path}"
        found[weight] = Delta(
            a=f"{stem}.lora_A.weight",
            b=f"{stem}.lora_B.weight",
            scaling=float(layer.scaling["default"]),
            is_transposed=bool(getattr(layer, "fan_in_fan_out", False)),
        )
    return found


def _replaced(laid: Any, names: TensorNames) -> dict[str, str]:  # noqa: ANN401
    found = {}
    for path, wrapper in laid.get_base_model().named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for name, _ in wrapper.original_module.named_parameters():
                found[names.find(f"{path}.{name}")] = f"base_model.model.{path}.{name}"
    return found


def _refuse_tied(folder: Path, base: Any, names: TensorNames, touched: Iterable[str]) -> None:  # noqa: ANN401
    tied = getattr(base, "all_tied_weights_keys", {}) or {}
    both = {name for pair in tied.items() for name in pair if name in names.source.shapes}
    if changed := sorted(both & set(touched)):
        raise ModelLoadError(
            f"the LoRA in {folder} changes {', '.join(changed)}, which this base uses both as "
            "embedding and as output head; that cannot be merged"
        )
