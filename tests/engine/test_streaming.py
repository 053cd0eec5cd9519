"""What is particular to the streaming engine."""

import asyncio
import dataclasses
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import tiny_loaded, tiny_model

from dbgpt_guanaco.engine import streaming
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.engine.watchdog import Watchdog
from dbgpt_guanaco.errors import EngineStoppedError, GenerationFailedError, OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams


def request(prompt: tuple[int, ...], count: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=count, logit_bias={2: -100.0})
    return GenerationRequest(prompt, sampling)


async def exhaust(generation: Any) -> None:
    async for _ in generation:
        pass


async def test_requests_advance_in_turn(llama_tokenizer: Any) -> None:
    """A request that comes while a long one runs is not kept waiting for its end."""
    engine = StreamingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=2))
    long = await engine.submit(request((1, 5), 200))
    await anext(aiter(long))

    short = [delta async for delta in await engine.submit(request((1, 6), 5))]

    assert short[-1].usage.completion_tokens == 5
    assert engine.load.running == 1
    long.cancel()
    engine.close()


async def test_a_long_prompt_is_computed_in_chunks_between_the_others(
    llama_tokenizer: Any,
) -> None:
    loaded = tiny_loaded(llama_tokenizer)
    widths: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    engine = StreamingEngine(loaded, EngineSettings(slots=2, prefill_chunk_tokens=16))
    engine.wait_until_warm()
    talking = await engine.submit(request((1, 5), 100))
    await anext(aiter(talking))
    widths.clear()

    prompt = await engine.submit(request((1, *range(5, 90)), 2))
    await anext(aiter(prompt))

    chunks = [n for n, width in enumerate(widths) if width > 1]
    assert [widths[n] for n in chunks] == [16, 16, 16, 16, 16, 6]
    assert all(later - earlier >= 2 for earlier, later in pairwise(chunks))
    talking.cancel()
    prompt.cancel()
    engine.close()


async def test_a_model_that_cannot_compute_is_told_at_once(
    llama_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Watchdog.close

    def close_slowly(watchdog: Watchdog) -> None:
        time.sleep(0.2)
        close(watchdog)

    monkeypatch.setattr(Watchdog, "close", close_slowly)
    model = tiny_model(len(llama_tokenizer))
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 5))
    engine = StreamingEngine(tiny_loaded(llama_tokenizer, model=model), EngineSettings())

    with pytest.raises(GenerationFailedError, match="first pass"):
        engine.wait_until_warm()
    assert not engine.is_alive
    engine.close()


async def test_a_dead_thread_tells_everybody(
    llama_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StreamingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=1))
    engine.wait_until_warm()
    running = await engine.submit(request((1, 5), 200))
    waiting = await engine.submit(request((1, 6), 5))
    await anext(aiter(running))

    def die(_turns: object) -> None:
        raise SystemError("a bug in the loop")

    monkeypatch.setattr(engine, "_step", die)
    for generation in (running, waiting):
        with pytest.raises(EngineStoppedError, match="the engine has failed"):
            await asyncio.wait_for(exhaust(generation), timeout=1)
    assert not engine.is_alive
    with pytest.raises(EngineStoppedError):
        await engine.submit(request((1, 5), 1))
    engine.close()


@pytest.mark.parametrize("part", ["Sampler", "AnswerStreamer", "StopOnTokens"])
async def test_a_failure_beside_the_model_ends_only_its_request(
    llama_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    engine = StreamingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=2))
    engine.wait_until_warm()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room for V numbers")

    with monkeypatch.context() as broken:
        broken.setattr(streaming, part, full)
        with pytest.raises(OutOfMemoryError):
            await asyncio.wait_for(exhaust(await engine.submit(request((1, 5), 3))), timeout=1)

    assert engine.is_alive
    assert engine.load.running == 0
    deltas = [delta async for delta in await engine.submit(request((1, 6), 5))]
    assert deltas[-1].usage.completion_tokens == 5
    engine.close()


async def test_a_truncated_prompt_keeps_the_tokenizers_own_bos(llama_tokenizer: Any) -> None:
    loaded = dataclasses.replace(tiny_loaded(llama_tokenizer), bos_token_id=None)
    engine = StreamingEngine(loaded, EngineSettings())
    long = GenerationRequest((1, *range(5, 300)), SamplingParams(), truncate_prompt_tokens=9)

    generation = await engine.submit(long)

    assert generation.input_ids == [1, *range(292, 300)]
    generation.cancel()
    engine.close()


async def test_a_reader_whose_loop_is_gone_stops_nobody(llama_tokenizer: Any) -> None:
    engine = StreamingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=2))

    def other_loop() -> None:
        asyncio.run(engine.submit(request((1, 5), 20)))

    await asyncio.to_thread(other_loop)
    deltas = [delta async for delta in await engine.submit(request((1, 6), 5))]

    assert deltas[-1].usage.completion_tokens == 5
    engine.close()


async def test_memory_for_keys_and_values_is_a_place_too(llama_tokenizer: Any) -> None:
    """This engine reserves room for the longest answer."""
    settings = EngineSettings(slots=2)
    engine = StreamingEngine(tiny_loaded(llama_tokenizer, kv_tokens=300), settings)
    first = await engine.submit(request((1, 5), 200))
    second = await engine.submit(request((1, 5), 200))
    await anext(aiter(first))

    assert (engine.load.running, engine.load.waiting) == (1, 1)
    first.cancel()
    second.cancel()
    engine.close()


async def test_one_failure_leaves_the_neighbours_alone(
    llama_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StreamingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=4))
    generate = engine._generate

    async def text(prompt: tuple[int, ...]) -> str:
        return "".join([d.text async for d in await engine.submit(request(prompt, 30))])

    def generate_or_fail(generation: Any, *rest: Any) -> None:
        if len(generation.input_ids) == 2:
            raise RuntimeError("this one")
        generate(generation, *rest)

    expected = await text((1, 50, 60))
    monkeypatch.setattr(engine, "_generate", generate_or_fail)
    results = await asyncio.gather(
        *(text((1, 50, 60)) for _ in range(3)), text((1, 9)), return_exceptions=True
    )

    assert isinstance(results[3], GenerationFailedError)
    assert results[:3] == [expected] * 3
    engine.close()
