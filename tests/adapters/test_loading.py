import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from tiny_models import (
    CHAT_TEMPLATE,
    WritesAFile,
    lora_weights,
    make_bpe_tokenizer,
    make_lora,
    make_model,
    make_sentencepiece_tokenizer,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.quantization import compute_dtype
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.adapters.template import OwnTemplate
from dbgpt_guanaco.engine.lora_layers import ALL, LoraLayers
from dbgpt_guanaco.errors import (
    ConfigurationError,
    ModelLoadError,
    OutOfMemoryError,
    UnknownModelError,
)
from dbgpt_guanaco.settings import ModelSettings
from dbgpt_guanaco.types import ChatMessage

# peft asks transformers for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a 16-bit model with a chat template of its own."""
    folder = make_model(tmp_path_factory.mktemp("plain") / "tiny")
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def stored_nf4(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that model saved as nf4, with bitsandbytes' own compute dtype, float32."""
    return store(plain, tmp_path_factory.mktemp("nf4") / "tiny-nf4", load_in_4bit=True)


def store(plain: Path, folder: Path, **options: Any) -> Path:
    if "load_in_4bit" in options:
        options |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**options), device_map={"": "cpu"}
    )
    model.save_pretrained(folder)  # before any forward, which may repack the weights
    return make_bpe_tokenizer(folder, CHAT_TEMPLATE)


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """Return a copy of the plain model that a test may change."""
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | changes))


def load(
    folder: Path, lora: Path | None = None, name: str = "tiny", **settings: Any
) -> LoadedModel:
    source = ModelSource(name, folder, lora, (name,))
    return load_model(source, ModelSettings(name=name, **settings), default_registry())


def logits(loaded: LoadedModel) -> torch.Tensor:
    layers = LoraLayers(loaded.model)
    with torch.no_grad(), layers.applied({loaded.lora: ALL} if loaded.lora else {}):
        scores: torch.Tensor = loaded.model(PROMPT).logits
    layers.remove()
    return scores.float()


def linears(loaded: LoadedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in loaded.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            yield name, module


# ------------------------------------------------------------------ how weights are stored


def assert_is_nf4_with_double_quantization(loaded: LoadedModel) -> None:
    seen = 0
    for name, module in linears(loaded):
        if name.endswith("lm_head"):
            assert type(module) is torch.nn.Linear
            continue
        assert isinstance(module, Linear4bit), name
        state: Any = vars(module.weight)["quant_state"]
        assert state.quant_type == "nf4"
        assert state.nested
        assert state.blocksize == 64
        assert module.weight.dtype == torch.uint8
        assert module.compute_dtype == torch.bfloat16
        seen += 1
    assert seen == 2 * 7


def test_the_default_is_nf4_with_double_quantization_and_bfloat16(plain: Path) -> None:
    loaded = load(plain)

    assert_is_nf4_with_double_quantization(loaded)
    assert loaded.card.quantization == "nf4"
    assert loaded.card.compute_dtype == "bfloat16"
    assert loaded.model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert torch.isfinite(logits(loaded)).all()


def test_int8_is_int8(plain: Path) -> None:
    loaded = load(plain, quantization_override="int8")

    assert loaded.card.quantization == "int8"
    for name, module in linears(loaded):
        assert isinstance(module, Linear8bitLt) is not name.endswith("lm_head"), name


def test_none_keeps_sixteen_bits(plain: Path) -> None:
    loaded = load(plain, quantization_override="none")

    assert loaded.card.quantization == "none"
    assert {type(module) for _, module in linears(loaded)} == {torch.nn.Linear}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_the_compute_dtype_can_be_float16(plain: Path) -> None:
    loaded = load(plain, compute_dtype="float16")

    assert loaded.card.compute_dtype == "float16"
    assert loaded.model.model.layers[0].mlp.up_proj.compute_dtype == torch.float16


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_without_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: has_bf16)

    on_gpu = compute_dtype("auto", torch.device("cuda"))

    assert on_gpu == (torch.bfloat16 if has_bf16 else torch.float16)
    assert compute_dtype("auto", torch.device("cpu")) == torch.bfloat16


