"""Known attacks that reach an engine: after each, it answers the next request."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams, Structure

PROMPT = (1, 50, 60, 70)


@pytest.fixture(scope="module", params=[StreamingEngine, BatchingEngine])
def engine(request: pytest.FixtureRequest, llama_tokenizer: Any) -> Iterator[Any]:
    made = request.param(tiny_loaded(llama_tokenizer), EngineSettings(slots=4, queue_size=8))
    made.wait_until_warm()
    yield made
    made.close()


async def answer(engine: Any, prompt: Any = PROMPT, salt: str = "", **sampling: Any) -> Any:
    """Return the last delta of an answer."""
    values = {"temperature": 0.0, "max_new_tokens": 4} | sampling
    request = GenerationRequest(prompt, SamplingParams(**values), cache_salt=salt)

    async def read() -> Any:
        return [delta async for delta in await engine.submit(request)][-1]

    return await asyncio.wait_for(read(), timeout=60)


async def assert_lives(engine: Any) -> None:
    assert engine.is_alive
    assert (await answer(engine)).finish_reason in ("stop", "length")
    assert (engine.load.running, engine.load.waiting) == (0, 0)


STRUCTURES = [
    Structure("regex", "((((((((((a+)+)+)+)+)+)+)+)+)+)" * 40),
    Structure("regex", "("),
    Structure("regex", "a{1000000000}"),
    Structure("json_schema", json.dumps({"type": "something"})),
    Structure("json_schema", json.dumps({"$ref": "http://evil.example/schema"})),
    Structure("json_schema", json.dumps({"pattern": "(((a*)*)*)*$", "type": "string"})),
    Structure("grammar", "start: start start"),
    Structure("grammar", "start: /(?R)/"),
    Structure("choice", "[]"),
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=range(len(STRUCTURES)))
async def test_no_schema_or_pattern_ends_the_engine(engine: Any, structure: Structure) -> None:
    """PYSEC-2025-54, CVE-2025-48943: a bad schema or regex ended the engine for everybody."""
    with suppress(InvalidRequestError):
        await answer(engine, structure=structure)

    await assert_lives(engine)


ODD: list[dict[str, Any]] = [
    {"temperature": 1e-38},
    {"temperature": 100.0, "top_k": 2**62, "seed": 7},
    {"top_p": 1e-45, "temperature": 1.0},
    {"min_p": 1.0, "typical_p": 1e-45, "temperature": 1.0},
    {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": -2.0},
    {"logit_bias": {2**31: 100.0}},
    {"logit_bias": dict.fromkeys(range(300), -100.0)},
    {"stop_token_ids": (2**31 - 1,)},
    {"stop": tuple("abcdefgh")},
    {"seed": -(2**63)},
    {"logprobs": True, "top_logprobs": 20},
    {"max_new_tokens": 2**31},
    {"prompt": (2**31 - 1,)},
    {"prompt": (-1,)},
    {"prompt": (0,)},
    {"prompt": (2,) * 200},
    {"prompt": "\x00\ufffd\u202e" * 20},
    {"prompt": "\ud800"},
    {"prompt": "a" * 10_000_000},
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_no_odd_request_ends_the_engine(engine: Any, odd: dict[str, Any]) -> None:
    """PYSEC-2026-2303: one odd request failed an assertion, and ended the engine for everybody."""
    with suppress(InvalidRequestError):
        assert (await answer(engine, **odd)).finish_reason in ("stop", "length")

    await assert_lives(engine)


@pytest.mark.parametrize("token_id", [-1, -(2**31), 10**6, 2**31 - 1])
async def test_no_token_id_reads_outside_the_vocabulary(engine: Any, token_id: int) -> None:
    """CVE-2026-21869: a number of a request was an index, and was not looked at."""
    with pytest.raises(InvalidRequestError):
        await answer(engine, prompt=(1, token_id))


async def test_a_cached_prompt_is_nobody_else_s(llama_tokenizer: Any) -> None:
    """CVE-2025-46570: what was computed for one key is not reused for another."""
    engine = BatchingEngine(tiny_loaded(llama_tokenizer), EngineSettings(slots=2))
    prompt = tuple(range(3, 100))
    try:
        engine.wait_until_warm()
        cached = {
            salt + str(turn): (await answer(engine, prompt, salt=salt)).usage.cached_tokens
            for turn, salt in enumerate(["mine", "mine", "yours", ""])
        }
    finally:
        engine.close()

    assert cached["mine0"] == cached["yours2"] == cached["3"] == 0
    assert cached["mine1"] >= 80
