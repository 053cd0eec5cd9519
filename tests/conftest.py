"""Models that many tests share, loaded once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from tokenizers_for_tests import train_llama_tokenizer

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.settings import EngineSettings, ModelSettings

# The same examples in every run: a red suite must be red again when somebody looks.
hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis_settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def demo_model() -> LoadedModel:
    """The demo model in NF4, as a newcomer's first start loads it."""
    settings = ModelSettings(models_dir=ROOT / "models", device="cpu")
    return load_model(resolve(settings), settings, default_registry())


@pytest.fixture(scope="session")
def demo_engine(demo_model: LoadedModel) -> Iterator[StreamingEngine]:
    """One engine for all tests that only ask it questions."""
    engine = StreamingEngine(demo_model, EngineSettings(slots=4, queue_size=8))
    engine.wait_until_warm()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model: LoadedModel) -> Any:
    """Byte-level BPE."""
    return demo_model.tokenizer


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sentencepiece with byte fallback."""
    return train_llama_tokenizer(tmp_path_factory.mktemp("llama-tokenizer"))
