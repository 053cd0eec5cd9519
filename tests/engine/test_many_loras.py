"""Many LoRAs on one base: each request has its own, in both engines."""

import asyncio
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import tiny_loaded
from tiny_models import make_lora

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.adapters.lora import read_lora
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import (
    ConfigurationError,
    InvalidRequestError,
    ModelLoadError,
    UnknownModelError,
)
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
Ids = tuple[int, ...]
LAYERS = {
    "self_attn.q_proj": (32, 32),
    "self_attn.v_proj": (32, 16),
    "mlp.up_proj": (32, 64),
    "mlp.down_proj": (64, 32),
}
TARGETS = [name.partition(".")[2] for name in LAYERS]
# Of each LoRA its rank, what else is in its card, and what alpha / rank then is.
CARDS: dict[str, tuple[int, dict[str, Any]]] = {
    "a": (4, {}),
    "b": (3, {"r": 3, "lora_alpha": 5}),
    "c": (16, {"r": 16, "lora_alpha": 4, "use_rslora": True}),
    "d": (2, {"r": 2, "alpha_pattern": {"up_proj": 3}}),
}
NAMES = (*CARDS, None)
STEM: Ids = tuple(range(5, 40))  # two blocks that all of them share, but for their LoRAs


def weights(rank: int, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found = {}
    for layer in range(2):
        for name, (inputs, outputs) in LAYERS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs)
            found[f"{prefix}.lora_B.weight"] = torch.randn(outputs, rank) / 4
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, (name, (rank, card)) in enumerate(CARDS.items()):
        make_lora(folder / name, weights(rank, seed), **{"target_modules": TARGETS, **card})
    return folder


@pytest.fixture(scope="module")
def loaded(llama_tokenizer: Any) -> LoadedModel:
    return tiny_loaded(llama_tokenizer)


@pytest.fixture(scope="module")
def reference(loaded: LoadedModel, folder: Path) -> Callable[[str | None, Ids, int], Ids]:
    """What peft and transformers give, one request at a time."""
    base = copy.deepcopy(loaded.model)
    models = {n: PeftModel.from_pretrained(copy.deepcopy(base), folder / n) for n in CARDS}

    def answer(name: str | None, ids: Ids, count: int) -> Ids:
        model = models[name] if name else base
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        return tuple(int(i) for i in output[0, len(ids) :])

    return answer


@pytest.fixture(params=[StreamingEngine, BatchingEngine])
def engine(request: pytest.FixtureRequest, loaded: LoadedModel, folder: Path) -> Iterator[Any]:
    engine = request.param(loaded, EngineSettings(slots=6, lora_dir=folder, max_loras=5))
    engine.wait_until_warm()
    yield engine
    engine.close()


async def answer(engine: Any, name: str | None, ids: Ids, count: int = 24) -> Ids:
    sampling = SamplingParams(temperature=0, max_new_tokens=count, logprobs=True)
    generation = await engine.submit(GenerationRequest(ids, sampling, lora=name))
    return tuple([t.token_id async for delta in generation for t in delta.logprobs])


async def test_each_request_has_its_own_lora_token_for_token(
    engine: Any, folder: Path, reference: Callable[[str | None, Ids, int], Ids]
) -> None:
    for name in CARDS:
        await engine.loras.load(name, name)
    wanted = [(NAMES[n % 5], (1, *STEM, 40 + n % 7)) for n in range(25)]

    found = await asyncio.gather(*(answer(engine, name, ids) for name, ids in wanted))

    expected = [reference(name, ids, 24) for name, ids in wanted]
    assert found == expected
    # They are different models: what one of them says, hardly another does.
    assert len({reference(name, (1, *STEM, 40), 24) for name in NAMES}) == 5


async def test_keys_and_values_of_one_lora_are_never_another_s(
    engine: Any, folder: Path, reference: Callable[[str | None, Ids, int], Ids]
) -> None:
    ids = (1, *STEM, 41)
    for name in ("a", "b"):
        await engine.loras.load("sql", name)
        assert await answer(engine, "sql", ids) == reference(name, ids, 24)
        assert await answer(engine, "sql", ids) == reference(name, ids, 24)  # from the cache
        engine.loras.unload("sql")
    assert await answer(engine, None, ids) == reference(None, ids, 24)


async def test_answers_that_run_keep_a_lora_that_is_unloaded(
    engine: Any, reference: Callable[[str | None, Ids, int], Ids]
) -> None:
    await engine.loras.load("a", "a")
    ids = (1, *STEM)
    sampling = SamplingParams(temperature=0, max_new_tokens=64, logprobs=True)
    generation = await engine.submit(GenerationRequest(ids, sampling, lora="a"))
    deltas = aiter(generation)
    first = await anext(deltas)
    engine.loras.unload("a")

    with pytest.raises(UnknownModelError):
        await engine.submit(GenerationRequest(ids, sampling, lora="a"))
    rest = [t.token_id async for delta in deltas for t in delta.logprobs]
    assert (*[t.token_id for t in first.logprobs], *rest) == reference("a", ids, 64)


async def test_a_lora_of_the_loaded_model_is_every_request_s(
    loaded: LoadedModel, folder: Path, reference: Callable[[str | None, Ids, int], Ids]
) -> None:
    from dataclasses import replace

    laid = replace(loaded, lora=read_lora(folder / "c", loaded.model, torch.float32))
    for kind in (StreamingEngine, BatchingEngine):
        engine = kind(laid, EngineSettings(lora_dir=folder))
        try:
            await engine.loras.load("a", "a")
            assert await answer(engine, None, (1, *STEM)) == reference("c", (1, *STEM), 24)
            assert await answer(engine, "a", (1, *STEM)) == reference("a", (1, *STEM), 24)
        finally:
            engine.close()


async def test_a_lora_brings_the_template_of_its_own_name(engine: Any, folder: Path) -> None:
    make_lora(folder / "vicuna-sql", weights(4, 9), target_modules=TARGETS)
    await engine.loras.load("sql", "vicuna-sql")
    await engine.loras.load("a", "a")

    assert engine.loras.get("sql").template == VicunaAdapter.template
    assert engine.loras.get("a").template == engine.template


async def test_what_cannot_be_loaded_is_refused_with_the_reason(engine: Any, folder: Path) -> None:
    make_lora(folder / "wide", {n: torch.randn(4, 96) for n in weights(4, 0)})
    makes = {
        "..": (InvalidRequestError, "leads out"),
        "../elsewhere": (InvalidRequestError, "leads out"),
        "/etc": (InvalidRequestError, "leads out"),
        ".": (InvalidRequestError, "leads out"),
        "nothing": (InvalidRequestError, "no LoRA of that name"),
        "wide": (ModelLoadError, "does not fit its base"),
    }
    for path, (kind, reason) in makes.items():
        with pytest.raises(kind, match=reason):
            await engine.loras.load("new", path)
    assert engine.loras.names == ()
    await engine.loras.load("new", "a")
    for taken in ("new", "tiny"):
        with pytest.raises(ConfigurationError, match="already"):
            await engine.loras.load(taken, "b")
    for n in range(4):
        await engine.loras.load(f"more-{n}", "b")
    with pytest.raises(ConfigurationError, match="GUANACO_MAX_LORAS"):
        await engine.loras.load("too-many", "b")
    with pytest.raises(UnknownModelError):
        engine.loras.unload("no-such")