def test_a_loaded_model_is_ready_to_answer_and_not_to_learn(plain: Path) -> None:
    loaded = load(plain)

    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_the_card_tells_what_was_loaded(plain: Path) -> None:
    loaded = load(plain, aliases=("gpt-3.5-turbo",))

    assert loaded.card.names == ("tiny", "gpt-3.5-turbo")
    assert loaded.card.family == "own template"
    assert loaded.card.device.startswith("cpu (")
    assert loaded.card.weight_bytes == loaded.model.get_memory_footprint()
    assert loaded.card.lora is None
    assert loaded.kv_tokens >= loaded.card.context_tokens == 256


# ------------------------------------------------------------------ stored quantized


@pytest.mark.parametrize("asked", [{}, {"quantization_override": "nf4"}, {"quantize_qlora": True}])
def test_a_stored_nf4_checkpoint_stays_as_it_is(stored_nf4: Path, asked: dict[str, Any]) -> None:
    stored = json.loads((stored_nf4 / "config.json").read_text())["quantization_config"]
    assert stored["bnb_4bit_compute_dtype"] == "float32"

    loaded = load(stored_nf4, **asked)

    assert_is_nf4_with_double_quantization(loaded)
    assert loaded.card.quantization == "nf4"


def test_a_stored_nf4_checkpoint_gives_the_same_logits(plain: Path, stored_nf4: Path) -> None:
    torch.testing.assert_close(logits(load(stored_nf4)), logits(load(plain)))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"quantization_override": "none"}, "none"),
        ({"quantization_override": "int8"}, "int8"),
        ({"quantize_qlora": False}, "none"),
        ({"quantize_8bit": True}, "int8"),
    ],
)
def test_a_setting_that_contradicts_the_checkpoint_is_refused(
    stored_nf4: Path, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"stored as nf4, but {named} was asked for"):
        load(stored_nf4, **asked)


def test_a_stored_int8_checkpoint_is_int8(plain: Path, tmp_path: Path) -> None:
    folder = store(plain, tmp_path / "tiny-int8", load_in_8bit=True)

    assert load(folder).card.quantization == "int8"
    with pytest.raises(ConfigurationError, match="stored as int8, but nf4 was asked for"):
        load(folder, quantization_override="nf4")


def test_a_checkpoint_of_another_quantizer_is_refused(copy: Path) -> None:
    change_json(copy / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})

    with pytest.raises(ModelLoadError, match="is quantized with gptq; only bitsandbytes"):
        load(copy)


# ------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_lora_is_laid_unmerged_and_changes_the_logits(
    plain: Path, tmp_path: Path, kind: str, quantization: str
) -> None:
    weights = lora_weights()
    lora = make_lora(tmp_path / "my-lora", weights, kind=kind)

    base = load(plain, quantization_override=quantization)
    laid = load(plain, lora, quantization_override=quantization)

    name = "model.layers.1.self_attn.q_proj"
    assert laid.lora
    assert torch.equal(
        laid.lora.pairs[name].a,
        weights[f"base_model.model.{name}.lora_A.weight"].to(torch.bfloat16),
    )
    assert laid.lora.pairs[name].scale == 2
    torch.testing.assert_close(
        laid.model.get_submodule(name).weight.data, base.model.get_submodule(name).weight.data
    )
    assert laid.card.lora == "my-lora"
    assert not any(p.requires_grad for p in laid.model.parameters())
    assert not laid.model.training
    assert (logits(laid) - logits(base)).abs().max() > 0.1


def test_a_lora_brings_its_own_tokenizer(plain: Path, tmp_path: Path) -> None:
    lora = make_bpe_tokenizer(make_lora(tmp_path / "my-lora"), "the LoRA's own {{ messages }}")

    assert load(plain, lora).tokenizer.chat_template.startswith("the LoRA's own")


