"""What the C library does with freed memory, seen in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbgpt_guanaco.server.heap import ARENAS

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="there is no glibc here"
)
THREADS = 8
ARENA_COUNT = f"""
import ctypes, json, sys, threading
from dbgpt_guanaco.server import heap

heap.share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier({THREADS})

def allocate():
    together.wait()
    libc.malloc(ctypes.c_size_t(5000))
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range({THREADS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
told = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, told)
libc.fclose(told)
print(json.dumps([open(sys.argv[1]).read().count("<heap nr=")]))
"""
HOLES = """
import json
from dbgpt_guanaco.server import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pieces = [bytes(1000) for _ in range(200_000)]
full = resident()
pins = pieces[::100]  # what lives on, here and there
del pieces
freed = resident()
heap.give_back()
print(json.dumps([full, freed, resident()]))
"""


def run(script: str, *arguments: object, **environment: str) -> list[int]:
    plain = {k: v for k, v in os.environ.items() if k not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    told = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=plain | environment, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    seen: list[int] = json.loads(told.stdout)
    return seen


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, ARENAS),
        ({"MALLOC_ARENA_MAX": "5"}, 5),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"}, 3),
    ],
)
def test_threads_share_arenas_unless_told_otherwise(
    environment: dict[str, str], seen: int, tmp_path: Path
) -> None:
    assert run(ARENA_COUNT, tmp_path / "info.xml", **environment) == [seen]


def test_freed_memory_between_living_pieces_goes_back() -> None:
    full, freed, given_back = run(HOLES)

    assert full - freed < 40e6, "the C library gave it back by itself: this test shows nothing"
    assert full - given_back > 100e6
