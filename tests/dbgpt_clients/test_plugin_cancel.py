"""``provider = "guanaco"``: whoever stops reading frees the place on our server."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import httpx
import pytest
from dbgpt.component import SystemApp
from dbgpt.core import ModelMessage, ModelRequest
from dbgpt.model.cluster.client import DefaultLLMClient
from dbgpt.model.cluster.worker.default_worker import DefaultModelWorker
from dbgpt.model.cluster.worker.manager import LocalWorkerManager
from dbgpt.model.parameter import ModelWorkerParameters
from dbgpt.storage.cache import initialize_cache
from starlette.responses import StreamingResponse

from dbgpt_clients.plugin_worker import all_outputs, params
from dbgpt_guanaco.dbgpt_plugin import hook
from dbgpt_guanaco.dbgpt_plugin.abandonment import AbandonmentWatch

hook({})
from dbgpt_guanaco.dbgpt_plugin.adapter import generate_stream  # noqa: E402

Load = Callable[..., DefaultModelWorker]


async def test_closing_the_stream_cancels_on_the_server(server: Any, load: Load) -> None:
    async with aclosing(load().async_generate_stream(params("[endless]"))) as stream:
        async for output in stream:
            assert output.text.startswith("first")
            break

    assert await server.seconds_until_cancelled() < 1


async def test_closing_the_stream_returns_when_the_connection_is_closed(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a turn of the loop later, when inner generators are collected."""
    closed = []
    close = httpx.Response.aclose

    async def noted(response: httpx.Response) -> None:
        await close(response)
        closed.append(response)

    monkeypatch.setattr(httpx.Response, "aclose", noted)
    model = load().model
    stream = generate_stream(model, model, params("[endless]"), "cpu", 2048)
    await anext(stream)

    await stream.aclose()

    assert len(closed) == 1


async def test_cancelling_a_reader_that_waits_for_text_cancels_on_the_server(
    server: Any, load: Load
) -> None:
    worker = load()
    task = asyncio.create_task(all_outputs(worker.async_generate_stream(params("[slow]"))))
    await asyncio.to_thread(server.wait_until_submitted)
    task.cancel()

    assert await server.seconds_until_cancelled() < 1


async def test_dropping_the_stream_cancels_without_the_garbage_collector(
    server: Any, load: Load
) -> None:
    gc.disable()
    try:
        async for _ in load().async_generate_stream(params("[endless]")):
            break
        assert await server.seconds_until_cancelled() < 1
    finally:
        gc.enable()


async def test_a_cancelled_reader_cancels_at_once_though_the_stream_is_held(
    server: Any, load: Load
) -> None:
    """As AWEL holds it: ``dbgpt/core/awel/task/task_impl.py``."""
    stream = load().async_generate_stream(params("[endless]"))
    arrived = asyncio.Event()

    async def read() -> None:
        await anext(stream)
        arrived.set()
        await asyncio.Event().wait()  # as if it were sending to a browser

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()

    assert await server.seconds_until_cancelled() < 0.25


async def test_a_reader_that_fails_cancels_though_the_stream_is_held(
    server: Any, load: Load
) -> None:
    stream = load().async_generate_stream(params("[endless]"))

    async def read() -> None:
        await anext(stream)
        raise LookupError

    with suppress(LookupError):
        await asyncio.create_task(read())

    assert await server.seconds_until_cancelled() < 1


