"""Notices that nobody will read an answer to its end."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

# Longer than a reader of DB-GPT needs that takes the first piece in one task, and the rest later
# (``dbgpt/core/awel/trigger/iterator_trigger.py``).
GRACE_S = 30.0


class AbandonmentWatch:
    """Closes an answer when the task that read it has ended.

    When a browser leaves, DB-GPT cancels the task that was sending to it. If that task waited for
    us, the cancellation reaches us. If it was sending or sleeping, it does not: AWEL's task context
    (``dbgpt/core/awel/task/task_impl.py``) holds our generator, and the event loop holds that
    context as long as our connection is open, so not even the garbage collector closes it. The end
    of the task is the sign that comes in time.

    A task that was cancelled, or failed, will not come back. One that just ended may be one of
    many, as ``asyncio.wait_for`` makes one for each piece: it counts if it was the only one and
    nobody asks again for a long while. Who does come back then must be told, see ``has_closed``.

    Attributes:
        has_closed: The answer was given up, so what follows is not its end.
    """

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self.has_closed = False
        self._reader: asyncio.Task[object] | None = None
        self._is_only_reader = True
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    def note_reader(self) -> None:
        """Remember who asks for the next piece; call it whenever reading goes on."""
        task = asyncio.current_task()
        if task is None or task is self._reader:
            return
        self._stop()
        self._is_only_reader = self._reader is None
        self._reader = task
        task.add_done_callback(self._reader_ended)

    def __enter__(self) -> "AbandonmentWatch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._reader:
            self._reader.remove_done_callback(self._reader_ended)
        if self._timer:
            self._timer.cancel()

    def _reader_ended(self, task: asyncio.Task[object]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._close_now()
        elif self._is_only_reader:
            self._timer = task.get_loop().call_later(GRACE_S, self._close_now)

    def _close_now(self) -> None:
        self.has_closed = True

        async def close() -> None:
            await self._close()

        self._closing = asyncio.ensure_future(close())
