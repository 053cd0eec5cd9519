"""Programs that a test starts: each has its own log, and ends with all its children."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

POLL_S = 0.1
STOP_S = 20.0


@dataclass(frozen=True)
class Program:
    """A running program that answers at an address."""

    address: str
    process: psutil.Popen
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=10, trust_env=False)

    def is_up(self, path: str, text: str = "") -> bool:
        """Tell whether a path is answered, with a text in the answer."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.get(path)
            return answer.status_code == 200 and text in answer.text
        return False

    def wait_until(self, claim: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until a claim holds; show the log if it does not in that time."""
        wait_until(claim, f"{what}\n{self.log[-4000:]}", seconds, lambda: self.is_alive)


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    folder: Path,
    port: int,
) -> Iterator[Program]:
    """Run a program in a folder of its own, its home; end it, and what it has started, by ids."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "log"
    with log_file.open("wb") as output:
        process = psutil.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Program(f"http://127.0.0.1:{port}", process, log_file)
    finally:
        end_with_children(process, folder)


def end_with_children(process: psutil.Popen, home: Path) -> None:
    """Ask a program to stop, wait, and kill what is left.

    DB-GPT's code sandbox outlives DB-GPT, and is then nobody's child any more: it is known by the
    home that only this program was given.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(STOP_S)
    family = [member for member in psutil.process_iter() if _home(member) == str(home)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=STOP_S)
    process.wait(STOP_S)


def _home(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    claim: Callable[[], bool],
    what: str,
    seconds: float,
    may_go_on: Callable[[], bool] = lambda: True,
    poll_s: float = POLL_S,
) -> float:
    """Ask again and again until a claim holds; return how long that took."""
    start = time.monotonic()
    while not claim():
        assert may_go_on(), f"it ended before: {what}"
        assert time.monotonic() < start + seconds, f"not within {seconds} s: {what}"
        time.sleep(poll_s)
    return time.monotonic() - start
