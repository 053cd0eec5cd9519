"""Ways to decode a batch, each told the same: so many sequences, so much context, so many steps."""

import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.gpu_models import DTYPE, Built
from benchmarks.gpu_timing import seconds_of
from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS, KVCache, Span
from dbgpt_guanaco.engine.cuda_graphs import (
    CudaRecorder,
    DecodeBatch,
    DecodeGraphs,
    record_nothing,
)
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.passes import Passes, RecordedPasses, TransformersPasses

WARMUP = 3


class Decoder(Protocol):
    """One way to decode."""

    name: str

    def step_seconds(self, batch: int, context: int, steps: int) -> list[float]:
        """Return the seconds of each of at least ``steps`` steps that add a token to a batch."""
        ...


class Generate:
    """transformers' ``generate``, its tokens timed as they reach a streamer."""

    name = "transformers generate"

    def __init__(self, built: Built) -> None:
        self._built = built

    @torch.inference_mode()
    def step_seconds(self, batch: int, context: int, steps: int) -> list[float]:
        """See ``Decoder``; the prompt is computed first and not counted."""
        model, times = without_hooks(self._built), _Times()
        model.set_attn_implementation("sdpa")
        ids = random_ids(self._built, batch, context)
        number = steps + WARMUP + 1
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_greedy(number),
            streamer=times,
        )
        return times.gaps()[-steps:]


