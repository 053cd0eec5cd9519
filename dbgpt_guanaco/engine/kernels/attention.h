// Attention of a ragged pass, straight from the blocks of the cache.
//
// Keys are taken 16 at a time, as they lie in a block, and scores SEGMENT keys at a time. Both
// are counted from the first key of the sequence, so a query gets the same bits however its
// prompt was cut into chunks and whoever is beside it.
#pragma once

#include <algorithm>
#include <limits>

#include "vectors.h"

constexpr int BLOCK = 16;      // keys of a block
constexpr int SEGMENT = 256;   // keys whose scores are held at a time
constexpr int QUERIES = 64;    // of a tile: rows times heads that share keys
constexpr int MAX_SIZE = 256;  // of a head

struct Shape {
    std::int32_t heads, kv_heads, size;
    float scale;
};

// One sequence of the pass; layout is shared with cpu_decoder.py.
struct Span {
    std::int32_t start, count, length, first_block;
};

struct LayerCache {
    bf16 *keys, *values;  // [kv_heads, slots, size]
    std::int64_t slots;
    std::int32_t window;  // newest keys that a query sees; 0 is all
};

class Attention {
public:
    // Queries `row` .. `row` + `rows` of a span, all heads that share key head `kv_head`.
    Attention(const Shape& shape, const LayerCache& cache, const Span& span, const std::int32_t* blocks,
         int kv_head, int row, int rows)
        : shape_(shape), span_(span), blocks_(blocks + span.first_block), kv_head_(kv_head),
          row_(row), group_(shape.heads / shape.kv_heads), count_(rows * group_),
          window_(cache.window) {
        const std::int64_t start = kv_head * cache.slots * shape.size;
        keys_ = cache.keys + start;
        values_ = cache.values + start;
    }

    // queries and out: [T, heads, size].
    void run(const bf16* queries, bf16* out) {
        for (int q = 0; q < count_; ++q) {
            queries_[q] = queries + place(q);
            largest_[q] = -std::numeric_limits<float>::infinity();
            total_[q] = 0;
            std::fill_n(sum_[q], shape_.size, 0.0f);
        }
        const int end = position(count_ - 1) + 1;
        int key = window_ ? std::max(0, position(0) + 1 - window_) / BLOCK * BLOCK : 0;
        while (key < end) {
            const int stop = std::min(end, key / SEGMENT * SEGMENT + SEGMENT);
            for (int k = key; k < stop; k += BLOCK) {
                prefetch(values_ + offset(k));
                if (k + BLOCK < stop) prefetch(keys_ + offset(k + BLOCK));
                score(k, k - key);
            }
            for (int q = 0; q < count_; ++q) weigh(q, (stop - key + BLOCK - 1) / BLOCK);
            for (int k = key; k < stop; k += BLOCK) add_values(k, k - key);
            key = stop;
        }
        for (int q = 0; q < count_; ++q) {
            const __m512 share = _mm512_set1_ps(1 / total_[q]);
            for (int d = 0; d < shape_.size; d += LANES)
                store(out + place(q) + d, _mm512_mul_ps(_mm512_load_ps(sum_[q] + d), share));
        }
    }

private:
    std::int64_t place(int q) const {
        const std::int64_t token = span_.start + row_ + q / group_;
        return (token * shape_.heads + kv_head_ * group_ + q % group_) * shape_.size;
    }

    int position(int q) const { return span_.length - span_.count + row_ + q / group_; }

    std::int64_t offset(int key) const {
        return static_cast<std::int64_t>(blocks_[key / BLOCK]) * BLOCK * shape_.size;
    }

    // Blocks lie anywhere: the CPU cannot guess the next one.
    void prefetch(const bf16* block) const {
        for (int i = 0; i < BLOCK * shape_.size; i += 32) _mm_prefetch(block + i, _MM_HINT_T1);
    }

    // Scores of 16 keys; those that a query must not see get -inf.
    void score(int key, int column) {
        const bf16* rows = keys_ + offset(key);
        for (int d = 0; d < shape_.size; d += 2 * LANES) {
            __m512i dwords[LANES];
            for (int i = 0; i < LANES; ++i)
                dwords[i] = _mm512_loadu_si512(rows + i * shape_.size + d);
            transpose(dwords);
            for (int i = 0; i < LANES; ++i) pairs_[d / 2 + i] = dwords[i];
        }
        int q = 0;
        for (; q + 4 <= count_; q += 4) score_queries<4>(q, key, column);
        for (; q + 3 <= count_; q += 3) score_queries<3>(q, key, column);
        for (; q < count_; ++q) score_queries<1>(q, key, column);
    }

