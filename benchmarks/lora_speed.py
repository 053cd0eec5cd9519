"""Tokens a second of the batching engine without LoRAs, with one, and with four in one batch.

One engine, one run, the ways in turn, so that a noisy machine is noisy for all of them. The LoRAs
are random: what they say does not matter for the time that they take.

    python benchmarks/lora_speed.py --model models/smollm2-135m-instruct --rank 16
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.settings import EngineSettings, ModelSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

STREAMS, TOKENS, ROUNDS = 8, 64, 5
# Which LoRA each of eight streams asks for.
WAYS: dict[str, tuple[str | None, ...]] = {
    "base": (None,),
    "one LoRA": ("lora-0",),
    "four LoRAs and base": ("lora-0", "lora-1", "lora-2", "lora-3", None),
}


def write_lora(folder: Path, model: nn.Module, rank: int, seed: int) -> Path:
    """Write random LoRA weights for all linear layers but the head."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    names = set()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and name != "lm_head":
            names.add(name.rpartition(".")[2])
            prefix = f"base_model.model.{name}"
            a = torch.randn(rank, part.in_features, generator=generator)
            b = torch.randn(part.out_features, rank, generator=generator) / 1000
            tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names))
    config.save_pretrained(str(folder))
    return folder


async def tokens_per_second(engine: BatchingEngine, loras: tuple[str | None, ...]) -> float:
    """Run eight answers together; → tokens a second, from the first submit to the last token."""
    sampling = SamplingParams(temperature=0, max_new_tokens=TOKENS, logit_bias={2: -100, 0: -100})

    async def one(number: int) -> int:
        lora = loras[number % len(loras)]
        request = GenerationRequest((1, 100 + number, 7, 8, 9), sampling, lora=lora)
        return [d async for d in await engine.submit(request)][-1].usage.completion_tokens

    start = time.perf_counter()
    counts = await asyncio.gather(*(one(n) for n in range(STREAMS)))
    return sum(counts) / (time.perf_counter() - start)


async def measure(engine: BatchingEngine, rounds: int) -> dict[str, list[float]]:
    """Measure every way in every round, after a first one that does not count."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(rounds + 1):
        for way, loras in WAYS.items():
            speed = await tokens_per_second(engine, loras)
            if round_number:
                found[way].append(speed)
    return found


def load(model: str) -> LoadedModel:
    """Load the base in NF4."""
    settings = ModelSettings(name=model)
    return load_model(resolve(settings), settings, default_registry())


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    engine = BatchingEngine(loaded, EngineSettings(slots=STREAMS))
    engine.wait_until_warm()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            name = f"lora-{number}"
            lora = write_lora(Path(folder) / name, loaded.model, arguments.rank, number)
            engine.loras.add(name, lora)
    try:
        found = asyncio.run(measure(engine, arguments.rounds))
    finally:
        engine.close()
    base = statistics.median(found["base"])
    print(f"{STREAMS} streams, {TOKENS} tokens each, rank {arguments.rank}, {loaded.card.device}\n")
    print("| | tokens/s, median | least | most | of the base's |\n|---|---|---|---|---|")
    for way, speeds in found.items():
        middle, least, most = statistics.median(speeds), min(speeds), max(speeds)
        print(f"| {way} | {middle:.0f} | {least:.0f} | {most:.0f} | {middle / base:.2f} |")


if __name__ == "__main__":
    main()
