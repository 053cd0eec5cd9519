"""When frames are sent. Time is made up here: nobody waits for 200 seconds."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbgpt_guanaco.errors import GenerationFailedError, GuanacoError
from dbgpt_guanaco.server.pacing import LONGEST_GAP_S, Pace, paced
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import TextDelta, Usage

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Lets the time of a loop jump to where it would have slept to."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class TimedGeneration:
    """Gives each text after its own wait, then an error or the end."""

    prompt_text, prompt_tokens = "", 0

    def __init__(self, *script: tuple[float, str | GuanacoError]) -> None:
        self._script = script
        self.left = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        try:
            for count, (wait_s, item) in enumerate(self._script, 1):
                await asyncio.sleep(wait_s)
                if isinstance(item, GuanacoError):
                    raise item
                last = count == len(self._script)
                yield TextDelta(item, Usage(1, count), "stop" if last else None)
        finally:
            self.left.set()

    def cancel(self) -> None: ...


def sent(generation: TimedGeneration, **limits: Any) -> list[tuple[float, str | None]]:
    """Return when each frame was sent, with the whole text that it shows."""

    async def read() -> list[tuple[float, str | None]]:
        got: list[tuple[float, str | None]] = []
        whole, clock = "", asyncio.get_running_loop().time
        async for delta in paced(generation, ServerSettings(**limits)):
            whole += delta.text if delta else ""
            got.append((clock(), whole if delta else None))
        return got

    return run(read())


def characters(frames: list[tuple[float, str | None]]) -> int:
    return sum(len(text or "") for _, text in frames)


ANSWER = [f"tok{i % 10}" for i in range(4000)]  # 16,000 characters
LENGTH = len("".join(ANSWER))


def test_short_answers_come_token_by_token_at_reading_speed() -> None:
    frames = sent(TimedGeneration(*[(0.06, token) for token in ANSWER[:30]]))

    assert [text for _, text in frames] == ["".join(ANSWER[: n + 1]) for n in range(30)]


def test_the_first_text_goes_out_at_once() -> None:
    frames = sent(TimedGeneration((0.3, "a"), (60, "b")), legacy_frame_s=5, keep_alive_s=60)

    sent_at_s, text = frames[0]
    assert text == "a"
    assert sent_at_s == pytest.approx(0.3)


@pytest.mark.parametrize(("seconds", "frame_s"), [(0, 0), (4, 0), (40, 0.05), (200, 0.05)])
def test_a_long_answer_costs_what_is_promised(seconds: float, frame_s: float) -> None:
    """(34 + 2 T) L; a frame for each token would be 2000 L."""
    wait_s = seconds / len(ANSWER)

    frames = sent(TimedGeneration(*[(wait_s, t) for t in ANSWER]), legacy_frame_s=frame_s)

    assert frames[-1][1] == "".join(ANSWER)
    assert characters(frames) <= (34 + 2 * seconds) * LENGTH
    assert characters(frames) <= 250 * LENGTH


def test_bytes_grow_with_the_length_and_not_with_its_square() -> None:
    whole = sent(TimedGeneration(*[(0.001, t) for t in ANSWER]), legacy_frame_s=0)
    half = sent(TimedGeneration(*[(0.001, t) for t in ANSWER[:2000]]), legacy_frame_s=0)

    assert characters(whole) < 2.2 * characters(half)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 400).map("x".__mul__)), min_size=1, max_size=30
    ),
    st.sampled_from([0.0, 0.05, 0.7]),
)
def test_nothing_is_lost_and_nothing_waits_longer_than_it_may(
    script: list[tuple[float, str]], frame_s: float
) -> None:
    frames = sent(TimedGeneration(*script), legacy_frame_s=frame_s, keep_alive_s=60)

    longest_s = max(frame_s, LONGEST_GAP_S)
    arrived_s, arrived = 0.0, ""
    for wait_s, token in script:
        arrived_s, arrived = arrived_s + wait_s, arrived + token
        in_time = [text for at_s, text in frames if text and at_s <= arrived_s + longest_s + 1e-6]
        assert in_time
        assert in_time[-1].startswith(arrived)
    assert frames[-1][1] == arrived
    assert characters(frames) <= (34 + 2 * arrived_s) * len(arrived)


def test_silence_is_broken_and_the_text_after_it_is_not_held() -> None:
    frames = sent(TimedGeneration((2.5, "a"), (1.5, "b")), keep_alive_s=1)

    assert frames == [
        (1, None), (2, None), (2.5, "a"), (3.5, None), (4, "ab"),
    ]  # fmt: skip


def test_text_before_an_error_is_shown_first() -> None:
    generation = TimedGeneration((0, "a"), (0, "b"), (0, GenerationFailedError("it failed")))
    got = []

    async def read() -> None:
        async for delta in paced(generation, ServerSettings()):
            got.append(delta and delta.text)

    with pytest.raises(GenerationFailedError):
        run(read())
    assert got == ["a", "b"]


def test_a_reader_who_leaves_ends_the_generation() -> None:
    generation = TimedGeneration((1000, "a"))

    async def leave() -> None:
        deltas = paced(generation, ServerSettings())
        assert await anext(deltas) is None  # the wait for text goes on
        await deltas.aclose()
        async with asyncio.timeout(1):
            await generation.left.wait()

    run(leave())


def test_frames_stand_apart_by_the_interval_that_was_set() -> None:
    frames = sent(TimedGeneration(*[(0.01, "x" * 100)] * 300), legacy_frame_s=0.2)

    gaps = [later - sooner for (sooner, _), (later, _) in pairwise(frames[:-1])]
    assert min(gaps) == pytest.approx(0.2)


def test_what_grew_too_little_waits_for_half_a_second() -> None:
    pace = Pace(0.05)
    pace.show(640, now_s=10)

    assert pace.due_at_s(20) == 10.05
    assert pace.due_at_s(19) == 10.5
