import json
from typing import Any

import httpx
import pytest
from fakes import PROMPT_TOKENS, ScriptedEngine

from dbgpt_guanaco.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationFailedError,
    OutOfMemoryError,
    PromptTooLongError,
)
from dbgpt_guanaco.types import SamplingParams

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """Read a stream as the strictest 2023 client does: one ``data: `` line, then a blank one."""
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") and "\n" not in event for event in events[:-1])
    return [json.loads(event.split(": ", 1)[1]) for event in events[:-2]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


async def test_a_whole_answer(connect: Any) -> None:
    response = await connect(ScriptedEngine("Pa", "ris", ".")).post(CHAT, json=HELLO)

    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "scripted"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Paris."}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": PROMPT_TOKENS, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


async def test_a_stream_has_role_then_text_then_reason_with_usage(connect: Any) -> None:
    response = await connect(ScriptedEngine("Pa", "ris")).post(CHAT, json=HELLO | {"stream": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    got = chunks(response)
    assert [c["choices"][0]["delta"] for c in got] == [
        {"role": "assistant", "content": ""}, {"content": "Pa"}, {"content": "ris"}, {},
    ]  # fmt: skip
    assert [c["choices"][0]["finish_reason"] for c in got] == [None, None, None, "stop"]
    assert got[-1]["usage"]["completion_tokens"] == 2
    assert len({c["id"] for c in got}) == 1


async def test_include_usage_adds_a_chunk_without_choices(connect: Any) -> None:
    body = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    got = chunks(await connect(ScriptedEngine("a")).post(CHAT, json=body))

    assert [c["usage"] is None for c in got] == [True, True, False, False]
    assert got[-1]["choices"] == []
    assert got[-1]["usage"] == got[-2]["usage"]


async def test_several_answers_are_mixed_and_share_the_prompt(connect: Any) -> None:
    client = connect(ScriptedEngine("a", "b"))
    whole = (await client.post(CHAT, json=HELLO | {"n": 3})).json()
    streamed = chunks(await client.post(CHAT, json=HELLO | {"n": 3, "stream": True}))

    assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert whole["usage"]["completion_tokens"] == 6
    texts = ["", "", ""]
    for chunk in streamed:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["ab"] * 3


async def test_equal_answers_are_not_asked_for_n_times(connect: Any) -> None:
    engine = ScriptedEngine("a")
    await connect(engine).post(CHAT, json=HELLO | {"n": 2, "seed": 5})

    assert [r.sampling.seed for r in engine.requests] == [5, 6]


async def test_a_refusal_of_one_answer_cancels_the_others(connect: Any) -> None:
    engine = ScriptedEngine("a", refuse=EngineBusyError(2, 0), refuse_after=2)

    response = await connect(engine).post(CHAT, json=HELLO | {"n": 3})

    assert response.status_code == 429
    assert [g.cancelled.is_set() for g in engine.generations] == [True, True]


async def test_every_sampling_field_reaches_the_engine(connect: Any) -> None:
    engine = ScriptedEngine("a")
    given = {
        "temperature": 0.3, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.8,
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "seed": 3, "stop_token_ids": [7], "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    body = HELLO | given | {"max_completion_tokens": 9, "stop": "END", "logit_bias": {"4": 2}}

    assert (await connect(engine).post(CHAT, json=body)).status_code == 200

    (request,) = engine.requests
    assert request.sampling == SamplingParams(
        **(given | {"stop_token_ids": (7,)}),  # type: ignore[arg-type]
        max_new_tokens=9,
        stop=(*engine.template.stop, "END"),
        logit_bias={4: 2.0},
    )
    assert request.prompt == engine.template.render([_user("hi")]).text


def _user(text: str) -> Any:
    from dbgpt_guanaco.types import ChatMessage

    return ChatMessage("user", text)


async def test_null_means_absent(connect: Any) -> None:
    engine = ScriptedEngine("a")
    body = HELLO | dict.fromkeys(["temperature", "top_p", "n", "stop", "max_tokens", "seed"])

    await connect(engine, temperature=0.25).post(CHAT, json=body)

    assert engine.requests[0].sampling.temperature == 0.25
    assert engine.requests[0].sampling.max_new_tokens is None


async def test_notes_of_the_caller_change_nothing(connect: Any) -> None:
    body = HELLO | {"user": "me", "metadata": {"a": "b"}, "store": False}
    body |= {"parallel_tool_calls": False, "tools": [], "tool_choice": "none"}

    assert (await connect(ScriptedEngine("a")).post(CHAT, json=body)).status_code == 200


async def test_where_a_message_is_wrong_is_told(connect: Any) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]

    response = await connect(ScriptedEngine("a")).post(CHAT, json={"messages": messages})

    assert error_of(response)["message"].startswith("messages[1].role: Input should be 'system'")


async def test_roles_of_every_age_and_parts_are_read(connect: Any) -> None:
    engine = ScriptedEngine("a")
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "human", "content": [{"type": "text", "text": "one"}]},
        {"role": "ai", "content": "two", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "three"},
    ]

    await connect(engine).post(CHAT, json={"messages": messages})

    assert engine.requests[0].prompt == (
        "S\n### Human: one\n### Assistant: two\n### Human: three\n### Assistant:"
    )


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 2_000_000_000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": [f"a{i}" for i in range(17)]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": 10**30}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages"),
        ({"messages": [{"role": "system", "content": "only"}]}, "messages"),
        ({"unknown_field": 1}, "unknown_field"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"guided_regex": "a", "guided_grammar": "start: A"}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"lark": "a"}}, "structured_outputs"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_wrong_value_is_a_400_that_names_it(
    connect: Any, change: dict[str, Any], parameter: str
) -> None:
    engine = ScriptedEngine("a")

    response = await connect(engine).post(CHAT, json=HELLO | change)

    assert response.status_code == 400
    assert error_of(response)["param"] == parameter
    assert error_of(response)["type"] == "invalid_request_error"
    assert not engine.requests


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "presence_penalty"])
async def test_numbers_that_are_none_are_refused(connect: Any, number: str, field: str) -> None:
    engine = ScriptedEngine("a")
    body = json.dumps(HELLO)[:-1] + f', "{field}": {number}}}'

    response = await connect(engine).post(
        CHAT, content=body, headers={"content-type": "application/json"}
    )

    assert response.status_code == 400
    assert error_of(response)["param"] == field
    assert not engine.requests


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"messages": [' * 5000]
)
async def test_a_body_that_is_no_object_is_a_400(connect: Any, body: bytes) -> None:
    response = await connect(ScriptedEngine("a")).post(
        CHAT, content=body, headers={"content-type": "application/json"}
    )

    assert response.status_code == 400
    assert error_of(response)["message"]


