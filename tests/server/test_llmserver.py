import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fakes import ScriptedEngine
from legacy_clients import CLIENTS, LegacyClient, parse_generate

from dbgpt_guanaco.errors import (
    EngineBusyError,
    GenerationFailedError,
    GuanacoError,
    OutOfMemoryError,
)
from dbgpt_guanaco.server.llmserver import EMPTY_ANSWER, text_frames
from dbgpt_guanaco.server.rendered_prompts import parse_prompt
from dbgpt_guanaco.settings import ServerSettings

V01_PROMPT = (
    "A chat between a curious human and an assistant.###USER: What is 1+1?###Assistant: 2"
    "###USER: hi###Assistant:"
)
V02_PROMPT = "You answer about databases.###human:first?###ai:one###human:hi###"


def frames(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.content.endswith(b"\0")
    return [json.loads(piece) for piece in response.content.split(b"\0") if piece]


def texts(response: httpx.Response) -> list[str]:
    return [frame["text"] for frame in frames(response)]


async def test_a_stream_is_whole_texts_ended_by_nul(connect: Any) -> None:
    client = connect(ScriptedEngine("法国的", "首都是", "巴黎"), legacy_frame_s=0)

    response = await client.post("/generate_stream", json={"prompt": "hi"})

    got = texts(response)
    assert got[-1] == "法国的首都是巴黎"
    assert all(later.startswith(earlier) for earlier, later in pairwise(got))
    assert "content-type" not in response.headers
    assert all(
        f["model_context"] == {"prompt_echo_len_char": 0, "echo": False} and f["error_code"] == 0
        for f in frames(response)
    )


async def test_frames_are_throttled_and_the_last_one_is_whole(connect: Any) -> None:
    """Each frame repeats the whole text, so one for each token would cost quadratic bytes."""
    words = [f"word{i} " for i in range(400)]
    client = connect(ScriptedEngine(*words), legacy_frame_s=5)

    got = texts(await client.post("/generate_stream", json={"prompt": "hi"}))

    assert got[-1] == "".join(words)
    assert len(got) == 2  # the first at once, the last at the end


class SlowGeneration:
    """Gives its first text when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __aiter__(self) -> Any:
        from dbgpt_guanaco.types import TextDelta, Usage

        await self.go.wait()
        yield TextDelta("late", Usage(1, 1), "stop")

    def cancel(self) -> None: ...


async def test_a_slow_first_token_is_bridged_by_nul_bytes() -> None:
    generation = SlowGeneration()
    stream = text_frames(generation, "", ServerSettings(keep_alive_s=0.01))  # type: ignore[arg-type]

    first = [await anext(stream) for _ in range(3)]
    generation.go.set()
    rest = [frame async for frame in stream]

    assert first == [b"\0"] * 3
    assert json.loads(rest[-1].rstrip(b"\0"))["text"] == "late"


@pytest.mark.parametrize("body", [
    {"prompt": "hi"},
    {"prompt": "hi", "model": "x", "temperature": 0.5, "max_new_tokens": 5, "stop": None},
    {"prompt": "hi", "stop": "###"},
    {"prompt": "hi", "stop": ""},
    {"prompt": "hi", "stop": ["a", "b"]},
    {"prompt": "hi", "stop": [], "something": {"else": 1}},
    {"messages": [{"role": "human", "content": "hi"}], "prompt": "", "echo": False},
])  # fmt: skip
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
async def test_bodies_are_read_liberally(
    connect: Any, body: dict[str, Any], content_type: str | None
) -> None:
    engine = ScriptedEngine("a")
    headers = {"content-type": content_type} if content_type else {}

    response = await connect(engine).post(
        "/generate_stream", content=json.dumps(body), headers=headers
    )

    assert response.status_code == 200
    assert str(engine.requests[0].prompt).endswith("### Human: hi\n### Assistant:")


async def test_what_is_asked_for_is_honoured(connect: Any) -> None:
    engine = ScriptedEngine("a")
    body = {"prompt": "hi", "temperature": 0, "max_new_tokens": 9, "stop": "###", "top_k": 4}

    await connect(engine).post("/generate_stream", json=body)

    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.max_new_tokens, sampling.top_k) == (0, 9, 4)
    assert sampling.stop == ("### Human:", "### Assistant:", "###")
    assert engine.requests[0].truncate_prompt_tokens == 0  # a long prompt keeps its newest tokens


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (V01_PROMPT, [
            ("system", "A chat between a curious human and an assistant."),
            ("user", "What is 1+1?"), ("assistant", "2"), ("user", "hi"),
        ]),
        (V02_PROMPT, [
            ("system", "You answer about databases."),
            ("user", "first?"), ("assistant", "one"), ("user", "hi"),
        ]),
        ("system:S###user:hi###", [("system", "S"), ("user", "hi")]),
        ("plain question", [("user", "plain question")]),
        ("### heading\ntext", [("user", "### heading\ntext")]),
        ("define###human:see\n### A heading\nbelow###", [
            ("system", "define"), ("user", "see\n### A heading\nbelow"),
        ]),
        ("human: note: the ratio 1:2###", [("user", "note: the ratio 1:2")]),
        ("ai:only an answer###", [("user", "ai:only an answer###")]),
    ],
)  # fmt: skip
def test_a_rendered_prompt_is_read_back(prompt: str, expected: list[tuple[str, str]]) -> None:
    assert [(m.role, m.content) for m in parse_prompt(prompt)] == expected


@pytest.mark.parametrize("name", ["guanaco-33b-merged", "vicuna-13b", "llama-2-7b", "my-model"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.version)
async def test_every_2023_client_shows_the_plain_answer(
    connect: Any, client: LegacyClient, name: str
) -> None:
    """The padding matrix: what each client's cutting leaves is the answer, for each name."""
    answer = "Hello World\nline2"
    mode = "prompt" if client.version == "v0.2.0" and "guanaco" in name else "auto"
    http = connect(ScriptedEngine("Hello ", "World\n", "line2"), legacy_echo=mode)

    response = await http.post("/generate_stream", json=client.body(name))

    assert client.shown(response.content, name) == answer


@pytest.mark.parametrize("name", ["guanaco-33b-merged", "vicuna-13b", "my-model"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.version)
@pytest.mark.parametrize("is_refused", [True, False])
async def test_every_2023_client_shows_an_error_whole(
    connect: Any, client: LegacyClient, name: str, is_refused: bool
) -> None:
    mode = "prompt" if client.version == "v0.2.0" and "guanaco" in name else "auto"
    error = GenerationFailedError("it failed")
    engine = ScriptedEngine(refuse=error) if is_refused else ScriptedEngine(error)

    response = await connect(engine, legacy_echo=mode).post(
        "/generate_stream", json=client.body(name)
    )

    assert client.shown(response.content, name) == (
        "**LLMServer Generate Error, Please CheckErrorInfo.**: it failed"
    )


@pytest.mark.parametrize("mode", ["none", "pad11", "prompt"])
async def test_the_padding_can_be_set(connect: Any, mode: str) -> None:
    client = connect(ScriptedEngine("answer"), legacy_echo=mode)

    got = texts(await client.post("/generate_stream", json={"prompt": "hi</s>"}))

    padding = {"none": "", "pad11": "Assistant: ", "prompt": "hi Assistant: "}[mode]
    assert got[-1] == f"{padding}answer"


@pytest.mark.parametrize("version", ["v0.1", "v0.2.0", "v0.2.2", "v0.3"])
async def test_a_whole_answer_is_read_by_every_client(connect: Any, version: str) -> None:
    response = await connect(ScriptedEngine(" Par", "is")).post("/generate", json={"prompt": "hi"})

    shown = parse_generate(version, response.text)

    assert shown == ("paris" if version == "v0.2.0" else "Paris")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            GenerationFailedError("it failed"),
            "**LLMServer Generate Error, Please CheckErrorInfo.**: it failed",
        ),
        (OutOfMemoryError("no room"), "**GPU OutOfMemory, Please Refresh.**"),
    ],
)
async def test_an_error_is_the_last_frame_after_the_text(
    connect: Any, error: GuanacoError, text: str
) -> None:
    engine = ScriptedEngine("Par", error)

    response = await connect(engine, legacy_frame_s=0).post(
        "/generate_stream", json={"prompt": "hi"}
    )

    assert frames(response)[-1]["text"] == f"Par\n{text}"
    assert frames(response)[-1]["error_code"] == 1
    assert engine.generations[0].cancelled.is_set()