class _Times(BaseStreamer):  # type: ignore[misc] # transformers has no types here
    def __init__(self) -> None:
        self._marks: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ANN401, ARG002 - generate has waited for it
        """Take the prompt, then each step's tokens."""
        self._marks.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to tell."""

    def gaps(self) -> list[float]:
        """Seconds between the tokens; the prompt stands before the first."""
        return [later - earlier for earlier, later in pairwise(self._marks[1:])]


class ContinuousBatching:
    """transformers' continuous batching, by the times that it stamps its tokens with."""

    name = "transformers continuous batching"

    def __init__(self, built: Built) -> None:
        self._built = built

    def step_seconds(self, batch: int, context: int, steps: int) -> list[float]:
        """See ``Decoder``. Only steps in which the whole batch decodes are counted."""
        model, number = without_hooks(self._built), steps + WARMUP + 1
        model.set_attn_implementation("sdpa")  # which it turns into its own paged form
        page = 256
        pages = batch * (-(-(context + number) // page) + 1)
        answers = model.generate_batch(
            inputs=random_ids(self._built, batch, context).tolist(),
            generation_config=_greedy(number),
            continuous_batching_config=_accepted(
                transformers.ContinuousBatchingConfig,
                page_size=page,
                num_blocks=pages + 2,
                max_batch_tokens=2048,
                allow_block_sharing=False,
            ),
            record_timestamps=True,
            progress_bar=False,
        )
        stamps = [answer.timestamps for answer in answers.values()]
        if len(stamps) != batch or not all(stamps):
            raise RuntimeError(f"{len(stamps)} of {batch} answers came, or had no times")
        # Prompts end one after the other; from the last one's first token on, all decode.
        last_start, first_end = max(s[0] for s in stamps), min(s[-1] for s in stamps)
        shared = [mark for mark in stamps[0] if last_start <= mark <= first_end]
        gaps = [later - earlier for earlier, later in pairwise(shared)]
        if not gaps:
            raise RuntimeError("the whole batch never decoded at once; ask for more steps")
        return gaps[-steps:]


class Ours:
    """The batching engine's passes over blocks; a token's choice is greedy, and stays there."""

    name = "ours, passes only, eager"
    is_recorded = False

    def __init__(self, built: Built) -> None:
        self._built = built
        self._device: torch.device = built.model.device

    @torch.inference_mode()
    def step_seconds(self, batch: int, context: int, steps: int) -> list[float]:
        """See ``Decoder``. The cache holds random numbers in place of a computed prompt."""
        total = steps + WARMUP
        with self.start(batch, context + total) as state:
            state.fill()
            state.lengths = [context] * batch
            state.newest = random_ids(self._built, batch, 1)[:, 0]
            return seconds_of(state.step, total, self._device)[WARMUP:]

    def start(self, batch: int, tokens: int) -> "Decoding":
        """Make a cache for a batch, and record its steps if that is asked for."""
        return Decoding(self._built, batch, tokens, is_recorded=self.is_recorded)


class OursRecorded(Ours):
    """The same in CUDA graphs."""

    name = "ours, passes only, in graphs"
    is_recorded = True


class Decoding:
    """A batch that is being decoded, until the block ends: then the model is as it was.

    Attributes:
        way: Computes passes.
        lengths: Tokens of each sequence that are in the cache.
        newest: [B] token of each that is not.
    """

    def __init__(self, built: Built, batch: int, tokens: int, *, is_recorded: bool) -> None:
        attention.register()
        self._model, shape = built.model, built.shape
        self._model.set_attn_implementation(attention.NAME)
        self._device: torch.device = built.model.device
        width = -(-tokens // BLOCK_TOKENS)
        order = torch.randperm(batch * width, generator=torch.Generator().manual_seed(0))
        self.tables = order.view(batch, width).tolist()
        layers = [(shape.heads, shape.head_size)] * shape.layers
        # One block more for each: a scheduler lets nobody in who could take the last one.
        self.cache = KVCache(layers, batch * (width + 1), BLOCK_TOKENS, DTYPE, self._device)
        self._loras = LoraLayers(self._model)
        self._passes = TransformersPasses(self._model, self.cache, self._loras)
        self._vocabulary = shape.vocabulary
        self.lengths = [0] * batch
        self.newest = torch.zeros(batch, dtype=torch.long, device=self._device)
        self.way: Passes = self._recorded(batch, width) if is_recorded else self._passes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loras.remove()

    def fill(self) -> None:
        """Put random numbers where the keys and values of a prompt would be."""
        for cached in (*self.cache.keys, *self.cache.values):
            cached.normal_()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compute prompts in one pass."""
        spans, start = [], 0
        for prompt, table in zip(prompts, self.tables, strict=True):
            spans.append(Span(start, len(prompt), len(prompt), table))
            start += len(prompt)
        ids = torch.tensor([i for prompt in prompts for i in prompt], device=self._device)
        ends = [s.start + s.count - 1 for s in spans]
        logits = self._passes.compute(ids, spans, ends)
        self.lengths = [len(prompt) for prompt in prompts]
        self.newest = logits.argmax(dim=-1)

    def step(self) -> None:
        """Compute the newest tokens and choose the next ones."""
        self.lengths = [length + 1 for length in self.lengths]
        spans = [
            Span(n, 1, length, table)
            for n, (length, table) in enumerate(zip(self.lengths, self.tables, strict=True))
        ]
        self.newest = self.way.compute(self.newest, spans, None).argmax(dim=-1)

    def _recorded(self, batch: int, width: int) -> RecordedPasses:
        is_cuda = self._device.type == "cuda"
        graphs = DecodeGraphs(
            self._passes.decode if is_cuda else self._cpu_step,
            largest=batch,
            table_blocks=width,
            device=self._device,
            record=CudaRecorder() if is_cuda else record_nothing,
        )
        return RecordedPasses(self._passes, graphs)

    def _cpu_step(self, batch: DecodeBatch) -> Tensor:
        """Do the same through lists of numbers, which a real graph could not look at."""
        if not batch.lengths.any():  # recorded, with padding only
            return torch.zeros(len(batch.lengths), self._vocabulary, dtype=DTYPE)
        rows = zip(batch.lengths.tolist(), batch.block_tables.tolist(), strict=True)
        spans = [Span(n, 1, length, table) for n, (length, table) in enumerate(rows)]
        return self._passes.compute(batch.input_ids, spans, None)


def without_hooks(built: Built) -> Any:  # noqa: ANN401
    """Return the model for a peer, which must not wait for hooks of ours.

    Raises:
        RuntimeError: There are some.
    """
    hooked = [name for name, part in built.model.named_modules() if part._forward_hooks]
    if hooked:
        raise RuntimeError(f"{len(hooked)} layers have hooks, {hooked[0]} is the first")
    return built.model


def random_ids(built: Built, batch: int, tokens: int) -> Tensor:
    """Return prompts [batch, tokens], the same in every run."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, built.shape.vocabulary, (batch, tokens), generator=generator)
    return ids.to(built.model.device)


def _greedy(number: int) -> GenerationConfig:
    # Random weights know no end: without an end token all answers have the same length.
    return GenerationConfig(
        max_new_tokens=number, min_new_tokens=number, do_sample=False, pad_token_id=0
    )


def _accepted(kind: Any, **wanted: Any) -> Any:  # noqa: ANN401
    """Make a configuration of what this version of transformers knows."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in wanted.items() if name in known})
