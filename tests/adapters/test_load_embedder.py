import json
import shutil
from pathlib import Path

import pytest

from dbgpt_guanaco.adapters import embedding
from dbgpt_guanaco.adapters.embedding import load_embedder
from dbgpt_guanaco.errors import ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import EmbeddingSettings


def packaged_folder() -> Path:
    return embedding._packaged()


def test_the_packaged_model_is_the_default(tmp_path: Path) -> None:
    loaded = load_embedder(EmbeddingSettings(), tmp_path)
    assert loaded
    card = loaded.card
    assert (card.name, card.dimension, card.max_tokens, card.is_normalized) == (
        "all-MiniLM-L6-v2",
        384,
        256,
        True,
    )


@pytest.mark.parametrize("name", ["none", "None"])
def test_none_serves_no_embedding_model(name: str, tmp_path: Path) -> None:
    assert load_embedder(EmbeddingSettings(embedding_model=name), tmp_path) is None


def test_without_the_package_nothing_is_served_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    with caplog.at_level("INFO"):
        assert load_embedder(EmbeddingSettings(), tmp_path) is None
    assert embedding.INSTALL in caplog.text


def test_a_model_that_was_asked_for_must_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFoundError, match=r"(?s)no_such_package.*EMBEDDING_MODEL=none"):
        load_embedder(EmbeddingSettings(embedding_model="all-MiniLM-L6-v2"), tmp_path)


def test_a_name_of_dbgpts_own_table_is_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="GanymedeNil/text2vec-large-chinese"):
        load_embedder(EmbeddingSettings(embedding_model="text2vec"), tmp_path)


def test_a_misspelt_name_is_told_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean all-MiniLM-L6-v2"):
        load_embedder(EmbeddingSettings(embedding_model="all-MiniLM-L6"), tmp_path)


def test_a_folder_keeps_its_own_name_and_loses_normalization_with_its_module(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "my-embedder"
    shutil.copytree(packaged_folder(), folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    loaded = load_embedder(EmbeddingSettings(embedding_model="my-embedder"), tmp_path)
    assert loaded
    assert (loaded.card.name, loaded.card.is_normalized) == ("my-embedder", False)


def test_a_plain_encoder_is_averaged_as_dbgpt_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """text2vec-large-chinese is published so."""
    folder = tmp_path / "text2vec"
    shutil.copytree(packaged_folder(), folder)
    (folder / "modules.json").unlink()
    loaded = load_embedder(EmbeddingSettings(embedding_model="text2vec"), tmp_path)
    assert loaded
    assert (loaded.card.dimension, loaded.card.is_normalized) == (384, False)
    assert "mean of its tokens" in caplog.text


def test_a_language_model_is_no_embedding_model(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(packaged_folder(), folder)
    (folder / "modules.json").unlink()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM"):
        load_embedder(EmbeddingSettings(embedding_model="llama"), tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    shutil.copy(packaged_folder() / "config.json", folder)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is missing"):
        load_embedder(EmbeddingSettings(embedding_model="bert"), tmp_path)


def test_cut_weights_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(packaged_folder(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ModelLoadError, match=r"EMBEDDING_MODEL=cut: .*cut cannot be loaded"):
        load_embedder(EmbeddingSettings(embedding_model="cut"), tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(packaged_folder(), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_embedder(EmbeddingSettings(embedding_model="pickled"), tmp_path)
