// y = x W^T for a tile of rows and columns, in float32 sums over bfloat16.
//
// Each sum is built in one order, whatever the tile: a row gives the same bits alone and in a
// batch.
#pragma once

#include <algorithm>

#include "vectors.h"

enum class Kind : std::int32_t { plain = 0, nf4 = 1 };

// Layout is shared with cpu_decoder.py.
struct Linear {
    const void* weight;   // plain: bf16 [outputs, inputs]; nf4: as bitsandbytes packs it
    const bf16* scales;   // nf4: [inputs / 64, outputs]
    const bf16* bias;     // [outputs] or null
    std::int64_t inputs, outputs;
    Kind kind;
    std::int32_t reserved;
};

constexpr int COLUMNS = 32;  // of a packed block
constexpr int TILE_ROWS = 64;
constexpr int TILE_FLOATS = TILE_ROWS * COLUMNS;

namespace nf4 {

// bitsandbytes packs blocks of 32 columns. A block holds, for each pair of inputs, 32 bytes: in
// the low halves of the bytes are the codes of columns 0..15, two inputs each, in the high
// halves those of columns 16..31. That is the order in which dpbf16 wants them.
constexpr int GROUP = 64;  // inputs that share a scale
constexpr int PAIRS = GROUP / 2;
constexpr int AHEAD = 2048;          // bytes to be fetched early

// The 16 values of NF4.
constexpr float VALUES[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f,
                              -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
                              -0.09105003625154495f, 0.0f, 0.07958029955625534f,
                              0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                              0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// sum[r] += the products of 64 inputs of row r with the codes of two times 16 columns, before
// they are scaled.
#ifdef __AVX512BF16__
template <int R>
void add_group(const std::uint8_t* weight, const bf16* x, std::int64_t ldx, __m512 (&sum)[R][2]) {
    const __m256i once = narrow(_mm512_loadu_ps(VALUES));
    const __m512i values = _mm512_inserti64x4(_mm512_castsi256_si512(once), once, 1);
    for (int p = 0; p < PAIRS; ++p, weight += 32) {
        _mm_prefetch(weight + AHEAD, _MM_HINT_T0);
        const __m512i codes =
            _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight)));
        const __m512i left = _mm512_permutexvar_epi16(
            _mm512_and_si512(codes, _mm512_set1_epi16(15)), values);
        const __m512i right = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), values);
        for (int r = 0; r < R; ++r) {
            const __m512i input = broadcast_pair(x + r * ldx + 2 * p);
            sum[r][0] = dot(sum[r][0], input, left);
            sum[r][1] = dot(sum[r][1], input, right);
        }
    }
}
#else
template <int R>
void add_group(const std::uint8_t* weight, const bf16* x, std::int64_t ldx, __m512 (&sum)[R][2]) {
    const __m512 values = rounded(_mm512_loadu_ps(VALUES));
    alignas(64) float inputs[R][GROUP];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < GROUP; i += LANES) _mm512_store_ps(inputs[r] + i, load(x + r * ldx + i));
    for (int p = 0; p < PAIRS; ++p, weight += 32) {
        _mm_prefetch(weight + AHEAD, _MM_HINT_T0);
        // Four codes to a lane; a permutation looks at the lowest alone.
        const __m512i codes =
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight)));
        const auto decoded = [&](int shift) {
            return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, shift), values);
        };
        const __m512 left[] = {decoded(0), decoded(8)}, right[] = {decoded(4), decoded(12)};
        for (const int i : {1, 0}) {  // the order of dpbf16
            for (int r = 0; r < R; ++r) {
                const __m512 input = _mm512_set1_ps(inputs[r][2 * p + i]);
                sum[r][0] = _mm512_fmadd_ps(input, left[i], sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(input, right[i], sum[r][1]);
            }
        }
    }
}
#endif

inline const std::uint8_t* block_of(const Linear& l, std::int64_t column) {
    return static_cast<const std::uint8_t*>(l.weight) + column * (l.inputs / 2);
}

// R rows by one block of columns. Weights are decoded in registers, again for each tile of
// rows: that costs less than to write them down.
template <int R>
void products(const Linear& l, const bf16* x, std::int64_t column, float* out, int ldo) {
    const std::uint8_t* weight = block_of(l, column);
    const bf16* scale = l.scales + column;
    __m512 total[R][2];
    for (auto& row : total) row[0] = row[1] = _mm512_setzero_ps();
    for (std::int64_t k = 0; k < l.inputs; k += GROUP) {
        __m512 sum[R][2];
        for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
        add_group<R>(weight, x + k, l.inputs, sum);
        const __m512 left = load(scale), right = load(scale + LANES);
        for (int r = 0; r < R; ++r) {
            total[r][0] = _mm512_fmadd_ps(sum[r][0], left, total[r][0]);
            total[r][1] = _mm512_fmadd_ps(sum[r][1], right, total[r][1]);
        }
        weight += 32 * PAIRS;
        scale += l.outputs;
    }
    for (int r = 0; r < R; ++r) {
        _mm512_storeu_ps(out + r * ldo, total[r][0]);
        _mm512_storeu_ps(out + r * ldo + LANES, total[r][1]);
    }
}