async def test_a_body_above_the_limit_is_a_413_and_was_not_kept(connect: Any) -> None:
    engine = ScriptedEngine("a")
    big = {"messages": [{"role": "user", "content": "a" * 10_000_000}]}

    response = await connect(engine).post(CHAT, json=big)

    assert response.status_code == 413
    assert "4194304 bytes" in error_of(response)["message"]
    assert not engine.requests


async def test_another_model_is_a_404_and_an_alias_is_the_model(connect: Any) -> None:
    client = connect(ScriptedEngine("a", aliases=("gpt-3.5-turbo",)))

    wrong = await client.post(CHAT, json=HELLO | {"model": "gpt-4"})
    right = await client.post(CHAT, json=HELLO | {"model": "gpt-3.5-turbo"})

    assert wrong.status_code == 404
    assert error_of(wrong)["code"] == "model_not_found"
    assert "known: gpt-3.5-turbo, scripted" in error_of(wrong)["message"]
    assert right.json()["model"] == "gpt-3.5-turbo"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineBusyError(5, 64), 429, None),
        (EngineStoppedError(), 503, None),
        (PromptTooLongError(3000, 2048), 400, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_a_status_code_for_streams_too(
    connect: Any, error: Any, status: int, code: str | None, stream: bool
) -> None:
    client = connect(ScriptedEngine(refuse=error))
    response = await client.post(CHAT, json=HELLO | {"stream": stream})

    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert (response.headers.get("retry-after") == "1") == (status == 429)


@pytest.mark.parametrize(
    ("error", "status"),
    [(GenerationFailedError("it failed"), 500), (OutOfMemoryError("no memory"), 503)],
)
async def test_an_error_while_answering(connect: Any, error: Any, status: int) -> None:
    engine = ScriptedEngine("Pa", error)
    client = connect(engine)

    whole = await client.post(CHAT, json=HELLO)
    streamed = chunks(await client.post(CHAT, json=HELLO | {"stream": True}))

    assert whole.status_code == status
    assert whole.headers["x-should-retry"] == "false"
    assert error_of(whole)["message"] == str(error)
    assert streamed[1]["choices"][0]["delta"] == {"content": "Pa"}
    assert streamed[-1]["error"]["message"] == str(error)
    assert all(g.cancelled.is_set() for g in engine.generations)


async def test_an_error_in_one_of_several_answers_ends_all(connect: Any) -> None:
    engine = ScriptedEngine("Pa", GenerationFailedError("it failed"))

    streamed = chunks(await connect(engine).post(CHAT, json=HELLO | {"stream": True, "n": 2}))

    assert streamed[-1]["error"]["message"] == "it failed"
    assert all(g.cancelled.is_set() for g in engine.generations)


async def test_chat_logprobs_have_openais_shape(connect: Any) -> None:
    body = HELLO | {"logprobs": True, "top_logprobs": 1}
    client = connect(ScriptedEngine("é", "b"))

    (choice,) = (await client.post(CHAT, json=body)).json()["choices"]
    streamed = chunks(await client.post(CHAT, json=body | {"stream": True}))

    assert choice["logprobs"]["content"][0] == {
        "token": "é", "logprob": -0.5, "bytes": [195, 169],
        "top_logprobs": [{"token": "other", "logprob": -2.0, "bytes": list(b"other")}],
    }  # fmt: skip
    told = [c["choices"][0].get("logprobs") for c in streamed]
    assert [t["content"][0]["token"] for t in told if t] == ["é", "b"]


async def test_a_completion_continues_and_echoes(connect: Any) -> None:
    engine = ScriptedEngine("Pa", "ris")
    client = connect(engine)
    body = {"prompt": "The capital", "max_tokens": 5}

    plain = (await client.post("/v1/completions", json=body)).json()
    echoed = (await client.post("/v1/completions", json=body | {"echo": True})).json()
    streamed = await client.post("/v1/completions", json=body | {"echo": True, "stream": True})

    assert plain["object"] == "text_completion"
    assert plain["choices"][0]["text"] == "Paris"
    assert echoed["choices"][0]["text"] == "the prompt: Paris"
    texts = [c["choices"][0]["text"] for c in chunks(streamed)]
    assert texts == ["the prompt: ", "Pa", "ris", ""]
    assert engine.requests[0].continues_prompt
    assert engine.requests[0].sampling.stop == ()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_prompts_of_every_form(connect: Any, prompt: Any, expected: list[Any]) -> None:
    engine = ScriptedEngine("x")

    response = await connect(engine).post("/v1/completions", json={"prompt": prompt, "n": 2})

    assert [r.prompt for r in engine.requests] == [p for p in expected for _ in range(2)]
    assert engine.requests[0].sampling.max_new_tokens == 16
    assert response.json()["usage"]["prompt_tokens"] == PROMPT_TOKENS * len(expected)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": []},
        {"prompt": ""},
        {"prompt": [[]]},
        {"prompt": ["a", 1]},
        {"prompt": {"a": 1}},
        {"prompt": ["a"] * 9},
        {"prompt": ["a"] * 900_000},
        {"echo": True, "logprobs": 1},
        {"best_of": 2},
        {"suffix": "x"},
        {"logprobs": 21},
        {"logprobs": -1},
    ],
)
async def test_a_wrong_completion_is_a_400(connect: Any, change: dict[str, Any]) -> None:
    engine = ScriptedEngine("x")

    response = await connect(engine).post("/v1/completions", json={"prompt": "a"} | change)

    assert response.status_code == 400
    assert not engine.requests


