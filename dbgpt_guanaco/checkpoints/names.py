"""What a command was given → folders and a device, found as the server finds them."""

from pathlib import Path

import torch

from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError
from dbgpt_guanaco.settings import ModelSettings


def find_model(name: str, settings: ModelSettings) -> Path:
    """Return the folder of a model.

    Raises:
        ModelNotFoundError: It is nowhere.
        ModelLoadError: It is not whole, or a LoRA.
    """
    source = resolve(ModelSettings(name=name, models_dir=settings.models_dir))
    if source.lora_path:
        raise ModelLoadError(
            f"{source.lora_path} is a LoRA; merge it first:  "
            f"dbgpt-guanaco merge {source.model_path} {source.lora_path} --out …"
        )
    return source.model_path


def find_pair(base: str, lora: str, settings: ModelSettings) -> tuple[Path, Path]:
    """Return the folders of a base and of a LoRA.

    Raises:
        ModelNotFoundError: One is nowhere.
        ModelLoadError: The base is not whole or a LoRA, or the LoRA is none.
    """
    source = resolve(ModelSettings(name=base, lora=lora, models_dir=settings.models_dir))
    if source.lora_path is None:
        raise ModelLoadError(f"{lora} holds no LoRA weights")
    return source.model_path, source.lora_path


def find_device(name: str) -> torch.device:
    """Return where to compute.

    Raises:
        ConfigurationError: It is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda, but torch sees no CUDA device")
    return torch.device(name)
