"""Which LoRA belongs on which base, told from cards and a sample of the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from dbgpt_guanaco.adapters.cards import base_fingerprint, recorded_family, refuse_other_base
from dbgpt_guanaco.cli import app
from dbgpt_guanaco.errors import ModelLoadError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("models") / "base")
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


def make_trained(folder: Path, base: Path, **card: Any) -> Path:
    """Write a LoRA with the card of one that was trained on a base."""
    lora = make_lora(folder, base=str(base))
    stated = {"base": {"name": "its-base", "fingerprint": base_fingerprint(base)}} | card
    (lora / "training.json").write_text(json.dumps(stated))
    return lora


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr


def test_its_own_base_is_accepted_wherever_it_lies(base: Path, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "lora", base)
    moved = shutil.copytree(base, tmp_path / "another-name")

    refuse_other_base(lora, base)
    refuse_other_base(lora, moved)


def test_its_own_base_is_accepted_in_other_shards(base: Path, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "lora", base)
    model = LlamaForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    refuse_other_base(lora, tmp_path / "sharded")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_its_own_base_is_accepted_quantized(base: Path, tmp_path: Path, kind: str) -> None:
    lora = make_trained(tmp_path / "lora", base)

    run("quantize", base, "--out", tmp_path / "quantized", "--to", kind)

    refuse_other_base(lora, tmp_path / "quantized")


def test_another_base_of_the_same_shape_is_refused_with_the_reason(
    base: Path, tmp_path: Path
) -> None:
    lora = make_trained(tmp_path / "lora", base)
    other = make_model(tmp_path / "other", seed=1)

    with pytest.raises(ModelLoadError) as refused:
        refuse_other_base(lora, other)

    assert f"the LoRA in {lora} was trained on its-base, and {other} holds" in str(refused.value)
    assert f"or remove {lora / 'training.json'}" in str(refused.value)


def test_another_base_is_refused_quantized_too(base: Path, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "lora", base)
    other = make_bpe_tokenizer(make_model(tmp_path / "other", seed=1))
    run("quantize", other, "--out", tmp_path / "quantized")

    with pytest.raises(ModelLoadError, match="holds other weights"):
        refuse_other_base(lora, tmp_path / "quantized")


@pytest.mark.parametrize("element", [0, 64 * 32, -1])
def test_a_change_of_one_layer_gives_another_fingerprint(
    base: Path, tmp_path: Path, element: int
) -> None:
    changed = shutil.copytree(base, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"].view(-1)[element] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})

    assert base_fingerprint(changed) != base_fingerprint(base)


def test_what_nobody_can_tell_is_accepted(base: Path, tmp_path: Path) -> None:
    stranger = make_lora(tmp_path / "stranger", base=str(base))
    other = make_model(tmp_path / "other", seed=1)
    refuse_other_base(stranger, other)

    run("quantize", base, "--out", tmp_path / "quantized")
    (tmp_path / "quantized" / "quantize.json").unlink()
    refuse_other_base(make_trained(tmp_path / "lora", other), tmp_path / "quantized")


def test_merging_and_serving_refuse_another_base(base: Path, tmp_path: Path) -> None:
    other = make_bpe_tokenizer(make_model(tmp_path / "other", seed=1), CHAT_TEMPLATE)
    lora = make_trained(tmp_path / "lora", base)

    result = CliRunner().invoke(
        app, ["merge", str(other), str(lora), "--out", str(tmp_path / "out"), "--no-report"]
    )

    assert result.exit_code == 2
    assert "was trained on its-base" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_family_is_the_loras_before_the_bases(base: Path, tmp_path: Path) -> None:
    assert recorded_family(base) is None
    lora = make_trained(tmp_path / "lora", base, family="vicuna")
    merged = tmp_path / "merged"

    run("merge", base, lora, "--out", merged, "--no-report")
    run("quantize", merged, "--out", tmp_path / "quantized")

    assert recorded_family(lora, base) == "vicuna"
    assert recorded_family(None, merged) == "vicuna"
    assert recorded_family(tmp_path / "quantized") == "vicuna"


def test_a_merged_model_is_another_base(base: Path, tmp_path: Path) -> None:
    lora = make_trained(tmp_path / "lora", base)
    run("merge", base, lora, "--out", tmp_path / "merged", "--no-report")

    with pytest.raises(ModelLoadError, match="holds other weights"):
        refuse_other_base(lora, tmp_path / "merged")
