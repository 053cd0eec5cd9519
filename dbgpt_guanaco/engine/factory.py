"""Settings → a warm engine, and what turns texts into vectors."""

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.embedding import load_embedder
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine.embedding import SentenceEmbedder
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.settings import Settings


def create_engine(settings: Settings) -> StreamingEngine:
    """Find and load the model that the settings name.

    Raises:
        GuanacoError: It cannot be found, or cannot be served as asked.
    """
    registry = default_registry()
    loaded = load_model(resolve(settings.model), settings.model, registry)
    engine = StreamingEngine(loaded, settings.engine)
    engine.wait_until_warm()
    return engine


def create_embedder(settings: Settings) -> SentenceEmbedder | None:
    """Find and load the embedding model that the settings name, if they name one.

    Raises:
        GuanacoError: It cannot be found, or cannot be loaded.
    """
    loaded = load_embedder(settings.embedding, settings.model.models_dir)
    if not loaded:
        return None
    return SentenceEmbedder(loaded, settings.engine.slots + settings.engine.queue_size)
