// One vector of floats, as wide as the instruction set that this file is compiled for, and what the kernels do with it.
//
// Everything here is one instruction or a fixed sequence of them: no libm, no contraction left to the compiler's mood,
// so that a row's bits can't depend on which copy of an inlined function worked on it.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace orcinus {

struct bf16 {
    uint16_t bits;
};

// `x`, in a register. For 3 or 5 rows the compiler would rather load weights again for each row, to need fewer registers,
// and then loads set the pace.
template <class V>
inline V kept(V x) {
    asm("" : "+v"(x));
    return x;
}

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int W = 16;

inline __mmask16 first_lanes(int64_t n) { return n >= W ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec widen(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
inline Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Vec load_first(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store_first(float* p, Vec x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec negated_fma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
// The second operand wins where either is NaN: put the value that must be heard there.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec magnitude(Vec x) { return _mm512_abs_ps(x); }
inline Vec with_sign_of(Vec x, Vec sign) {
    const __m512i mask = _mm512_set1_epi32(INT32_MIN);
    const __m512i bits = _mm512_or_si512(_mm512_andnot_si512(mask, _mm512_castps_si512(x)),
                                         _mm512_and_si512(mask, _mm512_castps_si512(sign)));
    return _mm512_castsi512_ps(bits);
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline Vec keep_lanes(Vec x, int64_t from, int64_t to, Vec other) {
    const __mmask16 keep = first_lanes(to < 0 ? 0 : to) & ~first_lanes(from < 0 ? 0 : from);
    return _mm512_mask_blend_ps(keep, other, x);
}
inline Vec round_even(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec power_of_two(Vec n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline float sum_lanes(Vec x) { return _mm512_reduce_add_ps(x); }
inline float max_lanes(Vec x) { return _mm512_reduce_max_ps(x); }

inline __m256i narrow(Vec x) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
}
inline void store(bf16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
inline void store_first(bf16* p, Vec x, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x)); }

inline void transpose(Vec rows[W]) {
    __m512i a[W], b[W];
    for (int i = 0; i < W; i += 2) {
        a[i] = _mm512_castps_si512(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
        a[i + 1] = _mm512_castps_si512(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    }
    for (int i = 0; i < W; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        const __m512i high = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        rows[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low, high, 0x88));
        rows[i + 8] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low, high, 0xdd));
        rows[i + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low2, high2, 0x88));
        rows[i + 12] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(low2, high2, 0xdd));
    }
}

#else  // AVX2 and FMA

using Vec = __m256;
constexpr int W = 8;

inline __m256i first_lanes(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n > W ? W : n)), lane);
}

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec widen(__m128i halves) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)); }
inline Vec load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline Vec load_first(const bf16* p, int64_t n) {
    bf16 whole[W] = {};
    std::memcpy(whole, p, (n > W ? W : n) * sizeof(bf16));
    return load(whole);
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline void store_first(float* p, Vec x, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x); }

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec negated_fma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
// The second operand wins where either is NaN: put the value that must be heard there.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec magnitude(Vec x) { return _mm256_andnot_ps(splat(-0.0f), x); }
inline Vec with_sign_of(Vec x, Vec sign) { return _mm256_or_ps(magnitude(x), _mm256_and_ps(splat(-0.0f), sign)); }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline Vec keep_lanes(Vec x, int64_t from, int64_t to, Vec other) {
    const __m256i keep = _mm256_andnot_si256(first_lanes(from < 0 ? 0 : from), first_lanes(to < 0 ? 0 : to));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(keep));
}
inline Vec round_even(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec power_of_two(Vec n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline float sum_lanes(Vec x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float max_lanes(Vec x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline __m128i narrow(Vec x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
inline void store(bf16* p, Vec x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
inline void store_first(bf16* p, Vec x, int64_t n) {
    bf16 whole[W];
    store(whole, x);
    std::memcpy(p, whole, (n > W ? W : n) * sizeof(bf16));
}

inline void transpose(Vec rows[W]) {
    Vec a[W], b[W];
    for (int i = 0; i < W; i += 2) {
        a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < W; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#endif

// e^x with about 1e-7 relative error; 0 below -87.3, largest finite power above 88; NaN stays NaN.
inline Vec exponential(Vec x) {
    const Vec clamped = min(splat(88.0f), max(splat(-87.33f), x));
    const Vec n = round_even(mul(clamped, splat(1.44269504f)));
    const Vec high = negated_fma(n, splat(0.693359375f), clamped);
    const Vec f = negated_fma(n, splat(-2.12194440e-4f), high);
    Vec p = fma(splat(1.9875691500e-4f), f, splat(1.3981999507e-3f));
    p = fma(p, f, splat(8.3334519073e-3f));
    p = fma(p, f, splat(4.1665795894e-2f));
    p = fma(p, f, splat(1.6666665459e-1f));
    p = fma(p, f, splat(5.0000001201e-1f));
    p = add(fma(p, mul(f, f), f), splat(1.0f));
    return where_less(x, splat(-87.33f), zero(), mul(p, power_of_two(n)));
}

// Cephes' tanhf: a polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
inline Vec hyperbolic_tangent(Vec x) {
    const Vec size = magnitude(x), square = mul(x, x);
    Vec p = fma(splat(-5.70498872745e-3f), square, splat(2.06390887954e-2f));
    p = fma(p, square, splat(-5.37397155531e-2f));
    p = fma(p, square, splat(1.33314422036e-1f));
    p = fma(p, square, splat(-3.33332819422e-1f));
    const Vec near = fma(mul(p, square), x, x);
    const Vec far = sub(splat(1.0f), div(splat(2.0f), add(exponential(add(size, size)), splat(1.0f))));
    return where_less(size, splat(0.625f), near, with_sign_of(far, x));
}

// erfc by the Chebyshev fit of Numerical Recipes (erfcc): relative error 1.2e-7 everywhere, so GELU's tail is right.
inline Vec complementary_error(Vec x) {
    const Vec z = magnitude(x), t = div(splat(1.0f), fma(splat(0.5f), z, splat(1.0f)));
    Vec p = fma(splat(0.17087277f), t, splat(-0.82215223f));
    p = fma(p, t, splat(1.48851587f));
    p = fma(p, t, splat(-1.13520398f));
    p = fma(p, t, splat(0.27886807f));
    p = fma(p, t, splat(-0.18628806f));
    p = fma(p, t, splat(0.09678418f));
    p = fma(p, t, splat(0.37409196f));
    p = fma(p, t, splat(1.00002368f));
    p = fma(p, t, splat(-1.26551223f));
    const Vec tail = mul(t, exponential(negated_fma(z, z, p)));
    return where_less(x, zero(), sub(splat(2.0f), tail), tail);
}

}  // namespace orcinus