@pytest.mark.parametrize("path", ["/generate_stream", "/generate", "/embedding"])
@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"prompt": 5}', b'{"prompt": ""}',
    b'{"prompt": "' + b"a" * 10_000_000 + b'"}',
])  # fmt: skip
async def test_bad_bodies_are_readable_errors(connect: Any, path: str, body: bytes) -> None:
    response = await connect(ScriptedEngine("a")).post(path, content=body)

    assert response.status_code in (400, 413)
    shown = response.text.rstrip("\0")
    assert "Error" in shown
    json.loads(shown)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "NaN"), ("temperature", "1e400"), ("temperature", "-1"),
        ("max_new_tokens", "0"), ("max_new_tokens", "-4"), ("max_new_tokens", '"many"'),
        ("top_p", "2"), ("stop", "5"), ("stop", '[""]'), ("messages", '[{"role": "robot"}]'),
    ],
)  # fmt: skip
async def test_wrong_values_are_named(connect: Any, field: str, value: str) -> None:
    engine = ScriptedEngine("a")

    response = await connect(engine).post(
        "/generate_stream", content=f'{{"prompt": "hi", "{field}": {value}}}'
    )

    assert response.status_code == 400
    (frame,) = frames(response)
    assert f": {field}" in frame["text"]
    assert frame["error_code"] == 1
    assert not engine.requests


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
async def test_a_full_queue_is_told_in_the_dialect(connect: Any, path: str) -> None:
    client = connect(ScriptedEngine(refuse=EngineBusyError(5, 64)))

    response = await client.post(path, json={"prompt": "hi"})

    assert response.status_code == 429
    assert "5 running and 64 waiting" in json.loads(response.text.rstrip("\0"))["text"]


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
async def test_an_empty_answer_says_so(connect: Any, path: str) -> None:
    """Those clients strip an empty text and then fail on their own."""
    response = await connect(ScriptedEngine(" ")).post(path, json={"prompt": "hi"})

    assert json.loads(response.content.split(b"\0")[-2 if path.endswith("m") else 0])["text"] == (
        EMPTY_ANSWER
    )


