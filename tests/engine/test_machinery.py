"""What the engine takes of a device's memory, and how it falls back, without that device."""

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import CONTEXT_TOKENS, tiny_loaded

from dbgpt_guanaco.adapters import memory as planning
from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS, KVCache
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.device_memory import forget_frames
from dbgpt_guanaco.engine.first_pass import FirstPass
from dbgpt_guanaco.engine.lora_layers import AddLora, LoraLayers
from dbgpt_guanaco.engine.machinery import Machinery
from dbgpt_guanaco.engine.passes import TransformersPasses
from dbgpt_guanaco.errors import OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

SLOTS = 3
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, size, float32


class TinyMemory:
    """So many bytes, of which a step takes some for each token that it computes.

    Attributes:
        widths: Tokens of each step that was rehearsed.
    """

    def __init__(self, model: Any, total: int, token_bytes: int) -> None:
        self._total, self._token_bytes, self.widths = total, token_bytes, list[int]()
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _model: Any, _args: Any, kwargs: Any) -> None:
        self.widths.append(kwargs["input_ids"].shape[1])
        if self.widths[-1] * self._token_bytes > self._total:
            raise torch.OutOfMemoryError("too wide")

    def free(self) -> int:
        return self._total

    def peak(self, compute: Callable[[], object]) -> int:
        compute()
        return self.widths[-1] * self._token_bytes


@pytest.fixture
def model(llama_tokenizer: Any) -> Any:
    return tiny_loaded(llama_tokenizer).model


def made(model: Any, memory: Any, **more: Any) -> Machinery:
    return Machinery(model, EngineSettings(slots=SLOTS, **more), CONTEXT_TOKENS, memory)


def logits_bytes(model: Any) -> int:
    return int((1 + 2 + 3) * model.config.vocab_size * 4)


