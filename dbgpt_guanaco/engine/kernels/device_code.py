"""What runs on the device for ``paged_attention.py``, in Triton. Imported only where Triton is.

Everything is computed in an order that depends on nothing but the sequence itself: a result is the
same bit by bit alone, in a batch, in a graph and with a wider block table.

Sources: the online softmax of FlashAttention-2, arXiv 2307.08691, and the split over keys of
Flash-Decoding; cache in pages as in vLLM, arXiv 2309.06180.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# Splits that are combined in one go.
COMBINED = tl.constexpr(16)


@triton.jit
def _slots_of(
    block_table: tl.tensor, positions: tl.tensor, is_key: tl.tensor, block_size: tl.constexpr
) -> tl.tensor:
    """Return where the keys of these positions stand in the cache, as 64-bit numbers."""
    blocks = tl.load(block_table + positions // block_size, mask=is_key, other=0)
    return blocks.to(tl.int64) * block_size + positions % block_size


@triton.jit
def _attend(
    query: tl.tensor,  # [M, D]
    top: tl.tensor,  # [M], largest score so far, in powers of two
    total: tl.tensor,  # [M], sum of weights so far
    sums: tl.tensor,  # [M, D], weighted sum of values so far
    keys: tl.tensor,  # start of this head's keys
    values: tl.tensor,
    slots: tl.tensor,  # [N]
    is_key: tl.tensor,  # [N], what may be read
    is_seen: tl.tensor,  # [M, N] or [1, N], what counts
    scale: tl.tensor,
    softcap: tl.tensor,
    head_size: tl.constexpr,
    tile_d: tl.constexpr,
    has_softcap: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take N more keys into the running softmax of M queries."""
    d = tl.arange(0, tile_d)
    is_d = d < head_size
    key = tl.load(  # [D, N]
        keys + slots[None, :] * head_size + d[:, None],
        mask=is_key[None, :] & is_d[:, None],
        other=0.0,
    )
    scores = tl.dot(query, key, input_precision="ieee") * scale  # [M, N], float32
    if has_softcap:
        # tanh(x) = 2 sigmoid(2x) - 1
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    scores = tl.where(is_seen, scores * LOG2_E, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen no key yet must not compute inf - inf.
    pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - pivot[:, None])
    shrink = tl.exp2(top - pivot)
    value = tl.load(  # [N, D]
        values + slots[:, None] * head_size + d[None, :],
        mask=is_key[:, None] & is_d[None, :],
        other=0.0,
    )
    sums = tl.dot(weights.to(value.dtype), value, sums * shrink[:, None], input_precision="ieee")
    return new_top, total * shrink + tl.sum(weights, 1), sums


@triton.jit
def _split_size(
    count: tl.tensor, split_tokens: tl.constexpr, max_splits: tl.constexpr, tile_n: tl.constexpr
) -> tl.tensor:
    """Return the keys of one split, from nothing but the keys of the sequence."""
    even = tl.cdiv(tl.cdiv(count, max_splits), tile_n) * tile_n
    return tl.maximum(even, split_tokens)


