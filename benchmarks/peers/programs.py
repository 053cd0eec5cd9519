"""How each server is started: the command, the environment, how it is asked.

All serve the demo model on 127.0.0.1, with as many threads, as many slots and room for as many
tokens as each other.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.load import BenchmarkError, Server
from benchmarks.peers.install import FOLDER, PEERS, ROOT, is_installed, python_of

# Prompt and answer of one request; every slot has room for one.
CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Site:
    """What all servers of a run share.

    Attributes:
        model: Folder of the model, relative to the repository.
        slots: Requests that are answered at a time.
        threads: Threads that compute.
        port: Where this server listens.
    """

    model: str
    slots: int
    threads: int
    port: int


@dataclass(frozen=True, slots=True)
class Program:
    """One server, ready to be started in the root of the repository.

    Attributes:
        name: As it stands in the report.
        weights: How the weights are stored, for the report.
        command: With the interpreter first.
        model: Name of the model in requests.
        port: Where it listens on 127.0.0.1.
        health: Path that answers 200 once the server takes requests.
        environment: What it needs beyond what every program inherits.
        versions: Packages that matter.
        extra: Fields of a request that make it answer to the last token asked for; empty where
            it knows none.
    """

    name: str
    weights: str
    command: tuple[str, ...]
    model: str
    port: int
    health: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def server(self) -> Server:
        """Where and how it is asked."""
        return Server(self.name, f"http://127.0.0.1:{self.port}", self.model, extra=self.extra)

    @property
    def told(self) -> str:
        """Environment and command as one would type them; paths are those of the repository."""
        interpreter, *words = self.command
        told = interpreter.removeprefix(f"{ROOT}/") if interpreter != sys.executable else "python"
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join((*settings, told, *words)).replace(f"{ROOT}/", "")


Engine = Literal["batching", "streaming"]


def ours(name: str, engine: Engine, quantization: str, site: Site) -> Program:
    """This repository's server; no embedding model beside the one that is measured."""
    weights = {"nf4": "NF4, double quantization", "none": "bfloat16"}
    return Program(
        name=name,
        weights=f"{weights.get(quantization, quantization)}, {engine} engine",
        command=(sys.executable, "-m", "dbgpt_guanaco.server"),
        environment={
            "LLM_MODEL": site.model,
            "GUANACO_ENGINE": engine,
            "GUANACO_QUANTIZATION": quantization,
            "LIMIT_MODEL_CONCURRENCY": str(site.slots),
            "MAX_POSITION_EMBEDDINGS": str(CONTEXT_TOKENS),
            "EMBEDDING_MODEL": "none",
            "GUANACO_DEVICE": "cpu",
            "GUANACO_HOST": "127.0.0.1",
            "MODEL_PORT": str(site.port),
            "OMP_NUM_THREADS": str(site.threads),
        },
        model=Path(site.model).name,
        port=site.port,
        health="/ready",
        # The nearest to ignore_eos that it knows; costs some time in every step.
        extra={"logit_bias": {str(token_id): -100 for token_id in _end_ids(site.model)}},
    )


