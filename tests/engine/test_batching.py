"""What is particular to the batching engine: blocks, prefixes, preemption, contained failures."""

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tiny import CONTEXT_TOKENS, tiny_loaded, tiny_model
from transformers import (
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.factory import start_engine
from dbgpt_guanaco.engine.machinery import why_not
from dbgpt_guanaco.engine.scheduler import PrefillBudget
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import (
    ConfigurationError,
    EngineStoppedError,
    GenerationFailedError,
    InvalidRequestError,
)
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

BLOCK_BYTES = 16 * 2 * 2 * 2 * 8 * 4  # tokens, layers, keys and values, heads, size, float32


@pytest.fixture(scope="module")
def expected(llama_tokenizer: Any) -> Callable[[tuple[int, ...], int], tuple[int, ...]]:
    """What transformers' own generate gives, alone and without any of this."""
    model = tiny_loaded(llama_tokenizer).model

    @cache
    def generate(prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        return tuple(output[0, len(prompt) :].tolist())

    return generate


Make = Callable[..., BatchingEngine]


@pytest.fixture
def make(llama_tokenizer: Any) -> Iterator[Make]:
    made = []

    def start(*, blocks: int = 0, model: Any = None, **settings: Any) -> BatchingEngine:
        if blocks:
            settings["kv_cache"] = f"{blocks * BLOCK_BYTES / 1000}KB"
        values = {"slots": 8, "queue_size": 500, "prefill_chunk_tokens": 16} | settings
        loaded = tiny_loaded(llama_tokenizer, model=model)
        made.append(BatchingEngine(loaded, EngineSettings(**values)))
        made[-1].wait_until_warm()
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def ask(prompt: tuple[int, ...], count: int, **more: Any) -> GenerationRequest:
    return GenerationRequest(prompt, SamplingParams(temperature=0, max_new_tokens=count), **more)


async def ids_of(engine: BatchingEngine, request: GenerationRequest) -> tuple[str, int]:
    deltas = [d async for d in await engine.submit(request)]
    return "".join(d.text for d in deltas), deltas[-1].usage.completion_tokens


def text(engine: BatchingEngine, ids: tuple[int, ...]) -> str:
    return engine._vocabulary.decode(ids)


async def test_thousands_of_small_schedules_give_what_transformers_gives(
    make: Make, expected: Any
) -> None:
    """Few blocks, shared prefixes, cancels: the books are checked before every step."""
    draw = random.Random(5)
    engine = make(blocks=12, slots=7)
    steps = watch_books(engine)
    stems = [tuple(draw.randrange(3, 300) for _ in range(40)) for _ in range(3)]

    async def one(index: int) -> None:
        stem = stems[index % 3][: 5 * (index % 9)]
        prompt = (1, *stem, *((index * 7 + i) % 250 + 3 for i in range(index % 4)))
        count = 1 + index % 40
        generation = await engine.submit(ask(prompt, count))
        if index % 11 == 0:
            deltas = aiter(generation)
            if index % 22 == 0:
                await anext(deltas)
            generation.cancel()
            return
        deltas_read = [d async for d in generation]
        wanted = expected(prompt, count)
        assert "".join(d.text for d in deltas_read) == text(engine, wanted)
        assert deltas_read[-1].usage.completion_tokens == len(wanted)

    for start in range(0, 240, 60):
        await asyncio.gather(*(one(i) for i in range(start, start + 60)))
    while engine.load.running:  # noqa: ASYNC110 - the engine's thread has no event
        await asyncio.sleep(0.001)
    load = engine.load
    assert len(steps) > 300
    assert load.preemptions > 0
    assert load.cached_tokens > 0
    assert load.kv_blocks_free == load.kv_blocks


def watch_books(engine: BatchingEngine) -> list[int]:
    machinery, steps = engine._machinery, []
    schedule = machinery.scheduler.schedule

    def checked() -> Any:
        step = schedule()
        machinery.blocks.check([s.blocks for s in machinery.scheduler.running])
        steps.append(len(step.sequences))
        return step

    machinery.scheduler.schedule = checked  # type: ignore[method-assign] # a spy
    return steps


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
async def test_a_batch_gives_what_each_gives_alone(make: Make, expected: Any, batch: int) -> None:
    engine = make(slots=batch)
    prompts = [(1, *range(10 + i, 20 + 2 * i)) for i in range(batch)]

    found = await asyncio.gather(*(ids_of(engine, ask(p, 20)) for p in prompts))

    assert [f[0] for f in found] == [text(engine, expected(p, 20)) for p in prompts]


async def test_a_known_beginning_is_not_computed_again(make: Make, expected: Any) -> None:
    engine = make()
    prompt = (1, *range(30, 130))
    [_ async for _ in await engine.submit(ask(prompt, 5))]

    deltas = [d async for d in await engine.submit(ask((*prompt, 7), 5))]
    other = [d async for d in await engine.submit(ask((*prompt, 7), 5, cache_salt="key"))]

    assert deltas[-1].usage.cached_tokens == 96
    assert other[-1].usage.cached_tokens == 0
    wanted = text(engine, expected((*prompt, 7), 5))
    assert "".join(d.text for d in deltas) == wanted == "".join(d.text for d in other)
    assert engine.load.cached_tokens == 96


async def test_choices_of_one_prompt_compute_it_once(make: Make) -> None:
    engine = make(prefill_chunk_tokens=256)
    widths = widths_of(engine)
    prompt = (1, *range(30, 94))

    await asyncio.gather(*(ids_of(engine, ask(prompt, 3)) for _ in range(4)))

    assert sum(w for w in widths if w > 4) < 2 * len(prompt)


def widths_of(engine: BatchingEngine) -> list[int]:
    widths: list[int] = []
    engine._loaded.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


async def test_a_long_prompt_is_computed_between_the_others_tokens(make: Make) -> None:
    engine = make()
    talking = await engine.submit(
        GenerationRequest((1, 5), SamplingParams(temperature=0, logit_bias={2: -100.0}))
    )
    await anext(aiter(talking))
    widths = widths_of(engine)

    await ids_of(engine, ask((1, *range(5, 105)), 1))

    assert [w for w in widths if w > 1] == [17] * 6 + [6]  # 101 tokens, one more for the other
    talking.cancel()


async def test_a_prompt_that_can_never_fit_is_refused_and_the_context_is_told(make: Make) -> None:
    engine = make(blocks=4)

    assert engine.card.context_tokens == 64 < CONTEXT_TOKENS
    with pytest.raises(Exception, match="do not fit a context of 64 tokens"):
        await engine.submit(ask(tuple(range(3, 80)), 1))
    assert (await ids_of(engine, ask(tuple(range(3, 60)), 100)))[1] <= 7


async def test_a_cancel_gives_its_blocks_back_in_the_next_step(make: Make) -> None:
    engine = make(blocks=40)
    generation = await engine.submit(
        GenerationRequest((1, *range(5, 99)), SamplingParams(temperature=0, logit_bias={2: -100.0}))
    )
    await anext(aiter(generation))
    assert engine.load.kv_blocks_free < engine.load.kv_blocks
    steps = watch_books(engine)

    generation.cancel()
    while engine.load.running:  # noqa: ASYNC110 - the engine's thread has no event
        await asyncio.sleep(0)

    assert len(steps) <= 1
    assert engine.load.kv_blocks_free == engine.load.kv_blocks


async def test_a_failed_step_ends_its_answers_and_no_others(make: Make, expected: Any) -> None:
    engine = make(slots=2)
    run, failing = engine._machinery.run, [True]

    def run_or_fail(step: Any) -> Any:
        if failing and len(step.sequences) == 2:
            failing.clear()
            raise RuntimeError("this step")
        return run(step)

    engine._machinery.run = run_or_fail  # type: ignore[method-assign] # a fault
    results = await asyncio.gather(
        *(ids_of(engine, ask((1, 9, 9 + i), 30)) for i in range(4)), return_exceptions=True
    )

    failed = [r for r in results if isinstance(r, GenerationFailedError)]
    assert len(failed) == 2
    assert engine.is_alive
    wanted = {text(engine, expected((1, 9, 9 + i), 30)) for i in range(4)}
    assert {r[0] for r in results if not isinstance(r, BaseException)} <= wanted


async def test_a_second_failure_in_a_row_rebuilds_the_engine(make: Make, expected: Any) -> None:
    engine = make()
    cache, problems = engine._machinery._cache, []
    run, warm_up = engine._machinery.run, engine._machinery.warm_up

    def fail(step: Any) -> Any:
        raise RuntimeError("again")

    def watched() -> None:
        problems.append(engine.problem)
        engine._machinery.run = run  # type: ignore[method-assign] # mended
        warm_up()

    engine._machinery.run = fail  # type: ignore[method-assign] # a fault
    engine._machinery.warm_up = watched  # type: ignore[method-assign] # a spy
    for _ in range(2):
        with pytest.raises(GenerationFailedError):
            await ids_of(engine, ask((1, 5), 5))
    while not engine.is_alive:  # noqa: ASYNC110 - the engine's thread has no event
        await asyncio.sleep(0.001)

    assert "rebuilt" in str(problems[0])
    assert engine._machinery._cache is not cache
    assert (await ids_of(engine, ask((1, 5), 5)))[0] == text(engine, expected((1, 5), 5))


async def test_an_engine_that_cannot_be_rebuilt_ends_and_says_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make()

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    engine._machinery.run = engine._machinery.warm_up = fail  # type: ignore[assignment, method-assign]
    for _ in range(2):
        with pytest.raises(GenerationFailedError):
            await ids_of(engine, ask((1, 5), 5))
    engine._thread.join(timeout=5)

    # Anybody may ask for the problem; what a library said of it is for the log.
    assert engine.problem == "the engine has failed; the server's log says why"
    assert "the device is gone" in caplog.text
    with pytest.raises(EngineStoppedError, match="the engine has failed"):
        await engine.submit(ask((1, 5), 5))


def shaped(kind: Any, config: Any, size: int, **more: Any) -> Any:
    torch.manual_seed(1)
    made = kind(
        config(
            vocab_size=size, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, head_dim=8, initializer_range=0.5,
            max_position_embeddings=CONTEXT_TOKENS, bos_token_id=1, eos_token_id=2, **more,
        )
    ).eval()  # fmt: skip
    made.generation_config = GenerationConfig()
    return made.requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [
        (Qwen2ForCausalLM, Qwen2Config, {}),
        (Qwen3ForCausalLM, Qwen3Config, {}),
        (MistralForCausalLM, MistralConfig, {"sliding_window": 12}),
    ],
)
async def test_other_families_give_what_transformers_gives(
    make: Make, llama_tokenizer: Any, kind: Any, config: Any, more: Any
) -> None:
    own = shaped(kind, config, len(llama_tokenizer), **more)
    engine = make(model=shaped(kind, config, len(llama_tokenizer), **more))
    prompts = [tuple(range(5, 9 + 9 * i)) for i in range(4)]

    found = await asyncio.gather(*(ids_of(engine, ask(p, 20)) for p in prompts))

    for prompt, (answer, count) in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        wanted = own.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert (answer, count) == (text(engine, tuple(wanted)), len(wanted))


def test_models_that_need_more_are_known(llama_tokenizer: Any) -> None:
    model = tiny_loaded(llama_tokenizer).model
    assert why_not(model) is None
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert "longest" in str(why_not(model))
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in str(why_not(model))


def test_a_model_that_cannot_be_batched_takes_turns_unless_batching_is_asked_for(
    llama_tokenizer: Any,
) -> None:
    loaded = tiny_loaded(llama_tokenizer)
    loaded.model._supports_attention_backend = False

    engine = start_engine(loaded, EngineSettings())
    assert isinstance(engine, StreamingEngine)
    engine.close()
    with pytest.raises(ConfigurationError, match="cannot be batched"):
        start_engine(loaded, EngineSettings(engine="batching"))


def test_a_model_whose_attention_differs_is_noticed(
    llama_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbgpt_guanaco.engine import attention

    monkeypatch.setattr(attention, "_attention", lambda q, *_: q)
    engine = start_engine(tiny_loaded(llama_tokenizer), EngineSettings())

    assert isinstance(engine, StreamingEngine)
    engine.close()


def test_prompts_take_as_much_as_those_who_wait_can_bear() -> None:
    budget = PrefillBudget(alone=64, beside=48, per_decode=2)

    assert [budget.tokens(n) for n in (0, 1, 8, 9, 23, 24, 200)] == [64, 16, 16, 18, 46, 48, 48]
    assert PrefillBudget(64, 48).tokens(1) == 48


def fail_once(of: Any, name: str, error: Exception) -> None:
    """Let a method fail at its next call."""
    right = getattr(of, name)

    def fail(*_: Any, **__: Any) -> Any:
        setattr(of, name, right)
        raise error

    setattr(of, name, fail)


async def test_text_that_fails_ends_its_own_answer_and_no_other(make: Make, expected: Any) -> None:
    """The neighbour has its last token in the same step, and must hear of it."""
    engine, count = make(), 6
    running = [await engine.submit(ask((1, 9, 9 + i), count)) for i in range(3)]
    take = engine._readout._take

    def fail_on_the_second(sequence: Any, *more: Any) -> Any:
        is_last = sequence.answer.completion_tokens == count - 1
        if is_last and sequence.generation is running[1]:
            raise ValueError("its text")
        return take(sequence, *more)

    engine._readout._take = fail_on_the_second  # type: ignore[assignment, method-assign] # a fault

    async def read(generation: Any) -> str:
        return "".join([d.text async for d in generation])

    async with asyncio.timeout(10):
        found = await asyncio.gather(*(read(g) for g in running), return_exceptions=True)

    assert isinstance(found[1], GenerationFailedError)
    for index in (0, 2):
        assert found[index] == text(engine, expected((1, 9, 9 + index), count))
    assert engine.is_alive
    assert engine.load.running == 0
    assert engine.load.kv_blocks_free == engine.load.kv_blocks


async def test_a_request_that_cannot_be_begun_is_told_and_holds_nothing(make: Make) -> None:
    engine = make(slots=1)
    fail_once(engine._machinery.sampler, "open", RuntimeError("no table"))

    async with asyncio.timeout(10):
        with pytest.raises(GenerationFailedError):
            await ids_of(engine, ask((1, 5), 5))
        assert (await ids_of(engine, ask((1, 5), 5)))[1] == 5
    assert engine.is_alive


async def test_wrong_books_end_in_an_error_and_a_new_engine(make: Make, expected: Any) -> None:
    engine = make()
    fail_once(engine._machinery.blocks, "release", ValueError("block 3 is free already"))

    async with asyncio.timeout(10):
        with pytest.raises(GenerationFailedError):
            await ids_of(engine, ask((1, 5), 5))
        while not engine.is_alive:  # noqa: ASYNC110 - the engine's thread has no event
            await asyncio.sleep(0.001)
        assert (await ids_of(engine, ask((1, 5), 5)))[0] == text(engine, expected((1, 5), 5))
    assert engine.load.running == 0


@pytest.mark.parametrize("place", ["waiting", "prefill", "decode"])
async def test_a_cancel_is_done_within_a_step_wherever_the_request_is(
    make: Make, place: str
) -> None:
    engine = make(slots=2)
    engine._machinery.scheduler.budget = PrefillBudget(16, 16)
    talking = [
        await engine.submit(
            GenerationRequest((1, 5 + i), SamplingParams(temperature=0, logit_bias={2: -100.0}))
        )
        for i in range(2 if place == "waiting" else 1)
    ]
    for one in talking:
        await anext(aiter(one))
    held = engine.load.kv_blocks - engine.load.kv_blocks_free
    generation = await engine.submit(
        GenerationRequest((1, *range(5, 99)), SamplingParams(temperature=0, max_new_tokens=50))
    )
    if place == "decode":
        await anext(aiter(generation))
    while place == "prefill" and not engine._machinery.scheduler.running[-1].num_computed > 16:  # noqa: ASYNC110
        await asyncio.sleep(0)

    steps = watch_books(engine)
    generation.cancel()
    async with asyncio.timeout(10):
        last = [d async for d in generation][-1]

    assert last.finish_reason == "cancelled"
    assert len(steps) <= 1
    assert engine.load.waiting == 0
    assert engine.load.running == len(talking)
    assert engine.load.kv_blocks - engine.load.kv_blocks_free <= held + len(talking)
    for one in talking:
        one.cancel()


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
async def test_a_token_without_an_embedding_is_refused_at_the_door(
    make: Make, llama_tokenizer: Any, repetition_penalty: float
) -> None:
    """Guanaco's tokenizer adds a pad token, which LLaMA's 32,000 embeddings lack."""
    size = len(llama_tokenizer) - 1
    engine = make(model=tiny_model(size))
    sampling = SamplingParams(temperature=0, repetition_penalty=repetition_penalty)
    lost = engine._vocabulary.decode((size,))

    for prompt in ((1, 5, size), f"Hello {lost}"):
        with pytest.raises(InvalidRequestError, match=f"token id {size} is not below {size}"):
            await engine.submit(GenerationRequest(prompt, sampling))
    assert (await ids_of(engine, ask((1, 5), 3)))[1] <= 3
