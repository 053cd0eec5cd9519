"""Server processes that a benchmark starts: made ready, watched, ended by their ids."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from benchmarks.load import BenchmarkError
from benchmarks.peers.programs import Program

ROOT = Path(__file__).resolve().parents[1]
_POLL_S = 0.2
_STOP_S = 20.0
_LOG_LINES = 30


class Running:
    """A program that was started, and the processes it has started itself."""

    def __init__(self, program: Program, log_file: Path) -> None:
        self.program, self._log_file = program, log_file
        with log_file.open("wb") as output:
            self._process = psutil.Popen(
                program.command,
                cwd=ROOT,
                env=_environment() | dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the benchmark, which then ends its programs. And
                # who belongs to this program is told by the session, also once it has died.
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server listens.

        Raises:
            BenchmarkError: It ended, or is not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            if self._process.poll() is not None:
                raise self.error(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self.error(f"was not ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            address = self.program.server.url + self.program.health
            return httpx.get(address, timeout=5, trust_env=False).status_code == 200
        return False

    def error(self, what: str) -> BenchmarkError:
        """Return an error that ends with the end of the program's log."""
        # A report may repeat it, and shows no path of this machine.
        log = self._log_file.read_text("utf-8", errors="replace").replace(f"{ROOT}/", "")
        lines = log.rstrip().splitlines()[-_LOG_LINES:]
        return BenchmarkError("\n".join((f"{self.program.name} {what}. Its log ends:", *lines)))

    @property
    def family(self) -> list[psutil.Process]:
        """The process and all it has started that still live."""
        return [one for one in psutil.process_iter() if self._is_ours(one)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            is_dead = process.status() == psutil.STATUS_ZOMBIE
            return not is_dead and os.getsid(process.pid) == self._process.pid
        except (psutil.Error, OSError):
            return False

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that the whole family has had."""
        return sum(_cpu_s(member) for member in self.family)

    @property
    def rss_bytes(self) -> int:
        """Memory that the whole family holds; what they share counts for each."""
        return sum(_rss_bytes(member) for member in self.family)

    def end(self) -> None:
        """Ask it to stop, wait, and kill what is left of the family."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(_STOP_S)
        left = self.family
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=_STOP_S)


@contextlib.contextmanager
def running(program: Program, log_file: Path, timeout_s: float) -> Iterator[Running]:
    """Start a program, give it once it is ready, and end it.

    Raises:
        BenchmarkError: It did not start.
    """
    started = Running(program, log_file)
    try:
        started.wait_until_ready(timeout_s)
        yield started
    finally:
        with _undisturbed():
            started.end()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a second Ctrl-C wait until the program is ended; that takes seconds."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_like_ctrl_c() -> None:
    """Let the signals that ``timeout`` or a closed terminal send end the programs, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


class Clock:
    """How much CPU everything else on the machine uses while something is measured."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._started_s, self._others_s = time.monotonic(), self._now()

    def _now(self) -> float:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is in user time already.
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return sum(times) - idle - guest - self._server.cpu_s - _cpu_s(psutil.Process())

    @property
    def other_cores(self) -> float:
        """Cores that other programs kept busy since the clock was made, on average."""
        passed_s = time.monotonic() - self._started_s
        return max(0.0, (self._now() - self._others_s) / passed_s) if passed_s > 0 else 0.0


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment() -> dict[str, str]:
    """Return what programs inherit: nothing that belongs to this interpreter, and no hub."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD", "OMP_NUM_THREADS"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    folder = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join(p for p in kept.get("PATH", "").split(":") if p != folder)
    return kept | {"HF_HUB_OFFLINE": "1"}