async def test_completion_logprobs_have_openais_old_shape(connect: Any) -> None:
    response = await connect(ScriptedEngine("Pa", "ris")).post(
        "/v1/completions", json={"prompt": "a", "logprobs": 1}
    )

    assert response.json()["choices"][0]["logprobs"] == {
        "tokens": ["Pa", "ris"], "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"other": -2.0}] * 2, "text_offset": [0, 2],
    }  # fmt: skip


async def test_models_are_named_with_what_clients_must_know(connect: Any) -> None:
    client = connect(ScriptedEngine(aliases=("guanaco",)))

    listed = (await client.get("/v1/models")).json()["data"]

    assert [m["id"] for m in listed] == ["scripted", "guanaco"]
    assert listed[0]["max_model_len"] == 2048
    assert listed[0]["quantization"] == "nf4"
    assert (await client.get("/v1/models/guanaco")).json() == listed[1]
    assert (await client.get("/v1/models/other")).status_code == 404


async def test_tokens_are_counted_for_texts_and_conversations(connect: Any) -> None:
    client = connect(ScriptedEngine())

    text = await client.post("/v1/tokenize", json={"prompt": "a bb"})
    bare = await client.post("/v1/tokenize", json={"prompt": "a bb", "add_special_tokens": False})
    chat = await client.post("/v1/tokenize", json=HELLO)
    both = await client.post("/v1/tokenize", json=HELLO | {"prompt": "a"})
    back = await client.post("/v1/detokenize", json={"tokens": [1, 2]})
    wrong = await client.post("/v1/detokenize", json={"tokens": [999]})

    assert text.json() == {"count": 3, "max_model_len": 2048, "tokens": [1, 1, 2]}
    assert bare.json()["count"] == 2
    assert chat.json()["count"] > 20
    assert back.json() == {"prompt": "x xx"}
    assert (both.status_code, wrong.status_code) == (400, 400)
    odd_bodies: list[dict[str, Any]] = [{"messages": []}, HELLO | {"add_special_tokens": False}, {}]
    for odd in odd_bodies:
        assert (await client.post("/v1/tokenize", json=odd)).status_code == 400


