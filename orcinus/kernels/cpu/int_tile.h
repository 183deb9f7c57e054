// Vectors of 32-bit integers, and the inner loop of integer products: sums of four byte products a lane, which are exact
// in any order.
#pragma once
#include "vec.h"

namespace orcinus {

#if defined(__AVX512F__)

using Ints = __m512i;
constexpr int INT_ROWS = 6;  // 6 × 4 of 32 registers hold sums

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints splat_int(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline void store_ints(void* p, Ints x) { _mm512_storeu_si512(p, x); }
inline Ints load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints mul_ints(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints right_four(Ints x) { return _mm512_srli_epi32(x, 4); }
inline int32_t sum_ints(Ints x) { return _mm512_reduce_add_epi32(x); }
inline Vec to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints to_nearest(Vec x) { return _mm512_cvtps_epi32(x); }
// Those of the first n lanes, each within a byte.
inline void store_bytes(int8_t* p, Ints x, int64_t n) { _mm512_mask_cvtepi32_storeu_epi8(p, first_lanes(n), x); }

#if defined(__AVX512VNNI__)
inline Ints dot_quads(Ints sum, Ints u, Ints s) { return _mm512_dpbusd_epi32(sum, u, s); }
#else
inline Ints dot_quads(Ints sum, Ints u, Ints s) {
    const Ints even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(0xff)), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    const Ints odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
    return add_ints(sum, add_ints(even, odd));
}
#endif

#else  // AVX2

using Ints = __m256i;
constexpr int INT_ROWS = 2;  // 2 × 4 of 16 registers

inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Ints splat_int(int32_t x) { return _mm256_set1_epi32(x); }
inline Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_ints(void* p, Ints x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline Ints load_bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints mul_ints(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints right_four(Ints x) { return _mm256_srli_epi32(x, 4); }
inline int32_t sum_ints(Ints x) {
    int32_t lanes[W], sum = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), x);
    for (const int32_t lane : lanes) sum += lane;
    return sum;
}
inline Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints to_nearest(Vec x) { return _mm256_cvtps_epi32(x); }
inline void store_bytes(int8_t* p, Ints x, int64_t n) {
    int32_t lanes[W];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), x);
    for (int64_t i = 0; i < W && i < n; i++) p[i] = static_cast<int8_t>(lanes[i]);
}
// The instruction for products of bytes adds pairs of them in 16 bits, where they may not fit: so in 16 bits from the start.
inline Ints dot_quads(Ints sum, Ints u, Ints s) {
    const Ints even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const Ints odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return add_ints(sum, add_ints(even, odd));
}

#endif

constexpr int INT_VECTORS = 4;
constexpr int64_t INT_PANEL = INT_VECTORS * W;  // output columns side by side

// A group of weights: [quads of k][column][4] bytes, or nibbles of two quads in a byte, the earlier one low; then scales
// [column], then zeros [column] or none.
template <int BITS>
struct CodeGroup {
    static constexpr int32_t MIDDLE = BITS == 8 ? 128 : 8;  // the zero of symmetric codes
    static constexpr int64_t STEP = BITS == 8 ? 4 : 8;      // elements of k in a line of codes
    const uint8_t* codes;
    const float* scales;
    const uint8_t* zeros;

    CodeGroup(const uint8_t* at, int64_t padded, bool has_zeros)
        : codes(at),
          scales(reinterpret_cast<const float*>(at + padded / STEP * 4 * INT_PANEL)),
          zeros(has_zeros ? reinterpret_cast<const uint8_t*>(scales + INT_PANEL) : nullptr) {}
};

// Rows of activations as signed bytes: x = scale · code. One scale, and one sum of codes, for each row and group.
struct ByteRows {
    const int8_t* codes;
    int64_t stride;
    const float* scales;
    const int32_t* sums;
    int64_t groups;

    ByteRows from(int64_t row) const { return {codes + row * stride, stride, scales + row * groups, sums + row * groups, groups}; }
};

inline Ints four_everywhere(const int8_t* bytes) {
    int32_t quad;
    std::memcpy(&quad, bytes, sizeof(quad));
    return splat_int(quad);
}

// Some of a group's k, from `begin` to `end`: group `index` begins at the row's element `k`.
struct Chunk {
    int64_t index, k, begin, end, length;
};

