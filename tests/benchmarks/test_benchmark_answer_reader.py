import json
from typing import Any

import pytest

from benchmarks.answer import AnswerReader, FailedRequestError
from benchmarks.measures import Answer
from benchmarks.sse import Event

ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
KEEP_ALIVE: dict[str, Any] = {"choices": [{"delta": {}}]}
FINISH = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
DONE = "[DONE]"


def text(content: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}}], "usage": None}


def usage(tokens: object) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 9, "completion_tokens": tokens}}


def read(*chunks: dict[str, Any] | str) -> Answer:
    """Read chunks that arrive at second 1, 2, 3 …"""
    reader = AnswerReader()
    for at_s, chunk in enumerate(chunks, start=1):
        reader.take(Event(chunk if isinstance(chunk, str) else json.dumps(chunk)), at_s)
    return reader.close()


def test_role_and_keep_alive_chunks_are_no_output() -> None:
    answer = read(ROLE, KEEP_ALIVE, text("a"), KEEP_ALIVE, text("b"), FINISH, DONE)

    assert answer.outputs_s == (3, 5)
    assert answer.ttft_s == 3
    assert answer.itls_s == [2]
    assert answer.e2e_s == 6


@pytest.mark.parametrize(
    "ending",
    [
        [FINISH | usage(5), DONE],
        [FINISH, {"choices": []} | usage(5), DONE],
        [FINISH, usage(5)],
        [FINISH | usage(2), {"choices": []} | usage(5)],
    ],
    ids=["in the finish chunk", "in a final chunk", "without choices", "the last one counts"],
)
def test_usage_counts_the_tokens(ending: list[dict[str, Any] | str]) -> None:
    answer = read(text("a"), text("b"), *ending)

    assert (answer.output_tokens, answer.token_source) == (5, "usage")
    assert (answer.prompt_tokens, answer.finish_reason) == (9, "stop")
    assert answer.e2e_s == 3


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"cached_tokens": 7}, 7), ({"cached_tokens": None}, None), ({}, None), (None, None)],
)
def test_cached_tokens_are_read_where_a_server_tells_them(
    details: dict[str, Any] | None, cached: int | None
) -> None:
    told = {"usage": {"completion_tokens": 1, "prompt_tokens_details": details}}

    assert read(text("a"), FINISH | told).cached_tokens == cached


@pytest.mark.parametrize("tokens", [None, "5", -1, True])
def test_without_a_usable_count_pieces_are_counted(tokens: object) -> None:
    answer = read(text("a"), text("b"), FINISH | usage(tokens))

    assert (answer.output_tokens, answer.token_source) == (2, "chunks")


@pytest.mark.parametrize(
    "choice",
    [{"text": "a"}, {"delta": {"reasoning_content": "a"}}, {"delta": {"reasoning": "a"}}],
    ids=["completion", "reasoning_content", "reasoning"],
)
def test_other_fields_of_text_are_output(choice: dict[str, Any]) -> None:
    assert read({"choices": [choice]}, FINISH).outputs_s == (1,)


def test_pieces_can_be_counted_while_they_come() -> None:
    reader = AnswerReader()
    seen = []
    for chunk in (ROLE, text("a"), KEEP_ALIVE, text("b")):
        reader.take(Event(json.dumps(chunk)), 1.0)
        seen.append(reader.outputs)

    assert seen == [0, 1, 1, 2]


def test_what_follows_done_is_not_read() -> None:
    assert read(text("a"), DONE, "nonsense").outputs_s == (1,)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ([text("a"), {"error": {"message": "out of memory"}}], "stream error"),
        ([text("a"), "nonsense"], "bad event"),
        ([text("a"), "[1]"], "bad event"),
        ([text("a"), {"text": "b", "error_code": 50001}], "bad event"),
        ([{"choices": ["a"]}], "bad event"),
        ([text("a")], "broken stream"),
        ([], "broken stream"),
        ([ROLE, FINISH, DONE], "no output"),
        ([DONE], "no output"),
    ],
)
def test_incomplete_answers_fail_by_kind(chunks: list[dict[str, Any] | str], kind: str) -> None:
    with pytest.raises(FailedRequestError) as raised:
        read(*chunks)

    assert raised.value.kind == kind


def test_an_error_field_of_null_is_no_error() -> None:
    assert read(text("a") | {"error": None}, FINISH).output_tokens == 1


def test_an_event_called_error_is_one() -> None:
    with pytest.raises(FailedRequestError, match=r"stream error: .*overloaded"):
        AnswerReader().take(Event('{"message": "overloaded"}', "error"), 1.0)
