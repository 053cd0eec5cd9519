"""What the batching engine works with: a model, its cache, and the books over both."""

import logging
from typing import Any

import torch

from dbgpt_guanaco.adapters.memory import cache_tokens
from dbgpt_guanaco.engine import attention, kernels
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS, KVCache
from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses
from dbgpt_guanaco.engine.device_memory import Memory, forget_frames, memory_of
from dbgpt_guanaco.engine.first_pass import FirstPass
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.passes import Passes, TransformersPasses
from dbgpt_guanaco.engine.rehearsal import Rehearsal
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler, Step
from dbgpt_guanaco.errors import ConfigurationError, OutOfMemoryError
from dbgpt_guanaco.settings import EngineSettings

logger = logging.getLogger(__name__)

# Prompt tokens of a step: a piece that keeps the others' next token from being late, and one
# that nobody waits for but whoever may cancel it.
BUDGETS = {"cpu": PrefillBudget(64, 64), "cuda": PrefillBudget(2048, 256)}
COMPILED_BUDGET = PrefillBudget(64, 64, per_decode=2)


class Machinery:
    """Builds the parts, runs steps, and builds them again after a failure.

    Args:
        model: A causal LM of transformers.
        settings: How many requests, and what they may take.
        context_tokens: Tokens of the longest sequence.
        memory: The memory of the model's device; asked only here.
        reserved_bytes: What the cache leaves free beside the largest step.

    Raises:
        ConfigurationError: This model cannot be batched; the message says why.
        OutOfMemoryError: No keys and values fit beside a step.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        settings: EngineSettings,
        context_tokens: int,
        memory: Memory | None = None,
        reserved_bytes: int = 0,
    ) -> None:
        reason = why_not(model)
        if reason:
            raise ConfigurationError(f"this model cannot be batched: {reason}")
        self._model, self._settings, self._context_tokens = model, settings, context_tokens
        self._device: torch.device = model.device
        self._layers, self._loras = _layers(model), LoraLayers(model)
        self._dtype, self._reserved_bytes = _dtype(model), reserved_bytes
        self.vocabulary_size = int(model.get_output_embeddings().weight.shape[0])
        self._own_attention = model.config._attn_implementation
        self.overlaps = self._device.type == "cuda"
        attention.register()
        chosen = settings.prefill_chunk_tokens
        self._budget = PrefillBudget(chosen, chosen) if chosen else BUDGETS[self._device.type]
        try:
            self._num_blocks = self._room(memory or memory_of(self._device))
            self._build()
        except BaseException:
            self._loras.remove()
            raise

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
        first = FirstPass(
            self._model,
            self._own_attention,
            self._cache,
            self._loras,
            vocabulary_size=self.vocabulary_size,
            slots=self._settings.slots,
            table_blocks=-(-self._context_tokens // BLOCK_TOKENS),
        )
        self._use(first.fastest())

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

    def rebuild(self, error: BaseException | None = None) -> None:
        """Throw away cache and books, and make new ones.

        Args:
            error: Why. It may live on with those who were told of it, but what it kept of the
                old cache goes.
        """
        del self._cache, self._runner  # recorded steps hold memory, too
        forget_frames(error)
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
        self._cache = self._new_cache(self._num_blocks)
        self.blocks = BlockManager(self._num_blocks, BLOCK_TOKENS)
        self.scheduler = Scheduler(self.blocks, self._budget, settings.slots)
        self.sampler = BatchSampler(self.vocabulary_size, settings.slots, device)
        self._use(TransformersPasses(self._model, self._cache, self._loras))

    def _new_cache(self, num_blocks: int) -> KVCache:
        return KVCache(self._layers, num_blocks, BLOCK_TOKENS, self._dtype, self._device)

    def _use(self, passes: Passes) -> None:
        self._runner = ModelRunner(passes, self.sampler, self._device)
        is_own = isinstance(passes, CompiledPasses) and not self._settings.prefill_chunk_tokens
        self.scheduler.budget = COMPILED_BUDGET if is_own else self._budget

    def _room(self, memory: Memory) -> int:
        """Return how many blocks the cache gets: what steps leave, what is wanted at most."""
        token_bytes = sum(2 * h * d for h, d in self._layers) * self._dtype.itemsize
        free = max(0, memory.free() - self._needed(memory) - self._reserved_bytes)
        allowed = cache_tokens(
            free,
            token_bytes,
            self._context_tokens,
            on_cuda=self._device.type == "cuda",
            cap=self._settings.kv_cache,
        )
        wanted = self._settings.slots * self._context_tokens
        blocks = min(wanted, allowed) // BLOCK_TOKENS
        if blocks < 2:
            raise OutOfMemoryError(
                f"{free} bytes are left for keys and values, but a token takes {token_bytes}; "
                "allow fewer answers at a time with LIMIT_MODEL_CONCURRENCY"
            )
        logger.info(
            "keys and values: %d blocks of %d tokens, %.2f GiB",
            blocks,
            BLOCK_TOKENS,
            blocks * BLOCK_TOKENS * token_bytes / 2**30,
        )
        return blocks

    def _needed(self, memory: Memory) -> int:
        """Return what the largest step takes; prompts get smaller pieces where it must."""
        rehearsal = Rehearsal(
            self._model,
            self._new_cache,
            self._loras,
            vocabulary_size=self.vocabulary_size,
            slots=self._settings.slots,
            context_tokens=self._context_tokens,
        )
        needed, most = rehearsal.needed_bytes(memory, self._budget.alone)
        self._budget = PrefillBudget(most, min(most, self._budget.beside))
        return needed


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