// Bytes are fetched so far ahead where memory sets the pace; a panel's codes and scales lie in one piece. Nibbles take long
// enough to unpack that the processor's own guesses keep up.
inline int64_t codes_soon(int64_t rows) { return rows < 5 ? 2048 : 6144; }

inline __attribute__((always_inline)) void fetch(const void* at) {
    for (int64_t byte = 0; byte < 4 * INT_PANEL; byte += 64)
        _mm_prefetch(static_cast<const char*>(at) + byte, _MM_HINT_T1);
}

// For R rows of x: wholes[R][INT_PANEL] are the integer sums of the group's earlier chunks, and take this one's; the last
// one makes sums[R][INT_PANEL] += scale · (x's scale) · Σ (code − zero) · (x's code).
template <int BITS, int R>
inline void group_tile_of(const CodeGroup<BITS>& group, const ByteRows& x, const Chunk& chunk, int32_t* wholes, float* sums,
                          int64_t soon) {
    // What codes count from is taken off beforehand where it is the same for all.
    Ints sum[R][INT_VECTORS], start[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        start[r] = splat_int(group.zeros == nullptr ? -CodeGroup<BITS>::MIDDLE * x.sums[r * x.groups + chunk.index] : 0);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < INT_VECTORS; v++) sum[r][v] = chunk.begin == 0 ? start[r] : load_ints(wholes + r * INT_PANEL + v * W);
    const uint8_t* line = group.codes + chunk.begin / CodeGroup<BITS>::STEP * 4 * INT_PANEL;
    const Ints low = splat_int(0x0f0f0f0f);
    const int8_t* left = x.codes + chunk.k + chunk.begin;
    for (const int8_t* end = x.codes + chunk.k + chunk.end; left < end; left += CodeGroup<BITS>::STEP, line += 4 * INT_PANEL) {
        if (BITS == 8 && soon) fetch(line + soon);
#pragma GCC unroll 2
        for (int half = 0; half < CodeGroup<BITS>::STEP / 4; half++) {
            Ints right[INT_VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < INT_VECTORS; v++) {
                right[v] = R % 2 == 1 ? kept(load_ints(line + v * 4 * W)) : load_ints(line + v * 4 * W);
                if (BITS == 4) right[v] = both(half == 0 ? right[v] : right_four(right[v]), low);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const Ints four = four_everywhere(left + r * x.stride + 4 * half);
#pragma GCC unroll 4
                for (int v = 0; v < INT_VECTORS; v++) sum[r][v] = dot_quads(sum[r][v], right[v], four);
            }
        }
    }
    if (chunk.end < chunk.length) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < INT_VECTORS; v++) store_ints(wholes + r * INT_PANEL + v * W, sum[r][v]);
        return;
    }
    if (BITS == 8 && soon) fetch(reinterpret_cast<const char*>(group.scales) + soon);
#pragma GCC unroll 4
    for (int v = 0; v < INT_VECTORS; v++) {
        const Vec scale = load(group.scales + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            Ints whole = sum[r][v];
            if (group.zeros != nullptr)
                whole = sub_ints(whole, mul_ints(load_bytes(group.zeros + v * W), splat_int(x.sums[r * x.groups + chunk.index])));
            float* to = sums + r * INT_PANEL + v * W;
            store(to, fma(to_floats(whole), mul(scale, splat(x.scales[r * x.groups + chunk.index])), load(to)));
        }
    }
}

template <int BITS>
void group_tile(int64_t rows, const CodeGroup<BITS>& group, const ByteRows& x, const Chunk& chunk, int32_t* wholes, float* sums,
                int64_t soon) {
    switch (rows) {
        case 1: return group_tile_of<BITS, 1>(group, x, chunk, wholes, sums, soon);
#if defined(__AVX512F__)
        case 2: return group_tile_of<BITS, 2>(group, x, chunk, wholes, sums, soon);
        case 3: return group_tile_of<BITS, 3>(group, x, chunk, wholes, sums, soon);
        case 4: return group_tile_of<BITS, 4>(group, x, chunk, wholes, sums, soon);
        case 5: return group_tile_of<BITS, 5>(group, x, chunk, wholes, sums, soon);
#endif
        default: return group_tile_of<BITS, INT_ROWS>(group, x, chunk, wholes, sums, soon);
    }
}

}  // namespace orcinus
