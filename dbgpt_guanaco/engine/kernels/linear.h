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

constexpr int TILE_ROWS = 64;
constexpr int TILE_FLOATS = TILE_ROWS * 32;
constexpr int COLUMNS = 32;  // of a packed block

namespace nf4 {

// bitsandbytes packs blocks of 32 columns. A block holds, for each pair of inputs, 32 bytes: in
// the low halves of the bytes are the codes of columns 0..15, two inputs each, in the high
// halves those of columns 16..31. That is the order in which dpbf16 wants them.
constexpr int GROUP = 64;  // inputs that share a scale
constexpr int PAIRS = GROUP / 2;
constexpr int GROUP_BYTES = PAIRS * 32;

inline __m512i table() {
    // The 16 values of NF4 in bfloat16, twice, for 32 lanes.
    const float values[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f,
                              -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
                              -0.09105003625154495f, 0.0f, 0.07958029955625534f,
                              0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                              0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    const __m256i once = narrow(_mm512_loadu_ps(values));
    return _mm512_inserti64x4(_mm512_castsi256_si512(once), once, 1);
}

struct Pair {
    __m512bh left, right;  // columns 0..15 and 16..31
};

inline Pair decode(const std::uint8_t* bytes, __m512i table) {
    const __m512i wide =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
    const __m512i low = _mm512_and_si512(wide, _mm512_set1_epi16(15));
    const __m512i high = _mm512_srli_epi16(wide, 4);
    return {reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(low, table)),
            reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(high, table))};
}

inline void add_scaled(float* out, __m512 sum, const bf16* scale, bool is_first) {
    const __m512 before = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(out);
    _mm512_storeu_ps(out, _mm512_fmadd_ps(sum, load(scale), before));
}

inline const std::uint8_t* block_of(const Linear& l, std::int64_t column) {
    return static_cast<const std::uint8_t*>(l.weight) + column * (l.inputs / 2);
}

// R rows by B blocks of columns; weights are decoded on their way through the registers.
template <int R, int B>
void few_rows(const Linear& l, const bf16* x, std::int64_t ldx, std::int64_t column, float* out,
              int ldo) {
    const __m512i values = table();
    const std::int64_t block_bytes = l.inputs / 2 * COLUMNS;
    const std::uint8_t* weight = block_of(l, column);
    for (std::int64_t k = 0; k < l.inputs; k += GROUP) {
        __m512 sum[R][2 * B];
        for (auto& row : sum)
            for (auto& s : row) s = _mm512_setzero_ps();
        for (int p = 0; p < PAIRS; ++p) {
            __m512bh input[R];
            for (int r = 0; r < R; ++r) input[r] = broadcast_pair(x + r * ldx + k + 2 * p);
            for (int b = 0; b < B; ++b) {
                const Pair w = decode(weight + b * block_bytes + p * 32, values);
                for (int r = 0; r < R; ++r) {
                    sum[r][2 * b] = _mm512_dpbf16_ps(sum[r][2 * b], input[r], w.left);
                    sum[r][2 * b + 1] = _mm512_dpbf16_ps(sum[r][2 * b + 1], input[r], w.right);
                }
            }
        }
        weight += GROUP_BYTES;
        const bf16* scale = l.scales + k / GROUP * l.outputs + column;
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < 2 * B; ++b)
                add_scaled(out + r * ldo + b * LANES, sum[r][b], scale + b * LANES, k == 0);
    }
}

// R rows against one group of a block that is decoded already.
template <int R>
void decoded_rows(const Pair* weight, const bf16* x, std::int64_t ldx, const bf16* scale,
                  bool is_first, float* out, int ldo) {
    __m512 sum[R][2];
    for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
    for (int p = 0; p < PAIRS; ++p) {
        const __m512bh left = weight[p].left, right = weight[p].right;
        for (int r = 0; r < R; ++r) {
            const __m512bh input = broadcast_pair(x + r * ldx + 2 * p);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], input, left);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], input, right);
        }
    }
    for (int r = 0; r < R; ++r) {
        add_scaled(out + r * ldo, sum[r][0], scale, is_first);
        add_scaled(out + r * ldo + LANES, sum[r][1], scale + LANES, is_first);
    }
}

inline void many_rows(const Linear& l, const bf16* x, std::int64_t ldx, int rows,
                      std::int64_t column, float* out, int ldo) {
    const __m512i values = table();
    const std::uint8_t* weight = block_of(l, column);
    Pair decoded[PAIRS];
    for (std::int64_t k = 0; k < l.inputs; k += GROUP) {
        for (int p = 0; p < PAIRS; ++p) decoded[p] = decode(weight + p * 32, values);
        weight += GROUP_BYTES;
        const bf16* scale = l.scales + k / GROUP * l.outputs + column;
        int r = 0;
        const auto tile = [&](auto kernel, int count) {
            for (; r + count <= rows; r += count)
                kernel(decoded, x + r * ldx + k, ldx, scale, k == 0, out + r * ldo, ldo);
        };
        tile(decoded_rows<8>, 8);
        tile(decoded_rows<4>, 4);
        tile(decoded_rows<2>, 2);
        tile(decoded_rows<1>, 1);
    }
}

