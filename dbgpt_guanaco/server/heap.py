"""Keeps freed memory from staying with the process, where the C library is glibc.

glibc gives each thread that allocates an arena of its own (up to 8 a core), and an arena keeps what
was freed in it. So a long prompt costs its memory once for every thread of a pool that ever read
one, and what loading a model freed stays resident to the end. See mallopt(3) and malloc_trim(3).
"""

import ctypes
import os

_M_ARENA_MAX = -8  # malloc.h
# The process's first and one more; threads are spread over both.
ARENAS = 2


def share_arenas() -> None:
    """Let threads share arenas, unless somebody has said how many there may be.

    Has to come before threads allocate.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_said = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in tunables
    if not is_said and (mallopt := _glibc("mallopt")):
        mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return to the system what is free in all arenas."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    """Find a function of the C library that this process runs with, if it is glibc."""
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return None
        return ctypes.CDLL(None)[name]
    except (AttributeError, OSError, ValueError):
        return None
