import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import (
    CHAT_TEMPLATE,
    WritesAFile,
    lora_weights,
    make_bpe_tokenizer,
    make_lora,
    make_model,
    make_sentencepiece_tokenizer,
    tiny_config,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)
from typer.testing import CliRunner

from dbgpt_guanaco.adapters.cards import TRAINING
from dbgpt_guanaco.checkpoints.codes import through_nf4
from dbgpt_guanaco.cli import app

# peft asks transformers for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore::UserWarning"
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "1000"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def make_base(folder: Path, dtype: torch.dtype, **config: Any) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(**config)).to(dtype).save_pretrained(folder, max_shard_size="99KB")
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


def train_lora(base: Path, folder: Path, **options: Any) -> Path:
    """Write a LoRA whose every tensor is random, as peft saves it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    values: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM"} | options
    laid = get_peft_model(model, LoraConfig(**values))
    torch.manual_seed(1)
    for parameter in laid.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    laid.save_pretrained(str(folder))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bfloat16 model of several shards."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 8},
        {"target_modules": LINEAR, "lora_alpha": 16, "use_rslora": True},
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
            "alpha_pattern": {"q_proj": 32, "down_proj": 1},
        },
        {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": LINEAR, "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "modules_to_save", "one layer"],
)
def test_a_merge_is_what_peft_merges(
    tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    folder = make_base(tmp_path / "base", dtype)
    lora = train_lora(folder, tmp_path / "lora", **options)

    code, _, err = run("merge", folder, lora, "--out", tmp_path / "out", "--no-report")

    assert code == 0, err
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = PeftModel.from_pretrained(model, lora).merge_and_unload().state_dict()
    merged = tensors(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        # peft rounds the delta to bfloat16 before it adds; here only the sum is rounded.
        rtol, atol = (1e-6, 1e-6) if dtype == torch.float32 else (0.02, 2e-3)
        torch.testing.assert_close(tensor, expected[name], rtol=rtol, atol=atol, msg=name)
    changed = [n for n, t in tensors(folder).items() if not torch.equal(t, merged[n])]
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["tensors"]["merged"] > 0
    assert changed


def test_weights_stored_as_in_times_out_are_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_positions=128, n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    folder = make_bpe_tokenizer(tmp_path / "gpt2", CHAT_TEMPLATE)
    lora = train_lora(folder, tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True)

    code, _, err = run("merge", folder, lora, "--out", tmp_path / "out", "--no-report")

    assert code == 0, err
    laid = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), lora)
    expected = laid.merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_a_dequantized_base_is_what_nf4_training_saw(base: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora")
    out = tmp_path / "out"

    assert run("merge", base, lora, "--out", out, "--base", "dequantized", "--no-report")[0] == 0

    before, after, weights = tensors(base), tensors(out), lora_weights()
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[untouched], through_nf4(before[untouched]))
    query = "model.layers.1.self_attn.q_proj"
    prefix = f"base_model.model.{query}"
    delta = 2 * weights[f"{prefix}.lora_B.weight"] @ weights[f"{prefix}.lora_A.weight"]
    seen = through_nf4(before[f"{query}.weight"]).float()
    assert torch.equal(after[f"{query}.weight"], (seen + delta).bfloat16())
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])


def test_a_report_compares_with_the_unmerged_model(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    code, stdout, err = run("merge", base, make_lora(tmp_path / "lora"), "--out", out, "--json")

    assert code == 0, err
    report = json.loads(stdout)["report"]
    assert report == json.loads((out / "merge.json").read_text())["report"]
    assert report["tokens"] > 100
    assert 0 <= report["mean_kl"] < 0.01
    assert report["agreement_percent"] > 90
    assert report["merged"] == pytest.approx(report["unmerged"], rel=0.01)


def test_a_report_that_does_not_fit_is_refused_and_the_merge_stands(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbgpt_guanaco.checkpoints.comparison._available_bytes", lambda device: 1)

    code, _, err = run("merge", base, make_lora(tmp_path / "lora"), "--out", tmp_path / "out")

    assert code == 0
    assert "not compared: it does not fit cpu" in err
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_pickled_lora_gives_the_same_model(base: Path, tmp_path: Path) -> None:
    for kind in ("safetensors", "bin"):
        lora = make_lora(tmp_path / kind, kind=kind)
        assert run("merge", base, lora, "--out", tmp_path / f"out-{kind}", "--no-report")[0] == 0

    one, other = (tensors(tmp_path / f"out-{kind}") for kind in ("safetensors", "bin"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_malicious_pickle_is_not_executed(base: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora", kind="bin")
    torch.save({"weight": WritesAFile(tmp_path / "proof")}, lora / "adapter_model.bin")

    assert_refused(tmp_path, base, lora, "holds more than weights")
    assert not (tmp_path / "proof").exists()


def test_a_llama_tokenizer_is_repaired(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base")
    make_sentencepiece_tokenizer(
        folder, tokenizer_class="LLaMATokenizer", bos_token="", eos_token="", unk_token=""
    )
    out = tmp_path / "out"

    code, _, err = run("merge", folder, make_lora(tmp_path / "lora"), "--out", out, "--no-report")

    assert code == 0, err
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = "A question with an emoji 🦙."
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_template_defaults_and_config_are_kept(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("merge", base, make_lora(tmp_path / "lora"), "--out", out, "--no-report")[0] == 0

    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((base / name).read_text())


# ------------------------------------------------------------------ what is refused


def assert_refused(tmp_path: Path, base: Path, lora: Path, message: str) -> None:
    before = sorted(tmp_path.iterdir())

    code, out, err = run("merge", base, lora, "--out", tmp_path / "refused" / "out", "--json")

    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "uses use_dora, which cannot be merged"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"bias": "all"}, "has bias='all'"),
        ({"peft_type": "LOHA"}, "is of peft_type LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changed the base"),
        ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
        ({"something_of_tomorrow": 1}, "uses something_of_tomorrow"),
        ({"target_modules": ["query_key_value"]}, "does not fit its base"),
        ({"target_modules": ["q_proj", "v_proj"]}, "4 tensors are missing"),
        ({"target_modules": ["v_proj"]}, "4 tensors belong to no target module"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "does not fit its base"),
        ({"r": 8}, "4 tensors have another shape or rank"),
    ],
)
def test_a_lora_that_cannot_be_merged_is_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    lora = make_lora(tmp_path / "lora")
    change_json(lora / "adapter_config.json", **changes)

    assert_refused(tmp_path, base, lora, message)


def test_a_tensor_that_nobody_uses_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    extra = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}

    lora = make_lora(tmp_path / "lora", lora_weights() | extra)

    assert_refused(tmp_path, base, lora, next(iter(extra)))


def test_a_lora_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora", lora_weights(width=96))

    assert_refused(tmp_path, base, lora, "is [4, 96] and should be [4, 64]")


def test_a_lora_of_zeros_is_refused(base: Path, tmp_path: Path) -> None:
    zeros = {n: t * ("lora_A" in n) for n, t in lora_weights().items()}

    assert_refused(tmp_path, base, make_lora(tmp_path / "lora", zeros), "every B matrix is zero")


def test_a_lora_that_is_not_finite_is_refused(base: Path, tmp_path: Path) -> None:
    broken = {n: t * float("nan") for n, t in lora_weights().items()}

    assert_refused(tmp_path, base, make_lora(tmp_path / "lora", broken), "is not finite")


def test_a_base_that_ties_its_head_refuses_changes_of_it(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", torch.bfloat16, tie_word_embeddings=True)
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}

    lora = train_lora(folder, tmp_path / "lora", **options)

    assert_refused(tmp_path, folder, lora, "embed_tokens")


def test_damaged_files_are_refused(base: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora")
    weights = lora / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_refused(tmp_path, base, lora, "is cut short")

    weights.unlink()
    assert_refused(tmp_path, base, lora, "holds no adapter_model.safetensors")
    assert_refused(tmp_path, base, base, "holds no LoRA weights")


def test_a_base_that_lacks_a_target_is_refused(tmp_path: Path) -> None:
    folder = make_bpe_tokenizer(make_model(tmp_path / "base"))
    kept = {n: t for n, t in tensors(folder).items() if "layers.1.self_attn.q_proj" not in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    message = "holds no tensor model.layers.1.self_attn.q_proj.weight"
    assert_refused(tmp_path, folder, make_lora(tmp_path / "lora"), message)


def test_a_lora_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    card = {"base": {"name": "other", "fingerprint": "0" * 64}}
    lora = make_lora(tmp_path / "lora")
    (lora / TRAINING).write_text(json.dumps(card))

    assert_refused(tmp_path, base, lora, "was trained on other, and")


def test_a_full_disk_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dbgpt_guanaco.checkpoints.shards.ShardWriter.add", full)

    message = "No space left on device; nothing was left behind"
    assert_refused(tmp_path, base, make_lora(tmp_path / "lora"), message)


def test_a_folder_that_may_not_be_written_is_refused(base: Path, tmp_path: Path) -> None:
    code, _, err = run("merge", base, make_lora(tmp_path / "lora"), "--out", "/proc/no/out")

    assert code == 2
    assert "/proc/no/out cannot be written" in err
    assert len(err.strip().splitlines()) == 1


def test_what_another_command_has_begun_is_not_thrown_away(base: Path, tmp_path: Path) -> None:
    begun = tmp_path / "out.partial"
    (begun / "snapshots").mkdir(parents=True)
    (begun / "journal.json").write_text(json.dumps({"job": {"command": "finetune"}, "done": {}}))
    lora = make_lora(tmp_path / "lora")

    code, _, err = run("merge", base, lora, "--out", tmp_path / "out", "--no-report")

    assert code == 2
    assert "holds an unfinished finetune" in err
    assert (begun / "snapshots").is_dir()


def test_a_report_that_fails_in_any_way_leaves_the_merge(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a library's own words")

    monkeypatch.setattr("dbgpt_guanaco.checkpoints.comparison._log_probabilities", fail)

    code, out, err = run("merge", base, make_lora(tmp_path / "lora"), "--out", tmp_path / "out")

    assert code == 0, err
    assert "a library's own words" in out + err
    assert (tmp_path / "out" / "config.json").is_file()
