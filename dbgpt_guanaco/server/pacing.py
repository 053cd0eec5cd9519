"""When whole-text frames are sent: deltas come in, fewer and longer deltas go out.

Two dialects repeat all text in each frame. One frame for each token would cost bytes that grow
with the square of the answer, and the oldest clients wait 20 ms on each frame.
"""

import asyncio
from collections.abc import AsyncGenerator

from dbgpt_guanaco.engine.base import Generation
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import TextDelta

# A frame is worth sending once the text grew by this share of what was shown …
GROWTH = 1 / 32
# … or once so much time has passed: at any length, a reader sees text move twice a second.
LONGEST_GAP_S = 0.5


class Pace:
    """Says when the next whole-text frame is due.

    The first is due at once. Another one is due when ``frame_s`` has passed, and the text grew
    by a 32nd of what was shown or half a second has passed. A short answer is therefore shown
    token by token; of a long one a part is shown, but never later than half a second.

    Of an answer of L characters that takes T seconds, at most (34 + 2 T) L characters are sent,
    where a frame for each of N tokens would be N L / 2. Proof: each frame that growth made due
    is 33/32 of the one before or longer, so these sum to at most 33 L, whatever their number;
    the last frame of all adds L; and each frame that time made due stands half a second after
    another, so there are at most 2 T of them, of at most L each.

    Args:
        frame_s: Least time between two frames, in seconds.
    """

    def __init__(self, frame_s: float) -> None:
        self._frame_s = frame_s
        self._shown_characters = 0
        self._shown_at_s = float("-inf")

    def due_at_s(self, new_characters: int) -> float:
        """Return when a frame with so many more characters is due, on the caller's clock."""
        has_grown = new_characters >= GROWTH * self._shown_characters
        gap_s = self._frame_s if has_grown else max(self._frame_s, LONGEST_GAP_S)
        return self._shown_at_s + gap_s

    def show(self, new_characters: int, now_s: float) -> None:
        """Note that a frame was sent."""
        self._shown_characters += new_characters
        self._shown_at_s = now_s


async def paced(
    generation: Generation, settings: ServerSettings
) -> AsyncGenerator[TextDelta | None, None]:
    """Join deltas until the next frame is due (see ``Pace``); yield None after long silence.

    Raises:
        GuanacoError: The generation failed; the text before it was yielded first.
    """
    clock = asyncio.get_running_loop().time
    pace = Pace(settings.legacy_frame_s)
    items = aiter(generation)
    pending: asyncio.Future[TextDelta] | None = None
    held: TextDelta | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(items))
            due_in_s = pace.due_at_s(len(held.text)) - clock() if held else settings.keep_alive_s
            done, _ = await asyncio.wait({pending}, timeout=max(0.0, due_in_s))
            if done:
                if held and pending.exception():
                    yield held
                held, pending = joined(held, pending.result()), None
            if held and (held.is_last or clock() >= pace.due_at_s(len(held.text))):
                yield held
                if held.is_last:
                    return
                pace.show(len(held.text), clock())
                held = None
            elif not done and not held:
                yield None
    finally:
        if pending:
            pending.cancel()


def joined(held: TextDelta | None, new: TextDelta) -> TextDelta:
    """Return two deltas as one, with the counts and the end of the second."""
    return TextDelta((held.text if held else "") + new.text, new.usage, new.finish_reason)
