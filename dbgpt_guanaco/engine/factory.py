"""Settings → a warm engine, and what turns texts into vectors."""

import logging
from typing import TypeVar

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.embedding import load_embedder
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.memory import lora_bytes_of
from dbgpt_guanaco.adapters.resolve import find_lora, resolve
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.embedding import SentenceEmbedder
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import ConfigurationError, GenerationFailedError
from dbgpt_guanaco.settings import EngineSettings, LifeSettings, Settings
from dbgpt_guanaco.start import StartProgress, Tell, counted, tell_nobody

logger = logging.getLogger(__name__)

_Engine = TypeVar("_Engine", BatchingEngine, StreamingEngine)


def create_engine(settings: Settings, tell: Tell = tell_nobody) -> BatchingEngine | StreamingEngine:
    """Find and load the model that the settings name.

    Args:
        settings: All of them.
        tell: Hears how far it is.

    Raises:
        GuanacoError: It cannot be found, or cannot be served as asked.
    """
    registry = default_registry()
    tell(StartProgress("finding the model"))
    source = resolve(settings.model, tell)
    loaded = load_model(source, settings.model, registry, tell)
    loras = [(name, find_lora(folder, settings.model)) for name, folder in settings.engine.loras]
    tell(StartProgress("preparing the first pass"))
    # They come behind the cache, which would leave them a tenth of what is free.
    reserved = sum(lora_bytes_of(folder) for _, folder in loras)
    engine = start_engine(loaded, settings.engine, settings.life, reserved_bytes=reserved)
    try:
        for name, folder in counted(loras, "loading LoRAs", "LoRAs", tell):
            engine.loras.add(name, folder)
    except BaseException:
        engine.close()
        raise
    return engine


def start_engine(
    loaded: LoadedModel,
    settings: EngineSettings,
    life: LifeSettings | None = None,
    *,
    reserved_bytes: int = 0,
) -> BatchingEngine | StreamingEngine:
    """Return the engine that the settings name, warm; by default the first that can run.

    Args:
        loaded: The model.
        settings: What it is given.
        life: When it is taken for stuck.
        reserved_bytes: What its cache leaves free, for LoRAs that come later.

    Raises:
        GuanacoError: The model cannot be served as asked.
    """
    if settings.engine != "streaming":
        try:
            return _warm(BatchingEngine(loaded, settings, life, reserved_bytes=reserved_bytes))
        except (ConfigurationError, GenerationFailedError) as error:
            if settings.engine == "batching":
                raise
            logger.warning("answers take turns instead of sharing passes: %s", error)
    return _warm(StreamingEngine(loaded, settings, life))


def _warm(engine: _Engine) -> _Engine:
    try:
        engine.wait_until_warm()
    except BaseException:
        engine.close()
        raise
    return engine


def create_embedder(settings: Settings, tell: Tell = tell_nobody) -> SentenceEmbedder | None:
    """Find and load the embedding model that the settings name, if they name one.

    Raises:
        GuanacoError: It cannot be found, or cannot be loaded.
    """
    tell(StartProgress("loading the embedding model"))
    loaded = load_embedder(settings.embedding, settings.model.models_dir, tell)
    if not loaded:
        return None
    return SentenceEmbedder(loaded, settings.engine.slots + settings.engine.queue_size)
