"""Decoding as the engine does it: scheduler, model runner, sampler, tokens that reach the host."""

import torch

from benchmarks.gpu_decoders import WARMUP, Decoding, OursRecorded, random_ids
from benchmarks.gpu_models import Built
from benchmarks.gpu_timing import seconds_of
from benchmarks.stand_ins import stand_in
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler, Step
from dbgpt_guanaco.types import SamplingParams

GREEDY = SamplingParams(temperature=0)


class OursEngine(OursRecorded):
    """The batching engine without requests and text; a step starts before the last one is read."""

    name = "ours, engine"

    @torch.inference_mode()
    def step_seconds(self, batch: int, context: int, steps: int) -> list[float]:
        """See ``Ours``."""
        total = steps + WARMUP
        with self.start(batch, context + total + 1) as decoding:
            decoding.fill()
            loop = Loop(self._built, decoding, batch, context, total)
            return seconds_of(loop.step, total, self._device)[WARMUP:]


class Loop:
    """Takes the steps of ``BatchingEngine``."""

    def __init__(
        self, built: Built, decoding: Decoding, batch: int, context: int, new_tokens: int
    ) -> None:
        device: torch.device = built.model.device
        blocks = BlockManager(decoding.cache.num_blocks, BLOCK_TOKENS)
        everything = PrefillBudget(batch * context, batch * context)
        self._scheduler = Scheduler(blocks, everything, batch)
        sampler = BatchSampler(built.shape.vocabulary, batch, device)
        self._runner = ModelRunner(decoding.way, sampler, device)
        for prompt in random_ids(built, batch, context).tolist():
            row = sampler.open(GREEDY, prompt, None)
            self._scheduler.add(stand_in(prompt, new_tokens + 1, row))
        # The prompts' step is taken as computed: what the cache holds is as good.
        for sequence in self._scheduler.schedule().drawing:
            sequence.append(1)
        sampler.last_tokens.fill_(1)
        self._pending: tuple[Step, Drawn] | None = None

    def step(self) -> None:
        """Start a step, then read the tokens of the one before."""
        step = self._scheduler.schedule()
        drawn = self._runner.run(step)
        self._read()
        self._pending = step, drawn

    def _read(self) -> None:
        if self._pending:
            step, drawn = self._pending
            for sequence, token in zip(step.drawing, drawn.token_ids(), strict=True):
                sequence.append(token)
