"""A quantized checkpoint is what loading in that quantization makes, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model
from typer.testing import CliRunner

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.cli import app
from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.settings import ModelSettings

IDS = torch.tensor([[1, 5, 9, 200, 31]])


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "1000"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_lora_that_nf4_would_round_away_is_not_quantized(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora")
    merged, out = tmp_path / "merged", tmp_path / "out"
    run("merge", plain, lora, "--out", merged, "--base", "dequantized", "--no-report")

    code, _, err = run("quantize", merged, "--out", out)

    assert code == 2
    assert "NF4 would round away what the LoRA added" in err
    with pytest.raises(ModelLoadError, match="GUANACO_QUANTIZATION=none"):
        load(merged)
    assert load(merged, quantization_override="none").card.quantization == "none"
    assert run("quantize", merged, "--out", out, "--to", "int8")[0] == 0


def load(folder: Path, **settings: Any) -> LoadedModel:
    source = ModelSource("tiny", folder, None, ("tiny",))
    return load_model(source, ModelSettings(device="cpu", **settings), default_registry())


def state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = loaded.model.state_dict()
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("plain") / "tiny", max_shard="99KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_codes_statistics_and_logits_are_those_of_quantizing_at_load(
    plain: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"

    code, printed, _ = run("quantize", plain, "--to", kind, "--out", out, "--json")

    assert code == 0
    assert json.loads(printed)["to"] == kind
    stored, quantized = load(out), load(plain, quantization_override=kind)
    assert stored.card.quantization == quantized.card.quantization == kind
    # Before the first pass, which may pack weights anew.
    ours, theirs = state(stored), state(quantized)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    with torch.no_grad():
        assert torch.equal(stored.model(IDS).logits, quantized.model(IDS).logits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_it_is_smaller_and_says_how_it_was_made(plain: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    run("quantize", plain, "--to", kind, "--out", out)

    def linear_bytes(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    assert linear_bytes(out) < linear_bytes(plain)
    card = json.loads((out / "quantize.json").read_text())
    assert card["to"] == kind
    assert len(card["source_sha256"]) == 64
    assert "bitsandbytes" in card["versions"]
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    if kind == "nf4":
        assert config["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"
        assert config["quantization_config"]["bnb_4bit_use_double_quant"] is True


def test_what_is_quantized_already_is_refused(plain: Path, tmp_path: Path) -> None:
    run("quantize", plain, "--out", tmp_path / "once")

    code, _, err = run("quantize", tmp_path / "once", "--out", tmp_path / "twice")

    assert code == 2
    assert "is quantized already" in err
    assert not (tmp_path / "twice").exists()
    assert not (tmp_path / "twice.partial").exists()


def test_bad_input_is_one_line_and_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in plain.iterdir():
        (cut / path.name).write_bytes(path.read_bytes())
    shard = sorted(cut.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-50])
    lora = make_lora(tmp_path / "lora", base=str(plain))
    (tmp_path / "file").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, told in (
        ((cut, "--out", tmp_path / "out"), "cut short"),
        ((tmp_path / "no-such", "--out", tmp_path / "out"), "no model"),
        ((lora, "--out", tmp_path / "out"), "is a LoRA; merge it first"),
        ((plain, "--out", cut), "exists already"),
        ((plain, "--out", tmp_path / "file" / "out"), "cannot be written"),
    ):
        code, out, err = run("quantize", *arguments)
        assert (code, out) == (2, ""), err
        assert told in err
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbgpt_guanaco.checkpoints.shards import ShardWriter

    def full(self: ShardWriter, name: str, tensor: torch.Tensor) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", full)

    code, _, err = run("quantize", plain, "--out", tmp_path / "out")

    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "No space left on device; nothing was left behind" in err
    assert list(tmp_path.iterdir()) == []