async def test_the_same_routes_stand_under_api_v1(connect: Any) -> None:
    client = connect(ScriptedEngine("Paris"))

    assert (await client.get("/api/v1/models")).json() == (await client.get("/v1/models")).json()
    answer = await client.post("/api/v1/chat/completions", json=HELLO)
    assert answer.json()["choices"][0]["message"]["content"] == "Paris"


@pytest.mark.parametrize(
    "change", ['"\\ud800": 1', '"model": "\\ud800"', '"' + "k" * 9999 + '": 1']
)
async def test_a_clients_odd_words_do_not_break_the_error(connect: Any, change: str) -> None:
    response = await connect(ScriptedEngine("a")).post(
        CHAT,
        content=f"{json.dumps(HELLO)[:-1]}, {change}}}",
        headers={"content-type": "application/json"},
    )

    assert response.status_code in (400, 404)
    assert 10 < len(error_of(response)["message"]) <= 2100


async def test_a_forgotten_content_type_is_named(connect: Any) -> None:
    response = await connect(ScriptedEngine()).post(CHAT, content=json.dumps(HELLO))

    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


async def test_unknown_paths_and_methods_are_errors_of_the_same_form(connect: Any) -> None:
    client = connect(ScriptedEngine())

    assert "no GET /v1/nothing" in error_of(await client.get("/v1/nothing"))["message"]
    assert "stand under /v1" in error_of(await client.get("/models"))["message"]
    wrong_method = await client.get(CHAT)
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


async def test_a_bug_is_a_500_that_tells_no_text(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine("a")

    async def broken(_request: object) -> None:
        raise ZeroDivisionError("secret prompt text")

    monkeypatch.setattr(engine, "submit", broken)
    response = await connect(engine).post(CHAT, json=HELLO)

    assert response.status_code == 500
    assert error_of(response)["message"] == "internal error (ZeroDivisionError)"
