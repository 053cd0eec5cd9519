"""Bodies that a parser would choke on are refused before it sees them."""

import json
from typing import Any

import pytest
from fakes import ScriptedEmbedder, ScriptedEngine
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from dbgpt_guanaco.server import bodies
from dbgpt_guanaco.server.bodies import checked

MANY = 400_000
CHAT = "/v1/chat/completions"
USER = '{"messages": [{"role": "user", "content": "a"}], "%s": %s}'


def is_taken(body: bytes) -> bool:
    try:
        return checked(body) is body
    except HTTPException:
        return False


@pytest.mark.parametrize(
    "body", [b"[" * MANY, b"{" * MANY, b"[" + b"1," * MANY, b'["a"' + b',"a"' * MANY, b'"' * MANY]
)
def test_too_many_parts_are_refused(body: bytes) -> None:
    assert not is_taken(body)


@pytest.mark.parametrize("sign", ["[", "{", ",", '\\"', "\\\\", '\\"[,', '\\\\\\\\\\\\\\",'])
def test_what_stands_in_a_text_does_not_count(sign: str) -> None:
    body = f'{{"prompt": "{sign * MANY}"}}'.encode()

    json.loads(body)
    assert is_taken(body)


def test_what_follows_a_text_full_of_escapes_does_count() -> None:
    assert not is_taken(b'["' + b"\\\\" * MANY + b'"' + b",1" * MANY + b"]")
    assert not is_taken(b'["' + b'\\"' * MANY + b'"' + b",1" * MANY + b"]")


@given(
    st.recursive(
        st.text('ab"\\[]{},:', max_size=12),
        lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text('"\\[,'), part),
        max_leaves=20,
    ),
    st.integers(1, 7),
)
def test_the_count_is_that_of_a_parser(value: Any, piece_bytes: int) -> None:
    def counted(value: Any) -> tuple[int, int]:
        parts = list(value.values()) if isinstance(value, dict) else value
        if isinstance(parts, str):
            return 0, 0
        inner = [counted(part) for part in parts]
        commas = max(len(parts) - 1, 0)
        return 1 + sum(b for b, _ in inner), commas + sum(c for _, c in inner)

    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "PIECE_BYTES", piece_bytes)
        structure = bodies.outside_texts(body)

    assert (structure.count(b"[") + structure.count(b"{"), structure.count(b",")) == counted(value)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, USER % ("tools", "[" + "[]," * MANY + "[]]")),
        (CHAT, USER % ("stop", "[" + "1," * MANY + "1]")),
        (CHAT, "[" * MANY),
        ("/v1/detokenize", '{"tokens": [' + '"",' * MANY + "1]}"),
        ("/v1/load_lora_adapter", '{"x": [' + "0," * MANY + "1]}"),
        ("/generate", '{"prompt": "a", "stop": [' + "1," * MANY + "1]}"),
        ("/embedding", '{"prompt": [' + "1," * MANY + "1]}"),
        ("/api/worker/generate", '{"model": "scripted", "stop": [' + "1," * MANY + "1]}"),
        ("/api/worker/embeddings", '{"model": "a", "input": [' + "1," * MANY + "1]}"),
        ("/api/worker/models/startup", '{"model": [' + "1," * MANY + "1]}"),
        ("/api/controller/models", '{"model_name": [' + "1," * MANY + "1]}"),
    ],
)
async def test_every_route_refuses_them(connect: Any, path: str, body: str) -> None:
    engine = ScriptedEngine("a")
    response = await connect(engine, embedder=ScriptedEmbedder()).post(
        path, content=body, headers={"Content-Type": "application/json"}
    )

    assert "too many parts" in response.text
    assert engine.requests == []


@pytest.mark.parametrize("where", ["body", "message"])
async def test_far_too_many_fields_are_one_complaint(connect: Any, where: str) -> None:
    extra: dict[str, Any] = {str(i): "" for i in range(1000)}
    body = {"messages": [{"role": "user", "content": "a"}]} | (extra if where == "body" else {})
    if where == "message":
        body["messages"][0] |= extra
    response = await connect(ScriptedEngine("a")).post(CHAT, json=body)

    assert response.status_code == 400
    assert "fields are more than the 64 allowed" in response.json()["error"]["message"]


async def test_a_large_body_is_read_as_a_small_one_is(connect: Any) -> None:
    engine = ScriptedEngine("a")
    text = 'Well, "this" is \\ [a] {text}. 你好\n' * 10_000
    response = await connect(engine).post(
        CHAT, json={"messages": [{"role": "user", "content": text}]}
    )

    assert response.status_code == 200
    assert text in engine.requests[0].prompt
