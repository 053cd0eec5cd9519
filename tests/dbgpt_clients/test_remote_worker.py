"""Dialect W: DB-GPT's own client of a cluster's worker against our server."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from dbgpt.core import ModelMessage, ModelOutput, ModelRequest
from dbgpt.core.interface.llm import DefaultMessageConverter
from dbgpt.model.base import WorkerSupportedModel
from dbgpt.model.cluster.worker.remote_worker import RemoteModelWorker

STRICT_KEYS = {"text", "error_code", "model_context"}


@pytest.fixture
def worker(server: Any) -> RemoteModelWorker:
    loaded = RemoteModelWorker()
    loaded.load_worker(server.model, host=server.host, port=server.port)
    return loaded


def params(text: str, **sampling: Any) -> dict[str, Any]:
    """Return what DB-GPT's web server sends, made by its own classes."""
    messages = [
        ModelMessage(role="system", content="S"),
        ModelMessage(role="human", content=text),
    ]
    request = ModelRequest.build_request("guanaco-test", messages, stream=True, **sampling)
    converted = DefaultMessageConverter().convert(request.messages)
    return dict(dataclasses.replace(request, messages=converted).to_dict())


async def outputs_of(stream: AsyncIterator[ModelOutput]) -> list[ModelOutput]:
    return [output async for output in stream]


async def test_an_answer_ends_whole_with_reason_and_usage(
    server: Any, worker: RemoteModelWorker
) -> None:
    outputs = await outputs_of(worker.async_generate_stream(params("hi")))

    last = outputs[-1]
    assert (last.text, last.error_code, last.finish_reason) == (server.text, 0, "stop")
    assert last.usage == {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14}
    assert all(server.text.startswith(output.text) for output in outputs)


async def test_a_whole_answer_is_the_same(server: Any, worker: RemoteModelWorker) -> None:
    output = await worker.async_generate(params("hi"))

    assert (output.text, output.error_code, output.finish_reason) == (server.text, 0, "stop")
    assert output.usage["total_tokens"] == 14


async def test_what_dbgpt_sends_reaches_the_engine(server: Any, worker: RemoteModelWorker) -> None:
    sampling = {"temperature": 0.0, "max_new_tokens": 4000, "top_p": 0.9, "stop": ["###"]}
    await outputs_of(worker.async_generate_stream(params("hi", **sampling)))

    request = server.request()
    assert (request["temperature"], request["top_p"]) == (0, 0.9)
    assert "###" in request["stop"]


async def test_fields_that_only_the_cluster_knows_reach_the_engine(
    server: Any, worker: RemoteModelWorker
) -> None:
    more = {"top_k": 40, "presence_penalty": 0.5, "frequency_penalty": -0.5, "stop_token_ids": [5]}
    await outputs_of(worker.async_generate_stream(params("hi") | more))

    request = server.request()
    assert {name: request[name] for name in more} == more


async def test_nulls_and_unknown_fields_are_no_error(worker: RemoteModelWorker) -> None:
    nulls = {"temperature": None, "stop": None, "top_k": None, "prompt": None, "unheard_of": 1}
    outputs = await outputs_of(worker.async_generate_stream(params("hi") | nulls))

    assert outputs[-1].error_code == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("[error]", "the server is busy"),
        ("[memory]", ""),
        ("[busy]", "the server is busy"),
        ("[long]", "do not fit"),
    ],
)
async def test_every_failure_is_an_output_with_a_text(
    worker: RemoteModelWorker, word: str, told: str
) -> None:
    """This client looks at no status, and loses what is not a frame."""
    for output in (
        (await outputs_of(worker.async_generate_stream(params(word))))[-1],
        await worker.async_generate(params(word)),
    ):
        assert output.error_code != 0
        assert output.text.strip()
        assert told in output.text


async def test_an_empty_answer_is_a_notice(worker: RemoteModelWorker) -> None:
    outputs = await outputs_of(worker.async_generate_stream(params("[empty]")))

    assert outputs[-1].error_code == 0
    assert outputs[-1].text.strip()