def test_a_malicious_pickle_in_place_of_a_lora_is_not_executed(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "my-lora", kind="bin")
    torch.save({"weight": WritesAFile(tmp_path / "proof")}, lora / "adapter_model.bin")

    with pytest.raises(ModelLoadError, match=r"LoRA in .*my-lora"):
        load(plain, lora)

    assert not (tmp_path / "proof").exists()
    torch.load(lora / "adapter_model.bin", weights_only=False)
    assert (tmp_path / "proof").exists()  # it would have been, had it been executed


@pytest.mark.parametrize("content", [b"", b"text", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_pickle_in_place_of_a_lora_is_refused(
    plain: Path, tmp_path: Path, content: bytes
) -> None:
    lora = make_lora(tmp_path / "my-lora", kind="bin")
    (lora / "adapter_model.bin").write_bytes(content)

    with pytest.raises(ModelLoadError, match=r"the LoRA in .*my-lora"):
        load(plain, lora)


def test_a_lora_of_zeros_is_refused(plain: Path, tmp_path: Path) -> None:
    weights = {n: t * ("lora_A" in n) for n, t in lora_weights().items()}

    with pytest.raises(ModelLoadError, match="is empty: every B matrix is zero"):
        load(plain, make_lora(tmp_path / "my-lora", weights))


def test_a_lora_for_another_shape_is_refused(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "my-lora", lora_weights(width=96))

    with pytest.raises(ModelLoadError, match=r"my-lora does not fit its base: (?s:.*)size mism"):
        load(plain, lora)


def test_a_lora_that_lacks_a_layer_is_refused(plain: Path, tmp_path: Path) -> None:
    weights = {n: t for n, t in lora_weights().items() if ".layers.0." in n}

    with pytest.raises(ModelLoadError, match="my-lora does not fit its base"):
        load(plain, make_lora(tmp_path / "my-lora", weights))


def test_a_lora_for_other_modules_is_refused(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "my-lora")
    change_json(lora / "adapter_config.json", target_modules=["query_key_value"])

    with pytest.raises(ModelLoadError, match="my-lora does not fit its base"):
        load(plain, lora)


def test_a_lora_without_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "my-lora")
    (lora / "adapter_model.safetensors").unlink()

    with pytest.raises(ModelLoadError, match=r"holds no adapter_model\.safetensors and no \.bin"):
        load(plain, lora)


def test_a_lora_that_is_cut_short_is_refused(plain: Path, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "my-lora")
    path = lora / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(ModelLoadError, match=r"adapter_model\.safetensors is cut short"):
        load(plain, lora)


# ------------------------------------------------------------------ memory and context


def test_too_little_memory_is_said_before_loading(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 1024**2))

    with pytest.raises(OutOfMemoryError, match=r"does not fit cpu: .* and 0\.06 GiB are free"):
        load(plain)


@pytest.mark.parametrize(("asked", "given"), [(None, 256), (16, 16), (256, 256), (4096, 256)])
def test_the_context_is_capped_and_never_raised(plain: Path, asked: int | None, given: int) -> None:
    assert load(plain, context_tokens=asked).card.context_tokens == given


def test_cuda_without_cuda_is_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigurationError, match="GUANACO_DEVICE=cuda, but torch sees no CUDA"):
        load(plain, device="cuda")


# ------------------------------------------------------------------ family, tokenizer, stops


def test_a_guanaco_has_llamas_tokenizer_bos_1_and_stops_at_2_and_0(
    plain: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "guanaco-tiny")
    # What conversions of 2023 carry: a class of another name, and empty special tokens.
    make_sentencepiece_tokenizer(
        folder, tokenizer_class="LLaMATokenizer", bos_token="", eos_token="", unk_token=""
    )

    loaded = load(folder, name="guanaco-tiny")

    assert loaded.card.family == "guanaco"
    assert loaded.template is GuanacoAdapter.template
    assert type(loaded.tokenizer).__name__ == "LlamaTokenizer"
    assert loaded.bos_token_id == 1
    assert loaded.stop_token_ids == {2, 0}
    text = "A question with an emoji 🦙 and 中文."
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_family_comes_from_the_finetune_before_the_base(plain: Path, tmp_path: Path) -> None:
    names = ("org/vicuna-lora", "guanaco-base")
    source = ModelSource("x", plain, make_lora(tmp_path / "lora"), names)

    loaded = load_model(source, ModelSettings(name="x"), default_registry())

    assert loaded.card.family == "vicuna"


