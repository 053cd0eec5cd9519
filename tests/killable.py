"""Commands that a test may kill, each in a process of its own that starts at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A child that imports what is needed once; each line that it reads is a command in a fork of it.
CHILD = """
import json, os, sys
from typer.testing import CliRunner
from dbgpt_guanaco.cli import app
import dbgpt_guanaco.checkpoints.comparison, dbgpt_guanaco.checkpoints.merging
import dbgpt_guanaco.checkpoints.quantizing, dbgpt_guanaco.training.finetuning

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

os.environ["COLUMNS"] = "1000"
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # the peak begins here
        idle = memory("VmRSS")
        result = CliRunner().invoke(app, json.loads(line))
        sys.stderr.write(result.output)
        print(memory("VmHWM") - idle, flush=True)
        os._exit(result.exit_code)
    print(pid, flush=True)
    print("status", os.waitpid(pid, 0)[1], flush=True)
"""


class Commands:
    """Runs commands in forks of one process, which has imported everything."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, kill_after_s: float | None = None) -> tuple[int, int]:
        """Return the status as ``waitpid`` has it, and by how much memory grew at most."""
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
        self._child.stdin.flush()
        pid, grown, status = 0, 0, -1
        while status < 0:
            line = self._child.stdout.readline()
            if line.startswith("status"):
                status = int(line.split()[1])
            elif not pid:
                pid = int(line)
                if kill_after_s is not None:
                    time.sleep(kill_after_s)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            else:
                grown = int(line)
        return status, grown

    def close(self) -> None:
        self._child.communicate()
