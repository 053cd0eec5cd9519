"""Command line: where the time of a decode step goes on a CPU, in this process, without sockets.

::

    python -m benchmarks.cpu_step
"""

import statistics
import sys
import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.event_loop import loop_time
from benchmarks.facts import as_list, run_facts
from benchmarks.stand_ins import stand_in
from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.cpu_decoder import CpuDecoder
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.kernels.decoder_structs import SECONDS
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler
from dbgpt_guanaco.engine.sequence import Sequence
from dbgpt_guanaco.engine.stopping import StopChecker
from dbgpt_guanaco.settings import ModelSettings
from dbgpt_guanaco.types import SamplingParams

BATCHES = (1, 8, 32)
PROMPT_TOKENS, NEW_TOKENS, BLOCK = 64, 64, 16
PARTS = ("schedule", *(f"decoder: {part}" for part in SECONDS), "decoder: Python", "sample", "text")
GREEDY = SamplingParams(temperature=0)
# What a draw takes where tokens are not just the likeliest ones.
SAMPLED = {
    "temperature 0.7": SamplingParams(temperature=0.7),
    "temperature 0.7, top_p 0.9": SamplingParams(temperature=0.7, top_p=0.9),
    "greedy, repetition_penalty 1.1": SamplingParams(temperature=0, repetition_penalty=1.1),
}


class TimedPasses:
    """Adds up what the passes take."""

    def __init__(self, passes: CpuDecoder) -> None:
        self._passes, self.total_s = passes, 0.0

    def compute(self, ids: torch.Tensor, spans: Many[Span], wanted: Many[int] | None) -> Any:  # noqa: ANN401
        """See ``Passes``."""
        began = time.perf_counter()
        logits = self._passes.compute(ids, spans, wanted)
        self.total_s += time.perf_counter() - began
        return logits


def step_ms(
    model: Any,  # noqa: ANN401
    vocabulary: Vocabulary,
    batch: int,
    params: SamplingParams = GREEDY,
) -> dict[str, float]:
    """Return milliseconds of each part of a decode step, medians over the answers."""
    size, device = model.lm_head.weight.shape[0], torch.device("cpu")
    blocks = BlockManager(batch * (PROMPT_TOKENS + NEW_TOKENS) // BLOCK, BLOCK)
    first = model.model.layers[0].self_attn
    shapes = [(model.config.num_key_value_heads, first.head_dim)] * model.config.num_hidden_layers
    decoder = CpuDecoder(model, KVCache(shapes, blocks.num_blocks, BLOCK, torch.bfloat16, device))
    decoder.seconds = torch.zeros(len(SECONDS), dtype=torch.float64)
    scheduler = Scheduler(blocks, PrefillBudget(4096, 4096), batch)
    sampler, passes = BatchSampler(size, batch, device), TimedPasses(decoder)
    runner = ModelRunner(passes, sampler, device)
    for n in range(batch):
        scheduler.add(_sequence(vocabulary, sampler, n, params, size))
    steps = [_step_seconds(scheduler, runner, passes, decoder.seconds) for _ in range(NEW_TOKENS)]
    # In the first one stand the prompts.
    return {part: 1000 * statistics.median(s[part] for s in steps[1:]) for part in PARTS}


def _step_seconds(
    scheduler: Scheduler, runner: ModelRunner, passes: TimedPasses, inner: torch.Tensor
) -> dict[str, float]:
    inner.zero_()
    passes.total_s = 0.0
    began = time.perf_counter()
    step = scheduler.schedule()
    scheduled = time.perf_counter()
    tokens = runner.run(step).token_ids()
    computed = time.perf_counter()
    for sequence, token in zip(step.drawing, tokens, strict=True):
        sequence.append(token)
        sequence.answer.feed(token)
    done = time.perf_counter()
    parts = {f"decoder: {part}": s for part, s in zip(SECONDS, inner.tolist(), strict=True)}
    return parts | {
        "schedule": scheduled - began,
        "decoder: Python": passes.total_s - sum(parts.values()),
        "sample": computed - scheduled - passes.total_s,
        "text": done - computed,
    }


def _sequence(
    vocabulary: Vocabulary, sampler: BatchSampler, number: int, params: SamplingParams, size: int
) -> Sequence:
    prompt = tuple((31 * number + 7 * n) % size for n in range(PROMPT_TOKENS))
    answer = Answer(
        vocabulary,
        vocabulary.detokenizer(continues_text=False),
        StopChecker(()),
        frozenset(),
        len(prompt),
    )
    return stand_in(prompt, NEW_TOKENS, sampler.open(params, prompt, None), answer)


def main() -> None:
    """Print a table for NF4 and one for bfloat16."""
    torch.set_grad_enabled(False)
    print("\n".join(as_list(run_facts())))
    for quantization in ("nf4", "none"):
        settings = ModelSettings(quantization_override=quantization, device="cpu")
        loaded = load_model(resolve(settings), settings, default_registry())
        vocabulary = Vocabulary(loaded.tokenizer)
        columns = [step_ms(loaded.model, vocabulary, batch) for batch in BATCHES]
        _print(f"{quantization}, ms of a step", BATCHES)
        for part in PARTS:
            _print(part, [column[part] for column in columns])
        _print("sum", [sum(column.values()) for column in columns])
        for name, params in SAMPLED.items():
            ways = [step_ms(loaded.model, vocabulary, batch, params) for batch in BATCHES]
            _print(f"sample, {name}", [way["sample"] for way in ways])
        loops = [loop_time(loaded, batch, NEW_TOKENS) for batch in BATCHES]
        _print("the event loop's thread, beside it", [loop.loop for loop in loops])
        _print("a step with all of that, prompts shared out", [loop.wall for loop in loops])


def _print(title: str, numbers: Many[float]) -> None:
    """Print a row of a table; whole numbers are its head."""
    is_head = all(isinstance(number, int) for number in numbers)
    cells = (str(n) if is_head else f"{n:.2f}" for n in numbers)
    print(f"{chr(10) if is_head else ''}| {title} | {' | '.join(cells)} |")
    if is_head:
        print("|---" * (len(numbers) + 1) + "|")


if __name__ == "__main__":
    main()
