"""Makers of models, tokenizers and LoRAs so small that a test makes its own."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = (
    "The guanaco is a camelid that lives in the mountains and plains of South America. "
    "A question is asked by a human, and an assistant answers it with some care. "
    "Numbers are written as 0 1 2 3 4 5 6 7 8 9, and words are written with letters."
)


def make_model(folder: Path, *, seed: int = 0, max_shard: str = "1GB", **config: Any) -> Path:
    """Write a random LLaMA in bfloat16: 2 layers of 64, or as ``config`` says."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**config)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=max_shard)
    return folder


def tiny_config(**changes: Any) -> LlamaConfig:
    """Return the config of a tiny LLaMA."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**sizes | changes)


def make_bpe_tokenizer(folder: Path, chat_template: str | None = None) -> Path:
    """Write ``tokenizer.json``: byte-level BPE, bos 0, eos 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


def make_sentencepiece_tokenizer(folder: Path, **tokenizer_config: Any) -> Path:
    """Write ``tokenizer.model``, as LLaMA has it: unk 0, bos 1, eos 2, then the bytes."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer"} | tokenizer_config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _sentences() -> Iterator[str]:
    yield from TEXT.split(". ")


def lora_weights(*, seed: int = 0, rank: int = 4, width: int = 64) -> dict[str, torch.Tensor]:
    """Return random LoRA weights for the query projections of a tiny LLaMA."""
    torch.manual_seed(seed)
    weights = {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, width)
        weights[f"{prefix}.lora_B.weight"] = torch.randn(width, rank)
    return weights


def make_lora(
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    base: str | None = None,
    *,
    kind: str = "safetensors",
    **changes: Any,
) -> Path:
    """Write a LoRA as peft saves it; ``kind="bin"`` as it did in 2023.

    ``changes`` are other lines of its configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(lora_weights() if weights is None else weights)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "bias": "none",
        "inference_mode": True,
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    return folder


class WritesAFile:
    """A pickle that writes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self._path, "executed"))
