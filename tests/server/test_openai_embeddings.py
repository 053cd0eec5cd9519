import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import ScriptedEmbedder, ScriptedEngine

from dbgpt_guanaco.errors import EngineBusyError, GenerationFailedError
from dbgpt_guanaco.types import Embeddings

NAME = "all-minilm-l6-v2"


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json=body)


async def test_each_text_gets_its_vector_in_order(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())
    body = (await post(client, model=NAME, input=["a", "bb two", "ccc"])).json()
    assert [(d["index"], d["embedding"]) for d in body["data"]] == [
        (0, [1.0, 0.0, 0.5]),
        (1, [6.0, 1.0, 0.5]),
        (2, [3.0, 2.0, 0.5]),
    ]
    assert {d["object"] for d in body["data"]} == {"embedding"}
    assert (body["object"], body["model"]) == ("list", NAME)
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_a_string_is_a_list_of_one_and_the_model_may_be_left_out(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())
    body = (await post(client, input="four")).json()
    assert [d["embedding"] for d in body["data"]] == [[4.0, 0.0, 0.5]]


async def test_base64_holds_little_endian_floats(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())
    body = (await post(client, input="four", encoding_format="base64")).json()
    raw = base64.b64decode(body["data"][0]["embedding"])
    assert np.frombuffer(raw, dtype="<f4").tolist() == [4.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"input": []}, 400, "input"),
        ({"input": [1, 2]}, 400, "send text"),
        ({"input": [[1, 2]]}, 400, "send text"),
        ({"input": [None]}, 400, "input"),
        ({"input": ["x"] * 2049}, 400, "2048"),
        ({"input": "x", "dimensions": 2}, 400, "has 3"),
        ({"input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "x", "model": "scripted"}, 404, NAME),
        ({"input": "x", "what": 1}, 400, "what"),
        ({}, 400, "input"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    connect: Any, body: dict[str, Any], status: int, told: str
) -> None:
    embedder = ScriptedEmbedder()
    response = await post(connect(ScriptedEngine(), embedder=embedder), **body)
    assert response.status_code == status
    assert told in response.json()["error"]["message"]
    assert embedder.texts == []


async def test_the_models_own_dimension_may_be_named(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())
    assert (await post(client, input="x", dimensions=3)).status_code == 200


@pytest.mark.parametrize(
    ("error", "status"), [(EngineBusyError(3, 0), 429), (GenerationFailedError("no"), 500)]
)
async def test_a_failure_has_its_status(connect: Any, error: Any, status: int) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder(refuse=error))
    assert (await post(client, input="x")).status_code == status


async def test_without_an_embedding_model_the_setting_is_named(connect: Any) -> None:
    response = await post(connect(ScriptedEngine()), input="x")
    assert response.status_code == 404
    assert "EMBEDDING_MODEL" in response.json()["error"]["message"]


async def test_the_list_of_models_states_dimension_normalization_and_length(connect: Any) -> None:
    client = connect(ScriptedEngine(name="guanaco"), embedder=ScriptedEmbedder())
    chat, embedding = (await client.get("/v1/models")).json()["data"]
    assert (chat["id"], chat["kind"]) == ("guanaco", "chat")
    assert (embedding["id"], embedding["kind"]) == (NAME, "embedding")
    assert (embedding["dimension"], embedding["is_normalized"]) == (3, True)
    assert embedding["max_model_len"] == 256
    assert (await client.get(f"/v1/models/{NAME}")).json() == embedding


async def test_an_embedding_model_does_not_chat(connect: Any) -> None:
    client = connect(ScriptedEngine("x"), embedder=ScriptedEmbedder())
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 404


async def test_a_2023_dbgpt_gets_the_same_vector(connect: Any) -> None:
    client = connect(ScriptedEngine(), embedder=ScriptedEmbedder())
    response = await client.post("/embedding", json={"prompt": "four"})
    assert response.json() == {"response": [4.0, 0.0, 0.5]}


async def test_many_vectors_do_not_keep_other_requests_waiting(connect: Any) -> None:
    """Writing 2,000 vectors as JSON takes about a second; health is asked meanwhile."""

    class LargeEmbedder(ScriptedEmbedder):
        async def embed(self, texts: Any) -> Embeddings:
            return Embeddings(((0.123456789,) * 1000,) * len(texts), len(texts))

    client = connect(ScriptedEngine(), embedder=LargeEmbedder())
    large = asyncio.create_task(post(client, input=["x"] * 500))
    answered = 0
    while not large.done():
        await client.get("/health")
        await asyncio.sleep(0)  # in memory nothing else gives way
        answered += 1
    assert (await large).status_code == 200
    assert answered > 50
