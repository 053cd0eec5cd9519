"""The hook ``end_abandoned_answers``: DB-GPT's own clients free a place when the reader leaves."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from dbgpt.core import ModelMessage, ModelRequest
from dbgpt.model.cluster.worker.remote_worker import RemoteModelWorker
from dbgpt.model.proxy.llms.chatgpt import OpenAILLMClient

from dbgpt_guanaco.dbgpt_plugin import end_abandoned_answers

HOOKED = [(RemoteModelWorker, "async_generate_stream"), (OpenAILLMClient, "generate_stream_v1")]


@pytest.fixture(autouse=True)
def _own_clients_stay_as_they_are_for_other_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    for owner, name in HOOKED:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    gc.disable()
    yield
    gc.enable()


def request_of(server: Any, text: str) -> ModelRequest:
    messages = [ModelMessage(role="human", content=text)]
    return ModelRequest.build_request(server.model, messages, stream=True)


def through_openai(server: Any, text: str) -> AsyncIterator[Any]:
    client = OpenAILLMClient(
        api_key="EMPTY", api_base=server.api_base, model=server.model, model_alias=server.model
    )
    stream: AsyncIterator[Any] = client.generate_stream(request_of(server, text))
    return stream


def through_cluster(server: Any, text: str) -> AsyncIterator[Any]:
    worker = RemoteModelWorker()
    worker.load_worker(server.model, host=server.host, port=server.port)
    stream: AsyncIterator[Any] = worker.async_generate_stream(request_of(server, text).to_dict())
    return stream


WAYS = pytest.mark.parametrize("way", [through_openai, through_cluster])


async def leave_between_two_pieces(stream: AsyncIterator[Any]) -> None:
    """Do as DB-GPT's web server, which sleeps or sends when its browser leaves."""
    arrived = asyncio.Event()

    async def read() -> None:
        await anext(stream)
        arrived.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()


@WAYS
async def test_a_reader_that_leaves_frees_its_place(server: Any, way: Any) -> None:
    end_abandoned_answers({})
    stream = way(server, "[endless]")
    await leave_between_two_pieces(stream)

    assert await server.seconds_until_cancelled() < 0.5


@WAYS
async def test_without_the_hook_the_place_stays_taken(server: Any, way: Any) -> None:
    """Why there is such a hook. When this fails, DB-GPT has learnt it."""
    stream = way(server, "[endless]")
    await leave_between_two_pieces(stream)

    assert await server.goes_on_for(0.7)
    await stream.aclose()


@WAYS
async def test_a_reader_that_takes_its_first_piece_in_another_task_may_be_slow(
    server: Any, way: Any
) -> None:
    """As ``dbgpt/core/awel/trigger/iterator_trigger.py`` reads."""
    end_abandoned_answers({})
    stream = way(server, "hi")
    first = await asyncio.wait_for(anext(stream), 5)
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.8)

    rest = [output.text async for output in stream]

    assert [first.text, *rest][-1] == server.text


@WAYS
async def test_who_comes_back_to_an_answer_that_was_given_up_is_told(
    server: Any, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbgpt_guanaco.dbgpt_plugin.abandonment.GRACE_S", 0.05)
    end_abandoned_answers({})
    stream = way(server, "[endless]")
    await asyncio.wait_for(anext(stream), 5)
    assert await server.seconds_until_cancelled() < 1

    with pytest.raises(Exception, match=r"given up|[Cc]onnection|closed"):
        async for _ in stream:
            pass


@WAYS
async def test_an_answer_that_is_read_is_whole(server: Any, way: Any) -> None:
    end_abandoned_answers({})

    assert [output.text async for output in way(server, "hi")][-1] == server.text


def test_it_changes_nothing_but_the_clients_and_may_be_called_again() -> None:
    config: dict[str, Any] = {"hooks": []}
    assert end_abandoned_answers(config) is config
    once = [getattr(owner, name) for owner, name in HOOKED]
    end_abandoned_answers(config)
    assert [getattr(owner, name) for owner, name in HOOKED] == once
