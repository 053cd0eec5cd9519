"""Command line: where the time of a decode step goes on a CPU, in this process, without HTTP.

::

    python -m benchmarks.cpu_step
"""

import sys
import time
from collections.abc import Sequence as Many
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.facts import as_list, run_facts
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


def step_ms(model: Any, vocabulary: Vocabulary, batch: int) -> dict[str, float]:  # noqa: ANN401
    """Return milliseconds of each part of a decode step, a mean over the answers."""
    size, device = model.lm_head.weight.shape[0], torch.device("cpu")
    blocks = BlockManager(batch * (PROMPT_TOKENS + NEW_TOKENS) // BLOCK, BLOCK)
    first = model.model.layers[0].self_attn
    shapes = [(model.config.num_key_value_heads, first.head_dim)] * model.config.num_hidden_layers
    decoder = CpuDecoder(model, KVCache(shapes, blocks.num_blocks, BLOCK, torch.bfloat16, device))
    scheduler = Scheduler(blocks, PrefillBudget(4096, 4096), batch)
    sampler, passes = BatchSampler(size, batch, device), TimedPasses(decoder)
    runner = ModelRunner(passes, sampler, device)
    for n in range(batch):
        scheduler.add(_sequence(vocabulary, sampler, n))
    taken: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for number in range(NEW_TOKENS):
        if number == 1:  # all prompts are there, and everything is warm
            taken = dict.fromkeys(PARTS, 0.0)
            decoder.seconds, passes.total_s = torch.zeros(len(SECONDS), dtype=torch.float64), 0.0
        at = [time.perf_counter()]
        step = scheduler.schedule()
        at.append(time.perf_counter())
        tokens = runner.run(step).token_ids()
        at.append(time.perf_counter())
        for sequence, token in zip(step.drawing, tokens, strict=True):
            sequence.append(token)
            sequence.answer.feed(token)
        at.append(time.perf_counter())
        for part, since, until in zip(("schedule", "sample", "text"), at, at[1:], strict=False):
            taken[part] += until - since
    assert decoder.seconds is not None
    inner = decoder.seconds.tolist()
    taken |= {f"decoder: {part}": s for part, s in zip(SECONDS, inner, strict=True)}
    taken["decoder: Python"] = passes.total_s - sum(inner)
    taken["sample"] -= passes.total_s
    return {part: 1000 * seconds / (NEW_TOKENS - 1) for part, seconds in taken.items()}


def _sequence(vocabulary: Vocabulary, sampler: BatchSampler, number: int) -> Sequence:
    prompt = tuple((31 * number + 7 * n) % 1000 + 100 for n in range(PROMPT_TOKENS))
    request = SimpleNamespace(cache_salt="", request_id="")
    generation: Any = SimpleNamespace(
        input_ids=prompt, kv_tokens=PROMPT_TOKENS + NEW_TOKENS, request=request
    )
    answer = Answer(
        vocabulary,
        vocabulary.detokenizer(continues_text=False),
        StopChecker(()),
        frozenset(),
        len(prompt),
    )
    return Sequence(generation, answer, sampler.open(SamplingParams(temperature=0), prompt, None))


def main() -> None:
    """Print a table for NF4 and one for bfloat16."""
    torch.set_grad_enabled(False)
    print("\n".join(as_list(run_facts())))
    for quantization in ("nf4", "none"):
        settings = ModelSettings(quantization_override=quantization, device="cpu")
        loaded = load_model(resolve(settings), settings, default_registry())
        vocabulary = Vocabulary(loaded.tokenizer)
        columns = [step_ms(loaded.model, vocabulary, batch) for batch in BATCHES]
        print(f"\n| {quantization}, ms of a step | {' | '.join(map(str, BATCHES))} |")
        print("|---" * (len(BATCHES) + 1) + "|")
        for part in PARTS:
            print(f"| {part} | {' | '.join(f'{column[part]:.2f}' for column in columns)} |")
        print(f"| sum | {' | '.join(f'{sum(column.values()):.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
