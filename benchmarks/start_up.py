"""Start-up time and peak memory of a quantized checkpoint against quantizing at load.

Each load has a process of its own, the two ways take turns, and files are in the page cache for
both of them.

    python benchmarks/start_up.py --model models/smollm2-135m-instruct
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
# Imports come first: they are the same for both. Prints seconds, and bytes by which memory grew
# at most.
LOAD = """
import json, sys, time
from pathlib import Path
import torch, transformers, peft, bitsandbytes, accelerate
from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.settings import ModelSettings

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

settings = ModelSettings(name=sys.argv[1], device="cpu")
Path("/proc/self/clear_refs").write_text("5")
idle, start = memory("VmRSS"), time.perf_counter()
load_model(resolve(settings), settings, default_registry())
print(json.dumps([time.perf_counter() - start, memory("VmHWM") - idle]))
"""


def load(folder: Path) -> tuple[float, int]:
    """Load a model in a fresh process; → seconds, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, text=True
    )
    seconds, grown = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), int(grown)


def quantized(model: Path, folder: Path) -> Path:
    """Write the NF4 checkpoint, as the command does."""
    command = "from dbgpt_guanaco.cli import app; app()"
    arguments = ["quantize", str(model), "--out", str(folder)]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True)
    return folder


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stored = quantized(arguments.model, Path(folder) / "quantized")
        ways = {"quantized at load": arguments.model, "quantized checkpoint": stored}
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, path in ways.items():
                found[way].append(load(path))
    print("| | seconds, median | least | most | peak memory, MiB |\n|---|---|---|---|---|")
    for way, loads in found.items():
        seconds = [s for s, _ in loads]
        peak = statistics.median(b for _, b in loads) / 2**20
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"| {way} | {middle:.2f} | {least:.2f} | {most:.2f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
