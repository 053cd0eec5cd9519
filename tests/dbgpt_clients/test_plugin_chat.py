"""``provider = "guanaco"``: answers, through DB-GPT's own worker."""

from collections.abc import Callable
from typing import Any

import pytest
from dbgpt.core import ModelMessage, ModelRequest
from dbgpt.core.interface.llm import DefaultMessageConverter
from dbgpt.model.cluster.worker.default_worker import DefaultModelWorker

from dbgpt_clients.plugin_worker import all_outputs, last_output, params
from dbgpt_guanaco.dbgpt_plugin.connection import Server

Load = Callable[..., DefaultModelWorker]


async def test_an_answer_grows_and_ends_whole(server: Any, load: Load) -> None:
    outputs = await all_outputs(load().async_generate_stream(params("hi")))

    texts = [output.text for output in outputs]
    assert texts[-1] == server.text
    assert all(server.text.startswith(text) for text in texts)
    assert all(output.error_code == 0 for output in outputs)
    assert "\ufffd" not in "".join(texts)


async def test_the_last_output_says_why_it_ended_and_what_it_cost(load: Load) -> None:
    output = await last_output(load(), "hi")

    assert output.finish_reason == "stop"
    assert output.usage == {
        "prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


async def test_a_whole_answer_is_the_last_of_its_stream(server: Any, load: Load) -> None:
    output = await load().async_generate(params("hi"))

    assert (output.text, output.finish_reason) == (server.text, "stop")
    assert output.usage["total_tokens"] == 14


async def test_every_sampling_field_of_dbgpt_reaches_the_engine(server: Any, load: Load) -> None:
    given: dict[str, Any] = {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 40,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_new_tokens": 4000,
        "stop": ["###", "Human:"],
        "stop_token_ids": [5, 6],
    }
    await last_output(load(), "hi", **given)

    request = server.request()
    assert set(given["stop"]) <= set(request.pop("stop"))
    del given["stop"]
    assert {name: request[name] for name in given} == given


@pytest.mark.parametrize("temperature", [0, 0.0])
async def test_a_temperature_of_0_is_not_dropped(
    server: Any, load: Load, temperature: float
) -> None:
    await last_output(load(), "hi", temperature=temperature)

    assert server.request()["temperature"] == 0


async def test_what_was_not_given_is_left_to_the_server(server: Any, load: Load) -> None:
    nothing: dict[str, Any] = {
        "temperature": None,
        "top_p": None,
        "top_k": -1,
        "stop": [],
        "stop_token_ids": [],
    }
    output = await last_output(load(), "hi", **nothing)

    assert output.error_code == 0
    assert server.request()["top_k"] == 0
    assert server.request()["temperature"] == server.default_temperature


async def test_backend_is_the_name_that_is_sent(server: Any, load: Load) -> None:
    worker = load(name="Our assistant", backend=server.model)

    assert (await last_output(worker, "hi")).text == server.text


async def test_a_completion_has_no_chat_template(server: Any, load: Load) -> None:
    request = {"model": "any", "messages": [], "prompt": "Once upon", "chat_model": False}
    outputs = await all_outputs(load().async_generate_stream(request))

    assert outputs[-1].text == server.text
    assert server.request()["prompt"] == "Once upon"


async def test_a_system_message_and_history_are_sent_in_order(server: Any, load: Load) -> None:
    messages = [
        ModelMessage(role=role, content=content)
        for role, content in [("system", "S"), ("human", "Q1"), ("ai", "A1"), ("human", "Q2")]
    ]
    await all_outputs(load().async_generate_stream({"model": "any", "messages": messages}))

    prompt = server.request()["prompt"]
    places = [prompt.index(part) for part in ("S", "Q1", "A1", "Q2")]
    assert places == sorted(places)


async def test_an_empty_answer_is_a_notice(load: Load) -> None:
    output = await last_output(load(), "[empty]")

    assert output.text == "(the model gave an empty answer)"
    assert (output.error_code, output.finish_reason) == (0, "stop")


async def test_the_client_alone_answers(server: Any) -> None:
    from dbgpt_guanaco.dbgpt_plugin.chat import GuanacoLLMClient

    client = GuanacoLLMClient(Server(server.api_base), server.model)
    messages = [ModelMessage(role="human", content="hi")]
    request = ModelRequest.build_request(server.model, messages, temperature=0, stop="###")

    outputs = await all_outputs(client.generate_stream(request, DefaultMessageConverter()))
    whole = await client.generate(request)

    assert outputs[-1].text == whole.text == server.text
    assert (whole.finish_reason, whole.usage["total_tokens"]) == ("stop", 14)
