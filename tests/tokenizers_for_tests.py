"""A LLaMA-style tokenizer, trained on the spot: sentencepiece, byte fallback on."""

from pathlib import Path
from typing import Any

import sentencepiece
from transformers import LlamaTokenizer

SAMPLES = (
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog.",
    "SELECT name, price FROM orders WHERE price > 100 ORDER BY name;",
    "法国的首都是巴黎。数据库里有多少张表？这是一个测试。",
    "日本の首都は東京です。これはテストです。ありがとうございます。",
    "대한민국의 수도는 서울입니다. 안녕하세요.",
    "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร",
    "Grüße aus München, ça va très bien, ¿cómo estás?",
    "family 👨‍👩‍👧‍👦 flag 🇫🇷 wave 👋🏽 heart ❤️ rocket 🚀",
)


def train_llama_tokenizer(folder: Path) -> Any:
    """Train on a part of the samples, so that the rest needs byte fallback."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SAMPLES[:4] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return LlamaTokenizer.from_pretrained(folder)
