"""Many more clients at once than there are places, over a real connection each."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from faults.stage import PATIENCE_S, Stage
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.settings import EngineSettings

CLIENTS, PLACES, WAVES = 200, 8, 3
BODY = {"prompt": "Hi", "max_tokens": 20, "temperature": 0}


@pytest.fixture(params=[0, 64, CLIENTS])
def stage(request: pytest.FixtureRequest, llama_tokenizer: Any) -> Iterator[tuple[Stage, int]]:
    loaded = tiny_loaded(llama_tokenizer, stop_token_ids=frozenset())
    settings = EngineSettings(slots=PLACES, queue_size=request.param, prefill_chunk_tokens=256)
    engine = BatchingEngine(loaded, settings)
    engine.wait_until_warm()
    stage = Stage(engine, loaded)
    yield stage, request.param
    stage.close()


async def asked(client: httpx.AsyncClient, number: int) -> httpx.Response:
    return await client.post("/v1/completions", json=BODY | {"stream": bool(number % 2)})


async def test_everybody_is_answered_or_told_when_to_come_back(stage: tuple[Stage, int]) -> None:
    where, queue_size = stage
    limits = httpx.Limits(max_connections=CLIENTS)
    for _ in range(WAVES):
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(base_url=where.address, timeout=PATIENCE_S, limits=limits) as client,
        ):
            responses = await asyncio.gather(*(asked(client, n) for n in range(CLIENTS)))

        statuses = Counter(response.status_code for response in responses)
        assert set(statuses) <= {200, 429}
        assert statuses[200] >= min(CLIENTS, PLACES + queue_size)
        for response in responses:
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1
            else:
                assert "error" not in response.text
        where.assert_all_is_back()
