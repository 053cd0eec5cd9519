"""A step that does not return: everybody is told; the engine goes on if it does after all."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults.stage import own_threads
from tiny import tiny_loaded
from watched import STUCK, let_time_pass

from dbgpt_guanaco.engine import batching, streaming
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.engine.watchdog import Watchdog
from dbgpt_guanaco.errors import EngineStoppedError
from dbgpt_guanaco.settings import EngineSettings, LifeSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams


class Case:
    """A watchdog over a clock that a test sets; nothing but the test makes it look."""

    def __init__(self) -> None:
        self.now, self.told = 100.0, list[str]()
        self.watchdog = Watchdog(60, self.told.append, lambda: self.now)
        self.watchdog.close()


def test_a_step_is_stuck_when_its_time_is_over_and_lost_after_twice_that() -> None:
    case = Case()
    case.watchdog.begin()
    for now, is_stuck, is_lost in [
        (160.0, False, False),
        (160.1, True, False),
        (220.1, True, True),
    ]:
        case.now = now
        case.watchdog.look()
        assert (bool(case.watchdog.problem), case.watchdog.is_lost) == (is_stuck, is_lost)
    assert case.told == [f"{STUCK} 60 s"]


def test_the_end_of_a_step_says_whether_it_was_stuck_and_clears_it() -> None:
    case = Case()
    case.watchdog.begin()
    assert not case.watchdog.end()
    case.watchdog.begin()
    case.now += 61
    case.watchdog.look()

    assert case.watchdog.end()
    case.now += 1000
    case.watchdog.look()
    assert case.watchdog.problem is None
    assert not case.watchdog.is_lost
    assert not case.watchdog.end()


class Hold:
    """Holds the forward pass of a model when it is told so."""

    def __init__(self, model: Any) -> None:
        self.is_on, self.is_held, self.go = False, threading.Event(), threading.Event()
        model.register_forward_pre_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        if self.is_on:
            self.is_on = False
            self.is_held.set()
            self.go.wait(20)


Make = Callable[..., tuple[Any, Hold]]


@pytest.fixture(params=[BatchingEngine, StreamingEngine])
def make(request: pytest.FixtureRequest, llama_tokenizer: Any) -> Iterator[Make]:
    made = []

    def start(slots: int = 4) -> tuple[Any, Hold]:
        loaded = tiny_loaded(llama_tokenizer, stop_token_ids=frozenset())
        life = LifeSettings(step_timeout_s=600)
        engine = request.param(loaded, EngineSettings(slots=slots), life)
        engine.wait_until_warm()
        made.append((engine, Hold(loaded.model)))
        return made[-1]

    yield start
    for engine, hold in made:
        hold.go.set()
        engine.close()
        engine._thread.join(10)


def ask(count: int) -> GenerationRequest:
    return GenerationRequest((1, 5), SamplingParams(temperature=0, max_new_tokens=count))


async def read(generation: Any) -> int:
    return int([d async for d in generation][-1].usage.completion_tokens)


async def test_a_stuck_step_ends_every_answer_and_the_engine_goes_on_if_it_returns(
    make: Make,
) -> None:
    engine, hold = make(slots=2)
    running = [await engine.submit(ask(240)) for _ in range(2)]
    for generation in running:
        await anext(aiter(generation))
    waiting = await engine.submit(ask(5))
    hold.is_on = True
    await asyncio.to_thread(hold.is_held.wait, 10)
    let_time_pass(engine, 601)
    async with asyncio.timeout(10):
        for generation in (*running, waiting):
            with pytest.raises(EngineStoppedError, match=STUCK):
                await read(generation)

        assert not engine.is_alive
        assert STUCK in engine.problem
        with pytest.raises(EngineStoppedError, match=STUCK):
            await engine.submit(ask(5))
        hold.go.set()
        while not (engine.is_alive and engine.load.running == 0):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await read(await engine.submit(ask(5))) == 5
    load = engine.load
    assert (load.running, load.waiting) == (0, 0)
    assert load.kv_blocks_free == load.kv_blocks


async def test_an_engine_whose_step_never_returns_is_lost_and_does_not_hold_up_its_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, hold = make()
    for module in (batching, streaming):
        monkeypatch.setattr(module, "CLOSE_S", 0.2)
    generation = await engine.submit(ask(240))
    hold.is_on = True
    await asyncio.to_thread(hold.is_held.wait, 10)
    let_time_pass(engine, 601)
    async with asyncio.timeout(10):
        with pytest.raises(EngineStoppedError, match=STUCK):
            await read(generation)
        assert not engine.is_lost
        let_time_pass(engine, 600)
        assert engine.is_lost
        await asyncio.to_thread(engine.close)

    assert engine.is_lost
    assert engine._thread.is_alive()


async def test_closing_tells_everybody_before_the_step_that_runs_is_over(make: Make) -> None:
    engine, hold = make(slots=1)
    running, waiting = [await engine.submit(ask(240)) for _ in range(2)]
    await anext(aiter(running))
    hold.is_on = True
    await asyncio.to_thread(hold.is_held.wait, 10)

    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    async with asyncio.timeout(10):
        for generation in (running, waiting):
            with pytest.raises(EngineStoppedError, match="shutting down"):
                await read(generation)
        assert not closing.done()
        hold.go.set()
        await closing


async def test_the_watchdog_looks_by_itself() -> None:
    told = threading.Event()

    def tell(_: str) -> None:
        told.set()
        time.sleep(0.1)

    before = own_threads()
    watchdog = Watchdog(0.05, tell)
    watchdog.begin()

    assert await asyncio.to_thread(told.wait, 10)
    watchdog.close()
    assert own_threads() <= before, "it is still telling"