@triton.jit
def decode_split(
    queries: tl.tensor,  # [B, H, D]
    keys: tl.tensor,  # [Hkv, S, D], contiguous
    values: tl.tensor,
    lengths: tl.tensor,  # [B]
    block_tables: tl.tensor,  # [B, N]
    partial: tl.tensor,  # [B, H, splits, D], float32
    partial_weight: tl.tensor,  # [B, H, splits], float32: log2 of the sum of weights
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    query_stride_b: tl.tensor,
    query_stride_h: tl.tensor,
    query_stride_d: tl.tensor,
    head_stride: tl.tensor,  # S · D
    table_stride: tl.tensor,
    group: tl.constexpr,
    head_size: tl.constexpr,
    block_size: tl.constexpr,
    split_tokens: tl.constexpr,
    max_splits: tl.constexpr,
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_d: tl.constexpr,
    has_window: tl.constexpr,
    has_softcap: tl.constexpr,
) -> None:
    """Attend with the queries that share a key-value head to one split of a sequence's keys."""
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    first = length * 0
    if has_window:
        first = tl.maximum(length - window, 0)
    size = _split_size(length - first, split_tokens, max_splits, tile_n)
    begin = first + split * size
    if begin >= length:
        return
    end = tl.minimum(begin + size, length)

    member = tl.arange(0, tile_m)
    d = tl.arange(0, tile_d)
    is_query = (member < group)[:, None] & (d < head_size)[None, :]
    heads = kv_head * group + member
    query = tl.load(
        queries
        + sequence * query_stride_b
        + heads[:, None] * query_stride_h
        + d[None, :] * query_stride_d,
        mask=is_query,
        other=0.0,
    )
    top = tl.full([tile_m], float("-inf"), tl.float32)
    total = tl.zeros([tile_m], tl.float32)
    sums = tl.zeros([tile_m, tile_d], tl.float32)
    for start in range(begin, end, tile_n):
        positions = start + tl.arange(0, tile_n)
        is_key = positions < end
        slots = _slots_of(block_tables + sequence * table_stride, positions, is_key, block_size)
        top, total, sums = _attend(
            query,
            top,
            total,
            sums,
            keys + kv_head * head_stride,
            values + kv_head * head_stride,
            slots,
            is_key,
            is_key[None, :],
            scale,
            softcap,
            head_size,
            tile_d,
            has_softcap,
        )
    row = (sequence * tl.num_programs(1) * group + heads) * tl.num_programs(2) + split
    tl.store(partial_weight + row, top + tl.log2(total), mask=member < group)
    tl.store(partial + row[:, None] * head_size + d[None, :], sums / total[:, None], mask=is_query)


