"""Code that a model's folder brings runs only where the operator asked for it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.embedding import load_embedder
from dbgpt_guanaco.adapters.foreign_code import check_code, find_code
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.checkpoints.layout import meta_model
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError
from dbgpt_guanaco.settings import EmbeddingSettings, ModelSettings

# A model of a type that transformers has not; on import it leaves a trace.
CODE = """
import pathlib
pathlib.Path(__file__).parent.joinpath("imported").touch()
pathlib.Path({proof!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN_MODEL = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
OWN_TOKENIZER = {"AutoTokenizer": [None, "own.OwnTokenizer"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("plain") / "tiny")
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """Return a file that is there once the folder's code has run."""
    return tmp_path / "proof"


@pytest.fixture
def folder(plain: Path, proof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model's folder with code in it that nothing names yet."""
    copied = Path(shutil.copytree(plain, tmp_path / f"own{abs(hash(tmp_path))}"))
    (copied / "own.py").write_text(CODE.format(proof=str(proof)))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    return copied


def change(path: Path, **changes: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | changes))


def load(folder: Path, **settings: Any) -> LoadedModel:
    wanted = ModelSettings(name=str(folder), device="cpu", **settings)
    return load_model(resolve(wanted), wanted, default_registry())


def test_a_model_that_needs_its_own_code_is_refused(folder: Path, proof: Path) -> None:
    change(folder / "config.json", model_type="own", auto_map=OWN_MODEL)

    with pytest.raises(ModelLoadError, match="GUANACO_TRUST_REMOTE_CODE=true runs it"):
        load(folder)
    with pytest.raises(ModelLoadError, match="GUANACO_TRUST_REMOTE_CODE"):
        meta_model(folder)
    assert not proof.exists()


def test_a_known_type_is_computed_by_transformers_whatever_lies_beside_it(
    folder: Path, proof: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / "config.json", auto_map=OWN_MODEL)
    name = {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": OWN_TOKENIZER}
    change(folder / "tokenizer_config.json", **name)

    loaded = load(folder)

    assert type(loaded.model).__module__.startswith("transformers.")
    assert type(loaded.tokenizer).__module__.startswith("transformers.")
    assert not hasattr(loaded.model.config, "auto_map")
    assert "which is not run" in caplog.text
    assert not proof.exists()


def test_a_tokenizer_that_needs_its_own_code_is_refused(folder: Path, proof: Path) -> None:
    name = {"tokenizer_class": "OwnTokenizer", "auto_map": OWN_TOKENIZER}
    change(folder / "tokenizer_config.json", **name)

    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json says auto_map"):
        load(folder)
    assert not proof.exists()


def test_a_lora_s_tokenizer_is_held_to_the_same(plain: Path, folder: Path, tmp_path: Path) -> None:
    lora = make_bpe_tokenizer(make_lora(tmp_path / "lora"))
    change(lora / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=OWN_TOKENIZER)

    with pytest.raises(ModelLoadError, match="lora can be loaded only with code"):
        load(plain, lora=str(lora))


def test_the_setting_runs_it_and_says_so_loudly(
    folder: Path, proof: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / "config.json", model_type="own", auto_map=OWN_MODEL)

    loaded = load(folder, trust_remote_code=True)

    assert type(loaded.model).__name__ == "OwnModel"
    assert proof.exists()
    warning = next(r for r in caplog.records if "RUNS IN THIS SERVER" in r.message)
    assert warning.levelno == logging.WARNING
    assert "own.OwnModel" in warning.message


def test_the_setting_is_only_for_folders_of_the_operator_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder.parent))

    with pytest.raises(ConfigurationError, match="--revision COMMIT"):
        load(folder, trust_remote_code=True)


def test_code_of_another_repository_is_refused_even_then(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "evil/other--own.OwnConfig"})

    with pytest.raises(ModelLoadError, match="code of another repository"):
        load(folder, trust_remote_code=True)
    load(folder)  # of a known type: that line is not followed


@pytest.mark.parametrize(
    "line",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main"},
        {"experts_implementation": "evil/kernel:run"},
        {"attn_implementation": {"": "evil/kernel"}},
        {"text_config": {"attn_implementation": "evil/kernel"}},
        {"trust_remote_code": True},
        {"detector_config": [{"trust_remote_code": True}]},
    ],
)
@pytest.mark.parametrize("is_trusted", [False, True])
def test_what_would_fetch_code_from_elsewhere_is_always_refused(
    folder: Path, line: dict[str, Any], is_trusted: bool
) -> None:
    change(folder / "config.json", **line)

    with pytest.raises(ModelLoadError, match="never done here"):
        check_code(folder, is_trusted=is_trusted)


@pytest.mark.parametrize(
    "line",
    [
        {"attn_implementation": "sdpa"},
        {"attn_implementation": None},
        {"trust_remote_code": False},
        {"auto_map": {}},
        {"auto_map": None},
    ],
)
def test_what_leads_to_no_code_is_no_matter(folder: Path, line: dict[str, Any]) -> None:
    change(folder / "config.json", **line)

    assert find_code(folder) == ()


def test_an_auto_map_of_any_shape_is_read(folder: Path) -> None:
    change(folder / "config.json", text_config={"auto_map": {"AutoModel": "own.A"}})
    change(folder / "tokenizer_config.json", auto_map=["own.B", None])

    assert [line.reference for line in find_code(folder)] == ["own.A", "own.B"]


def test_a_function_that_would_replace_generate_is_not_run(folder: Path, proof: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(proof=str(proof)))

    load(folder)

    assert not proof.exists()


def test_an_embedding_model_is_held_to_the_same(tmp_path: Path, proof: Path) -> None:
    folder = tmp_path / "embedder"
    (folder / "0_Own").mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    (folder / "model.safetensors").write_bytes(b"")
    own = {"model_type": "own", "auto_map": {"AutoModel": "own.OwnModel"}}
    (folder / "0_Own" / "config.json").write_text(json.dumps(own))

    with pytest.raises(ModelLoadError, match="code that it brings"):
        load_embedder(EmbeddingSettings(embedding_model=str(folder)), tmp_path)


def test_a_module_of_an_embedding_model_is_only_of_sentence_transformers(
    tmp_path: Path, proof: Path
) -> None:
    folder = make_model(tmp_path / "embedder")
    (folder / "own.py").write_text(CODE.format(proof=str(proof)))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.OwnModel"}]
    (folder / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(ModelLoadError, match="not part of Sentence Transformers"):
        load_embedder(EmbeddingSettings(embedding_model=str(folder)), tmp_path)
    assert not proof.exists()
