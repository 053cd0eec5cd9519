"""Runs the checks in a child process, one after another, and stays alive whatever happens there.

Some checks call native code on a machine that may be broken, or ask others over a network. A
child that crashes, or is not done in time, has failed the check it was at; another child goes on
with the next one.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from dbgpt_guanaco.doctor.__main__ import DEEP
from dbgpt_guanaco.doctor.checks import Check
from dbgpt_guanaco.doctor.findings import Finding, failure

# An interpreter starts within this, also on a busy machine.
START_S = 15.0
MAX_TOLD_CHARACTERS = 300

Tell = Callable[[Check, Finding], None]


def examine(
    checks: Sequence[Check], tell: Tell, *, is_deep: bool = False, start_s: float = START_S
) -> None:
    """Run checks in their order.

    Args:
        checks: What to look at.
        tell: Called with each finding as it is made.
        is_deep: Also read what takes long to read.
        start_s: Seconds that a process may take to start, beside its first check.
    """
    left = list(checks)
    while left:
        with _child(left, is_deep=is_deep) as child:
            left = left[_follow(child, left, tell, is_deep=is_deep, start_s=start_s) :]


class _Child:
    """A process that runs checks; its lines are read beside it, so that waiting can end."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next_line(self, timeout_s: float) -> str | None:
        """Return what it says next, None where it has ended.

        Raises:
            queue.Empty: It says nothing in time.
        """
        return self._lines.get(timeout=timeout_s)

    def how_it_ended(self) -> str:
        """Return why it has ended, for a person."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        if code < 0:
            frames = (line.strip() for line in lines if line.startswith('  File "'))
            place = next(frames, "").rpartition(" in ")[0]
            return f"it was ended by {signal.Signals(-code).name}{place and f', in {place[5:]}'}"
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"it ended with status {code}: {last[:MAX_TOLD_CHARACTERS]}"

    def _read(self) -> None:
        if self._process.stdout:
            with self._process.stdout as lines:
                for line in lines:
                    self._lines.put(line)
        self._lines.put(None)


def _follow(
    child: _Child, checks: Sequence[Check], tell: Tell, *, is_deep: bool, start_s: float
) -> int:
    """Tell what a child finds, until it is done or must be given up; return how many are told."""
    more_s = start_s
    for told, check in enumerate(checks, 1):
        limit_s = check.deep_limit_s if is_deep else check.limit_s
        try:
            line = child.next_line(limit_s + more_s)
        except queue.Empty:
            tell(check, failure(f"it was not done within {limit_s:g} s"))
            return told
        if line is None:
            tell(check, failure(child.how_it_ended()))
            return told
        tell(check, Finding(**json.loads(line)))
        more_s = 0
    return len(checks)


@contextmanager
def _child(checks: Sequence[Check], *, is_deep: bool) -> Iterator[_Child]:
    command = [sys.executable, "-P", "-m", "dbgpt_guanaco.doctor"]
    command += [*([DEEP] if is_deep else []), *(check.function for check in checks)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            start_new_session=True,  # so that what a check has started ends with it
        )
        try:
            yield _Child(process, errors)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