async def test_a_body_that_is_wrong_is_an_output_with_a_text(worker: RemoteModelWorker) -> None:
    wrong = params("hi") | {"temperature": "hot"}

    (output,) = await outputs_of(worker.async_generate_stream(wrong))

    assert output.error_code != 0
    assert "temperature" in output.text


async def test_an_unknown_model_is_an_output_with_a_text(worker: RemoteModelWorker) -> None:
    (output,) = await outputs_of(worker.async_generate_stream(params("hi") | {"model": "no-such"}))

    assert output.error_code != 0
    assert "no-such" in output.text


async def test_leaving_while_text_is_awaited_frees_the_place(
    server: Any, worker: RemoteModelWorker
) -> None:
    task = asyncio.create_task(outputs_of(worker.async_generate_stream(params("[slow]"))))
    await asyncio.to_thread(server.wait_until_submitted)
    task.cancel()

    assert await server.seconds_until_cancelled() < 1


async def test_closing_the_stream_frees_the_place(server: Any, worker: RemoteModelWorker) -> None:
    async with aclosing(worker.async_generate_stream(params("[endless]"))) as stream:
        async for _ in stream:
            break

    assert await server.seconds_until_cancelled() < 1


async def test_tokens_are_counted_without_a_model(worker: RemoteModelWorker) -> None:
    """This client never names one."""
    assert await worker.async_count_token("three short words") == 4  # with the opening token


async def test_metadata_is_what_the_strict_class_takes(
    server: Any, worker: RemoteModelWorker
) -> None:
    asked = {"model": server.model, "span_id": "s"}
    metadata = await worker.async_get_model_metadata(asked)

    assert (metadata.model, metadata.context_length) == (server.model, 2048)
    assert metadata.chat_model
    assert metadata.ext_metadata.support_system_message


async def test_both_ways_embed(server: Any, worker: RemoteModelWorker) -> None:
    asked = {"model": server.embedding_model, "input": ["one", "three"]}

    vectors = await worker.async_embeddings(asked | {"span_id": "s", "worker_type": "text2vec"})

    assert vectors == [[3.0, 0.0, 0.5], [5.0, 1.0, 0.5]]
    assert await asyncio.to_thread(worker.embeddings, asked) == vectors


async def test_a_reranker_that_is_not_there_is_told(server: Any, worker: RemoteModelWorker) -> None:
    asked = {
        "model": server.embedding_model,
        "input": ["one"],
        "query": "q",
        "worker_type": "reranker",
    }

    with pytest.raises(Exception, match=r"failed, error: .+"):
        await worker.async_embeddings(asked)


def test_supported_models_are_what_the_strict_class_takes(server: Any) -> None:
    answer = httpx.get(f"{server.address}/api/worker/models/supports", trust_env=False).json()

    models = [m for entry in answer for m in WorkerSupportedModel.from_dict(entry).models]

    assert {(m.model, m.worker_type) for m in models} >= {
        (server.model, "llm"),
        (server.embedding_model, "text2vec"),
    }


# What the wire must look like for the clients before 0.7, which take frames strictly


def frames(server: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = httpx.post(
        f"{server.address}/api/worker/generate_stream",
        json=body,
        headers={"Accept-Encoding": "gzip"},
        trust_env=False,
    )
    assert response.status_code == 200
    assert "content-encoding" not in response.headers
    assert response.content.endswith(b"\0")
    pieces = [piece for piece in response.content.split(b"\0") if piece]
    return [dict(httpx.Response(200, content=piece).json()) for piece in pieces]


@pytest.mark.parametrize("word", ["hi", "[empty]", "[error]", "[memory]", "[busy]", "[long]"])
def test_an_old_client_gets_only_the_keys_it_takes(server: Any, word: str) -> None:
    body = params(word)
    del body["context"]

    assert all(set(frame) == STRICT_KEYS for frame in frames(server, body))


@pytest.mark.parametrize("word", ["hi", "[empty]", "[error]", "[memory]", "[busy]", "[long]"])
def test_a_newer_client_gets_reason_and_usage_and_no_more(server: Any, word: str) -> None:
    for frame in frames(server, params(word)):
        assert STRICT_KEYS <= set(frame) <= STRICT_KEYS | {"finish_reason", "usage"}
