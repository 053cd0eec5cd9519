// Sixteen floats at a time: bfloat16 in memory, float32 in registers, rounding to nearest even.
//
// A CPU without instructions for bfloat16 takes more of them to the same results, denormal
// numbers aside.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

using bf16 = std::uint16_t;

constexpr int LANES = 16;

inline __mmask16 first_lanes(int count) {
    return count >= LANES ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m256i narrow(__m512 floats) {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(floats));
#else
    const __m512i bits = _mm512_castps_si512(floats);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7FFF)));
    // A NaN must not be rounded to infinity.
    const __mmask16 is_nan = _mm512_cmp_ps_mask(floats, floats, _CMP_UNORD_Q);
    const __m512i kept =
        _mm512_mask_or_epi32(up, is_nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
}

inline __m512 load(const bf16* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 load(const bf16* from, __mmask16 lanes) {
    return widen(_mm256_maskz_loadu_epi16(lanes, from));
}

inline void store(bf16* to, __m512 floats) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(floats));
}

inline void store(bf16* to, __m512 floats, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(to, lanes, narrow(floats));
}

// What storing and loading again would give.
inline __m512 rounded(__m512 floats) { return widen(narrow(floats)); }

// Two bfloat16 of one row, for every lane.
inline __m512i broadcast_pair(const bf16* pair) {
    std::int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// The two bfloat16 of each lane, as floats.
inline __m512 first_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

inline __m512 second_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

// sum + a · b, for the pair of bfloat16 in each lane.
inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    return _mm512_fmadd_ps(first_of(a), first_of(b),
                           _mm512_fmadd_ps(second_of(a), second_of(b), sum));
#endif
}

// e**x within 2 ulp; 0 below -87.3, and for -inf. Cody-Waite reduction, then a polynomial.
inline __m512 exponential(__m512 x) {
    const __mmask16 vanishes = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_LT_OQ);
    // The bound comes first: a NaN passes through min as its second operand.
    x = _mm512_min_ps(_mm512_set1_ps(88.7f), x);
    const __m512 n = _mm512_roundscale_ps(
        _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                          5.0000001201e-1f, 1.0f, 1.0f}) {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    return _mm512_maskz_scalef_ps(static_cast<__mmask16>(~vanishes), p, n);
}

// Lane i of the result is the sum of vector i. Every sum is built in the same order, so it does
// not matter at which place a vector stands.
inline __m512 sums(const __m512 (&v)[LANES]) {
    __m512 quads[4];
    for (int i = 0; i < 4; ++i) {
        const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[4 * i], v[4 * i + 1]),
                                       _mm512_unpackhi_ps(v[4 * i], v[4 * i + 1]));
        const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[4 * i + 2], v[4 * i + 3]),
                                       _mm512_unpackhi_ps(v[4 * i + 2], v[4 * i + 3]));
        const __m512d lows = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
        const __m512d highs = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
        quads[i] = _mm512_add_ps(_mm512_castpd_ps(lows), _mm512_castpd_ps(highs));
    }
    // Each 128 bits of quads[i] hold parts of the sums 4i .. 4i+3.
    const __m512 left = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                                      _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
    const __m512 right = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                                       _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88),
                         _mm512_shuffle_f32x4(left, right, 0xDD));
}

// Transpose 16 rows of 16 dwords, in registers.
inline void transpose(__m512i (&r)[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}