def test_the_family_that_the_settings_name_beats_the_name(plain: Path) -> None:
    loaded = load(plain, name="vicuna-tiny", adapter="llama-2-chat")

    assert loaded.card.family == "llama-2-chat"
    assert loaded.bos_token_id == 1
    assert loaded.stop_token_ids == {2}


def test_a_family_that_is_none_is_refused(plain: Path) -> None:
    with pytest.raises(ConfigurationError, match="known: guanaco, llama-2-chat, vicuna"):
        load(plain, adapter="alpaca")


def test_without_a_family_the_tokenizers_template_and_eos_are_used(plain: Path) -> None:
    loaded = load(plain)

    assert isinstance(loaded.template, OwnTemplate)
    assert loaded.template.render([ChatMessage("user", "Hi")]).text == "<user>Hi<assistant>"
    assert loaded.bos_token_id is None
    assert loaded.stop_token_ids == {1, 2}  # the tokenizer's and the config's


def test_without_a_family_and_a_template_the_families_are_named(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()

    with pytest.raises(
        UnknownModelError,
        match=r"known: guanaco, llama-2-chat, vicuna\. .*no chat template; .*GUANACO_ADAPTER",
    ):
        load(copy)


def test_a_model_without_a_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()

    with pytest.raises(ModelLoadError, match=r"holds no tokenizer\.json and no tokenizer\.model"):
        load(copy)


@pytest.mark.parametrize("with_lora", [False, True])
def test_sampling_defaults_of_the_checkpoint_do_not_survive(
    copy: Path, tmp_path: Path, with_lora: bool
) -> None:
    defaults = {"do_sample": True, "temperature": 0.1, "top_k": 7, "repetition_penalty": 1.3}
    change_json(copy / "generation_config.json", eos_token_id=[2, 9], **defaults)

    loaded = load(copy, make_lora(tmp_path / "my-lora") if with_lora else None)

    kept = loaded.model.generation_config
    assert all(getattr(kept, name) != value for name, value in defaults.items())
    assert kept.eos_token_id is None
    assert loaded.stop_token_ids == {1, 2, 9}  # but where it stops is no sampling default


# ------------------------------------------------------------------ nothing foreign is executed


def test_code_that_a_model_folder_brings_is_not_executed(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'proof')!r}).write_text('executed')\n"
        "class Config: pass\n"
    )
    change_json(copy / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})

    with pytest.raises(ModelLoadError, match="copy"):
        load(copy)

    assert "Do you wish to run" not in capsys.readouterr().out
    assert not (tmp_path / "proof").exists()


def test_a_stored_fp4_checkpoint_is_not_called_nf4(copy: Path) -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    change_json(copy / "config.json", quantization_config=stored)

    with pytest.raises(ModelLoadError, match="stored as fp4"):
        load(copy)


def test_weights_that_are_no_model_are_one_clear_error(copy: Path) -> None:
    change_json(copy / "config.json", hidden_size=96)

    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(copy)


def test_a_family_that_names_its_sizes_otherwise_is_served(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=400, n_positions=128, n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    folder = make_bpe_tokenizer(tmp_path / "gpt2", CHAT_TEMPLATE)

    loaded = load(folder, quantization_override="none")

    assert loaded.card.context_tokens == 128


def drop_tensors(folder: Path, part: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["layers.1.mlp.up_proj", "layers.0", "model.norm"])
def test_a_checkpoint_that_lacks_tensors_is_refused(copy: Path, part: str) -> None:
    """transformers would serve random numbers in their place."""
    drop_tensors(copy, part)

    with pytest.raises(ModelLoadError, match=r"lacks \d+ of the tensors .*" + part):
        load(copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "llama", "hidden_size": "abc"}'),
        ("config.json", '{"model_type": "llama", "quantization_config": "x"}'),
        ("config.json", '{"model_type": "mamba"}'),
    ],
)
def test_a_damaged_file_is_one_clear_error(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)

    with pytest.raises(ModelLoadError):
        load(copy)