def test_the_cache_gets_what_the_largest_step_and_recorded_ones_leave(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(planning.CACHE_SHARE, "cpu", 0.9)
    memory = TinyMemory(model, total=500_000, token_bytes=1000)

    parts = made(model, memory, prefill_chunk_tokens=300)

    assert memory.widths == [SLOTS + 300, SLOTS]
    left = 500_000 - (SLOTS + 300 + SLOTS) * 1000 - logits_bytes(model)
    assert parts.capacity_tokens == int(left * 0.9) // TOKEN_BYTES // BLOCK_TOKENS * BLOCK_TOKENS
    assert model.config._attn_implementation != attention.NAME


def test_prompts_come_in_pieces_that_fit(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    memory = TinyMemory(model, total=1_000_000, token_bytes=6000)

    parts = made(model, memory, prefill_chunk_tokens=512)

    assert memory.widths == [SLOTS + 512, SLOTS + 256, SLOTS + 128, SLOTS]
    assert (parts.scheduler.budget.alone, parts.scheduler.budget.beside) == (128, 128)
    assert "128 prompt tokens" in caplog.text


@pytest.mark.parametrize("token_bytes", [20_000, 14_000])
def test_no_room_for_a_step_or_beside_it_is_told_and_the_model_left_alone(
    model: Any, token_bytes: int
) -> None:
    with pytest.raises(OutOfMemoryError, match="LIMIT_MODEL_CONCURRENCY"):
        made(model, TinyMemory(model, 1_000_000, token_bytes), prefill_chunk_tokens=64)
    assert model.config._attn_implementation != attention.NAME
    assert not any(
        isinstance(hook, AddLora)
        for part in model.modules()
        for hook in part._forward_hooks.values()
    )


def test_a_model_that_cannot_be_recorded_decodes_as_it_is(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    attention.register()
    cache = KVCache([(2, 8)] * 2, 4, BLOCK_TOKENS, torch.float32, torch.device("cpu"))
    first = FirstPass(
        model, "sdpa", cache, LoraLayers(model), vocabulary_size=64, slots=2, table_blocks=4
    )

    def refuse(compute: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert first._recorded(refuse) is None
    assert "recorded steps are not used: operation not permitted" in caplog.text
    # Nor does a layer stop it that cannot run there at all, as our kernels cannot on a CPU.
    assert first._recorded(lambda compute: (lambda: None, compute())) is None


@torch.no_grad()
def test_a_rebuild_frees_the_old_cache_while_its_error_lives_on(model: Any) -> None:
    parts = made(model, None)
    parts.warm_up()
    old = weakref.ref(parts._cache)
    told = _failed(parts)

    parts.rebuild(told)

    assert told.__cause__ is not None
    assert old() is None


def _failed(parts: Machinery) -> Exception:
    """What a reader is told: its causes' frames hold the cache, as a failing pass does."""

    def compute() -> None:
        passes = TransformersPasses(parts._model, parts._cache, parts._loras)
        try:
            passes.compute(torch.tensor([1]), [], None)
        except Exception:
            raise RuntimeError("and then this")  # noqa: B904 - a context, not a cause

    try:
        compute()
    except RuntimeError as error:
        told = OutOfMemoryError("no memory")
        told.__cause__ = error
        return told
    raise AssertionError


def test_errors_that_go_round_in_a_circle_are_forgotten_too() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__context__ = other, one

    forget_frames(one)
    forget_frames(None)


async def test_a_reader_that_has_caught_the_error_goes_on() -> None:
    """Clearing the frame of a coroutine that waits would end it."""
    caught, may_go_on = list[Exception](), asyncio.Event()

    async def read() -> str:
        try:
            raise OutOfMemoryError("told to a reader")  # noqa: TRY301 - this frame is wanted in it
        except OutOfMemoryError as error:
            caught.append(error)
        await may_go_on.wait()
        return "to its end"

    reader = asyncio.create_task(read())
    while not caught:  # noqa: ASYNC110 - it needs a turn, no more
        await asyncio.sleep(0)

    forget_frames(caught[0])
    may_go_on.set()

    assert await asyncio.wait_for(reader, timeout=5) == "to its end"


class Narrow:
    """Passes that have memory for so many tokens and no more.

    Attributes:
        widths: Tokens of each pass.
    """

    def __init__(self, passes: Any, most: int) -> None:
        self._passes, self._most, self.widths = passes, most, list[int]()

    def compute(self, input_ids: torch.Tensor, spans: Any, wanted: Any) -> torch.Tensor:
        self.widths.append(len(input_ids))
        if len(input_ids) > self._most:
            raise torch.OutOfMemoryError("too wide")
        logits: torch.Tensor = self._passes.compute(input_ids, spans, wanted)
        return logits


async def test_a_step_that_runs_out_of_memory_is_computed_in_two(llama_tokenizer: Any) -> None:
    engine = BatchingEngine(
        tiny_loaded(llama_tokenizer), EngineSettings(slots=SLOTS, prefill_chunk_tokens=60)
    )
    engine.wait_until_warm()
    expected = await answers(engine)
    runner = engine._machinery._runner
    runner._passes = narrow = Narrow(runner._passes, most=32)

    assert await answers(engine, salt="nothing is known of them") == expected
    assert narrow.widths[:3] == [60, 30, 30]
    assert max(narrow.widths) > 32
    # What does not fit in two pieces either ends its own answers.
    runner._passes = Narrow(narrow._passes, most=8)
    with pytest.raises(OutOfMemoryError):
        await answers(engine, salt="nor now")
    engine.close()


async def answers(engine: BatchingEngine, salt: str = "") -> list[str]:
    sampling = SamplingParams(temperature=0, max_new_tokens=10)
    prompts = [(1, *range(5 + n, 50 + n)) for n in range(SLOTS)]

    async def one(prompt: tuple[int, ...]) -> str:
        request = GenerationRequest(prompt, sampling, cache_salt=salt)
        return "".join([delta.text async for delta in await engine.submit(request)])

    return await asyncio.gather(*(one(prompt) for prompt in prompts))
