"""``provider = "guanaco"``: token counts and the context length are the server's."""

from collections.abc import Callable
from typing import Any

import pytest
from dbgpt.core import ModelMessage
from dbgpt.model.cluster.worker.default_worker import DefaultModelWorker

from dbgpt_guanaco.dbgpt_plugin.connection import Server

Load = Callable[..., DefaultModelWorker]


async def test_tokens_are_those_of_our_tokenizer(load: Load) -> None:
    worker = load()

    assert await worker.async_count_token("three short words") == 3
    assert worker.count_token("three short words") == 3  # waits, as a thread of DB-GPT may
    assert worker.model.count_token([ModelMessage(role="human", content="two words")]) == 2


async def test_a_count_that_fails_is_minus_one_and_never_tiktokens(
    load: Load, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("tiktoken was asked")

    monkeypatch.setattr("tiktoken.get_encoding", fail)
    monkeypatch.setattr("tiktoken.model.encoding_for_model", fail)
    worker = load(api_base=nobody, context_length=2048)

    assert await worker.async_count_token("some words") == -1
    assert worker.count_token("some words") == -1


def test_the_context_length_is_the_servers(server: Any, load: Load) -> None:
    metadata = load().get_model_metadata({})

    assert (metadata.model, metadata.context_length) == (server.model, 2048)
    assert metadata.ext_metadata.support_system_message


def test_the_tomls_context_length_wins_and_nobody_is_asked(load: Load, nobody: str) -> None:
    worker = load(api_base=nobody, context_length=1234)

    assert worker.get_model_metadata({}).context_length == 1234


def test_dbgpt_starts_without_the_server(
    load: Load, nobody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dbgpt_guanaco.dbgpt_plugin.adapter.WAIT_FOR_SERVER_S", 0.0)

    load(api_base=nobody)

    assert "the context length of guanaco-test is not known: cannot reach" in caplog.text


def test_an_embedding_model_is_no_chat_model(
    server: Any, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    load(name=server.embedding_model)

    told = f"unknown model '{server.embedding_model}'; known: {server.model}."
    assert told in caplog.text


async def test_the_client_alone_knows_its_model(server: Any) -> None:
    from dbgpt_guanaco.dbgpt_plugin.chat import GuanacoLLMClient

    client = GuanacoLLMClient(Server(server.api_base), server.model)

    (metadata,) = await client.models()
    assert (metadata.model, metadata.context_length) == (server.model, 2048)
    assert await client.count_token(server.model, "three short words") == 3
