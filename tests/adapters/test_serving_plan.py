from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_lora, make_model

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.candidates import find_candidate
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.machine import Machine, gpu_of, this_machine
from dbgpt_guanaco.adapters.outlook import Question, look_at
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.adapters.serving_plan import ServingPlan, plan_serving
from dbgpt_guanaco.adapters.training_memory import TrainingRun
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS
from dbgpt_guanaco.engine.machinery import Machinery
from dbgpt_guanaco.errors import ConfigurationError, OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings, ModelSettings, Quantization, Settings

FREE = "dbgpt_guanaco.adapters.machine.free_memory_bytes"
FREE_AFTER = "dbgpt_guanaco.engine.device_memory.free_memory_bytes"
KINDS: list[Quantization] = ["nf4", "int8", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    make_bpe_tokenizer(make_model(root / "base"), CHAT_TEMPLATE)
    return make_lora(root / "lora", base=str(root / "base"))


def settings_for(folder: Path, kind: Quantization, context: int | None = None) -> ModelSettings:
    return ModelSettings(
        name=str(folder), device="cpu", quantization_override=kind, context_tokens=context
    )


def planned(settings: ModelSettings, machine: Machine) -> ServingPlan:
    candidate = find_candidate(settings.name, settings)
    return plan_serving(candidate, settings.quantization, machine, settings.context_tokens)


def is_refused(settings: ModelSettings) -> bool:
    try:
        load_model(resolve(settings), settings, default_registry())
    except OutOfMemoryError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [None, 64])
def test_the_server_refuses_exactly_what_is_told_not_to_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Quantization, context: int | None
) -> None:
    settings = settings_for(folder, kind, context)
    needed = planned(settings, Machine("any", on_cuda=False, available_bytes=0)).needed_bytes
    for available, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(FREE, lambda free=available: free)

        assert planned(settings, this_machine(settings)).fits is fits
        assert is_refused(settings) is not fits


@pytest.mark.parametrize("cap", [None, "100KiB"])
def test_the_engine_makes_room_for_as_many_tokens_as_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cap: str | None
) -> None:
    settings = settings_for(folder.parent / "base", "nf4")
    available = int(0.4 * 2**30)
    machine = Machine("any", on_cuda=False, available_bytes=available)
    candidate = find_candidate(settings.name, settings)
    plan = plan_serving(candidate, "nf4", machine, kv_cache=cap)
    monkeypatch.setattr(FREE, lambda: available)
    monkeypatch.setattr(FREE_AFTER, lambda: available - plan.memory.weight_bytes)
    loaded = load_model(resolve(settings), settings, default_registry())

    settings_of_engine = EngineSettings(slots=256, kv_cache=cap)
    made = Machinery(loaded.model, settings_of_engine, plan.context_tokens)

    # In whole blocks, and no more than all slots could fill.
    wanted = min(plan.cache_tokens, 256 * plan.context_tokens)
    assert made.capacity_tokens == wanted // BLOCK_TOKENS * BLOCK_TOKENS
    made.close()


def test_a_gpu_is_named_by_its_memory() -> None:
    machine = gpu_of("24GB")

    assert machine == Machine("a GPU with 24GB", on_cuda=True, available_bytes=24 * 10**9)
    with pytest.raises(ConfigurationError, match="--gpu: 'big' is not a size"):
        gpu_of("big")


@pytest.mark.parametrize(
    ("name", "size", "best", "streams"),
    [
        ("guanaco-7b", "24GB", "none", 7),
        ("guanaco-33b", "24GB", "nf4", 1),
        ("guanaco-65b", "24GB", None, 0),
        ("guanaco-65b-merged", "48GB", "nf4", 1),
        ("guanaco-65b-merged", "80GB", "int8", 2),
    ],
)
def test_which_model_for_my_card(name: str, size: str, best: str | None, streams: int) -> None:
    candidate = find_candidate(name, ModelSettings(models_dir=Path("nowhere")))

    outlook = look_at(candidate, Question(gpu_of(size)), Settings())

    assert (outlook.best.quantization if outlook.best else None) == best
    assert (outlook.best.streams if outlook.best else 0) == streams


def test_a_context_that_is_too_long_is_told_with_one_that_fits() -> None:
    candidate = find_candidate("guanaco-33b", ModelSettings(models_dir=Path("nowhere")))

    plan = plan_serving(candidate, "nf4", gpu_of("21GB"))

    assert not plan.fits
    shorter = plan_serving(candidate, "nf4", gpu_of("21GB"), plan.largest_context)
    assert 256 < plan.largest_context < 2048
    assert shorter.fits


def test_the_longest_sequence_to_train_on_is_the_longest() -> None:
    candidate = find_candidate("guanaco-13b", ModelSettings(models_dir=Path("nowhere")))

    def training(tokens: int) -> tuple[bool, int]:
        question = Question(gpu_of("12GB"), run=TrainingRun(tokens=tokens))
        outlook = look_at(candidate, question, Settings()).training
        assert outlook
        return outlook.fits, outlook.longest_tokens

    longest = training(512)[1]

    assert 512 < longest < 2048
    assert training(longest) == (True, longest)
    assert training(longest + 16) == (False, longest)