@triton.jit
def decode_combine(
    partial: tl.tensor,
    partial_weight: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,  # [B, H, D]
    window: tl.tensor,
    num_splits: tl.tensor,
    out_stride_b: tl.tensor,
    out_stride_h: tl.tensor,
    out_stride_d: tl.tensor,
    head_size: tl.constexpr,
    split_tokens: tl.constexpr,
    max_splits: tl.constexpr,
    tile_n: tl.constexpr,
    tile_d: tl.constexpr,
    has_window: tl.constexpr,
) -> None:
    """Add up the splits of one query head; zeros for a sequence without keys."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    count = tl.load(lengths + sequence)
    if has_window:
        count = tl.minimum(count, window)
    splits = tl.cdiv(count, _split_size(count, split_tokens, max_splits, tile_n))
    row = (sequence * tl.num_programs(1) + head) * num_splits

    d = tl.arange(0, tile_d)
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([tile_d], tl.float32)
    for start in range(0, splits, COMBINED):
        split = start + tl.arange(0, COMBINED)
        weight = tl.load(partial_weight + row + split, mask=split < splits, other=float("-inf"))
        part = tl.load(
            partial + (row + split)[:, None] * head_size + d[None, :],
            mask=(split < splits)[:, None] & (d < head_size)[None, :],
            other=0.0,
        )
        # The first split of each round has keys, so the largest is finite.
        new_top = tl.maximum(top, tl.max(weight, 0))
        shrink = tl.exp2(top - new_top)
        factors = tl.exp2(weight - new_top)
        sums = sums * shrink + tl.sum(factors[:, None] * part, 0)
        total = total * shrink + tl.sum(factors, 0)
        top = new_top
    sums = sums / tl.where(total == 0, 1.0, total)
    tl.store(
        out + sequence * out_stride_b + head * out_stride_h + d * out_stride_d,
        sums.to(out.dtype.element_ty),
        mask=d < head_size,
    )


@triton.jit
def prefill(
    queries: tl.tensor,  # [T, H, D]
    keys: tl.tensor,  # [Hkv, S, D], contiguous
    values: tl.tensor,
    out: tl.tensor,  # [T, H, D]
    query_starts: tl.tensor,  # [B + 1]
    lengths: tl.tensor,  # [B]
    block_tables: tl.tensor,  # [B, N]
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    query_stride_t: tl.tensor,
    query_stride_h: tl.tensor,
    query_stride_d: tl.tensor,
    out_stride_t: tl.tensor,
    out_stride_h: tl.tensor,
    out_stride_d: tl.tensor,
    head_stride: tl.tensor,  # S · D
    table_stride: tl.tensor,
    group: tl.constexpr,
    head_size: tl.constexpr,
    block_size: tl.constexpr,
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_d: tl.constexpr,
    has_window: tl.constexpr,
    has_softcap: tl.constexpr,
) -> None:
    """Attend with consecutive queries of one sequence and head to the keys before them."""
    head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    first_query = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - first_query
    first_row = tl.program_id(0) * tile_m
    if first_row >= count:
        return
    length = tl.load(lengths + sequence)
    rows = first_row + tl.arange(0, tile_m)
    row_positions = length - count + rows
    d = tl.arange(0, tile_d)
    is_query = (rows < count)[:, None] & (d < head_size)[None, :]
    tokens = (first_query + rows).to(tl.int64)
    query = tl.load(
        queries
        + tokens[:, None] * query_stride_t
        + head * query_stride_h
        + d[None, :] * query_stride_d,
        mask=is_query,
        other=0.0,
    )

    end = tl.minimum(length, length - count + first_row + tile_m)
    begin = length * 0
    if has_window:
        oldest = tl.maximum(length - count + first_row - window + 1, 0)
        # Keys are always read in the same groups, or the rounding would depend on the chunks.
        begin = oldest // tile_n * tile_n
    kv_offset = (head // group).to(tl.int64) * head_stride
    top = tl.full([tile_m], float("-inf"), tl.float32)
    total = tl.zeros([tile_m], tl.float32)
    sums = tl.zeros([tile_m, tile_d], tl.float32)
    for start in range(begin, end, tile_n):
        positions = start + tl.arange(0, tile_n)
        is_key = positions < end
        is_seen = is_key[None, :] & (positions[None, :] <= row_positions[:, None])
        if has_window:
            is_seen &= positions[None, :] > row_positions[:, None] - window
        slots = _slots_of(block_tables + sequence * table_stride, positions, is_key, block_size)
        top, total, sums = _attend(
            query,
            top,
            total,
            sums,
            keys + kv_offset,
            values + kv_offset,
            slots,
            is_key,
            is_seen,
            scale,
            softcap,
            head_size,
            tile_d,
            has_softcap,
        )
    sums = sums / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(
        out + tokens[:, None] * out_stride_t + head * out_stride_h + d[None, :] * out_stride_d,
        sums.to(out.dtype.element_ty),
        mask=is_query,
    )


@triton.jit
def write(
    keys: tl.tensor,  # [Hkv, S, D], contiguous
    values: tl.tensor,
    new_keys: tl.tensor,  # [T, Hkv, D]
    new_values: tl.tensor,
    slots: tl.tensor,  # [T]
    key_stride_t: tl.tensor,
    key_stride_h: tl.tensor,
    key_stride_d: tl.tensor,
    value_stride_t: tl.tensor,
    value_stride_h: tl.tensor,
    value_stride_d: tl.tensor,
    head_stride: tl.tensor,  # S · D
    kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    tile_h: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """Put the keys and values of some heads of one token into its slot."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    h = (tl.program_id(1) * tile_h + tl.arange(0, tile_h)).to(tl.int64)[:, None]
    d = tl.arange(0, tile_d)[None, :]
    is_inside = (h < kv_heads) & (d < head_size)
    key = tl.load(
        new_keys + token * key_stride_t + h * key_stride_h + d * key_stride_d, mask=is_inside
    )
    value = tl.load(
        new_values + token * value_stride_t + h * value_stride_h + d * value_stride_d,
        mask=is_inside,
    )
    target = h * head_stride + slot * head_size + d
    tl.store(keys + target, key.to(keys.dtype.element_ty), mask=is_inside)
    tl.store(values + target, value.to(values.dtype.element_ty), mask=is_inside)
