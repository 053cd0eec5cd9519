"""Killed at any moment, a command leaves no model, and the next run ends as if nothing had been."""

import hashlib
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killable import Commands
from safetensors.torch import save_file
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters.folder import missing_files
from dbgpt_guanaco.checkpoints.partial import partial_folder


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    commands = Commands()
    yield commands
    commands.close()


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def is_model(folder: Path) -> bool:
    return folder.is_dir() and not missing_files(folder)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("many-shards")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    base = make_model(folder / "base", max_shard="1MB", **sizes)
    make_bpe_tokenizer(base, CHAT_TEMPLATE)
    assert len(list(base.glob("*.safetensors"))) > 8
    weights = {}
    for layer in range(8):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(4, 256)
        weights[f"{prefix}.lora_B.weight"] = torch.randn(256, 4)
    lora = make_lora(folder / "lora", weights)
    return {"merge": ("merge", base, lora, "--no-report"), "quantize": ("quantize", base)}


@pytest.mark.parametrize("job", ["merge", "quantize"])
def test_killed_at_random_moments_it_goes_on_to_the_same_end(
    commands: Commands, jobs: dict[str, tuple[object, ...]], tmp_path: Path, job: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    commands.run(*jobs[job], "--out", tmp_path / "first")  # waits for imports
    begin = time.monotonic()
    assert commands.run(*jobs[job], "--out", undisturbed)[0] == 0
    takes_s = time.monotonic() - begin
    moments, killed, begun = random.Random(5), 0, 0

    for number in range(30):  # a run's time varies, so a moment may come after its end
        if killed >= 6 and begun >= 2:
            return
        out = tmp_path / f"out-{number}"
        moment = moments.uniform(0, takes_s)
        status, _ = commands.run(*jobs[job], "--out", out, kill_after_s=moment)
        killed += status == signal.SIGKILL
        begun += any(partial_folder(out).glob("model/*.safetensors"))
        assert out.exists() == is_model(out)
        assert not is_model(partial_folder(out))
        if not out.exists():
            if is_model(partial_folder(out) / "model"):  # whole, and only its name is missing
                assert hashes(partial_folder(out) / "model") == hashes(undisturbed)
            assert commands.run(*jobs[job], "--out", out)[0] == 0
        assert hashes(out) == hashes(undisturbed)
        assert not partial_folder(out).exists() or status == signal.SIGKILL

    pytest.fail(f"{killed} of 30 runs were killed, {begun} of them while they wrote")


MIB = 2**20
SHARDS = 12


@pytest.mark.parametrize("job", ["merge", "quantize"])
def test_memory_holds_two_shards_at_most_and_never_the_model(
    commands: Commands, tmp_path: Path, job: str
) -> None:
    base = make_bpe_tokenizer(make_large(tmp_path / "base"), CHAT_TEMPLATE)
    lora = make_lora(tmp_path / "lora", large_lora())
    more = (lora, "--no-report") if job == "merge" else ()

    status, grown = commands.run(job, base, *more, "--out", tmp_path / "out")

    assert status == 0
    sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
    assert 0 < grown < 2 * max(sizes) + 300 * MIB
    assert sum(sizes) > 2 * max(sizes) + 300 * MIB  # the whole model would not pass


def make_large(folder: Path) -> Path:
    """Write a LLaMA of twelve shards of 64 MiB, a tensor at a time."""
    width, layers = 2048, SHARDS
    make_model(folder, hidden_size=64)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        tensors = {
            f"model.layers.{layer}.{part}.weight": torch.full((width, width), 0.01 * layer + 0.01)
            for part in (
                *(f"self_attn.{x}_proj" for x in "qkvo"),
                *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
            )
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(width)
        if layer == 0:
            tensors["model.norm.weight"] = torch.ones(width)
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name] = torch.ones(config["vocab_size"], width)
        name = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def large_lora() -> dict[str, torch.Tensor]:
    weights = {}
    for layer in range(SHARDS):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(4, 2048)
        weights[f"{prefix}.lora_B.weight"] = torch.randn(2048, 4)
    return weights
