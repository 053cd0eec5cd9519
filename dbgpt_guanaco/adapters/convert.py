"""Old pickled checkpoints → safetensors, one shard at a time."""

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dbgpt_guanaco.adapters.folder import INDEX, WHOLE
from dbgpt_guanaco.errors import ModelLoadError, OutputError

logger = logging.getLogger(__name__)


def convert_pickled_weights(folder: Path) -> list[Path]:
    """Write a safetensors file beside each ``pytorch_model*.bin`` of a folder.

    Peak memory is one shard. The index, without which several files are no model, comes last;
    a single file is renamed into place when it is whole.

    Returns:
        The files written.

    Raises:
        ModelLoadError: There are no such files, or one holds more than weights.
        OutputError: The disk is full, or may not be written.
    """
    sources = sorted(folder.glob("pytorch_model*.bin"))
    if not folder.is_dir():
        raise ModelLoadError(f"there is no folder {folder}")
    if not sources:
        done = "; it holds safetensors already" if any(folder.glob("*.safetensors")) else ""
        raise ModelLoadError(f"{folder} holds no pytorch_model*.bin{done}")
    weight_map: dict[str, str] = {}
    written, total_bytes = [], 0
    for number, source in enumerate(sources, start=1):
        target = folder / _target_name(number, len(sources))
        tensors = read_pickled(source)
        total_bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        with _whole_or_not_at_all(target) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, target.name)
        written.append(target)
        logger.info("%s → %s: %d tensors", source.name, target.name, len(tensors))
    if len(written) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        with _whole_or_not_at_all(folder / INDEX) as partial:
            partial.write_text(json.dumps(index, indent=2))
    return written


@contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """Yield where to write; what is whole gets the target's name, anything else goes."""
    partial = target.with_suffix(".partial")
    try:
        yield partial
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{target} cannot be written: {reason}; nothing was left of it") from None
    finally:
        partial.unlink(missing_ok=True)


def _target_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors" if count > 1 else WHOLE


def read_pickled(source: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a pickle, and execute nothing of it.

    Raises:
        ModelLoadError: It is damaged, or holds more than weights.
    """
    try:
        # Only a zip archive can be mapped; torch before 1.6 wrote none.
        is_zip = zipfile.is_zipfile(source)
        state = torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelLoadError(f"{source} is damaged, or holds more than weights: {reason}") from None
    is_weights = isinstance(state, dict) and all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    )
    if not is_weights:
        raise ModelLoadError(f"{source} holds more than weights")
    # Cloned: safetensors refuses tensors that share memory, and rotary tables are computed.
    return {
        name: tensor.clone().contiguous()
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq")
    }
