"""Ctrl-C in a training: the first one ends it after the step that runs, with its state saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Somebody wants the training to end."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self, _number: int, _frame: FrameType | None) -> None:
        """Be a signal's handler; a second signal ends at once.

        Raises:
            KeyboardInterrupt: It is the second.
        """
        if self.is_made:
            raise KeyboardInterrupt
        self.is_made = True


@contextmanager
def signals_ask() -> Iterator[StopRequest]:
    """Yield what Ctrl-C, or the operating system's wish to end, sets while this runs."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, request.make)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