inline void tile(const Linear& l, const bf16* x, int rows, std::int64_t column, int columns,
                 float* out, int ldo) {
    using Kernel = void (*)(const Linear&, const bf16*, std::int64_t, float*, int);
    static constexpr Kernel kernels[] = {products<8>, products<1>, products<2>, products<3>,
                                         products<4>, products<5>, products<6>, products<7>};
    for (int c = 0; c < columns; c += COLUMNS) {
        int r = 0;
        for (; r + 8 <= rows; r += 8)
            kernels[0](l, x + r * l.inputs, column + c, out + r * ldo + c, ldo);
        if (r < rows)
            kernels[rows - r](l, x + r * l.inputs, column + c, out + r * ldo + c, ldo);
    }
}

}  // namespace nf4

namespace plain {

// R rows by 16 / R columns, U columns at a time. Memory is read in the order in which it lies,
// as far as possible: two streams at once have half the speed of one.
template <int R, int U>
void products(const Linear& l, const bf16* x, std::int64_t column, std::int64_t ahead, float* out,
              int ldo) {
    constexpr int C = LANES / R;
    const std::int64_t whole = l.inputs & ~std::int64_t{31};
    const __mmask32 rest = (1u << (l.inputs - whole)) - 1;
    __m512 sum[LANES];
    for (int c = 0; c < C; c += U) {
        const bf16* weight[U];
        __m512 own[U][R];
        for (int u = 0; u < U; ++u) {
            // Behind the last column stands the last one again.
            weight[u] = static_cast<const bf16*>(l.weight) +
                        std::min(column + c + u, l.outputs - 1) * l.inputs;
            for (int r = 0; r < R; ++r) own[u][r] = _mm512_setzero_ps();
        }
        for (std::int64_t k = 0; k < whole; k += 32) {
            __m512i input[R];
            for (int r = 0; r < R; ++r) input[r] = _mm512_loadu_si512(x + r * l.inputs + k);
            for (int u = 0; u < U; ++u) {
                const __m512i w = _mm512_loadu_si512(weight[u] + k);
                if (ahead) _mm_prefetch(weight[u] + k + ahead, _MM_HINT_T1);
                for (int r = 0; r < R; ++r) own[u][r] = dot(own[u][r], input[r], w);
            }
        }
        if (rest) {
            for (int u = 0; u < U; ++u) {
                const __m512i w = _mm512_maskz_loadu_epi16(rest, weight[u] + whole);
                for (int r = 0; r < R; ++r)
                    own[u][r] = dot(
                        own[u][r], _mm512_maskz_loadu_epi16(rest, x + r * l.inputs + whole), w);
            }
        }
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < R; ++r) sum[r * C + c + u] = own[u][r];
    }
    alignas(64) float found[LANES];
    _mm512_store_ps(found, sums(sum));
    for (int r = 0; r < R; ++r) std::memcpy(out + r * ldo, found + r * C, C * sizeof(float));
}

inline void tile(const Linear& l, const bf16* x, int rows, std::int64_t column, int columns,
                 float* out, int ldo) {
    for (int left = 0; left < columns; left += LANES) {
        int r = 0;
        const auto strip = [&](auto kernel, int count) {
            for (; r + count <= rows; r += count) {
                // While the last rows are multiplied, the next columns come from memory.
                const bool is_last = r + 2 * count > rows && left + LANES < columns;
                const std::int64_t ahead = is_last ? LANES * l.inputs : 0;
                for (int c = left; c < left + LANES; c += LANES / count)
                    kernel(l, x + r * l.inputs, column + c, ahead, out + r * ldo + c, ldo);
            }
        };
        strip(products<8, 2>, 8);
        strip(products<4, 2>, 4);
        strip(products<2, 1>, 2);
        strip(products<1, 1>, 1);
    }
}

}  // namespace plain

// out[r * ldo + c] = what the layer gives for row r and column `column` + c, rounded to bfloat16.
// At most TILE_ROWS rows; columns is a multiple of 32. Columns that a plain layer has not are
// written, too, and mean nothing.
inline void apply(const Linear& l, const bf16* x, int rows, std::int64_t column, int columns,
                  float* out, int ldo) {
    const bool is_nf4 = l.kind == Kind::nf4;
    (is_nf4 ? nf4::tile : plain::tile)(l, x, rows, column, columns, out, ldo);
    for (int c = 0; c < columns; c += LANES) {
        const auto left = std::clamp<std::int64_t>(l.outputs - column - c, 0, LANES);
        const __mmask16 here = first_lanes(static_cast<int>(left));
        const __m512 bias = l.bias ? load(l.bias + column + c, here) : _mm512_setzero_ps();
        for (int r = 0; r < rows; ++r) {
            float* place = out + r * ldo + c;
            __m512 y = _mm512_loadu_ps(place);
            // bitsandbytes rounds before it adds the bias, torch behind it.
            if (l.bias) y = _mm512_add_ps(is_nf4 ? rounded(y) : y, bias);
            _mm512_storeu_ps(place, rounded(y));
        }
    }
}
