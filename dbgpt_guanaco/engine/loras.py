"""The LoRAs that an engine has beside its base, by name. Requests choose one as their model."""

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.cards import recorded_family, refuse_other_base
from dbgpt_guanaco.adapters.family import adapter_of
from dbgpt_guanaco.adapters.folder import is_lora
from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.adapters.lora import Lora, read_lora
from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.errors import (
    ConfigurationError,
    InvalidRequestError,
    OutOfMemoryError,
    UnknownModelError,
)
from dbgpt_guanaco.settings import EngineSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoraModel:
    """A LoRA on the base, as clients see it.

    Attributes:
        name: What clients call it.
        folder: Last component of where it came from.
        template: How conversations are written for it.
        stop_token_ids: Ids that end an answer.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    folder: str
    lora: Lora
    template: PromptTemplate
    stop_token_ids: frozenset[int]
    created: int = field(default_factory=lambda: int(time.time()))


class LoraShelf:
    """Loads and unloads; answers that run keep what they began with.

    Args:
        loaded: The base.
        settings: How many there may be, and where HTTP clients may load them from.
    """

    def __init__(self, loaded: LoadedModel, settings: EngineSettings) -> None:
        self._loaded, self._most = loaded, settings.max_loras
        self._folder = settings.lora_dir.expanduser().resolve()
        self._registry = default_registry()
        self._lock = threading.Lock()
        self._models: dict[str, LoraModel] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call."""
        return tuple(self._models)

    def get(self, name: str) -> LoraModel:
        """Return a LoRA by its name.

        Raises:
            UnknownModelError: There is none of that name.
        """
        found = self._models.get(name)
        if found is None:
            raise UnknownModelError(name, known=(*self._loaded.card.names, *self.names))
        return found

    async def load(self, name: str, path: str) -> None:
        """Offer a LoRA that a client names by its path below the folder for LoRAs.

        Raises:
            InvalidRequestError: The path leads elsewhere, or there is no LoRA.
            ConfigurationError: The name is taken, or there are too many.
            ModelLoadError: It cannot be read, does not fit the base, or not the memory.
        """
        folder = await asyncio.to_thread(find_below, self._folder, path)
        await asyncio.to_thread(self.add, name, folder)

    def add(self, name: str, folder: Path) -> LoraModel:
        """Read a LoRA and offer it.

        Raises:
            ConfigurationError: The name is taken, or there are too many.
            ModelLoadError: It cannot be read, does not fit the base, or not the memory.
        """
        self._check(name)
        if self._loaded.model_path:
            refuse_other_base(folder, self._loaded.model_path)
        model = self._read(name, folder)
        with self._lock:
            self._check(name)  # somebody may have been faster
            self._models = {**self._models, name: model}
        return model

    def unload(self, name: str) -> None:
        """Offer a LoRA no more.

        Raises:
            UnknownModelError: There is none of that name.
        """
        with self._lock:
            self.get(name)
            self._models = {n: model for n, model in self._models.items() if n != name}
        logger.info("LoRA %s: no longer offered", name)

    def _check(self, name: str) -> None:
        if name in (*self._loaded.card.names, *self._models):
            raise ConfigurationError(f"there is a model {name!r} already; unload it first")
        if len(self._models) >= self._most:
            raise ConfigurationError(
                f"{self._most} LoRAs are loaded, as many as GUANACO_MAX_LORAS allows"
            )

    def _read(self, name: str, folder: Path) -> LoraModel:
        dtype = getattr(torch, self._loaded.card.compute_dtype)
        try:
            lora = read_lora(folder, self._loaded.model, dtype)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"the LoRA in {folder} does not fit the memory left") from error
        adapter = self._family(folder)
        return LoraModel(
            name=name,
            folder=folder.name,
            lora=lora,
            template=adapter.template if adapter else self._loaded.template,
            stop_token_ids=self._loaded.stop_token_ids
            | (frozenset(adapter.stop_token_ids) if adapter else frozenset()),
        )

    def _family(self, folder: Path) -> BaseLLMAdapter | None:
        """Return the family that a LoRA's card or its own name tells; else it is its base's."""
        if recorded := recorded_family(folder):
            return adapter_of(recorded, self._registry)
        try:
            return self._registry.find(folder.name)
        except UnknownModelError:
            return None


def find_below(root: Path, path: str) -> Path:
    """Return the folder of a LoRA that a client names by its path below a folder.

    Args:
        root: Nothing outside it is looked at, whatever links lie in it.
        path: Of the client's choice.

    Raises:
        InvalidRequestError: The path leads elsewhere, or there is no LoRA.
    """
    if not path.isprintable() or "\\" in path:
        raise _refusal("is no path below the folder that LoRAs are kept in")
    try:
        folder = (root / path).resolve()
        if folder == root or not folder.is_relative_to(root):
            raise _refusal("leads out of the folder that LoRAs are kept in")
        # Links in it too: what they lead to would be read, and an error would tell of it.
        if not all(file.resolve().is_relative_to(root) for file in folder.glob("*")):
            raise _refusal("holds a link that leads out of the folder that LoRAs are kept in")
        is_there = is_lora(folder)
    except (OSError, RuntimeError):  # a name too long for the file system, links in a circle
        is_there = False
    if not is_there:
        raise _refusal("there is no LoRA of that name")
    return folder


def _refusal(problem: str) -> InvalidRequestError:
    return InvalidRequestError("lora_path", problem)
