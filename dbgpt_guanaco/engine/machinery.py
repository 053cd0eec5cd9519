"""What the batching engine works with: a model, its cache, and the books over both."""

import logging
from typing import Any

import psutil
import torch
from torch import Tensor

from dbgpt_guanaco.adapters.memory import cache_tokens
from dbgpt_guanaco.engine import attention, kernels
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses, CpuDecoder
from dbgpt_guanaco.engine.cuda_graphs import CudaRecorder, DecodeGraphs
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.passes import Passes, RecordedPasses, TransformersPasses
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler, Step
from dbgpt_guanaco.errors import ConfigurationError, GenerationFailedError, OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 16
# Prompt tokens of a step: a piece that keeps the others' next token from being late, and one
# that nobody waits for but whoever may cancel it.
BUDGETS = {"cpu": PrefillBudget(64, 64), "cuda": PrefillBudget(2048, 256)}
COMPILED_BUDGET = PrefillBudget(64, 64, per_decode=2)
# A block of tokens, spread over the vocabulary, and again: what a model says to a repetition
# hangs on what it sees of the first time.
PROBE = 2 * tuple(7919 * n + 3 for n in range(BLOCK_TOKENS))
# How far the logits of two ways to compute them may lie apart. Rounding to bfloat16 in every
# layer makes 0.01 of SmolLM2, one token of the probe taken for another 0.11, a wrong block 0.35.
MAX_DIFFERENCE = 0.1


