"""Right before fast: our kernels against torch's attention, our tokens against transformers'."""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_decoders import Ours
from benchmarks.gpu_models import DTYPE, Built, Shape
from benchmarks.gpu_timing import seconds_of
from dbgpt_guanaco.engine.attention import BLOCK_TOKENS
from dbgpt_guanaco.engine.cuda_graphs import CudaRecorder
from dbgpt_guanaco.engine.kernels.paged_attention import (
    decode_scratch,
    paged_decode,
    paged_prefill,
)

# bfloat16 keeps 8 bits; a result of about 0.1 is the mean of many.
KERNEL_TOLERANCE = 1e-2
# Another order of sums moves a logit by some roundings of the largest. A token may stand so much
# of it below transformers' choice.
MARGIN = 0.03
NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Agreement:
    """Our greedy tokens against transformers' logits for the same text.

    Attributes:
        tokens: How many were compared.
        equal: How many are transformers' first choice.
        worst_gap: How far the worst stands below it, as a share of the largest logit.
    """

    name: str
    tokens: int
    equal: int
    worst_gap: float

    @property
    def holds(self) -> bool:
        """Whether every token is within the margin."""
        return self.worst_gap <= MARGIN


@torch.inference_mode()
def compare_tokens(built: Built, ours: Ours) -> Agreement:
    """Let ours answer prompts of several lengths, then ask transformers about each token."""
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, built.shape.vocabulary, (length,), generator=generator).tolist()
        for length in (5, 37, 64, 130)
    ]
    with ours.start(len(prompts), max(map(len, prompts)) + NEW_TOKENS) as decoding:
        decoding.prefill(prompts)
        columns = [decoding.newest.tolist()]
        for _ in range(NEW_TOKENS - 1):
            decoding.step()
            columns.append(decoding.newest.tolist())
    equal, worst = 0, 0.0
    for prompt, answer in zip(prompts, zip(*columns, strict=True), strict=True):
        logits = _logits(built, [*prompt, *answer])[len(prompt) - 1 : -1]  # [T, V]
        own = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
        gaps = (logits.amax(dim=-1) - own) / logits.abs().amax(dim=-1)
        equal += int((gaps == 0).sum())
        # NaN would be below every margin.
        worst = max(worst, float(gaps.nan_to_num(torch.inf).max()))
    return Agreement(ours.name, len(prompts) * NEW_TOKENS, equal, worst)


def _logits(built: Built, ids: list[int]) -> Tensor:
    built.model.set_attn_implementation("sdpa")
    output = built.model(torch.tensor([ids], device=built.model.device), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One attention kernel on a model's shape.

    Attributes:
        error: Largest difference from torch's attention in float32.
        seconds: Of one layer, the median; None where only the result was looked at.
        bytes_per_s: Keys and values that are read, by that time.
    """

    name: str
    batch: int
    context: int
    error: float
    seconds: float | None = None
    bytes_per_s: float | None = None


@torch.inference_mode()
def check_decode(shape: Shape, batch: int, context: int, device: torch.device) -> KernelResult:
    """Decode over layers of a model, and time that in a graph.

    Their caches are too large together to stay in the L2, and no launch is waited for.
    """
    width = -(-context // BLOCK_TOKENS)
    tables = torch.randperm(batch * width, device=device).int().view(batch, width)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
    layer_bytes = 2 * batch * context * shape.hidden * DTYPE.itemsize
    size = (2, shape.heads, batch * width * BLOCK_TOKENS, shape.head_size)
    layers = min(16, max(2, 2**29 // layer_bytes))
    caches = [torch.randn(size, dtype=DTYPE, device=device) for _ in range(layers)]
    queries = torch.randn(batch, shape.heads, shape.head_size, dtype=DTYPE, device=device)
    scratch = decode_scratch(queries, tables, BLOCK_TOKENS, None)
    out, scale = torch.empty_like(queries), shape.head_size**-0.5

    def attend() -> Tensor:
        for keys, values in caches:
            paged_decode(
                queries,
                keys,
                values,
                lengths,
                tables,
                block_size=BLOCK_TOKENS,
                scale=scale,
                out=out,
                scratch=scratch,
            )
        return out

    replay, _ = CudaRecorder()(attend)
    replay()
    keys, values = caches[-1]
    expected = _reference(queries[:, None], keys, values, tables, context, scale)
    error = float((out.float() - expected[:, 0]).abs().max())
    seconds = statistics.median(seconds_of(replay, 30, device)) / layers
    return KernelResult("paged_decode", batch, context, error, seconds, layer_bytes / seconds)


@torch.inference_mode()
def check_prefill(shape: Shape, tokens: int, context: int, device: torch.device) -> KernelResult:
    """Compute the last tokens of two prompts over one layer of a model."""
    width = -(-context // BLOCK_TOKENS)
    tables = torch.randperm(2 * width, device=device).int().view(2, width)
    size = (shape.heads, 2 * width * BLOCK_TOKENS, shape.head_size)
    keys, values = (torch.randn(size, dtype=DTYPE, device=device) for _ in "kv")
    queries = torch.randn(2, tokens, shape.heads, shape.head_size, dtype=DTYPE, device=device)
    scale = shape.head_size**-0.5
    found = paged_prefill(
        queries.flatten(0, 1),
        keys,
        values,
        torch.tensor([0, tokens, 2 * tokens], dtype=torch.int32, device=device),
        torch.full((2,), context, dtype=torch.int32, device=device),
        tables,
        block_size=BLOCK_TOKENS,
        scale=scale,
        max_query_tokens=tokens,
    )
    expected = _reference(queries, keys, values, tables, context, scale)
    error = float((found.view_as(expected).float() - expected).abs().max())
    return KernelResult("paged_prefill", 2, context, error)


def _reference(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, context: int, scale: float
) -> Tensor:
    """Torch's attention in float32 over gathered keys; queries [B, T, H, D] are the last ones."""
    positions = torch.arange(context, device=queries.device)
    slots = tables[:, positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
    tokens = queries.shape[1]
    mask = positions <= positions[context - tokens :, None]
    rows = [
        functional.scaled_dot_product_attention(
            own.transpose(0, 1).float(),
            keys[:, where].float(),
            values[:, where].float(),
            attn_mask=mask,
            scale=scale,
        ).transpose(0, 1)
        for own, where in zip(queries, slots, strict=True)
    ]
    return torch.stack(rows)
