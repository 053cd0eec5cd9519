"""Builds the C++ kernels where they run, for the CPU that is there, and loads them.

Kept in the user's cache, under a name that tells source, compiler and CPU apart, so that only
the first start waits for the compiler. Nothing here is needed: who calls goes on without.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dbgpt_guanaco.errors import ConfigurationError

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")
COMPILERS = ("g++", "clang++")
CPU_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
COMPILE_S = 120
VERSION_S = 10
_SOURCES = Path(__file__).parent


def why_not() -> str | None:
    """Say why nothing can be compiled for this CPU; None if it may be tried."""
    if missing := missing_cpu_flags():
        return f"the CPU has no {', '.join(missing)}"
    try:
        _compiler()
    except ConfigurationError as error:
        return str(error)
    return None


def missing_cpu_flags(*wanted: str) -> list[str]:
    """Return what this CPU has not, of what is wanted, or of what the kernels need."""
    flags = _cpu_flags().split()
    return [flag for flag in wanted or CPU_FLAGS if flag not in flags]


def load(main: str, headers: Sequence[str]) -> ctypes.CDLL:
    """Return a library built from a source file of this folder.

    Raises:
        ConfigurationError: It cannot be built, kept or loaded; the message says why.
    """
    compiler = _compiler()
    sources = [_SOURCES / name for name in (main, *headers)]
    name = f"{Path(main).stem}-{_key(compiler, sources)}.so"
    try:
        library = _cache_folder() / name
        if not library.exists():
            _build(compiler, sources[0], library)
        _check_is_ours(library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise ConfigurationError(
            f"the compiled kernels cannot be kept or loaded: {error}"
        ) from None


def _compiler() -> list[str]:
    """Return the command of a C++ compiler, ``$CXX`` first."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]):
            return chosen
        raise ConfigurationError(f"CXX names no program: {chosen[0]}")
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise ConfigurationError(
        "no C++ compiler was found; install one (g++, or clang++ with its OpenMP) or set CXX"
    )


def _key(compiler: Sequence[str], sources: Sequence[Path]) -> str:
    parts = [*compiler, *FLAGS, _cpu_flags(), _run([*compiler, "--version"], VERSION_S)]
    parts += [source.read_text(encoding="utf-8") for source in sources]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _cpu_flags() -> str:
    """What Linux says about the first core; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "flags"), "")


def _build(compiler: Sequence[str], source: Path, library: Path) -> None:
    """Compile beside the place and move there, so that nobody sees half a file."""
    logger.info("compiling %s, once for this CPU", source.name)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        _run([*compiler, *FLAGS, str(source), "-o", unfinished], COMPILE_S)
        Path(unfinished).chmod(0o700)
        Path(unfinished).replace(library)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run(command: Sequence[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the user's own compiler, our own files
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"the C++ compiler did not run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        told = (lines or done.stderr.splitlines() or ["no message"])[0]
        raise ConfigurationError(f"{command[0]} failed with code {done.returncode}: {told.strip()}")
    return done.stdout


def _cache_folder() -> Path:
    """Return a folder that nobody else can put code into."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative paths to be ignored.
    base = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    folder = base / "dbgpt-guanaco"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_is_ours(folder)
    return folder


def _check_is_ours(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(
            f"{path} is a link, belongs to somebody else or can be written by others, so code in "
            "it is not run; make it yours (chmod 700) or set XDG_CACHE_HOME to another folder"
        )
