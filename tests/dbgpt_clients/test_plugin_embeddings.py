"""``provider = "guanaco"`` for knowledge bases, through DB-GPT's own worker."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from dbgpt.model.cluster.worker.embedding_worker import EmbeddingsModelWorker

from dbgpt_guanaco.dbgpt_plugin import hook

hook({})
from dbgpt_guanaco.dbgpt_plugin import embeddings  # noqa: E402
from dbgpt_guanaco.dbgpt_plugin.connection import ServerError  # noqa: E402
from dbgpt_guanaco.dbgpt_plugin.embeddings import (  # noqa: E402
    GuanacoEmbeddingParameters,
    GuanacoEmbeddings,
    batches,
)

Load = Callable[..., GuanacoEmbeddings]


@pytest.fixture
def load(server: Any) -> Load:
    """Return what DB-GPT does with an entry of ``[[models.embeddings]]``."""

    def make(**fields: Any) -> GuanacoEmbeddings:
        given = {"name": server.embedding_model, "api_base": server.api_base} | fields
        parameters = GuanacoEmbeddingParameters(**given)
        return GuanacoEmbeddings.from_parameters(parameters)

    return make


def test_dbgpts_worker_embeds(server: Any) -> None:
    worker = EmbeddingsModelWorker()
    name = server.embedding_model
    worker.load_worker(name, GuanacoEmbeddingParameters(name=name, api_base=server.api_base))
    worker.start()

    vectors = worker.embeddings({"model": name, "input": ["one", "three"]})

    assert [vector[0] for vector in vectors] == [3.0, 5.0]


async def test_four_ways_give_the_same_vectors(load: Load) -> None:
    loaded = load()

    one = await asyncio.to_thread(loaded.embed_query, "知识库")
    assert one == [3.0, 0.0, 0.5]
    assert await asyncio.to_thread(loaded.embed_documents, ["知识库"]) == [one]
    assert await loaded.aembed_documents(["知识库"]) == [one]
    assert await loaded.aembed_query("知识库") == one


@pytest.mark.parametrize("count", [0, 1, 256, 257, 3000])
async def test_a_list_of_any_length_keeps_its_order(server: Any, load: Load, count: int) -> None:
    texts = [f"{'x' * (i % 97)}{i}" for i in range(count)]

    vectors = await load().aembed_documents(texts)

    assert [vector[0] for vector in vectors] == [len(text) for text in texts]
    assert server.texts() == texts


def test_batches_are_small_and_complete() -> None:
    texts = ["a" * n for n in (1, 100_000, 100_000, 5, 1_000_000, 3)] + ["b"] * 600

    cut = batches(texts)

    assert [text for batch in cut for text in batch] == texts
    assert all(len(batch) <= embeddings.BATCH_TEXTS for batch in cut)
    for batch in cut:
        assert len(batch) == 1 or sum(map(len, batch)) <= embeddings.BATCH_CHARACTERS


async def test_a_whole_book_is_cut_to_what_the_server_takes(load: Load) -> None:
    texts = ["字" * 2000] * 1000  # 6 MB of UTF-8, more in JSON

    assert len(await load().aembed_documents(texts)) == 1000


async def test_vectors_out_of_order_are_put_in_order(server: Any, load: Load) -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(h[15:]) for h in head.lower().split(b"\r\n") if h[:15] == b"content-length:"
        )
        texts = json.loads(await reader.readexactly(length))["input"]
        data = [{"index": i, "embedding": [float(i)]} for i in range(len(texts))]
        body = json.dumps({"data": data[::-1]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(backwards, "127.0.0.1", 0) as other:
        base = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1"
        vectors = await load(api_base=base).aembed_documents(["a", "b", "c"])

    assert vectors == [[0.0], [1.0], [2.0]]


def test_backend_and_api_url_are_honoured(server: Any, load: Load) -> None:
    loaded = load(
        name="text2vec",
        backend=server.embedding_model,
        api_base="http://not.asked.invalid/v1",
        api_url=f"{server.api_base}/embeddings",
    )

    assert loaded.embed_query("four") == [4.0, 0.0, 0.5]


def test_an_api_url_that_is_no_address_of_embeddings_is_refused(server: Any, load: Load) -> None:
    with pytest.raises(ValueError, match="does not end in /embeddings"):
        load(api_url=server.api_base)


async def test_an_absent_server_is_told(load: Load, nobody: str) -> None:
    loaded = load(api_base=nobody)
    told = f"cannot reach the Guanaco server at {nobody}: connection refused; is it running"

    with pytest.raises(ServerError, match=told):
        await loaded.aembed_query("x")
    with pytest.raises(ServerError, match=told):
        loaded.embed_query("x")


async def test_an_unknown_model_is_told_with_the_one_that_is_known(server: Any, load: Load) -> None:
    with pytest.raises(ServerError, match=f"no-such.*{server.embedding_model}.*TOML"):
        await load(name="no-such").aembed_query("x")


async def test_a_wrong_api_base_is_told(server: Any, load: Load) -> None:
    with pytest.raises(ServerError, match="is api_base right"):
        await load(api_base=server.address).aembed_query("x")


async def test_too_few_vectors_are_an_error_and_not_a_shift(load: Load) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"data": [{"index": 1, "embedding": [0.5]}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(one, "127.0.0.1", 0) as other:
        base = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1"
        with pytest.raises(ServerError, match="1 vectors came back for 2 texts"):
            await load(api_base=base).aembed_documents(["a", "b"])
