"""bfloat16, int8, NF4 and LoRA: tokens are the model's own, wherever it is sure of them.

These numbers are rounded, and how depends on the other rows of a product, so transformers' code
does not even agree with itself: a text computed at once and the same text token by token, beside
others, have other logits. The largest such difference is the noise. The rule for every token of
every answer: in transformers' own logits, computed at once, it lies at most ``MARGIN`` noises below
the best.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, lora_weights, make_bpe_tokenizer, make_lora, make_model
from torch import Tensor

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import ModelSource, resolve
from dbgpt_guanaco.engine import first_pass
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.engine.lora_layers import ALL, LoraLayers
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import EngineSettings, ModelSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    folder = make_model(tmp_path_factory.mktemp("tiny") / "tiny", **SIZES)
    make_bpe_tokenizer(folder, CHAT_TEMPLATE)
    lora = make_lora(
        tmp_path_factory.mktemp("lora") / "lora",
        {name: weight / 8 for name, weight in lora_weights(width=128).items()},
    )

    def loaded(kind: str) -> LoadedModel:
        if kind == "the demo model":
            settings = ModelSettings(models_dir=ROOT / "models", device="cpu")
            return load_model(resolve(settings), settings, default_registry())
        quantization, _, more = kind.partition(" ")
        source = ModelSource("tiny", folder, lora if more else None, ("tiny",))
        settings = ModelSettings(name="tiny", quantization_override=quantization)
        return load_model(source, settings, default_registry())

    return loaded


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
        ids = torch.tensor([[*prompt, *answer]])
        own = model(ids, use_cache=False).logits[0, drawn].float()  # [A, V]
        noise = max(noise, float((other[drawn] - own).abs().max()))
        chosen = own.gather(1, torch.tensor(answer)[:, None])[:, 0]
        lags.append(own.max(dim=-1).values - chosen)
    return Judged(noise, torch.cat(lags))


def token_by_token(model: Any, texts: list[Ids]) -> Tensor:
    """Logits [texts, T, V] with a cache, all texts side by side; shorter ones go on with 0."""
    length = max(len(text) for text in texts)
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    cache, columns = None, []
    for n in range(length):
        output = model(ids[:, n : n + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        columns.append(output.logits)
    return torch.cat(columns, dim=1).float()


async def answers(
    loaded: LoadedModel, prompts: tuple[Ids, ...], *, has_decoder: bool = True, **settings: Any
) -> list[Ids]:
    engine = BatchingEngine(
        loaded, EngineSettings(queue_size=64, prefill_chunk_tokens=16, **settings)
    )
    engine.wait_until_warm()
    sampling = SamplingParams(temperature=0, max_new_tokens=48, logprobs=True)

    async def one(number: int, prompt: Ids) -> Ids:
        generation = await engine.submit(GenerationRequest(prompt, sampling))
        if number % 5 == 4:
            await anext(aiter(generation))
            generation.cancel()
            return ()
        return tuple([t.token_id async for delta in generation for t in delta.logprobs])

    try:
        found = await asyncio.gather(*(one(n, p) for n, p in enumerate(prompts)))
        assert engine.load.cached_tokens > 0
        assert settings.get("kv_cache") is None or engine.load.preemptions or settings["slots"] < 7
        is_compiled = isinstance(engine._machinery._runner._passes, CompiledPasses)
        assert is_compiled == (has_decoder and compiled.why_not() is None)
    finally:
        engine.close()
    return found


def with_answers(prompts: tuple[Ids, ...], found: list[Ids]) -> list[tuple[Ids, Ids]]:
    return [(p, a) for p, a in zip(prompts, found, strict=True) if a]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_are_those_of_transformers(
    load: Callable[[str], LoadedModel], kind: str
) -> None:
    loaded = load(kind)

    # Room for few answers at a time: some are computed twice.
    found = await answers(
        loaded, PROMPTS, slots=7, kv_cache="0.1MB", has_decoder=not kind.startswith("int8")
    )

    texts = with_answers(PROMPTS, found)
    assert len(texts) == 13
    judged = judge(loaded, texts)
    assert judged.is_right, judged
    # An engine that lost the first block of a prompt would not pass.
    lost = [(prompt[16:], answer) for prompt, answer in texts if len(prompt) > 32]
    assert not judge(loaded, lost).is_right


@pytest.mark.parametrize("has_decoder", [True, False])
@pytest.mark.parametrize("slots", [1, 2, 7, 32])
@pytest.mark.parametrize("kind", ["none", "nf4"])
async def test_tokens_are_those_of_transformers_in_any_batch(
    load: Callable[[str], LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    slots: int,
    has_decoder: bool,
) -> None:
    if not has_decoder:
        monkeypatch.setattr(first_pass, "CpuDecoder", no_decoder)
    loaded = load(kind)

    found = await answers(loaded, PROMPTS, slots=slots, kv_cache="0.1MB", has_decoder=has_decoder)

    judged = judge(loaded, with_answers(PROMPTS, found))
    assert judged.is_right, judged


def no_decoder(*_: Any) -> Any:
    raise ConfigurationError("this test goes without")


async def test_tokens_of_the_demo_model_are_those_of_transformers(
    load: Callable[[str], LoadedModel],
) -> None:
    loaded = load("the demo model")
    questions = ("The capital of France is", "Water boils at", "Once upon a time", "def add(a, b):")
    stem = loaded.tokenizer.encode("This is a text about many things. " * 4)
    prompts = tuple((*stem, *loaded.tokenizer.encode(q)) for q in questions)

    found = await answers(loaded, prompts, slots=4)

    judged = judge(loaded, with_answers(prompts, found))
    assert judged.is_right, judged
