"""bfloat16, int8, NF4 and LoRA: tokens are the model's own, wherever it is sure of them.

How sure it must be, ``margin_rule.py`` says.
"""

from pathlib import Path
from typing import Any

import pytest
from margin_rule import KINDS, PROMPTS, Ids, ask_all, judge, load, make_folder, with_answers

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine import first_pass
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import EngineSettings, ModelSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "tiny")


async def answers(
    loaded: LoadedModel, prompts: tuple[Ids, ...], *, has_decoder: bool = True, **settings: Any
) -> list[Ids]:
    engine = BatchingEngine(
        loaded, EngineSettings(queue_size=64, prefill_chunk_tokens=16, **settings)
    )
    engine.wait_until_warm()
    try:
        found = await ask_all(engine, prompts)
        assert engine.load.cached_tokens > 0
        assert settings.get("kv_cache") is None or engine.load.preemptions or settings["slots"] < 7
        is_compiled = isinstance(engine._machinery._runner._passes, CompiledPasses)
        assert is_compiled == (has_decoder and compiled.why_not() is None)
    finally:
        engine.close()
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_are_those_of_transformers(folder: Path, kind: str) -> None:
    loaded = load(folder, kind)

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
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    slots: int,
    has_decoder: bool,
) -> None:
    if not has_decoder:
        monkeypatch.setattr(first_pass, "CpuDecoder", no_decoder)
    loaded = load(folder, kind)

    found = await answers(loaded, PROMPTS, slots=slots, kv_cache="0.1MB", has_decoder=has_decoder)

    judged = judge(loaded, with_answers(PROMPTS, found))
    assert judged.is_right, judged


def no_decoder(*_: Any) -> Any:
    raise ConfigurationError("this test goes without")


async def test_tokens_of_the_demo_model_are_those_of_transformers() -> None:
    settings = ModelSettings(models_dir=ROOT / "models", device="cpu")
    loaded = load_model(resolve(settings), settings, default_registry())
    questions = ("The capital of France is", "Water boils at", "Once upon a time", "def add(a, b):")
    stem = loaded.tokenizer.encode("This is a text about many things. " * 4)
    prompts = tuple((*stem, *loaded.tokenizer.encode(q)) for q in questions)

    found = await answers(loaded, prompts, slots=4)

    judged = judge(loaded, with_answers(prompts, found))
    assert judged.is_right, judged
