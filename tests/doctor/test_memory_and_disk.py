"""Room for the model, in memory and on disk."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_model

from dbgpt_guanaco.doctor import disk
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ModelSettings, Settings

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bpe_tokenizer(make_model(Path("models/tiny")), CHAT_TEMPLATE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def examined(what: str, name: str = "tiny", **settings: Any) -> Finding:
    model = ModelSettings(name=name, device="cpu", **settings)
    return run_check(f"dbgpt_guanaco.doctor.{what}.{what}", Setup(settings=Settings(model=model)))


def free_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr("dbgpt_guanaco.adapters.machine.free_memory_bytes", lambda: available)


def free_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


def test_a_model_that_fits_is_told_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 8 * GIB)

    finding = examined("memory")

    assert finding.status == "ok"
    assert "fit the 8.00 GiB that are free on cpu" in finding.text


def test_a_model_that_does_not_fit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, GIB // 10)

    finding = examined("memory")

    assert finding.status == "failure"
    assert "it does not fit cpu" in finding.text


def test_room_for_one_conversation_only_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 8 * GIB)
    plan = "dbgpt_guanaco.adapters.memory.MemoryPlan.kv_tokens"
    monkeypatch.setattr(plan, lambda *_: 511)

    finding = examined("memory")

    assert finding.status == "warning"
    assert "only one conversation of 256 tokens" in finding.text


def test_memory_of_a_model_that_is_nowhere_is_another_check_s() -> None:
    assert examined("memory", "no-such").status == "skipped"


def test_files_that_are_damaged_are_another_check_s() -> None:
    path = Path("models/tiny/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])

    assert examined("memory").status == "skipped"


def test_room_on_the_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 10 * GIB)

    assert examined("disk").text.startswith("10.0 GiB free at ")


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, GIB // 2)

    assert examined("disk").status == "warning"


@pytest.mark.parametrize(("free", "status"), [(62 * GIB, "ok"), (61 * GIB, "failure")])
def test_a_model_that_is_still_to_be_fetched_needs_room(
    monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    free_disk(monkeypatch, free)

    assert examined("disk", "guanaco-33b-merged").status == status


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("guanaco-33b-merged", 33),
        ("org/Qwen2.5-0.5B-Instruct", 0.5),
        ("Llama-3.1-8B", 8),
        ("vicuna-13b", 13),
        ("smollm2-135m-instruct", 0),
        ("bert-base", 0),
        ("8bit", 0),
    ],
)
def test_a_name_tells_the_size(name: str, billions: float) -> None:
    assert disk.size_in(name) == int(billions * 2e9)
