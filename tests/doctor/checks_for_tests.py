"""Checks that end well and badly, run in a child process by tests of the running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dbgpt_guanaco.doctor.findings import Finding, NotCheckedError, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import ModelLoadError


def well(_: Setup) -> Finding:
    return ok("一切正常")


def talks(_: Setup) -> Finding:
    sys.stdout.write("a library prints what it likes\n")
    os.write(1, b"also past Python\n")
    sys.stderr.write("and here\n")
    return warning("it said so", "tell it to be quiet")


def raises(_: Setup) -> Finding:
    raise KeyError("lost")


def refuses(_: Setup) -> Finding:
    raise ModelLoadError("the model is damaged")


def lacks(_: Setup) -> Finding:
    import no_such_library  # type: ignore[import-not-found]

    return no_such_library.find()  # type: ignore[no-any-return]


def skips(_: Setup) -> Finding:
    raise NotCheckedError("something else first")


def says_nothing(_: Setup) -> None:
    return None


def exits(_: Setup) -> Finding:
    sys.stderr.write("a library gives up\n")
    sys.exit(3)


def crashes(_: Setup) -> Finding:
    os.kill(os.getpid(), signal.SIGILL)
    return ok("never")


def hangs(_: Setup) -> Finding:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["PID_FILE"]).write_text(str(child.pid))
    time.sleep(600)
    return ok("never")


def is_deep(setup: Setup) -> Finding:
    return ok(str(setup.is_deep))