    template <int Q>
    void score_queries(int first, int key, int column) {
        __m512 even[Q], odd[Q];
        for (int i = 0; i < Q; ++i) even[i] = odd[i] = _mm512_setzero_ps();
        for (int p = 0; p < shape_.size / 2; p += 2) {
            for (int i = 0; i < Q; ++i) {
                const bf16* query = queries_[first + i] + 2 * p;
                even[i] = dot(even[i], broadcast_pair(query), pairs_[p]);
                odd[i] = dot(odd[i], broadcast_pair(query + 2), pairs_[p + 1]);
            }
        }
        for (int i = 0; i < Q; ++i) {
            const __m512 product = _mm512_mul_ps(_mm512_add_ps(even[i], odd[i]),
                                                 _mm512_set1_ps(shape_.scale));
            _mm512_store_ps(scores_[first + i] + column,
                            _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()),
                                               visible(first + i, key), product));
        }
    }

    __mmask16 visible(int q, int key) const {
        const int newest = position(q);
        __mmask16 seen = first_lanes(std::max(0, newest + 1 - key));
        if (window_) seen &= ~first_lanes(std::max(0, newest + 1 - window_ - key));
        return seen;
    }

    // Scores become weights, in bfloat16 and in place; what was summed before is scaled down.
    void weigh(int q, int blocks) {
        float* scores = scores_[q];
        __m512 largest = _mm512_load_ps(scores);
        for (int b = 1; b < blocks; ++b)
            largest = _mm512_max_ps(largest, _mm512_load_ps(scores + b * LANES));
        const float now = std::max(largest_[q], _mm512_reduce_max_ps(largest));
        bf16* weights = reinterpret_cast<bf16*>(scores);
        if (now == -std::numeric_limits<float>::infinity()) {
            std::memset(weights, 0, blocks * BLOCK * sizeof(bf16));
            return;
        }
        __m512 total = _mm512_setzero_ps();
        for (int b = 0; b < blocks; ++b) {
            const __m512 weight = rounded(exponential(
                _mm512_sub_ps(_mm512_load_ps(scores + b * LANES), _mm512_set1_ps(now))));
            total = _mm512_add_ps(total, weight);
            store(weights + b * BLOCK, weight);
        }
        if (now > largest_[q]) {
            const float factor = std::exp(largest_[q] - now);
            total_[q] *= factor;
            for (int d = 0; d < shape_.size; d += LANES)
                _mm512_store_ps(sum_[q] + d, _mm512_mul_ps(_mm512_load_ps(sum_[q] + d),
                                                           _mm512_set1_ps(factor)));
        }
        total_[q] += _mm512_reduce_add_ps(total);
        largest_[q] = now;
    }

    void add_values(int key, int column) {
        // What others left behind the last key may not even be a number: zeros stand for it.
        alignas(64) static const bf16 zeros[MAX_SIZE] = {};
        const bf16* rows = values_ + offset(key);
        const int valid = span_.length - key;
        const __m512i low = interleaving(0), high = interleaving(LANES);
        for (int d = 0; d < shape_.size; d += 2 * LANES) {
            for (int p = 0; p < BLOCK / 2; ++p) {
                const __m512i a = row_or(zeros, rows, 2 * p, valid, d);
                const __m512i b = row_or(zeros, rows, 2 * p + 1, valid, d);
                pairs_[2 * p] = _mm512_permutex2var_epi16(a, low, b);
                pairs_[2 * p + 1] = _mm512_permutex2var_epi16(a, high, b);
            }
            int q = 0;
            for (; q + 4 <= count_; q += 4) add_to_queries<4>(q, d, column);
            for (; q + 3 <= count_; q += 3) add_to_queries<3>(q, d, column);
            for (; q < count_; ++q) add_to_queries<1>(q, d, column);
        }
    }

    __m512i row_or(const bf16* zeros, const bf16* rows, int i, int valid, int d) const {
        return _mm512_loadu_si512((i < valid ? rows + i * shape_.size : zeros) + d);
    }

    // a[i], b[i], a[i+1], b[i+1], … from i = first on.
    static __m512i interleaving(int first) {
        alignas(64) bf16 order[2 * LANES];
        for (int i = 0; i < LANES; ++i) {
            order[2 * i] = static_cast<bf16>(first + i);
            order[2 * i + 1] = static_cast<bf16>(2 * LANES + first + i);
        }
        return _mm512_load_si512(order);
    }

    template <int Q>
    void add_to_queries(int first, int d, int column) {
        __m512 left[Q], right[Q];
        for (int i = 0; i < Q; ++i) {
            left[i] = _mm512_load_ps(sum_[first + i] + d);
            right[i] = _mm512_load_ps(sum_[first + i] + d + LANES);
        }
        for (int p = 0; p < BLOCK / 2; ++p) {
            for (int i = 0; i < Q; ++i) {
                const auto* weights = reinterpret_cast<const bf16*>(scores_[first + i]) + column;
                const __m512i pair = broadcast_pair(weights + 2 * p);
                left[i] = dot(left[i], pair, pairs_[2 * p]);
                right[i] = dot(right[i], pair, pairs_[2 * p + 1]);
            }
        }
        for (int i = 0; i < Q; ++i) {
            _mm512_store_ps(sum_[first + i] + d, left[i]);
            _mm512_store_ps(sum_[first + i] + d + LANES, right[i]);
        }
    }

    const Shape& shape_;
    const Span& span_;
    const std::int32_t* blocks_;
    const bf16 *keys_, *values_;
    int kv_head_, row_, group_, count_, window_;

    const bf16* queries_[QUERIES];
    float largest_[QUERIES], total_[QUERIES];
    __m512i pairs_[MAX_SIZE / 2];
    alignas(64) float scores_[QUERIES][SEGMENT];
    alignas(64) float sum_[QUERIES][MAX_SIZE];
};
