"""Dialect W: what a body asks for, and what comes back."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fakes import ScriptedEngine

from dbgpt_guanaco.server.worker_answers import answer_frames
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import TextDelta, Usage

STREAM, WHOLE = "/api/worker/generate_stream", "/api/worker/generate"
HI = {"model": "scripted", "messages": [{"role": "human", "content": "hi"}]}
# As DB-GPT 0.8.2 sends them: the web server, then the API server.
FROM_THE_WEB = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "S", "round_index": 0},
        {"role": "human", "content": "hi", "round_index": 0},
    ],
    "temperature": 0.5, "max_new_tokens": 4000, "echo": False,
    "context": {
        "stream": True, "cache_enable": False, "user_name": None, "sys_code": None,
        "conv_uid": None, "span_id": None, "chat_mode": None, "chat_param": None, "extra": {},
        "request_id": None, "is_reasoning_model": False,
    },
    "span_id": "empty_span",
}  # fmt: skip
FROM_THE_API = {
    "model": "scripted", "messages": [{"role": "human", "content": "hi", "round_index": 0}],
    "echo": False, "temperature": 0.7, "top_p": 1.0, "top_k": -1, "span_id": "a:b",
}  # fmt: skip


def frames(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200
    assert response.content.endswith(b"\0")
    return [json.loads(piece) for piece in response.content.split(b"\0") if piece]


async def submitted(connect: Any, **fields: Any) -> Any:
    """Return what the engine was asked for by a body with these fields."""
    engine = ScriptedEngine("a")
    answer = (await connect(engine).post(WHOLE, json=HI | fields)).json()
    assert answer["error_code"] == 0, answer
    return engine.requests[0]


async def test_a_stream_is_whole_texts_ended_by_nul(connect: Any) -> None:
    client = connect(ScriptedEngine("法国的", "首都是", "巴黎"), legacy_frame_s=0)

    response = await client.post(STREAM, json=HI, headers={"Accept-Encoding": "gzip, deflate"})

    got = frames(response)
    texts = [frame["text"] for frame in got]
    assert texts == ["法国的", "法国的首都是", "法国的首都是巴黎", "法国的首都是巴黎"]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    context = {"prompt_echo_len_char": 0, "echo": False}
    assert got[-1] == {"text": texts[-1], "error_code": 0, "model_context": context}
    # DB-GPT asks for gzip and then reads the bytes as they are.
    assert "content-encoding" not in response.headers
    assert "content-type" not in response.headers


async def test_frames_cost_bytes_in_proportion_to_the_answer(connect: Any) -> None:
    """Though each repeats all text, and none is held back by time here."""
    words = ["word"] * 4000
    response = await connect(ScriptedEngine(*words), legacy_frame_s=0).post(STREAM, json=HI)

    got = frames(response)

    assert got[-1]["text"] == "word" * 4000
    assert [frame["text"] for frame in got[:8]] == ["word" * n for n in range(1, 9)]
    assert len(response.content) < 40 * 4 * 4000


@pytest.mark.parametrize("body", [FROM_THE_WEB, FROM_THE_API])
@pytest.mark.parametrize("path", [STREAM, WHOLE])
async def test_bodies_of_today_are_understood(connect: Any, body: Any, path: str) -> None:
    engine = ScriptedEngine("Paris")

    response = await connect(engine).post(path, json=body)

    answer = json.loads(response.content.split(b"\0")[0])
    assert (answer["text"], answer["error_code"]) == ("Paris", 0)
    (request,) = engine.requests
    assert str(request.prompt).endswith("### Human: hi\n### Assistant:")
    assert request.truncate_prompt_tokens == 0  # a long prompt keeps its newest tokens
    assert request.sampling.temperature == body["temperature"]
    assert request.sampling.max_new_tokens == body.get("max_new_tokens", 2048)
    assert request.sampling.top_k == 0  # -1 is DB-GPT's word for all


async def test_what_is_asked_for_is_honoured(connect: Any) -> None:
    request = await submitted(
        connect, temperature=0, max_new_tokens=9, stop="###", stop_token_ids=[5], top_p=0.5,
        top_k=4, presence_penalty=0.1, frequency_penalty=-0.2,
    )  # fmt: skip

    sampling = request.sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0, 9)
    assert (sampling.top_p, sampling.top_k) == (0.5, 4)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -0.2)
    assert sampling.stop == ("### Human:", "### Assistant:", "###")
    assert sampling.stop_token_ids == (5,)


async def test_nulls_are_absent_and_unknown_keys_ignored(connect: Any) -> None:
    fields = [
        "prompt", "temperature", "max_new_tokens", "stop", "stop_token_ids", "top_p", "top_k",
        "presence_penalty", "frequency_penalty", "context", "chat_model", "echo", "span_id",
        "context_len", "metrics", "version",
    ]  # fmt: skip

    request = await submitted(connect, **dict.fromkeys(fields), something={"else": 1})

    assert request.sampling == (await submitted(connect)).sampling
    assert request.sampling.temperature == ServerSettings().temperature


@pytest.mark.parametrize(("stop", "own"), [
    ("", ()), ([], ()), ("###", ("###",)), (["a", "b"], ("a", "b")), (None, ()),
])  # fmt: skip
async def test_stop_may_be_one_string_or_several(connect: Any, stop: Any, own: Any) -> None:
    request = await submitted(connect, stop=stop)

    assert request.sampling.stop == ("### Human:", "### Assistant:", *own)


async def test_roles_are_ours_and_views_are_dropped(connect: Any) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "human", "content": "one"},
        {"role": "ai", "content": "two"},
        {"role": "view", "content": "<b>two</b>"},
        {"role": "human", "content": "three"},
    ]

    request = await submitted(connect, messages=messages)

    assert request.prompt == (
        "S\n### Human: one\n### Assistant: two\n### Human: three\n### Assistant:"
    )


TEXT = {"type": "text", "object": {"data": "hi", "format": "text"}}
THOUGHT = {"type": "thinking", "object": {"data": "hmm", "format": "text"}}


@pytest.mark.parametrize(("content", "said"), [
    (TEXT, "hi"),
    ([TEXT], "hi"),
    ([THOUGHT, TEXT], "hi"),
    ([TEXT, TEXT], "hi\nhi"),
    ({"object": {"data": "hi"}}, "hi"),
    ({"type": None, "object": {"data": "hi"}}, "hi"),
    ([THOUGHT], ""),
    ([], ""),
])  # fmt: skip
async def test_media_that_are_text_are_read(connect: Any, content: Any, said: str) -> None:
    messages = [{"role": "human", "content": content}]

    request = await submitted(connect, messages=messages)

    assert request.prompt.endswith(f"### Human: {said}\n### Assistant:")


@pytest.mark.parametrize(("prompt", "messages", "end"), [
    # v0.3.7 to v0.4.6 send both.
    ("S###human:old###", HI["messages"], "### Human: hi\n### Assistant:"),
    ("S###human:one###ai:two###human:hi###", [],
     "S\n### Human: one\n### Assistant: two\n### Human: hi\n### Assistant:"),
    ("hi", None, "### Human: hi\n### Assistant:"),
    ("hi", [{"role": "view", "content": "x"}], "### Human: hi\n### Assistant:"),
])  # fmt: skip
async def test_messages_win_over_a_rendered_prompt(
    connect: Any, prompt: str, messages: Any, end: str
) -> None:
    request = await submitted(connect, prompt=prompt, messages=messages)

    assert request.prompt.endswith(end)


async def test_a_completion_is_continued_as_it_stands(connect: Any) -> None:
    """DB-GPT's API server sends these for its /v1/completions."""
    request = await submitted(connect, prompt="Once upon", messages=[], chat_model=False)

    assert request.prompt == "Once upon"
    assert request.continues_prompt
    assert request.sampling.stop == ()
    assert request.truncate_prompt_tokens == 0


async def test_an_alias_is_a_name_of_the_model(connect: Any) -> None:
    engine = ScriptedEngine("a", aliases=("gpt-3.5-turbo",))

    response = await connect(engine).post(STREAM, json=HI | {"model": "gpt-3.5-turbo"})

    assert frames(response)[-1]["text"] == "a"


class SlowGeneration:
    """Gives its first text when it is told to."""

    prompt_text, prompt_tokens = "", 0

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __aiter__(self) -> Any:
        await self.go.wait()
        yield TextDelta("late", Usage(1, 1), "stop")

    def cancel(self) -> None: ...


async def test_a_slow_first_token_is_bridged_by_nul_bytes() -> None:
    generation = SlowGeneration()
    stream = answer_frames(generation, ServerSettings(keep_alive_s=0.01), with_usage=False)

    first = [await anext(stream) for _ in range(3)]
    generation.go.set()
    rest = [frame async for frame in stream]

    assert first == [b"\0"] * 3
    assert json.loads(rest[-1].rstrip(b"\0"))["text"] == "late"
