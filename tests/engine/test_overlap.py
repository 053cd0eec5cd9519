"""Starting a step before the last one's tokens are read, as on a GPU, changes no answer."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batch_sampler import Drawn
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams, Structure

BLOCK_BYTES = 16 * 2 * 2 * 2 * 8 * 4  # tokens, layers, keys and values, heads, size, float32
SLOTS = 6
STEM = tuple(range(5, 45))
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.0, "top_p": 0.9},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    "log-probabilities": {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    "stop": {"temperature": 0, "stop": ("a", "e", "n")},
}
FORM = Structure("regex", "([ab][cd][ef]){3,15}")


@dataclass
class Watched:
    """An engine, and what it did.

    Attributes:
        early: Steps that were started before the tokens of the one before were read.
    """

    engine: BatchingEngine
    early: int = 0


def watch(engine: BatchingEngine, *, overlaps: bool) -> Watched:
    watched, unread = Watched(engine), set[int]()
    machinery, run = engine._machinery, engine._machinery.run
    machinery.overlaps = overlaps

    class Unread(Drawn):
        """Is read once."""

        def token_ids(self) -> list[int]:
            unread.remove(id(self))
            return super().token_ids()

    def counted(step: Any) -> Drawn:
        watched.early += bool(unread)
        drawn = run(step)
        later = Unread(drawn.numbers, None, drawn.count, drawn.told, drawn.width)
        unread.add(id(later))
        return later

    machinery.run = counted  # type: ignore[method-assign] # a spy
    return watched


@pytest.fixture
def make(llama_tokenizer: Any) -> Iterator[Any]:
    made = []

    def start(*, overlaps: bool, blocks: int = 200) -> Watched:
        settings = EngineSettings(
            slots=SLOTS,
            prefill_chunk_tokens=16,
            kv_cache=f"{blocks * BLOCK_BYTES / 1000}KB",
        )
        engine = BatchingEngine(tiny_loaded(llama_tokenizer), settings)
        made.append(engine)
        engine.wait_until_warm()
        return watch(engine, overlaps=overlaps)

    yield start
    for engine in made:
        engine.close()


def asked(index: int, **sampling: Any) -> GenerationRequest:
    prompt = (1, *STEM[: 6 * (index % 7)], *range(50 + index, 54 + index))
    values = {"seed": index, "max_new_tokens": 5 + 3 * index % 30} | sampling
    return GenerationRequest(prompt, SamplingParams(**values))


async def answers(engine: BatchingEngine, requests: list[GenerationRequest]) -> list[Any]:
    async def one(request: GenerationRequest) -> Any:
        deltas = [delta async for delta in await engine.submit(request)]
        told = [(t.token_id, round(t.logprob, 3)) for delta in deltas for t in delta.logprobs]
        end = deltas[-1]
        return "".join(d.text for d in deltas), told, end.finish_reason, end.usage.completion_tokens

    return await asyncio.gather(*(one(request) for request in requests))


@pytest.mark.parametrize("kind", [*KINDS, "all of them"])
async def test_answers_are_the_same(make: Any, kind: str) -> None:
    kinds = list(KINDS.values()) if kind == "all of them" else [KINDS[kind]]
    requests = [asked(n, **kinds[n % len(kinds)]) for n in range(15)]
    plain, early = make(overlaps=False), make(overlaps=True)

    expected = await answers(plain.engine, requests)

    assert await answers(early.engine, requests) == expected
    assert plain.early == 0
    assert early.early > 10
    assert len({text for text, *_ in expected}) > 5


async def test_answers_that_lose_their_blocks_are_the_same(make: Any) -> None:
    requests = [asked(n, temperature=n % 2, max_new_tokens=60) for n in range(12)]
    expected = await answers(make(overlaps=False).engine, requests)
    early = make(overlaps=True, blocks=12)

    assert await answers(early.engine, requests) == expected
    assert early.engine.load.preemptions > 0
    assert early.early > 20
    assert early.engine.load.kv_blocks_free == early.engine.load.kv_blocks


async def test_a_form_is_followed_and_its_neighbours_too(make: Any) -> None:
    """A mask hangs on the token before: while there is one, nothing starts early."""
    requests = [
        asked(n, temperature=1.0, structure=FORM if n % 3 == 0 else None, max_new_tokens=20 + 5 * n)
        for n in range(6)
    ]
    expected = await answers(make(overlaps=False).engine, requests)
    early = make(overlaps=True)

    assert await answers(early.engine, requests) == expected
    assert all(re.match("[ab][cd][ef]", text) for text, *_ in expected[::3])
    assert early.early > 0  # those who were left, without a form


async def test_who_leaves_leaves_at_once_and_the_others_stay_as_they_are(make: Any) -> None:
    requests = [asked(n, temperature=1.0, max_new_tokens=40) for n in range(SLOTS)]
    expected = await answers(make(overlaps=False).engine, requests)
    early = make(overlaps=True)
    endless = asked(30, temperature=0, logit_bias={2: -100.0}, max_new_tokens=200)
    leaving = await early.engine.submit(endless)

    async def leave() -> Any:
        deltas = aiter(leaving)
        for _ in range(5):
            await anext(deltas)
        leaving.cancel()
        return [delta async for delta in deltas][-1]

    last, *found = await asyncio.gather(
        leave(), *(answers(early.engine, [request]) for request in requests)
    )

    assert last.finish_reason == "cancelled"
    assert [one for (one,) in found] == expected
    assert early.engine.load.kv_blocks_free == early.engine.load.kv_blocks


async def test_a_failed_step_ends_its_own_answers_and_those_of_the_step_before(make: Any) -> None:
    early = make(overlaps=True)
    machinery, steps = early.engine._machinery, list[int]()
    run = machinery.run

    def fail_once(step: Any) -> Any:
        steps.append(len(step.sequences))
        if len(steps) == 5:
            raise RuntimeError("this step")
        return run(step)

    machinery.run = fail_once
    requests = [asked(n, temperature=0, max_new_tokens=30) for n in range(3)]
    found = await asyncio.gather(
        *(answers(early.engine, [request]) for request in requests), return_exceptions=True
    )

    assert any(isinstance(one, Exception) for one in found)
    machinery.run = run
    assert await answers(early.engine, requests) == await answers(
        make(overlaps=False).engine, requests
    )
    assert early.engine.is_alive
