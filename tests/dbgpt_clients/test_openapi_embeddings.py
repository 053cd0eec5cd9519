"""``provider = "proxy/openai"`` for embeddings: DB-GPT's own client against our server."""

import asyncio
from typing import Any

import pytest
from dbgpt.rag.embedding import OpenAPIEmbeddings
from dbgpt.rag.embedding.embeddings import OpenAPIEmbeddingDeployModelParameters


@pytest.fixture
def client(server: Any) -> OpenAPIEmbeddings:
    parameters = OpenAPIEmbeddingDeployModelParameters(
        name="text2vec",
        backend=server.embedding_model,
        api_url=f"{server.api_base}/embeddings",
        api_key="EMPTY",
    )
    return OpenAPIEmbeddings.from_parameters(parameters)


async def test_both_ways_give_the_same_vectors(client: OpenAPIEmbeddings) -> None:
    texts = ["知识库", "four"]

    vectors = await asyncio.to_thread(client.embed_documents, texts)

    assert vectors == [[3.0, 0.0, 0.5], [4.0, 1.0, 0.5]]
    assert await client.aembed_documents(texts) == vectors
    assert await asyncio.to_thread(client.embed_query, "知识库") == vectors[0]


async def test_a_client_without_a_key_is_served(server: Any) -> None:
    """It sends ``Bearer None``."""
    client = OpenAPIEmbeddings(
        api_url=f"{server.api_base}/embeddings", model_name=server.embedding_model
    )

    assert await client.aembed_query("four") == [4.0, 0.0, 0.5]
    assert await asyncio.to_thread(client.embed_query, "four") == [4.0, 0.0, 0.5]


async def test_a_document_of_many_pieces_keeps_its_order(
    server: Any, client: OpenAPIEmbeddings
) -> None:
    """This client sends them all at once."""
    texts = ["x" * (i % 50 + 1) for i in range(2000)]

    vectors = await client.aembed_documents(texts)

    assert [vector[0] for vector in vectors] == [len(text) for text in texts]
    assert server.texts() == texts


async def test_an_unknown_model_is_an_error(server: Any) -> None:
    client = OpenAPIEmbeddings(api_url=f"{server.api_base}/embeddings", model_name="no-such")

    with pytest.raises(Exception, match="404"):
        await client.aembed_query("x")
    with pytest.raises(Exception, match="404"):
        await asyncio.to_thread(client.embed_query, "x")
