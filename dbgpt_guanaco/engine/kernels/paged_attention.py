"""Attention over a cache in blocks, and writing into it: the host's side of ``device_code.py``.

Keys and values of a layer are contiguous tensors ``[Hkv, S, D]``, S = blocks · block size; the
slot of a token is ``block * block_size + offset``. A pass is ragged: the queries of B sequences
stand one behind the other. ``lengths`` counts a sequence's keys including those of this pass, which
are written before. Nothing here waits for the device, so all of it can be captured in a CUDA graph.
"""

from dataclasses import dataclass
from types import ModuleType

import torch

from dbgpt_guanaco.engine.kernels import is_available
from dbgpt_guanaco.errors import ConfigurationError

# A sequence's keys are cut into splits of so many tokens, a program each, or into so many equal
# ones if it is longer. Neither may depend on the batch, or neighbours would change the rounding.
SPLIT_TOKENS = 128
MAX_SPLITS = 64
# A tile of keys takes no more of a multiprocessor's shared memory.
_TILE_BYTES = 16 * 1024
_QUERY_TILE = 64
_HEADS_WRITTEN = 8


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Results of the splits on their way to be combined.

    Attributes:
        sums: ``[B, H, splits, D]``, float32.
        weights: ``[B, H, splits]``, float32.
    """

    sums: torch.Tensor
    weights: torch.Tensor


def decode_scratch(
    queries: torch.Tensor, block_tables: torch.Tensor, block_size: int, window: int | None
) -> DecodeScratch:
    """Create what ``paged_decode`` needs for passes of these shapes; what they hold is not read."""
    batch, heads, head_size = queries.shape
    capacity = block_tables.shape[1] * block_size
    splits = min(MAX_SPLITS, _ceil_div(min(capacity, window or capacity), SPLIT_TOKENS))
    sums = torch.empty(
        (batch, heads, splits, head_size), dtype=torch.float32, device=queries.device
    )
    return DecodeScratch(sums, torch.empty_like(sums[..., 0]))


def paged_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    block_tables: torch.Tensor,
    *,
    block_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    scratch: DecodeScratch | None = None,
) -> torch.Tensor:
    """Attend with one query for each sequence, its newest token's.

    Args:
        queries: ``[B, H, D]``, H a multiple of Hkv, any strides.
        keys: ``[Hkv, S, D]``, as ``values``.
        values: See above.
        lengths: ``[B]``, int32. 0 gives zeros.
        block_tables: ``[B, N]``, int32. Entries behind a sequence's last block are not read.
        block_size: Tokens of a block.
        scale: Factor of the scores.
        window: How many of the newest keys are seen; None for all.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        out: Where to write, ``[B, H, D]``.
        scratch: From ``decode_scratch`` for these shapes.
    """
    device_code = _device_code()
    _check_cache(queries, keys, values)
    batch, heads, head_size = queries.shape
    kv_heads, slots, _ = keys.shape
    out = queries.new_empty(queries.shape) if out is None else out
    scratch = scratch or decode_scratch(queries, block_tables, block_size, window)
    splits = scratch.weights.shape[2]
    group = heads // kv_heads
    tile_d, tile_n = _key_tile(head_size, keys.dtype)
    shared = {
        "head_size": head_size,
        "split_tokens": SPLIT_TOKENS,
        "max_splits": MAX_SPLITS,
        "tile_n": tile_n,
        "tile_d": tile_d,
        "has_window": window is not None,
    }
    device_code.decode_split[batch, kv_heads, splits](
        queries,
        keys,
        values,
        lengths,
        block_tables,
        scratch.sums,
        scratch.weights,
        scale,
        softcap or 0.0,
        window or 0,
        *queries.stride(),
        slots * head_size,
        block_tables.stride(0),
        group=group,
        block_size=block_size,
        tile_m=max(16, _power_of_two(group)),
        has_softcap=softcap is not None,
        num_warps=4,
        num_stages=2,
        **shared,
    )
    device_code.decode_combine[batch, heads](
        scratch.sums,
        scratch.weights,
        lengths,
        out,
        window or 0,
        splits,
        *out.stride(),
        num_warps=4,
        **shared,
    )
    return out


def paged_prefill(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    query_starts: torch.Tensor,
    lengths: torch.Tensor,
    block_tables: torch.Tensor,
    *,
    block_size: int,
    scale: float,
    max_query_tokens: int,
    window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with the last so many tokens of each sequence, causally.

    Args:
        queries: ``[T, H, D]``, those of sequence b from ``query_starts[b]`` to the next start.
        keys: See ``paged_decode``.
        values: See ``paged_decode``.
        query_starts: ``[B + 1]``, int32, rising.
        lengths: ``[B]``, int32.
        block_tables: ``[B, N]``, int32.
        block_size: Tokens of a block.
        scale: Factor of the scores.
        max_query_tokens: At least the most queries that a sequence has here.
        window: Keys that a query sees up to its own; None for all.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        out: Where to write, ``[T, H, D]``. Rows of no sequence are left as they are; without
            ``out`` they are zero.
    """
    device_code = _device_code()
    _check_cache(queries, keys, values)
    _, heads, head_size = queries.shape
    kv_heads, slots, _ = keys.shape
    out = queries.new_zeros(queries.shape) if out is None else out
    tile_d, tile_n = _key_tile(head_size, keys.dtype)
    grid = (_ceil_div(max_query_tokens, _QUERY_TILE), heads, lengths.shape[0])
    if 0 in grid:
        return out
    device_code.prefill[grid](
        queries,
        keys,
        values,
        out,
        query_starts,
        lengths,
        block_tables,
        scale,
        softcap or 0.0,
        window or 0,
        *queries.stride(),
        *out.stride(),
        slots * head_size,
        block_tables.stride(0),
        group=heads // kv_heads,
        head_size=head_size,
        block_size=block_size,
        tile_m=_QUERY_TILE,
        tile_n=tile_n,
        tile_d=tile_d,
        has_window=window is not None,
        has_softcap=softcap is not None,
        num_warps=4,
        num_stages=2,
    )
    return out


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Put keys and values of T tokens, ``[T, Hkv, D]`` of any strides, where ``slots`` says.

    Args:
        keys: ``[Hkv, S, D]``, written in place, as ``values``.
        values: See above.
        new_keys: Converted to the cache's dtype.
        new_values: See above.
        slots: ``[T]``, int64. -1 writes nothing; no other number may stand there twice.
    """
    device_code = _device_code()
    _check_cache(new_keys, keys, values)
    tokens, kv_heads, head_size = new_keys.shape
    if not tokens:
        return
    device_code.write[tokens, _ceil_div(kv_heads, _HEADS_WRITTEN)](
        keys,
        values,
        new_keys,
        new_values,
        slots,
        *new_keys.stride(),
        *new_values.stride(),
        keys.shape[1] * head_size,
        kv_heads=kv_heads,
        head_size=head_size,
        tile_h=_HEADS_WRITTEN,
        tile_d=_power_of_two(head_size),
        num_warps=4,
    )


def _device_code() -> ModuleType:
    if not is_available():
        raise ConfigurationError(
            "attention over a cache in blocks on a GPU needs Triton, which is not installed; it "
            "comes with torch for CUDA on Linux, or install it with: pip install triton"
        )
    from dbgpt_guanaco.engine.kernels import device_code

    return device_code


def _check_cache(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    if not (keys.is_contiguous() and values.is_contiguous() and keys.shape == values.shape):
        raise ValueError("keys and values must be contiguous and of one shape, [Hkv, S, D]")
    if queries.shape[1] % keys.shape[0] or queries.shape[2] != keys.shape[2]:
        raise ValueError(
            f"{queries.shape[1]} heads of size {queries.shape[2]} cannot share {keys.shape[0]} "
            f"key-value heads of size {keys.shape[2]}"
        )


def _key_tile(head_size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the sides of a tile of keys: elements of a head, and keys from 16 to 64."""
    width = max(16, _power_of_two(head_size))
    return width, min(64, max(16, _TILE_BYTES // (width * dtype.itemsize)))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
