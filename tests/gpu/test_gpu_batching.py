"""The batching engine on a device: graphs, steps that start early, memory. Not run without one."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from margin_rule import KINDS, PROMPTS, ask_all, judge, load, make_folder, with_answers

from dbgpt_guanaco.engine import first_pass
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.passes import RecordedPasses
from dbgpt_guanaco.errors import GenerationFailedError, GuanacoError
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
Make = Callable[..., BatchingEngine]
SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.9},
    "filtered": {"top_p": 0.8, "min_p": 0.01},
    "few": {"top_k": 20},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5, "logit_bias": {7: 1.0}},
    "log-probabilities": {"temperature": 0, "logprobs": True, "top_logprobs": 5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    made = []

    def start(kind: str = "nf4", **settings: Any) -> BatchingEngine:
        values = {"slots": 7, "queue_size": 64, "prefill_chunk_tokens": 16} | settings
        made.append(BatchingEngine(load(folder, kind), EngineSettings(**values)))
        made[-1].wait_until_warm()
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def ask(prompt: tuple[int, ...] = PROMPTS[3], **sampling: Any) -> GenerationRequest:
    values = {"temperature": 0, "max_new_tokens": 20} | sampling
    return GenerationRequest(prompt, SamplingParams(**values))


async def text_of(engine: BatchingEngine, request: GenerationRequest) -> str:
    return "".join([delta.text async for delta in await engine.submit(request)])


async def until_free(engine: BatchingEngine) -> None:
    while engine.load.running or engine.problem:  # noqa: ASYNC110 - its thread has no event
        await asyncio.sleep(0.001)


def is_recorded(engine: BatchingEngine) -> bool:
    return isinstance(engine._machinery._runner._passes, RecordedPasses)


def watch_steps(engine: BatchingEngine, around: Callable[[Callable[[], Any]], Any]) -> None:
    """Let every step be run by somebody else."""
    run = engine._machinery.run
    engine._machinery.run = lambda step: around(lambda: run(step))  # type: ignore[method-assign] # a spy


@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_are_those_of_transformers(make: Make, kind: str) -> None:
    """With cancels, prompts in pieces, shared blocks, and few of them: some are computed twice."""
    engine = make(kind, kv_cache="0.1MB")

    found = await ask_all(engine, PROMPTS)

    await until_free(engine)
    assert engine._machinery.overlaps
    assert is_recorded(engine) == (kind != "int8")
    assert engine.load.preemptions > 0
    assert engine.load.kv_blocks_free == engine.load.kv_blocks
    engine.close()
    judged = judge(engine._loaded, with_answers(PROMPTS, found))
    assert judged.is_right, judged


@pytest.mark.parametrize("slots", [1, 2, 32])
async def test_tokens_are_those_of_transformers_in_any_batch(make: Make, slots: int) -> None:
    engine = make(slots=slots)

    found = await ask_all(engine, PROMPTS)

    engine.close()
    judged = judge(engine._loaded, with_answers(PROMPTS, found))
    assert judged.is_right, judged


async def test_a_model_that_cannot_be_recorded_is_batched_all_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> Any:
        def record(compute: Any) -> Any:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                int(compute().sum())  # a look at a number, which nothing can record

        return record

    monkeypatch.setattr(first_pass, "CudaRecorder", refuse)
    engine = make()

    found = await ask_all(engine, PROMPTS)

    assert "recorded steps are not used" in caplog.text
    assert not is_recorded(engine)
    engine.close()
    judged = judge(engine._loaded, with_answers(PROMPTS, found))
    assert judged.is_right, judged


@pytest.mark.parametrize("kind", SAMPLED)
async def test_a_step_never_waits_for_the_device(make: Make, kind: str) -> None:
    engine = make("none")
    await text_of(engine, ask(**SAMPLED[kind]))  # tables are made, kernels compiled

    def unsynchronized(run: Callable[[], Any]) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    watch_steps(engine, unsynchronized)

    assert await text_of(engine, ask(**SAMPLED[kind]))


async def test_a_seed_gives_the_same_text_again(make: Make) -> None:
    engine = make("none")
    request = ask(temperature=1.0, seed=5, max_new_tokens=40)

    first = await text_of(engine, request)

    assert await text_of(engine, request) == first
    assert await text_of(engine, ask(temperature=1.0, seed=6, max_new_tokens=40)) != first


async def test_a_cancel_gives_blocks_back(make: Make) -> None:
    engine = make()
    endless = ask(logit_bias={1: -100.0}, max_new_tokens=200)
    for deltas_read in (0, 1, 7):
        generation = await engine.submit(endless)
        deltas = aiter(generation)
        for _ in range(deltas_read):
            await anext(deltas)
        generation.cancel()
        await until_free(engine)
        assert engine.load.kv_blocks_free == engine.load.kv_blocks


async def test_a_failed_step_ends_its_answers_and_no_later_ones(make: Make) -> None:
    engine, fails = make(), [3]
    expected = await text_of(engine, ask())

    def fail_once(run: Callable[[], Any]) -> Any:
        fails[0] -= 1
        if fails[0] == 0:
            raise RuntimeError("this step")
        return run()

    watch_steps(engine, fail_once)
    with pytest.raises(GenerationFailedError):
        await text_of(engine, ask())

    assert await text_of(engine, ask()) == expected
    assert engine.is_alive
    assert engine.load.kv_blocks_free == engine.load.kv_blocks


async def test_a_rebuilt_engine_takes_no_more_memory_than_the_old_one(make: Make) -> None:
    """Though whoever was told of the failure still holds its error."""
    engine = make(kv_cache="256MB", slots=32)
    expected, told = await text_of(engine, ask()), list[BaseException]()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    run = engine._machinery.run

    def fail(_: Any) -> Any:
        kept = (engine._machinery._cache, engine._machinery._runner)
        raise RuntimeError(f"{len(kept)} parts are in this frame")

    engine._machinery.run = fail  # type: ignore[assignment, method-assign] # a fault
    warm_up = engine._machinery.warm_up

    def mended() -> None:
        engine._machinery.run = run  # type: ignore[method-assign] # as it was
        warm_up()

    engine._machinery.warm_up = mended  # type: ignore[method-assign] # a spy
    for _ in range(2):
        with pytest.raises(GuanacoError) as raised:
            await text_of(engine, ask())
        told.append(raised.value)
    await until_free(engine)

    assert await text_of(engine, ask()) == expected
    assert is_recorded(engine)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == pytest.approx(before, rel=0.02)


async def test_memory_that_is_gone_fails_no_more_than_it_must(make: Make) -> None:
    engine = make(prefill_chunk_tokens=128, kv_cache="64MB")
    expected = await text_of(engine, ask())
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    hoard = torch.empty(free - 2**21, dtype=torch.uint8, device="cuda")

    outcomes = await asyncio.gather(
        *(text_of(engine, ask((0, *range(3 + n, 200 + n)))) for n in range(7)),
        return_exceptions=True,
    )
    del hoard
    torch.cuda.empty_cache()
    await until_free(engine)

    assert all(isinstance(one, str) or "memory" in str(one) for one in outcomes)
    assert await text_of(engine, ask()) == expected


async def test_a_full_engine_stays_within_what_it_was_given(make: Make) -> None:
    """The cache took what the largest step leaves: the largest steps run, and all is given back."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = make(slots=32, prefill_chunk_tokens=2048)
    requests = [
        ask((n, *range(3, 120 + n)), logprobs=True, top_logprobs=20, top_p=0.9, temperature=1.0)
        for n in range(2, 66)
    ]

    texts = await asyncio.gather(*(text_of(engine, request) for request in requests))

    assert all(texts)
    assert engine.load.preemptions == 0
    assert torch.cuda.mem_get_info()[0] > 2**28
    engine.close()
    engine._machinery = engine._loaded = None  # type: ignore[assignment] # only the engine holds them
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**27