inline void tile(const Linear& l, const bf16* x, std::int64_t ldx, int rows, std::int64_t column,
                 int columns, float* out, int ldo) {
    if (rows == 1 && columns == 4 * COLUMNS) return few_rows<1, 4>(l, x, ldx, column, out, ldo);
    if (rows == 1 && columns == 3 * COLUMNS) return few_rows<1, 3>(l, x, ldx, column, out, ldo);
    if (rows == 1 && columns == 2 * COLUMNS) return few_rows<1, 2>(l, x, ldx, column, out, ldo);
    if (rows == 2 && columns == 2 * COLUMNS) return few_rows<2, 2>(l, x, ldx, column, out, ldo);
    for (int c = 0; c < columns; c += COLUMNS, column += COLUMNS, out += COLUMNS) {
        switch (rows) {
            case 1: few_rows<1, 1>(l, x, ldx, column, out, ldo); break;
            case 2: few_rows<2, 1>(l, x, ldx, column, out, ldo); break;
            case 3: few_rows<3, 1>(l, x, ldx, column, out, ldo); break;
            case 4: few_rows<4, 1>(l, x, ldx, column, out, ldo); break;
            case 5: few_rows<5, 1>(l, x, ldx, column, out, ldo); break;
            case 6: few_rows<6, 1>(l, x, ldx, column, out, ldo); break;
            case 7: few_rows<7, 1>(l, x, ldx, column, out, ldo); break;
            case 8: few_rows<8, 1>(l, x, ldx, column, out, ldo); break;
            default: many_rows(l, x, ldx, rows, column, out, ldo);
        }
    }
}

}  // namespace nf4

namespace plain {

// R rows by 16 / R columns, each a product of two rows in memory.
template <int R>
void products(const Linear& l, const bf16* x, std::int64_t ldx, std::int64_t column, float* out,
              int ldo) {
    constexpr int C = LANES / R;
    const bf16* weight[C];
    for (int c = 0; c < C; ++c)  // behind the last column stands the last one again
        weight[c] = static_cast<const bf16*>(l.weight) +
                    std::min(column + c, l.outputs - 1) * l.inputs;
    __m512 sum[LANES];
    for (auto& s : sum) s = _mm512_setzero_ps();
    const std::int64_t whole = l.inputs & ~std::int64_t{31};
    for (std::int64_t k = 0; k < whole; k += 32) {
        __m512bh input[R];
        for (int r = 0; r < R; ++r) input[r] = load_pairs(x + r * ldx + k);
        for (int c = 0; c < C; ++c) {
            const __m512bh w = load_pairs(weight[c] + k);
            if (R <= 2) _mm_prefetch(weight[c] + k + C * l.inputs, _MM_HINT_T0);
            for (int r = 0; r < R; ++r)
                sum[r * C + c] = _mm512_dpbf16_ps(sum[r * C + c], input[r], w);
        }
    }
    if (whole < l.inputs) {
        const __mmask32 rest = (1u << (l.inputs - whole)) - 1;
        for (int c = 0; c < C; ++c) {
            const auto w = reinterpret_cast<__m512bh>(
                _mm512_maskz_loadu_epi16(rest, weight[c] + whole));
            for (int r = 0; r < R; ++r) {
                const auto input = reinterpret_cast<__m512bh>(
                    _mm512_maskz_loadu_epi16(rest, x + r * ldx + whole));
                sum[r * C + c] = _mm512_dpbf16_ps(sum[r * C + c], input, w);
            }
        }
    }
    alignas(64) float found[LANES];
    _mm512_store_ps(found, sums(sum));
    for (int r = 0; r < R; ++r) std::memcpy(out + r * ldo, found + r * C, C * sizeof(float));
}

inline void tile(const Linear& l, const bf16* x, std::int64_t ldx, int rows, std::int64_t column,
                 int columns, float* out, int ldo) {
    for (int left = 0; left < columns; left += LANES) {
        int r = 0;
        const auto strip = [&](auto kernel, int count) {
            for (; r + count <= rows; r += count)
                for (int c = left; c < left + LANES; c += LANES / count)
                    kernel(l, x + r * ldx, ldx, column + c, out + r * ldo + c, ldo);
        };
        strip(products<4>, 4);
        strip(products<2>, 2);
        strip(products<1>, 1);
    }
}

}  // namespace plain

// out[r * ldo + c] = what the layer gives for row r and column `column` + c, rounded to bfloat16.
// At most TILE_ROWS rows; columns is a multiple of 32. Columns that a plain layer has not are
// written, too, and mean nothing.
inline void apply(const Linear& l, const bf16* x, int rows, std::int64_t column, int columns,
                  float* out, int ldo) {
    const bool is_nf4 = l.kind == Kind::nf4;
    (is_nf4 ? nf4::tile : plain::tile)(l, x, l.inputs, rows, column, columns, out, ldo);
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
