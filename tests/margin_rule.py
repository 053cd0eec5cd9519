"""The margin rule: tokens are the model's own, wherever it is sure of them.

These numbers are rounded, and how depends on the other rows of a product, so transformers' code
does not even agree with itself: a text computed at once and the same text token by token, beside
others, have other logits. The largest such difference is the noise. The rule for every token of
every answer: in transformers' own logits, computed at once, it lies at most ``MARGIN`` noises below
the best.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import CHAT_TEMPLATE, lora_weights, make_bpe_tokenizer, make_lora, make_model
from torch import Tensor

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.lora_layers import ALL, LoraLayers
from dbgpt_guanaco.settings import ModelSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

# One noise by which the engine's logit of its token may be too high, one by which that of the
# best one may be too low.
MARGIN = 2
# So that much noise is no excuse: nearly all tokens are the very ones.
LEAST_EQUAL = 0.9
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
KINDS = ("none", "nf4", "int8", "nf4 with a LoRA")
Ids = tuple[int, ...]
# Shared beginnings, and some that are not; some are computed in many pieces.
STEM: Ids = tuple(range(3, 60))
PROMPTS: tuple[Ids, ...] = tuple(
    (0, *STEM[: 7 * (i % 8)], *range(60 + i, 66 + 2 * i)) for i in range(16)
)


def make_folder(folder: Path) -> Path:
    """Write a model and, below it, a LoRA."""
    make_model(folder, **SIZES)
    make_bpe_tokenizer(folder, CHAT_TEMPLATE)
    weights = {name: weight / 8 for name, weight in lora_weights(width=128).items()}
    make_lora(folder / "lora", weights)
    return folder


def load(folder: Path, kind: str) -> LoadedModel:
    """Load it as one of ``KINDS`` says, on the best device that there is."""
    quantization, _, more = kind.partition(" ")
    source = ModelSource("tiny", folder, folder / "lora" if more else None, ("tiny",))
    settings = ModelSettings(name="tiny", quantization_override=quantization)
    return load_model(source, settings, default_registry())


@dataclass(frozen=True)
class Judged:
    """Attributes:
    noise: Largest difference between two ways of transformers to compute the same logits.
    lag: How far each token lies below the best one.
    """

    noise: float
    lag: Tensor

    @property
    def share_equal(self) -> float:
        return float((self.lag == 0).float().mean())

    @property
    def is_right(self) -> bool:
        return bool((self.lag <= MARGIN * self.noise).all()) and self.share_equal >= LEAST_EQUAL


@torch.no_grad()
def judge(loaded: LoadedModel, texts: list[tuple[Ids, Ids]]) -> Judged:
    """Hold answers against the model's own logits, as transformers computes them."""
    layers = LoraLayers(loaded.model)
    with layers.applied({loaded.lora: ALL} if loaded.lora else {}):
        judged = judged_by(loaded.model, texts)
    layers.remove()
    return judged


def judged_by(model: Any, texts: list[tuple[Ids, Ids]]) -> Judged:
    noise, lags = 0.0, []
    others = token_by_token(model, [(*prompt, *answer) for prompt, answer in texts])
    for (prompt, answer), other in zip(texts, others, strict=True):
        drawn = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        own = model(ids, use_cache=False).logits[0, drawn].float()  # [A, V]
        noise = max(noise, float((other[drawn] - own).abs().max()))
        chosen = own.gather(1, torch.tensor(answer, device=own.device)[:, None])[:, 0]
        lags.append(own.max(dim=-1).values - chosen)
    return Judged(noise, torch.cat(lags))


def token_by_token(model: Any, texts: list[Ids]) -> Tensor:
    """Logits [texts, T, V] with a cache, all texts side by side; shorter ones go on with 0."""
    length = max(len(text) for text in texts)
    rows = [[*text, *[0] * (length - len(text))] for text in texts]
    ids = torch.tensor(rows, device=model.device)
    cache, columns = None, []
    for n in range(length):
        output = model(ids[:, n : n + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        columns.append(output.logits)
    return torch.cat(columns, dim=1).float()


async def ask_all(engine: BatchingEngine, prompts: tuple[Ids, ...]) -> list[Ids]:
    """Greedy answers to all prompts at once; one in five leaves after its first token, with ()."""
    sampling = SamplingParams(temperature=0, max_new_tokens=48, logprobs=True)

    async def one(number: int, prompt: Ids) -> Ids:
        generation = await engine.submit(GenerationRequest(prompt, sampling))
        if number % 5 == 4:
            await anext(aiter(generation))
            generation.cancel()
            return ()
        return tuple([t.token_id async for delta in generation for t in delta.logprobs])

    return await asyncio.gather(*(one(n, p) for n, p in enumerate(prompts)))


def with_answers(prompts: tuple[Ids, ...], found: list[Ids]) -> list[tuple[Ids, Ids]]:
    return [(p, a) for p, a in zip(prompts, found, strict=True) if a]
