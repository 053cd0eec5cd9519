// LoRA: what the requests of a pass add to a layer, each row its own.
//
// A row is computed by itself and in one order, so that it gives the same bits in every batch.
#pragma once

#include "linear.h"

// A LoRA's matrices for a layer; rank 0 is none. Layout is shared with decoder_structs.py.
struct Pair {
    const bf16* a;      // [rank, inputs]
    const bf16* b;      // [rank / 2, outputs padded to 32, 2]
    std::int64_t rank;  // even
    float scale;
    std::int32_t reserved;
};

// Neighbouring tokens of one LoRA, TILE_ROWS at most.
struct Run {
    std::int32_t start, count, lora;
};

constexpr int LOW_STEP = COLUMNS;

// low[r * width + j] = (A x)[j] in bfloat16, for LOW_STEP ranks from `first` on.
inline void shrink(const Pair& pair, const bf16* x, std::int64_t inputs, int rows,
                   std::int64_t first, bf16* low, std::int64_t width) {
    const auto left = pair.rank - first;
    if (left <= 0) return;
    const Linear a{pair.a, nullptr, nullptr, inputs, pair.rank, Kind::plain, 0};
    alignas(64) float sums[TILE_FLOATS];
    plain::tile(a, x, rows, first, LOW_STEP, sums, LOW_STEP);
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < LOW_STEP; c += LANES) {
            const auto some = std::clamp<std::int64_t>(left - c, 0, LANES);
            store(low + r * width + first + c, _mm512_load_ps(sums + r * LOW_STEP + c),
                  first_lanes(static_cast<int>(some)));
        }
    }
}

// y[r][c] += scale * (B low[r])[column + c], rounded to bfloat16, for R rows of one LoRA and 32
// columns: B is read once for all of them.
template <int R>
void expand_rows(const Pair& pair, const bf16* low, std::int64_t width, std::int64_t padded,
                 std::int64_t column, float* y, int ldy) {
    // Two sums for each: one alone would wait for itself.
    __m512 sum[R][2][2];
    for (auto& row : sum)
        for (auto& part : row) part[0] = part[1] = _mm512_setzero_ps();
    const std::int64_t pairs = pair.rank / 2;
    const bf16* b = pair.b + 2 * column;
    const auto step = [&](int part, std::int64_t p) {
        const bf16* at = b + 2 * p * padded;
        const __m512i left = _mm512_loadu_si512(at), right = _mm512_loadu_si512(at + 2 * LANES);
        for (int r = 0; r < R; ++r) {
            const __m512i input = broadcast_pair(low + r * width + 2 * p);
            sum[r][part][0] = dot(sum[r][part][0], input, left);
            sum[r][part][1] = dot(sum[r][part][1], input, right);
        }
    };
    std::int64_t p = 0;
    for (; p + 2 <= pairs; p += 2) {
        step(0, p);
        step(1, p + 1);
    }
    if (p < pairs) step(0, p);
    const __m512 scale = _mm512_set1_ps(pair.scale);
    for (int r = 0; r < R; ++r) {
        for (int half = 0; half < 2; ++half) {
            float* place = y + r * ldy + half * LANES;
            const __m512 more = _mm512_add_ps(sum[r][0][half], sum[r][1][half]);
            _mm512_storeu_ps(place, rounded(_mm512_fmadd_ps(more, scale, _mm512_loadu_ps(place))));
        }
    }
}

constexpr int EXPANDED_ROWS = 4;

inline void expand(const Pair& pair, const bf16* low, std::int64_t width, int rows,
                   std::int64_t padded, std::int64_t column, float* y, int ldy) {
    using Kernel = void (*)(const Pair&, const bf16*, std::int64_t, std::int64_t, std::int64_t,
                            float*, int);
    static constexpr Kernel kernels[EXPANDED_ROWS] = {expand_rows<1>, expand_rows<2>,
                                                      expand_rows<3>, expand_rows<4>};
    kernels[rows - 1](pair, low, width, padded, column, y, ldy);
}
