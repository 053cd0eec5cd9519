"""``provider = "guanaco"``: what a person reads in the chat when something is wrong."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from dbgpt.model.cluster.worker.default_worker import DefaultModelWorker

from dbgpt_clients.plugin_worker import all_outputs, last_output, params

Load = Callable[..., DefaultModelWorker]


@pytest.mark.parametrize(
    ("word", "told"),
    [("[error]", "the server is busy"), ("[memory]", "no memory left")],
)
async def test_an_error_inside_an_answer_stands_after_its_text(
    load: Load, word: str, told: str
) -> None:
    outputs = await all_outputs(load().async_generate_stream(params(word)))

    assert outputs[-1].error_code != 0
    # DB-GPT's page shows what comes after the length that it has already.
    assert outputs[-1].text.startswith("some text\n\n")
    assert told in outputs[-1].text


@pytest.mark.parametrize(
    ("word", "told"),
    [("[busy]", "the server is busy: 5 running and 64 waiting"), ("[long]", "do not fit")],
)
async def test_a_refusal_is_told_in_the_servers_words(load: Load, word: str, told: str) -> None:
    output = await last_output(load(), word)

    assert output.error_code != 0
    assert told in output.text


async def test_an_unknown_model_is_told_with_those_that_are_known(server: Any, load: Load) -> None:
    output = await last_output(load(name="no-such", context_length=2048), "hi")

    assert output.error_code != 0
    assert "'no-such'" in output.text
    assert server.model in output.text


async def test_an_absent_server_is_told_in_the_chat(load: Load, nobody: str) -> None:
    output = await last_output(load(api_base=nobody, context_length=2048), "hi")

    assert output.error_code != 0
    assert f"cannot reach the Guanaco server at {nobody}: connection refused" in output.text
    assert "is it running?" in output.text


async def test_an_unknown_host_is_told_in_the_chat(load: Load) -> None:
    base = "http://no-such-host.invalid/v1"
    output = await last_output(load(api_base=base, context_length=2048), "hi")

    assert f"cannot reach the Guanaco server at {base}: unknown host" in output.text


async def test_a_wrong_api_base_is_told_in_the_chat(server: Any, load: Load) -> None:
    output = await last_output(load(api_base=server.address, context_length=2048), "hi")

    assert output.error_code != 0
    assert f"there is no {server.address}/chat/completions (404); is api_base right?" in output.text


async def test_what_is_no_guanaco_server_is_told_in_the_chat(load: Load) -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        base = f"http://127.0.0.1:{port}/v1"
        output = await last_output(load(api_base=base, context_length=2048), "hi")

    assert output.error_code != 0
    assert "text/html, not as a Guanaco server does" in output.text


@pytest.mark.parametrize("cut", ["before its end", "inside a chunk"])
async def test_an_answer_that_breaks_off_is_an_error(load: Load, cut: str) -> None:
    event = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    chunk = f"{len(event):x}\r\n".encode() + event + b"\r\n"

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        writer.write(b"0\r\n\r\n" if cut == "before its end" else b"ff\r\nda")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(half, "127.0.0.1", 0) as other:
        base = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1"
        output = await last_output(load(api_base=base, context_length=2048), "hi")

    assert output.error_code != 0
    assert output.text.startswith("half\n\n")
    assert "broke off before the answer was complete" in output.text


def test_an_address_without_a_scheme_is_refused_at_once(load: Load) -> None:
    with pytest.raises(ValueError, match="is not an address such as http://"):
        load(api_base="127.0.0.1:8000/v1")