async def test_sse_deltas_for_who_accepts_them(connect: Any) -> None:
    engine = ScriptedEngine("Par", "is", GenerationFailedError("it failed"))
    client = connect(engine)

    response = await client.post(
        "/generate_stream", json={"prompt": "hi"}, headers={"accept": "text/event-stream"}
    )
    refused = await client.post(
        "/generate_stream", content="{", headers={"accept": "text/event-stream"}
    )
    good = await connect(ScriptedEngine("Par", "is")).post(
        "/generate_stream", json={"prompt": "hi"}, headers={"accept": "text/event-stream"}
    )

    def events(response: httpx.Response) -> list[dict[str, Any]]:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.text.split("\n\n")
        assert lines.pop() == ""
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    assert [e["text"] for e in events(good)] == ["Par", "is", ""]
    assert events(good)[-1]["finish_reason"] == "stop"
    assert events(good)[-1]["usage"]["completion_tokens"] == 2
    assert [e["error_code"] for e in events(response)] == [0, 0, 1]
    assert refused.status_code == 400
    assert events(refused)[0]["error_code"] == 1


async def test_an_embedding_is_a_list_of_numbers(connect: Any) -> None:
    response = await connect(ScriptedEngine()).post("/embedding", json={"prompt": "four"})

    assert response.json() == {"response": [4.0, 0.5]}
