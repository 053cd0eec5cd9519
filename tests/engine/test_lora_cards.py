"""A LoRA that is loaded beside others is held against its card, too."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.cards import base_fingerprint
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.engine.loras import LoraShelf
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError
from dbgpt_guanaco.settings import EngineSettings, ModelSettings


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(tmp_path_factory.mktemp("models") / "base")
    make_bpe_tokenizer(folder, CHAT_TEMPLATE)
    settings = ModelSettings(name=str(folder), device="cpu", quantization_override="none")
    return load_model(resolve(settings), settings, default_registry())


def make_trained(folder: Path, fingerprint: str | None, **card: Any) -> Path:
    lora = make_lora(folder)
    stated = {"base": {"name": "its-base", "fingerprint": fingerprint}, **card}
    (lora / "training.json").write_text(json.dumps(stated))
    return lora


def test_a_lora_of_this_base_is_loaded_and_of_another_refused(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    assert loaded.model_path
    own = make_trained(tmp_path / "own", base_fingerprint(loaded.model_path))
    other = make_trained(tmp_path / "other", "0" * 64)
    shelf = LoraShelf(loaded, EngineSettings())

    shelf.add("own", own)
    with pytest.raises(ModelLoadError, match="was trained on its-base"):
        shelf.add("other", other)

    assert shelf.names == ("own",)


def test_the_family_of_its_card_writes_its_prompts(loaded: LoadedModel, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "guanaco-by-name", None, family="vicuna")

    model = LoraShelf(loaded, EngineSettings()).add("lora", lora)

    assert model.template == VicunaAdapter.template
    assert 2 in model.stop_token_ids


def test_a_family_that_is_not_here_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "lora", None, family="alpaca")

    with pytest.raises(ConfigurationError, match="made for the family alpaca"):
        LoraShelf(loaded, EngineSettings()).add("lora", lora)
