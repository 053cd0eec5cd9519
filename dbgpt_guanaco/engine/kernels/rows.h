// What happens to single rows: norms, rotation, activation. Rounded where transformers rounds.
#pragma once

#include "vectors.h"

// Layout is shared with cpu_decoder.py.
struct Norm {
    const bf16* weight;  // null: there is none
    float epsilon;
    std::int32_t reserved;
};

inline void normalize(const Norm& norm, const bf16* x, std::int64_t size, bf16* out) {
    __m512 squares = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < size; i += LANES) {
        const __m512 v = load(x + i, first_lanes(static_cast<int>(size - i)));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
    const __m512 factor = _mm512_set1_ps(1 / std::sqrt(mean + norm.epsilon));
    for (std::int64_t i = 0; i < size; i += LANES) {
        const __mmask16 here = first_lanes(static_cast<int>(size - i));
        const __m512 scaled = rounded(_mm512_mul_ps(load(x + i, here), factor));
        store(out + i, _mm512_mul_ps(load(norm.weight + i, here), scaled), here);
    }
}

// Rotary position of one head; x and out may be the same. Size is a multiple of 32.
inline void rotate(const bf16* x, const bf16* cos, const bf16* sin, int size, bf16* out) {
    const int half = size / 2;
    for (int i = 0; i < half; i += LANES) {
        const __m512 a = load(x + i), b = load(x + half + i);
        const auto turned = [&](int at, __m512 own, __m512 other) {
            return _mm512_add_ps(rounded(_mm512_mul_ps(own, load(cos + at))),
                                 rounded(_mm512_mul_ps(other, load(sin + at))));
        };
        const __m512 first = turned(i, a, _mm512_sub_ps(_mm512_setzero_ps(), b));
        const __m512 second = turned(half + i, b, a);
        store(out + i, first);
        store(out + half + i, second);
    }
}

// silu(gate) * up
inline __m512 gated(__m512 gate, __m512 up) {
    const __m512 one = _mm512_set1_ps(1);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
    return _mm512_mul_ps(rounded(_mm512_div_ps(gate, _mm512_add_ps(one, e))), up);
}
