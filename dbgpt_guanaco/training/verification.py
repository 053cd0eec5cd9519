"""Is what was saved what was learned? Asked after every save; a no ends the training."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from dbgpt_guanaco.adapters.lora import read_lora
from dbgpt_guanaco.errors import TrainingError

WEIGHTS = "adapter_model.safetensors"
# Largest difference of a logit, as a share of the largest logit. On a CPU there is none; kernels
# of a GPU may add in another order the second time.
TOLERANCE = 0.01


def check_saved(folder: Path, model: Any) -> dict[str, int]:  # noqa: ANN401
    """Compare a LoRA's file with the model in memory, to the bit.

    Returns:
        How many tensors there are, and how many B matrices are still zero.

    Raises:
        TrainingError: A tensor is missing, too many, another or not finite, or all of B is zero.
    """
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = _read(folder)
    if found.keys() != expected.keys():
        missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
        raise TrainingError(
            f"{folder} holds {len(found)} tensors and the model {len(expected)}: "
            f"{', '.join(sorted(missing | extra)[:3])}"
        )
    for name, tensor in found.items():
        if not bool(tensor.isfinite().all()):
            raise TrainingError(f"{name} is not finite; lower --learning-rate")
        if not torch.equal(tensor, expected[name].cpu()):
            raise TrainingError(f"{folder}: {name} is not what is in memory")
    zero = sum(not bool(t.any()) for n, t in found.items() if ".lora_B." in n)
    if zero == sum(".lora_B." in name for name in found):
        raise TrainingError(f"every B matrix in {folder} is zero: nothing was learned")
    return {"tensors": len(found), "zero_b": zero}


def logits_of(model: Any, input_ids: tuple[int, ...]) -> torch.Tensor:  # noqa: ANN401
    """Return what a model, left in eval mode, gives every next token: [T, V], float32, CPU."""
    model.eval()
    ids = torch.tensor([input_ids], device=model.device)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def check_reloaded(
    folder: Path,
    base: Any,  # noqa: ANN401
    input_ids: tuple[int, ...],
    trained: torch.Tensor,
) -> dict[str, float]:
    """Lay a saved LoRA on a fresh base, and compare with the model that was trained.

    Args:
        folder: Of the LoRA.
        base: Loaded anew, kept unpacked; it is changed.
        input_ids: A text.
        trained: Its logits under the model in training, [T, V].

    Returns:
        The largest difference of a logit, and the largest logit.

    Raises:
        TrainingError: They differ.
        ModelLoadError: The server would not take the LoRA.
    """
    read_lora(folder, base, base.dtype)  # as the server reads it: it names what does not fit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that transformers has given up
        laid = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
    reloaded = logits_of(laid, input_ids)
    difference = float((reloaded - trained).abs().max())
    largest = float(trained.abs().max())
    if not difference <= TOLERANCE * largest:
        raise TrainingError(
            f"the LoRA that was saved gives other logits than the model in training: they differ "
            f"by up to {difference:.3g}, and the largest is {largest:.3g}"
        )
    return {"logit_difference": difference, "largest_logit": largest}


def _read(folder: Path) -> Mapping[str, torch.Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder / WEIGHTS} cannot be read back: {error}") from error
