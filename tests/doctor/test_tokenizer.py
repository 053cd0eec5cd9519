"""Tokenizers and templates: right, of another model, unable to write Chinese."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import (
    CHAT_TEMPLATE,
    make_bpe_tokenizer,
    make_model,
    make_sentencepiece_tokenizer,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ModelSettings, Settings


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("bpe") / "tiny")
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("llama") / "guanaco-tiny")
    return make_sentencepiece_tokenizer(folder)


def examined(what: str, folder: Path, **settings: Any) -> Finding:
    model = ModelSettings(name=str(folder), **settings)
    setup = Setup(settings=Settings(model=model))
    return run_check(f"dbgpt_guanaco.doctor.tokenizer.{what}", setup)


def changed(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "changed" / folder.name))
    known = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(known | changes))
    return copy


def test_a_byte_level_tokenizer_writes_everything(bpe: Path) -> None:
    finding = examined("tokenizer", bpe)

    assert (finding.status, finding.text) == (
        "ok",
        "300 tokens; Chinese, emoji and SQL come back as they were",
    )


def test_llama_s_tokenizer_writes_everything_by_bytes(llama: Path) -> None:
    assert examined("tokenizer", llama).status == "ok"


def test_a_tokenizer_that_is_damaged_is_a_failure(bpe: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bpe, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{")

    finding = examined("tokenizer", copy)

    assert finding.status == "failure"
    assert "is damaged" in finding.text


def test_a_tokenizer_of_a_larger_model_is_a_failure(bpe: Path, tmp_path: Path) -> None:
    folder = make_bpe_tokenizer(make_model(tmp_path / "small", vocab_size=64), CHAT_TEMPLATE)

    finding = examined("tokenizer", folder)

    assert finding.status == "failure"
    assert "and the model has only 64" in finding.text
    assert bpe != folder


def test_a_few_tokens_that_the_model_has_not_are_told(tmp_path: Path) -> None:
    folder = make_bpe_tokenizer(make_model(tmp_path / "less", vocab_size=299), CHAT_TEMPLATE)

    finding = examined("tokenizer", folder)

    assert finding.status == "ok"
    assert finding.text.startswith("300 tokens (1 of them unknown to the model); ")


def test_ids_that_are_not_the_family_s_are_a_failure(bpe: Path) -> None:
    finding = examined("tokenizer", bpe, adapter="vicuna")  # its bos is 1, which ends a text here

    assert finding.status == "failure"
    assert "vicuna ends an answer at token 2, which is " in finding.text


def test_a_tokenizer_without_chinese_is_a_warning(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "SELECT": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = make_model(tmp_path / "words")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)

    finding = examined("tokenizer", folder)

    assert finding.status == "warning"
    assert "2023年各地区的销售额是多少？" in finding.text


def test_a_family_s_template_is_told_with_what_ends_an_answer(llama: Path) -> None:
    finding = examined("template", llama)

    assert finding.status == "ok"
    assert finding.text.startswith("of the family guanaco; four messages are ")
    assert "'### Human:', '### Assistant:', 0, 2" in finding.text


def test_a_model_s_own_template_is_told_as_such(bpe: Path) -> None:
    assert examined("template", bpe).text.startswith("the model's own; four messages are ")


def test_a_model_without_a_family_and_a_template_is_a_failure(bpe: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bpe, tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink()

    finding = examined("tokenizer", copy)

    assert finding.status == "failure"
    assert "GUANACO_ADAPTER" in finding.text
    assert examined("template", copy).status == "skipped"


@pytest.mark.parametrize(
    ("template", "status", "told"),
    [
        ("{{ messages[-1].content }}", "failure", "leaves out 'You answer questions"),
        ("{{ nonsense(", "failure", "chat template refused"),
        ("{{ raise_exception('no') }}", "failure", "chat template refused"),
        ("<s><s>" + CHAT_TEMPLATE, "warning", "writes the token that begins a text twice"),
    ],
)
def test_a_template_that_is_wrong_is_told(
    bpe: Path, tmp_path: Path, template: str, status: str, told: str
) -> None:
    copy = Path(shutil.copytree(bpe, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text(template)

    finding = examined("template", copy)

    assert finding.status == status
    assert told in finding.text
