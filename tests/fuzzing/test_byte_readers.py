"""What reads bytes or tokens piece by piece gives the same, however they are cut, or refuses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbgpt_guanaco.dbgpt_plugin.connection import EventReader
from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.stopping import StopChecker
from fuzzing.broken_bodies import JUNK
from fuzzing.checks import REQUESTS, examples

EXAMPLES = examples(REQUESTS // 10)
FEW_LETTERS = st.text("ab#\n", max_size=30)
STOPS = st.lists(st.text("ab#\n", min_size=1, max_size=6), min_size=1, max_size=4)


def pieces_of(data: st.DataObject, whole: Any) -> list[Any]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@EXAMPLES
@given(FEW_LETTERS, STOPS, st.data())
def test_a_stop_string_ends_a_text_where_it_is_complete_first(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    checker = StopChecker(stops)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    shown = ""

    for piece in pieces_of(data, text):
        shown += checker.feed(piece)
        assert expected.startswith(shown)  # nothing that is shown has to be taken back
    shown += checker.flush()

    assert (shown, checker.stopped) == (expected, bool(ends))


@EXAMPLES
@given(st.lists(st.integers(0, 400), max_size=40), STOPS | st.just([]), st.data())
def test_an_answer_shows_what_its_tokens_say_up_to_a_stop(
    llama_tokenizer: Any, ids: list[int], stops: list[str], data: st.DataObject
) -> None:
    vocabulary = Vocabulary(llama_tokenizer)

    def said(ids: list[int], stops: list[str]) -> str:
        detokenizer = vocabulary.detokenizer(continues_text=True)
        answer = Answer(vocabulary, detokenizer, StopChecker(stops), frozenset({2}), 1)
        texts = []
        for token_id in ids:
            if (delta := answer.feed(token_id)) is not None:
                texts.append(delta.text)
            if answer.is_over:
                break
        return "".join([*texts, answer.finish().text])

    whole = said(ids, [])
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]

    assert said(ids, stops) == (whole[: min(ends)[1]] if ends else whole)


@EXAMPLES
@given(st.lists(st.dictionaries(st.text(max_size=5), JUNK, max_size=3), max_size=5), st.data())
def test_events_are_read_however_they_arrive(events: list[Any], data: st.DataObject) -> None:
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    reader, found = EventReader(), []

    for piece in pieces_of(data, stream.encode()):
        found += reader.feed(piece)

    assert json.dumps(found) == json.dumps(events)


@EXAMPLES
@given(
    st.lists(
        st.binary(max_size=20)
        | st.sampled_from([b"data: ", b"\n", b"\n\n", b"data: {}", b"[DONE]", b"[" * 100_000, b"5",
                           b"null", b'"a"', b"data: [1]\n", b"\xff", b"data: NaN\n", b"9" * 5000]),
        max_size=8,
    )
)  # fmt: skip
def test_what_is_no_event_is_refused_by_one_error(pieces: list[bytes]) -> None:
    reader = EventReader()
    try:
        found = [event for piece in pieces for event in reader.feed(piece)]
    except ValueError:
        return
    assert all(isinstance(event, dict) for event in found)


def test_a_deep_event_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        EventReader().feed(b"data: " + b"[" * 100_000 + b"\n")