async def test_a_reader_that_just_ends_cancels_after_a_while(
    server: Any, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DB-GPT's own task does after an error of its own."""
    monkeypatch.setattr("dbgpt_guanaco.dbgpt_plugin.abandonment.GRACE_S", 0.3)
    stream = load().async_generate_stream(params("[endless]"))

    await asyncio.create_task(anext(stream))

    assert await server.seconds_until_cancelled() < 1


async def test_a_reader_with_a_task_for_each_piece_is_left_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks end all the time, and it may be slow to come back."""
    monkeypatch.setattr("dbgpt_guanaco.dbgpt_plugin.abandonment.GRACE_S", 0.05)
    may_send = asyncio.Queue[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while piece := await may_send.get():
            writer.write(piece)
        writer.close()

    async def several_graces() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.2)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        base = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1"
        stream = load(api_base=base, context_length=9).async_generate_stream(params("hi"))
        may_send.put_nowait(b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n')
        assert (await asyncio.create_task(anext(stream))).text == "one"
        waiting = asyncio.create_task(anext(stream))
        await several_graces()
        may_send.put_nowait(b'data: {"choices": [{"delta": {"content": " two"}}]}\n\n')
        assert (await waiting).text == "one two"
        await several_graces()
        may_send.put_nowait(b'data: {"choices": [{"finish_reason": "length"}]}\n\n')
        last = await asyncio.create_task(anext(stream))
        may_send.put_nowait(b"")
        assert [output async for output in stream] == []

    assert (last.text, last.finish_reason, last.error_code) == ("one two", "length", 0)


async def test_the_last_of_several_readers_is_watched_as_well() -> None:
    """Such as one that takes the first piece, to answer with a status, and one for the rest."""
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    with AbandonmentWatch(close) as watch:

        async def read(*, to_the_end: bool) -> None:
            watch.note_reader()
            if to_the_end:
                await asyncio.Event().wait()

        await asyncio.create_task(read(to_the_end=False))
        task = asyncio.create_task(read(to_the_end=True))
        await asyncio.sleep(0)  # it has begun
        assert not closed.is_set()
        task.cancel()
        await asyncio.wait_for(closed.wait(), 0.25)


async def test_a_browser_that_leaves_a_streaming_response_frees_its_place(
    server: Any, load: Load
) -> None:
    """As DB-GPT's web server answers: a ``StreamingResponse`` of its Starlette."""
    worker, left = load(), asyncio.Event()

    async def pieces() -> AsyncIterator[str]:
        async for output in worker.async_generate_stream(params("[endless]")):
            yield output.text

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            left.set()
            await asyncio.Event().wait()  # the browser does not read on

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    await StreamingResponse(pieces())(scope, receive, send)

    assert await server.seconds_until_cancelled() < 1


async def test_a_chat_that_dbgpt_drops_between_two_pieces_frees_its_place(
    server: Any, load: Load
) -> None:
    """Through the operators that DB-GPT's web server chats through."""
    from dbgpt_app.scene.operators.app_operator import build_cached_chat_operator

    from dbgpt_guanaco.dbgpt_plugin.parameters import GuanacoDeployModelParameters

    manager, system = LocalWorkerManager(), SystemApp()
    parameters = GuanacoDeployModelParameters(name=server.model, api_base=server.api_base)
    manager.add_worker(DefaultModelWorker(), ModelWorkerParameters(), parameters)
    await manager.start()
    initialize_cache(system, "memory", 16, "")
    messages = [ModelMessage(role="human", content="[endless]")]
    request = ModelRequest.build_request(server.model, messages, stream=True)
    arrived = asyncio.Event()

    async def chat() -> None:
        operator = build_cached_chat_operator(DefaultLLMClient(manager), True, system)
        async for _ in await operator.call_stream(call_data=request):
            arrived.set()
            await asyncio.Event().wait()  # as if it were sending to a browser

    gc.disable()
    try:
        task = asyncio.create_task(chat())
        await arrived.wait()
        task.cancel()
        assert await server.seconds_until_cancelled() < 1
    finally:
        gc.enable()


async def test_a_long_silence_is_no_end_while_the_server_lives(server: Any, load: Load) -> None:
    """The server's signs of life are chunks without content; they are not shown."""
    texts: list[str] = []

    async def read() -> None:
        async for output in load().async_generate_stream(params("[endless]")):
            texts.append(output.text)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 0.7)  # three signs of life

    assert texts[-1] == "first second"
    assert len(texts) == len(set(texts))
    assert await server.seconds_until_cancelled() < 1
