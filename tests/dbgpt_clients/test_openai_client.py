"""``provider = "proxy/openai"``: DB-GPT's own client of OpenAI's dialect against our server."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from dbgpt.core import ModelMessage, ModelOutput, ModelRequest
from dbgpt.model.proxy.llms.chatgpt import OpenAILLMClient

FAILED = "**LLMServer Generate Error, Please CheckErrorInfo.**"


@pytest.fixture
def client(server: Any) -> OpenAILLMClient:
    return OpenAILLMClient(api_key="EMPTY", api_base=server.api_base, model=server.model)


def request_for(text: str, **sampling: Any) -> ModelRequest:
    messages = [
        ModelMessage(role="system", content="S"),
        ModelMessage(role="human", content=text),
    ]
    return ModelRequest.build_request("guanaco-test", messages, stream=True, **sampling)


async def outputs_of(stream: AsyncIterator[ModelOutput]) -> list[ModelOutput]:
    return [output async for output in stream]


async def test_a_stream_is_the_whole_text_with_its_usage(
    server: Any, client: OpenAILLMClient
) -> None:
    outputs = await outputs_of(client.generate_stream(request_for("hi")))

    assert outputs[-1].text == server.text
    assert outputs[-1].error_code == 0
    usage = outputs[-1].usage
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 7)
    assert all(server.text.startswith(output.text) for output in outputs)


async def test_a_whole_answer_has_its_usage(server: Any, client: OpenAILLMClient) -> None:
    output = await client.generate(request_for("hi"))

    assert (output.text, output.error_code) == (server.text, 0)
    assert output.usage["total_tokens"] == 14


async def test_what_the_pages_send_reaches_the_engine(server: Any, client: OpenAILLMClient) -> None:
    sampling = {"temperature": 0.5, "max_new_tokens": 4000, "top_p": 0.9, "stop": ["###"]}
    await outputs_of(client.generate_stream(request_for("hi", **sampling)))

    request = server.request()
    assert (request["temperature"], request["top_p"]) == (0.5, 0.9)
    assert request["max_new_tokens"] == 4000
    assert "###" in request["stop"]
    assert "S" in request["prompt"]


async def test_this_client_drops_a_temperature_of_0(server: Any, client: OpenAILLMClient) -> None:
    """Why there is a plugin, and why the server's default matters."""
    await outputs_of(client.generate_stream(request_for("hi", temperature=0)))

    assert server.request()["temperature"] == server.default_temperature


async def test_a_list_of_text_parts_is_understood(server: Any, client: OpenAILLMClient) -> None:
    parts = [{"type": "text", "object": {"data": "part one", "format": "text"}}]
    messages = [ModelMessage(role="human", content=parts)]
    request = ModelRequest.build_request("guanaco-test", messages, stream=True)

    assert (await outputs_of(client.generate_stream(request)))[-1].text == server.text
    assert "part one" in server.request()["prompt"]


async def test_several_system_messages_are_understood(server: Any, client: OpenAILLMClient) -> None:
    messages = [
        ModelMessage(role=role, content=content)
        for role, content in [("system", "S1"), ("human", "Q1"), ("ai", "A1"), ("system", "S2"),
                              ("human", "Q2")]
    ]  # fmt: skip
    request = ModelRequest.build_request("guanaco-test", messages, stream=True)

    assert (await outputs_of(client.generate_stream(request)))[-1].text == server.text
    assert all(part in server.request()["prompt"] for part in ("S1", "S2", "Q1", "A1", "Q2"))


@pytest.mark.parametrize("word", ["[long]", "[busy]"])
async def test_a_refusal_is_told_by_a_whole_answer(client: OpenAILLMClient, word: str) -> None:
    output = await client.generate(request_for(word))

    told = {"[long]": "shorten the conversation", "[busy]": "the server is busy"}[word]
    assert output.error_code == 1
    assert output.text.startswith(FAILED)
    assert told in output.text


async def test_a_prompt_that_is_too_long_is_told_by_a_stream(client: OpenAILLMClient) -> None:
    """The worker around this client shows what it raises: ``default_worker.py``."""
    with pytest.raises(Exception, match="shorten the conversation"):
        await outputs_of(client.generate_stream(request_for("[long]")))


async def test_an_unknown_model_is_told_with_those_that_are_known(server: Any) -> None:
    client = OpenAILLMClient(api_key="EMPTY", api_base=server.api_base, model="no-such")
    request = request_for("hi")
    request.model = "no-such"

    with pytest.raises(Exception, match=f"unknown model 'no-such'; known: {server.model}"):
        await outputs_of(client.generate_stream(request))


@pytest.mark.parametrize(
    ("word", "told"), [("[error]", "the server is busy"), ("[memory]", "no memory left")]
)
async def test_an_error_inside_a_stream_is_raised_after_its_text(
    client: OpenAILLMClient, word: str, told: str
) -> None:
    texts = []
    with pytest.raises(Exception, match=told):  # noqa: PT012
        async for output in client.generate_stream(request_for(word)):
            texts.append(output.text)

    assert texts == ["some text"]


async def test_an_empty_stream_brings_no_output(client: OpenAILLMClient) -> None:
    """DB-GPT then shows an error of its own; ``ARCHITECTURE.md`` says why it is so."""
    assert await outputs_of(client.generate_stream(request_for("[empty]"))) == []


async def test_closing_the_stream_cancels_on_the_server(
    server: Any, client: OpenAILLMClient
) -> None:
    task = asyncio.create_task(outputs_of(client.generate_stream(request_for("[slow]"))))
    await asyncio.to_thread(server.wait_until_submitted)
    task.cancel()

    assert await server.seconds_until_cancelled() < 1


async def test_this_client_leaves_an_answer_running_until_it_is_collected(
    server: Any, client: OpenAILLMClient
) -> None:
    """Why there is a plugin: closing this client's stream closes no connection."""
    gc.disable()
    try:
        async with aclosing(client.generate_stream(request_for("[endless]"))) as stream:
            async for _ in stream:
                break
        assert await server.goes_on_for(1.5)
    finally:
        gc.enable()
    gc.collect()
    assert await server.seconds_until_cancelled() < 1


async def test_the_apiservers_prefix_is_understood_as_well(server: Any) -> None:
    base = f"{server.address}/api/v1"
    client = OpenAILLMClient(api_key="EMPTY", api_base=base, model=server.model)

    assert (await client.generate(request_for("hi"))).text == server.text
