import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sse import Event, EventReader

STREAM = (
    ": ping\n\n"
    'data: {"delta": {"content": ""}}\n\n'
    'data: {"text": "Grüße, 世界"}\n\n'
    "event: error\ndata:first\ndata: second\ndata:  third\n\n"
    "id: 7\nretry: 100\nunknown\n\n"
    "data\n\n"
    "data: [DONE]\n\n"
    "data: never completed"
)
EVENTS = [
    Event('{"delta": {"content": ""}}'),
    Event('{"text": "Grüße, 世界"}'),
    Event("first\nsecond\n third", "error"),
    Event(""),
    Event("[DONE]"),
]
LINE_ENDS = ["\n", "\r\n", "\r"]


def read(*pieces: bytes) -> list[Event]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def encode(line_end: str) -> bytes:
    return STREAM.replace("\n", line_end).encode()


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_same_events_at_every_place_of_one_cut(line_end: str) -> None:
    data = encode(line_end)
    for cut in range(len(data) + 1):
        assert read(data[:cut], data[cut:]) == EVENTS, cut


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_same_events_byte_by_byte(line_end: str) -> None:
    assert read(*(bytes([byte]) for byte in encode(line_end))) == EVENTS


@settings(max_examples=50)
@given(st.sampled_from(LINE_ENDS), st.sets(st.integers(0, len(STREAM) * 2)))
def test_same_events_however_the_bytes_are_split(line_end: str, cuts: set[int]) -> None:
    data = encode(line_end)
    ends = [0, *sorted(cuts), len(data) * 2]

    assert read(*(data[a:b] for a, b in itertools.pairwise(ends))) == EVENTS


@settings(max_examples=60)
@given(st.text("a:\r\n", max_size=12), st.data())
def test_line_ends_in_any_order_and_any_split(text: str, data: st.DataObject) -> None:
    raw = b"data:x\n\n" + text.encode() + b"\n\ndata:y\n\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))))

    pieces = [raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)])]

    assert read(*pieces) == read(raw)
    assert read(raw)[-1] == Event("y")


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_an_event_is_told_as_soon_as_its_last_line_end_starts(line_end: str) -> None:
    data = f"data: x{line_end}{line_end}".encode()

    assert read(data[: len(data) - (len(line_end) - 1)]) == [Event("x")]


def test_a_byte_order_mark_is_no_part_of_the_first_field() -> None:
    assert read(b"\xef", b"\xbb\xbfdata: x\n\n") == [Event("x")]


def test_an_event_name_without_data_is_forgotten() -> None:
    assert read(b"event: ping\n\ndata: x\n\n") == [Event("x")]