def _end_ids(model: str) -> list[int]:
    """Read the ids of the tokens that end an answer."""
    ids = json.loads((ROOT / model / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    return ids if isinstance(ids, list) else [ids]


def transformers(site: Site) -> Program:
    """``transformers serve`` with continuous batching and bitsandbytes' 4 bits."""
    block = 32
    return Program(
        name="transformers",
        weights="bitsandbytes 4-bit",
        command=(
            str(python_of("transformers").with_name("transformers")),
            *("serve", site.model, "--continuous-batching", "--quantization", "bnb-4bit"),
            *("--dtype", "bfloat16", "--device", "cpu"),
            *("--host", "127.0.0.1", "--port", str(site.port)),
            # Without a number it takes most of the memory.
            *("--cb-block-size", str(block)),
            *("--cb-num-blocks", str(site.slots * CONTEXT_TOKENS // block)),
        ),
        environment={"OMP_NUM_THREADS": str(site.threads)},
        model=site.model,
        port=site.port,
        versions=PEERS["transformers"].packages,
        # No token has this number, so none ends an answer.
        extra={"generation_config": json.dumps({"eos_token_id": -1})},
    )


def vllm(site: Site) -> Program:
    """VLLM's build for CPUs, weights as they are."""
    cores = sorted(os.sched_getaffinity(0))[: site.threads]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        # Left alone it keeps one core for HTTP, and so computes on one of two.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
    }
    # Its documentation asks for this one; its own package brings it.
    openmp = FOLDER / "vllm" / "lib" / "libiomp5.so"
    return Program(
        name="vllm",
        weights="bfloat16",
        command=(
            *(str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", site.model, "--served-model-name", Path(site.model).name),
            *("--enforce-eager", "--dtype", "bfloat16"),
            *("--max-num-seqs", str(site.slots), "--max-model-len", str(CONTEXT_TOKENS)),
            *("--host", "127.0.0.1", "--port", str(site.port)),
        ),
        environment=environment | ({"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}),
        model=Path(site.model).name,
        port=site.port,
        versions=(*PEERS["vllm"].bare_packages, *PEERS["vllm"].packages),
        extra={"ignore_eos": True},
    )


def llama_cpp(site: Site) -> Program:
    """llama.cpp as a library, with its own server; its model file is the one that a package has."""
    return Program(
        name="llama.cpp",
        weights="Q4_1, a build for any processor with AVX2",
        command=(
            *(str(python_of("llama.cpp")), "-m", "benchmarks.peers.llama_server"),
            *("--port", str(site.port), "--slots", str(site.slots)),
            *("--threads", str(site.threads), "--context-tokens", str(CONTEXT_TOKENS)),
        ),
        model="smollm2-135m-instruct",
        port=site.port,
        versions=PEERS["llama.cpp"].bare_packages,
        extra={"ignore_eos": True},
    )


def llama_cpp_native(site: Site) -> Program:
    """llama.cpp's own program, built for this processor, with the weights it is fastest with."""
    threads = str(site.threads)
    return Program(
        name="llama.cpp-native",
        weights="Q4_0, a build for this processor",
        command=(
            *(str(python_of("llama.cpp-native")), "-m", "benchmarks.peers.llama_native"),
            *("--host", "127.0.0.1", "--port", str(site.port), "--parallel", str(site.slots)),
            *("--ctx-size", str(site.slots * CONTEXT_TOKENS)),
            *("--threads", threads, "--threads-batch", threads),
        ),
        model="smollm2-135m-instruct",
        port=site.port,
        versions=PEERS["llama.cpp-native"].bare_packages,
        extra={"ignore_eos": True},
    )


OURS: Mapping[str, Callable[[Site], Program]] = {
    "ours-nf4": partial(ours, "ours-nf4", "batching", "nf4"),
    "ours-int8": partial(ours, "ours-int8", "batching", "int8"),
    "ours-none": partial(ours, "ours-none", "batching", "none"),
    "ours-streaming": partial(ours, "ours-streaming", "streaming", "nf4"),
}
PROGRAMS: Mapping[str, Callable[[Site], Program]] = {
    **OURS,
    "transformers": transformers,
    "vllm": vllm,
    "llama.cpp": llama_cpp,
    "llama.cpp-native": llama_cpp_native,
}


def find_program(name: str) -> Callable[[Site], Program]:
    """Return what describes a server.

    Raises:
        BenchmarkError: There is none of that name, or it is not installed.
    """
    if name not in PROGRAMS:
        raise BenchmarkError(f"no server is called {name!r}; there are {', '.join(PROGRAMS)}")
    if name in PEERS and not is_installed(name):
        raise BenchmarkError(
            f"{name} is not installed; run: python benchmarks/peers/install.py {name}"
        )
    return PROGRAMS[name]


def find_model(folder: Path) -> str:
    """Return the model's folder as programs are told: from the root, if it lies there.

    Raises:
        BenchmarkError: There is no model.
    """
    # Relative, so that no path of this machine stands in a report.
    full = (ROOT / folder).resolve()
    told = full.relative_to(ROOT) if full.is_relative_to(ROOT) else full
    if not (full / "config.json").is_file():
        raise BenchmarkError(f"no model in {told}; `make serve` once makes the demo model")
    return str(told)
