"""What the batching engine works with: a model, its cache, and the books over both."""

import logging
from typing import Any

import psutil
import torch
from torch import Tensor

from dbgpt_guanaco.engine import attention
from dbgpt_guanaco.engine.attention import CpuAttention, KVCache, Span
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler, Step
from dbgpt_guanaco.errors import ConfigurationError, GenerationFailedError, OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings, memory_bytes

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 16
# Prompt tokens of a step: a piece that keeps the others' next token from being late, and one
# that nobody waits for but whoever may cancel it.
BUDGETS = {"cpu": PrefillBudget(64, 64), "cuda": PrefillBudget(2048, 256)}
# Share of the free memory that keys and values may take.
CACHE_SHARE = {"cpu": 0.5, "cuda": 0.85}
# On a CPU the memory belongs to other programs, too; a setting may allow more.
CPU_CACHE_BYTES = 2 * 2**30
PROBE = (3, 1, 4, 1, 5, 9, 2, 6)


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
        self._model, self._settings = model, settings
        self._device: torch.device = model.device
        self._layers = _layers(_inner(model))
        self._dtype = _dtype(model)
        self.vocabulary_size = int(model.get_output_embeddings().weight.shape[0])
        self._num_blocks = self._room(context_tokens)
        self._own_attention = _inner(model).config._attn_implementation
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
        """Compare a first pass with the model's own, in two pieces with a cache between.

        Raises:
            GenerationFailedError: They differ: this model needs more than is known here.
        """
        model = _inner(self._model)
        ids = torch.tensor(PROBE, device=self._device) % self.vocabulary_size
        model.set_attn_implementation(self._own_attention)
        expected = self._model(input_ids=ids[None], use_cache=False).logits[0, -1].float()
        model.set_attn_implementation(attention.NAME)
        found = self._probe(ids)
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not float(error) < 0.05:
            raise GenerationFailedError(
                f"the model's attention gives other logits over blocks (relative error {error:.2g})"
            )

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
        del self._cache, self._runner
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._build()

    def close(self) -> None:
        """Let the model attend as it did before."""
        _inner(self._model).set_attn_implementation(self._own_attention)

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
        budget = BUDGETS[device.type]
        if settings.prefill_chunk_tokens:
            budget = PrefillBudget(settings.prefill_chunk_tokens, settings.prefill_chunk_tokens)
        self.scheduler = Scheduler(self.blocks, budget, settings.slots)
        self.sampler = BatchSampler(self.vocabulary_size, settings.slots, device)
        self._runner = ModelRunner(self._model, self._cache, self.sampler)

    def _probe(self, ids: Tensor) -> Tensor:
        """Return the last token's logits [V], in two passes over the cache's first block."""
        half = len(ids) // 2
        places = torch.arange(len(ids), device=self._device)
        for start, end in ((0, half), (half, len(ids))):
            span = Span(0, end - start, end, (0,))
            attend = CpuAttention(self._cache, places[start:end], [span])
            logits = self._runner.forward(ids[start:end], places[start:end], attend, None)
        return logits[-1].float()

    def _room(self, context_tokens: int) -> int:
        """Return how many blocks the cache gets: what is free now, what is wanted at most."""
        token_bytes = sum(2 * h * d for h, d in self._layers) * self._dtype.itemsize
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
        else:
            free = int(psutil.virtual_memory().available)
        allowed = int(free * CACHE_SHARE[self._device.type])
        if self._settings.kv_cache:
            allowed = min(allowed, memory_bytes(self._settings.kv_cache))
        elif self._device.type == "cpu":
            allowed = min(allowed, max(CPU_CACHE_BYTES, context_tokens * token_bytes))
        wanted = self._settings.slots * context_tokens
        blocks = min(wanted, allowed // token_bytes) // BLOCK_TOKENS
        if blocks < 2:
            raise OutOfMemoryError(
                f"{allowed} bytes for keys and values are too few: a token takes {token_bytes}"
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
    inner = _inner(model)
    config = inner.config.get_text_config()
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} does not use transformers' attention interface"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of other kinds: {', '.join(sorted(kinds))}"
    rope = str(getattr(config, "rope_parameters", None) or "")
    if any(kind in rope for kind in ("dynamic", "longrope")):
        return "its position embeddings depend on the longest of all sequences"
    if model.device.type != "cpu":
        return "its attention over blocks is wired for the CPU only as yet"
    if len(set(getattr(inner, "hf_device_map", {}).values())) > 1:
        return "it is spread over several devices"
    return None


def _inner(model: Any) -> Any:  # noqa: ANN401
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
