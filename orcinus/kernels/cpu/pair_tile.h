// The inner loop of bfloat16 products where the processor multiplies pairs (AVX-512 BF16): c += a · b, pairs of k
// ascending.
//
// Each element has its own accumulator and its own chain over the pairs, so its bits don't depend on the number of rows,
// of vectors, or on its neighbours. The instruction takes subnormal numbers for 0, in every row alike.
#pragma once
#include "vec.h"

#if defined(__AVX512BF16__)

namespace orcinus {

constexpr int PAIR_ROWS = 6;     // 6 × 4 of 32 registers hold sums
constexpr int PAIR_VECTORS = 4;

inline int64_t pairs_of(int64_t k) { return (k + 1) / 2; }

inline __m512bh two_everywhere(const bf16* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof(both));
    return (__m512bh)_mm512_set1_epi32(both);
}

inline Vec dot_pairs(Vec sum, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }

// Memory to fetch into L2 while other memory is in use: `lines` cache lines a step.
struct Fetch {
    const char* at;
    int64_t lines;

    void step() {
        for (int64_t line = 0; line < lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T1);
        at += 64 * lines;
    }
};

// One operand: where it begins, and elements from row to row. Rows of b are pairs of k: [pairs][columns][2].
template <class T>
struct Operand {
    T* at;
    int64_t stride;

    T* row(int64_t r) const { return at + r * stride; }
};

// Right operands: where pair i of vector v begins. Pairs one after the other at a distance; keys and values of the cache, in
// groups of KV_GROUP slots that lie anywhere, `column` elements into each line.
struct Lines {
    const bf16* first;
    int64_t stride;

    const bf16* at(int64_t i, int v) const { return first + i * stride + v * 2 * W; }
};

struct KeyGroups {
    const bf16* const* groups;

    const bf16* at(int64_t i, int v) const { return groups[v] + i * 2 * W; }
};

struct ValueGroups {
    const bf16* const* groups;
    int64_t stride, column;

    const bf16* at(int64_t i, int v) const { return groups[i / (W / 2)] + i % (W / 2) * stride + column + v * 2 * W; }
};

// c[R][NV · 16] = (fresh ? 0 : c) + a[R][2 · pairs] · b.
template <int R, int NV, class Right>
inline __attribute__((always_inline)) void pair_tile_of(int64_t pairs, Operand<const bf16> a, const Right& b, Operand<float> c,
                                                        bool fresh, Fetch fetch) {
    Vec sum[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum[r][v] = fresh ? zero() : load(c.row(r) + v * W);
    for (int64_t i = 0; i < pairs; i++) {
        fetch.step();
        __m512bh right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            const __m512i pairs = _mm512_loadu_si512(b.at(i, v));
            right[v] = (__m512bh)(R % 2 == 1 ? kept(pairs) : pairs);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh left = two_everywhere(a.row(r) + 2 * i);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sum[r][v] = dot_pairs(sum[r][v], left, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) store(c.row(r) + v * W, sum[r][v]);
}

template <int NV, class Right>
void pair_tile_rows(int64_t rows, int64_t pairs, Operand<const bf16> a, const Right& b, Operand<float> c, bool fresh,
                    Fetch fetch) {
    switch (rows) {
        case 1: return pair_tile_of<1, NV>(pairs, a, b, c, fresh, fetch);
        case 2: return pair_tile_of<2, NV>(pairs, a, b, c, fresh, fetch);
        case 3: return pair_tile_of<3, NV>(pairs, a, b, c, fresh, fetch);
        case 4: return pair_tile_of<4, NV>(pairs, a, b, c, fresh, fetch);
        case 5: return pair_tile_of<5, NV>(pairs, a, b, c, fresh, fetch);
        default: return pair_tile_of<6, NV>(pairs, a, b, c, fresh, fetch);
    }
}

// The same for any number of rows.
template <int NV, class Right>
void pair_tiles(int64_t rows, int64_t pairs, Operand<const bf16> a, const Right& b, Operand<float> c, bool fresh) {
    for (int64_t r = 0; r < rows; r += PAIR_ROWS)
        pair_tile_rows<NV>(rows - r < PAIR_ROWS ? rows - r : PAIR_ROWS, pairs, {a.row(r), a.stride}, b, {c.row(r), c.stride},
                           fresh, {nullptr, 0});
}

// 16 rows of pairs from memory, `left` elements each (0 and zeros past them), turned: vector i holds pair i of every row.
inline void load_pairs_turned(const bf16* from, int64_t stride, int64_t rows, int64_t left, Vec turned[W]) {
    const __mmask32 some = left >= 2 * W ? 0xffffffffu : (1u << left) - 1;
    for (int64_t r = 0; r < W; r++)
        turned[r] = r < rows ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(some, from + r * stride)) : zero();
    transpose(turned);
}

}  // namespace orcinus

#endif