class Machinery:
    """Builds the parts, runs steps, and builds them again after a failure.

    Raises:
        ConfigurationError: This model cannot be batched; the message says why.
        OutOfMemoryError: Not even one context of keys and values fits.
    """

    def __init__(self, model: Any, settings: EngineSettings, context_tokens: int) -> None:  # noqa: ANN401
        reason = why_not(model)
        if reason:
            raise ConfigurationError(f"this model cannot be batched: {reason}")
        self._model, self._settings, self._context_tokens = model, settings, context_tokens
        self._device: torch.device = model.device
        self._layers, self._loras = _layers(model), LoraLayers(model)
        self._dtype = _dtype(model)
        self.vocabulary_size = int(model.get_output_embeddings().weight.shape[0])
        self._num_blocks = self._room(context_tokens)
        self._own_attention = model.config._attn_implementation
        self.overlaps = self._device.type == "cuda"
        attention.register()
        self._build()

    @property
    def capacity_tokens(self) -> int:
        """Tokens whose keys and values fit at a time."""
        return self._num_blocks * BLOCK_TOKENS

    def run(self, step: Step) -> Drawn:
        """Compute a step."""
        return self._runner.run(step)

    def warm_up(self) -> None:
        """Compare a first pass with the model's own, and compute in the fastest way that agrees.

        Raises:
            GenerationFailedError: They differ: this model needs more than is known here.
        """
        model = self._model
        ids = torch.tensor(PROBE, device=self._device) % self.vocabulary_size
        model.set_attn_implementation(self._own_attention)
        expected = model(input_ids=ids[None], use_cache=False).logits[0].float()
        model.set_attn_implementation(attention.NAME)
        passes = TransformersPasses(model, self._cache, self._loras)
        error = _difference(self._probe(passes, ids), expected)
        if not error < MAX_DIFFERENCE:
            raise GenerationFailedError(
                f"the model's attention gives other logits over blocks (relative error {error:.2g})"
            )
        self._use(self._faster(passes, ids, expected) or passes)

    def is_sound(self) -> bool:
        """Say whether books and device are as they should be."""
        try:
            self.blocks.check([s.blocks for s in self.scheduler.running])
            if self._device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except Exception:
            logger.exception("the engine is not sound")
            return False
        return True

    def rebuild(self) -> None:
        """Throw away cache and books, and make new ones."""
        del self._cache, self._runner  # recorded steps hold memory, too
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._build()

    def close(self) -> None:
        """Leave the model as it was before."""
        self._model.set_attn_implementation(self._own_attention)
        self._loras.remove()

    def mean_embedding(self, token_ids: Any) -> list[float]:  # noqa: ANN401
        """Return the mean of the input embeddings of some tokens."""
        with torch.no_grad():
            ids = torch.tensor([list(token_ids)], dtype=torch.long, device=self._device)
            rows = self._model.get_input_embeddings()(ids)  # [1, T, hidden]
            return [float(x) for x in rows[0].float().mean(dim=0)]

    def _build(self) -> None:
        settings, device = self._settings, self._device
        self._cache = KVCache(self._layers, self._num_blocks, BLOCK_TOKENS, self._dtype, device)
        self.blocks = BlockManager(self._num_blocks, BLOCK_TOKENS)
        self.scheduler = Scheduler(self.blocks, BUDGETS[device.type], settings.slots)
        self.sampler = BatchSampler(self.vocabulary_size, settings.slots, device)
        self._use(TransformersPasses(self._model, self._cache, self._loras))

    def _use(self, passes: Passes) -> None:
        self._runner = ModelRunner(passes, self.sampler, self._device)
        budget, chosen = BUDGETS[self._device.type], self._settings.prefill_chunk_tokens
        if isinstance(passes, CompiledPasses):
            budget = COMPILED_BUDGET
        self.scheduler.budget = PrefillBudget(chosen, chosen) if chosen else budget

    def _faster(self, passes: TransformersPasses, ids: Tensor, expected: Tensor) -> Passes | None:
        """Return what computes the same sooner, if there is anything for this model and device."""
        if self._device.type == "cuda":
            return self._recorded(passes, ids)
        try:
            compiled = CpuDecoder(self._model, self._cache)
        except ConfigurationError as error:
            logger.info("the compiled decoder is not used: %s", error)
            return None
        difference = _difference(self._probe(compiled, ids), expected)
        if not difference < MAX_DIFFERENCE:
            logger.warning("the compiled decoder is not used: it is off by %.2g", difference)
            return None
        logger.info("the compiled decoder is used")
        return CompiledPasses(compiled, passes)

    def _recorded(self, passes: TransformersPasses, ids: Tensor) -> Passes | None:
        """Return recorded steps; bitsandbytes looks at numbers of int8 layers on the host."""
        if any(type(layer).__name__ == "Linear8bitLt" for layer in self._model.modules()):
            return None
        graphs = DecodeGraphs(
            passes.decode,
            largest=self._settings.slots,
            table_blocks=-(-self._context_tokens // BLOCK_TOKENS),
            device=self._device,
            record=CudaRecorder(),
        )
        recorded = RecordedPasses(passes, graphs)
        difference = _difference(self._decoded(recorded, ids), self._decoded(passes, ids))
        if not difference < MAX_DIFFERENCE:
            logger.warning("recorded steps are not used: they are off by %.2g", difference)
            return None
        return recorded

    def _probe(self, passes: Passes, ids: Tensor) -> Tensor:
        """Return logits [T, V], in two passes over two blocks of the cache, empty at first."""
        blocks, size, cut = (1, 0), len(ids), len(ids) // 3
        for kept in (*self._cache.keys, *self._cache.values):
            kept[:, : len(blocks) * BLOCK_TOKENS].zero_()
        first = passes.compute(ids[:cut], [Span(0, cut, cut, blocks)], None).float()
        rest = passes.compute(ids[cut:], [Span(0, size - cut, size, blocks)], None).float()
        return torch.cat([first, rest])

    def _decoded(self, passes: Passes, ids: Tensor) -> Tensor:
        """Return logits [BLOCK_TOKENS, V] of the last tokens of a probe, one a step."""
        ends = range(len(ids) - BLOCK_TOKENS + 1, len(ids) + 1)
        rows = [passes.compute(ids[n - 1 : n], [Span(0, 1, n, (1, 0))], None).clone() for n in ends]
        return torch.cat(rows).float()

    def _room(self, context_tokens: int) -> int:
        """Return how many blocks the cache gets: what is free now, what is wanted at most."""
        token_bytes = sum(2 * h * d for h, d in self._layers) * self._dtype.itemsize
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
        else:
            free = int(psutil.virtual_memory().available)
        allowed = cache_tokens(
            free,
            token_bytes,
            context_tokens,
            on_cuda=self._device.type == "cuda",
            cap=self._settings.kv_cache,
        )
        wanted = self._settings.slots * context_tokens
        blocks = min(wanted, allowed) // BLOCK_TOKENS
        if blocks < 2:
            raise OutOfMemoryError(
                f"{allowed} tokens of keys and values are too few: one takes {token_bytes} bytes, "
                f"and {free} bytes are free"
            )
        logger.info(
            "keys and values: %d blocks of %d tokens, %.2f GiB",
            blocks,
            BLOCK_TOKENS,
            blocks * BLOCK_TOKENS * token_bytes / 2**30,
        )
        return blocks


def why_not(model: Any) -> str | None:  # noqa: ANN401
    """Say why a model cannot be batched; None if it may be tried."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not use transformers' attention interface"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of other kinds: {', '.join(sorted(kinds))}"
    rope = str(getattr(config, "rope_parameters", None) or "")
    if any(kind in rope for kind in ("dynamic", "longrope")):
        return "its position embeddings depend on the longest of all sequences"
    if model.device.type not in BUDGETS:
        return f"attention over blocks is written for a CPU and for CUDA, not for {model.device}"
    if model.device.type == "cuda" and not kernels.is_available():
        return "Triton, which attention over blocks needs on a GPU, is not installed"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "it is spread over several devices"
    return None


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return how far logits [T, V] lie apart; NaN where most are not finite.

    That is the median over the last block of the root mean square of the difference, relative to
    the logits. Not the mean: bfloat16 loses single tokens of such a text altogether.
    """
    error = (found - expected)[-BLOCK_TOKENS:].square().mean(dim=-1)
    size = expected[-BLOCK_TOKENS:].square().mean(dim=-1).clamp(min=1e-12)
    return float((error / size).sqrt().median())


def _layers(model: Any) -> list[tuple[int, int]]:  # noqa: ANN401
    """Return of each layer the number of key heads and their size."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return [(kv_heads, size)] * int(config.num_hidden_layers)


def _dtype(model: Any) -> torch.dtype:  # noqa: ANN401
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype
