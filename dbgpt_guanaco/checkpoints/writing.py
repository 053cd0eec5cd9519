"""Model folder → model folder, shard by shard: the loop that every command here runs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dbgpt_guanaco.adapters.folder import INDEX, WHOLE
from dbgpt_guanaco.checkpoints.partial import PartialModel, partial_model
from dbgpt_guanaco.checkpoints.shards import ShardWriter, read_tensors
from dbgpt_guanaco.checkpoints.source import SourceModel

Advance = Callable[[int], None]


class Recipe(Protocol):
    """What becomes of a model's tensors, and what else belongs in the new folder."""

    @property
    def job(self) -> Mapping[str, Any]:
        """All that decides the result, as JSON; a run goes on only where this is the same."""
        ...

    def convert(self, name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the tensors that stand in the new file for one of the old, one dict's worth."""
        ...

    def finish(self, folder: Path) -> None:
        """Write all other files; ``config.json`` is the last."""
        ...


def write_model(source: SourceModel, recipe: Recipe, out: Path, advance: Advance) -> None:
    """Write a model; it appears whole or not at all, and an interrupted run is gone on with.

    Args:
        source: The model to read.
        recipe: What to make of it.
        out: Folder to make.
        advance: Told the bytes of the source that were done, for a progress bar.

    Raises:
        OutputError: It cannot be written.
        ModelLoadError: A tensor cannot be converted, or the source is damaged.
    """
    with partial_model(out, recipe.job) as partial:
        weight_map: dict[str, str] = {}
        total_bytes = 0
        for number, path in enumerate(source.files, start=1):
            name = _shard_name(number, len(source.files))
            facts = partial.find_done(name) or _write_shard(partial, name, path, recipe)
            weight_map |= dict.fromkeys(facts["tensors"], name)
            total_bytes += facts["bytes"]
            advance(path.stat().st_size)
        if len(source.files) > 1:
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            (partial.folder / INDEX).write_text(json.dumps(index, indent=2))
        recipe.finish(partial.folder)
        partial.publish()


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors" if count > 1 else WHOLE


def _write_shard(partial: PartialModel, name: str, path: Path, recipe: Recipe) -> dict[str, Any]:
    tensors: list[str] = []
    written = 0
    with ShardWriter(partial.folder / name, _header_room(path)) as shard:
        for old_name, tensor in read_tensors(path):
            for new_name, new in recipe.convert(old_name, tensor).items():
                written += shard.add(new_name, new)
                tensors.append(new_name)
    return partial.note_done(name, {"tensors": tensors, "bytes": written})


def _header_room(path: Path) -> int:
    """Return room for a new header: of one old tensor become at most six, with longer names."""
    with path.open("rb") as file:
        old = int.from_bytes(file.read(8), "little")
    return 8 * (old + 1024)
