"""What one key has used up, it alone waits for."""

import asyncio
from typing import Any

import httpx
import pytest
from fakes import PROMPT_TOKENS, ScriptedEmbedder, ScriptedEngine
from pydantic import SecretStr

from dbgpt_guanaco.errors import ConfigurationError, EngineBusyError, QuotaExceededError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.keys import check_access
from dbgpt_guanaco.server.quotas import Quota
from dbgpt_guanaco.settings import AccessSettings

ANN, BOB, ADMIN = "the-key-of-ann-itself", "the-key-of-bob-itself", "the-key-of-the-admin"
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class House:
    """An app with quotas, and people who ask it."""

    def __init__(self, engine: ScriptedEngine, **limits: int) -> None:
        access = AccessSettings(
            api_keys=(SecretStr(ANN), SecretStr(BOB)), admin_key=SecretStr(ADMIN), **limits
        )
        app = create_app(engine, embedder=ScriptedEmbedder(), access=access)
        transport = httpx.ASGITransport(app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def post(
        self, key: str | None, path: str = "/v1/chat/completions", body: Any = CHAT
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self._client.post(path, json=body, headers=headers)

    async def get(self, path: str) -> httpx.Response:
        return await self._client.get(path, headers={"Authorization": f"Bearer {ADMIN}"})


async def test_a_key_has_so_many_requests_running() -> None:
    engine = ScriptedEngine("Hi", endless=True)
    house = House(engine, key_max_running=1)
    running = asyncio.create_task(house.post(ANN))
    while not engine.generations:  # noqa: ASYNC110  # the app has no event for it
        await asyncio.sleep(0)

    refused = await house.post(ANN)
    others = [asyncio.create_task(house.post(key)) for key in (BOB, ADMIN, ADMIN)]
    async with asyncio.timeout(5):
        while len(engine.generations) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
    for generation in engine.generations:
        generation.cancel()
    answers = await asyncio.gather(running, *others)

    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert [answer.status_code for answer in answers] == [200] * 4


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT | {"n": 2}), ("/v1/completions", {"prompt": ["a", "b"]})],
)
async def test_each_answer_of_a_request_has_a_place(path: str, body: Any) -> None:
    engine = ScriptedEngine("Hi", endless=True)
    house = House(engine, key_max_running=3)

    for _ in range(2):  # all three places are back after the first time
        engine.generations.clear()
        running = asyncio.create_task(house.post(ANN, path, body))
        async with asyncio.timeout(5):
            while len(engine.generations) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            refused = await house.post(ANN, path, body)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "may have 3 answers running; 2 run, and 2 more" in refused.text
        assert len(engine.generations) == 2, "none of it was begun"
        for generation in engine.generations:
            generation.cancel()
        assert (await running).status_code == 200

        never = await house.post(ANN, body=CHAT | {"n": 4})
        assert never.status_code == 400
        assert never.json()["error"]["param"] == "n"
    metrics = (await house.get("/metrics")).text
    assert 'guanaco_request_refusals_total{cause="running",model_name=""} 2.0' in metrics


async def test_who_leaves_before_an_answer_pays_for_the_prompt() -> None:
    engine = ScriptedEngine(endless=True)
    house = House(engine, key_tokens_per_minute=PROMPT_TOKENS)
    leaver = asyncio.create_task(house.post(ANN, "/generate", {"prompt": "Hello"}))
    async with asyncio.timeout(5):  # let in, the second would wait for ever
        while not (engine.generations and engine.generations[0].was_read):  # noqa: ASYNC110
            await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.wait([leaver])
        assert (await house.post(ANN)).status_code == 429


async def test_who_is_refused_pays_for_nothing() -> None:
    engine = ScriptedEngine("Hi", refuse=EngineBusyError(1, 1), refuse_after=1)
    house = House(engine, key_tokens_per_minute=1)

    for _ in range(2):  # the first of two answers had been accepted
        engine.requests.clear()
        refused = await house.post(ANN, body=CHAT | {"n": 2})
        assert (refused.status_code, "server is busy" in refused.text) == (429, True)


async def test_a_place_is_given_back_however_a_request_ends() -> None:
    house = House(ScriptedEngine("Hi", refuse=ConfigurationError("no")), key_max_running=1)
    for body in ({}, CHAT, {"messages": 5}, CHAT):
        assert (await house.post(ANN, body=body)).status_code in (400, 500)


@pytest.mark.parametrize(
    ("path", "body", "cost"),
    [
        ("/v1/chat/completions", CHAT, PROMPT_TOKENS + 3),
        ("/v1/chat/completions", CHAT | {"stream": True}, PROMPT_TOKENS + 3),
        ("/v1/chat/completions", CHAT | {"n": 2}, 2 * (PROMPT_TOKENS + 3)),
        ("/v1/completions", {"prompt": ["a", "b"]}, 2 * (PROMPT_TOKENS + 3)),
        ("/v1/embeddings", {"input": ["one two", "three"]}, 3),
        ("/generate", {"prompt": "Hello"}, PROMPT_TOKENS + 3),
        ("/generate_stream", {"prompt": "Hello"}, PROMPT_TOKENS + 3),
        ("/api/worker/generate", {"model": "scripted", "prompt": "a"}, PROMPT_TOKENS + 3),
        ("/api/worker/embeddings", {"model": "all-minilm-l6-v2", "input": ["one two"]}, 2),
        ("/v1/tokenize", {"prompt": "one two"}, 0),
    ],
)
async def test_a_request_pays_for_what_it_used(path: str, body: Any, cost: int) -> None:
    async def lets_in_twice(limit: int) -> bool:
        house = House(ScriptedEngine("a", "b", "c"), key_tokens_per_minute=limit)
        assert (await house.post(ANN, path, body)).status_code == 200
        return (await house.post(ANN, path, body)).status_code == 200

    assert not cost or not await lets_in_twice(cost)
    assert await lets_in_twice(cost + 1)


async def test_who_has_used_up_the_tokens_is_told_how_long_to_wait() -> None:
    house = House(ScriptedEngine("a", "b", "c"), key_tokens_per_minute=6)
    assert (await house.post(ANN)).status_code == 200  # 10 tokens: 4 are owed

    refused = await house.post(ANN)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "50"  # for those and one more, at one in 10 s
    frame = await house.post(ANN, "/api/worker/generate_stream", {})
    assert (frame.status_code, frame.headers["Retry-After"]) == (429, "50")
    assert "tokens a minute" in frame.text
    for key in (BOB, ADMIN, ADMIN, None, None):
        assert (await house.post(key, "/generate", {"prompt": "a"})).status_code == 200


def test_tokens_come_back_with_time_and_no_more_than_a_minute_s() -> None:
    clock = Clock()
    quota = Quota(AccessSettings(key_tokens_per_minute=60), clock)
    quota.begin()
    quota.end(100)

    for clock.now, retry_s in ((0.0, 41), (10.5, 31), (40.9, 1)):
        with pytest.raises(QuotaExceededError) as refused:
            quota.begin()
        assert refused.value.retry_after_s == retry_s
    clock.now = 41.0
    quota.begin()

    clock.now = 10_000.0
    quota.begin()
    quota.end(60)
    with pytest.raises(QuotaExceededError):
        quota.begin()


@pytest.mark.parametrize("limit", ["key_max_running", "key_tokens_per_minute"])
def test_limits_of_keys_need_keys(limit: str) -> None:
    with pytest.raises(ConfigurationError, match="GUANACO_API_KEYS"):
        check_access(AccessSettings.model_validate({limit: 5}), "127.0.0.1")
