"""A random LLaMA of two small layers: everything but sense, in milliseconds."""

from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.types import ModelCard

CONTEXT_TOKENS = 256


def tiny_model(vocabulary_size: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,  # far enough from zero that answers differ
    )
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(requires_grad=False)
    model.generation_config = GenerationConfig()
    return model


def tiny_loaded(
    tokenizer: Any,
    *,
    model: Any = None,
    stop_token_ids: frozenset[int] = frozenset({2}),
    kv_tokens: int = 100_000,
) -> LoadedModel:
    return LoadedModel(
        card=ModelCard("tiny", (), "guanaco", "none", "float32", "cpu", CONTEXT_TOKENS, 1),
        model=model or tiny_model(len(tokenizer)),
        tokenizer=tokenizer,
        template=GuanacoAdapter.template,
        bos_token_id=1,
        stop_token_ids=stop_token_ids,
        kv_tokens=kv_tokens,
    )
