// The one inner loop of products by fused multiply-add: c[R rows][NV vectors] += a[R][k] · b[k][NV vectors], k ascending.
//
// Each element has its own accumulator and its own chain over k, so its bits don't depend on R, NV or its neighbours.
#pragma once
#include "vec.h"

namespace orcinus {

constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = W == 16 ? 4 : 2;  // 6 × 4 of 32 registers, or 6 × 2 of 16
constexpr int TILE_COLUMNS = TILE_VECTORS * W;

template <int R, int NV>
inline __attribute__((always_inline)) void fma_tile_of(int64_t k, const float* a, int64_t a_stride, const float* b,
                                                       int64_t b_stride, float* c, int64_t c_stride) {
    Vec sum[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum[r][v] = load(c + r * c_stride + v * W);
    for (int64_t i = 0; i < k; i++, b += b_stride) {
        Vec line[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) line[v] = load(b + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Vec x = splat(a[r * a_stride + i]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sum[r][v] = fma(x, line[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) store(c + r * c_stride + v * W, sum[r][v]);
}

template <int NV>
void fma_tile_rows(int64_t rows, int64_t k, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                   int64_t c_stride) {
    switch (rows) {
        case 1: return fma_tile_of<1, NV>(k, a, a_stride, b, b_stride, c, c_stride);
        case 2: return fma_tile_of<2, NV>(k, a, a_stride, b, b_stride, c, c_stride);
        case 3: return fma_tile_of<3, NV>(k, a, a_stride, b, b_stride, c, c_stride);
        case 4: return fma_tile_of<4, NV>(k, a, a_stride, b, b_stride, c, c_stride);
        case 5: return fma_tile_of<5, NV>(k, a, a_stride, b, b_stride, c, c_stride);
        default: return fma_tile_of<6, NV>(k, a, a_stride, b, b_stride, c, c_stride);
    }
}

// c[rows][vectors · W] += a[rows][k] · b[k][vectors · W]; rows and vectors of any number.
inline void fma_product(int64_t rows, int64_t vectors, int64_t k, const float* a, int64_t a_stride, const float* b,
                        int64_t b_stride, float* c, int64_t c_stride) {
    for (int64_t r = 0; r < rows; r += TILE_ROWS) {
        const int64_t some = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        const float* left = a + r * a_stride;
        float* sums = c + r * c_stride;
        int64_t v = 0;
        for (; v + TILE_VECTORS <= vectors; v += TILE_VECTORS)
            fma_tile_rows<TILE_VECTORS>(some, k, left, a_stride, b + v * W, b_stride, sums + v * W, c_stride);
        for (; v < vectors; v++) fma_tile_rows<1>(some, k, left, a_stride, b + v * W, b_stride, sums + v * W, c_stride);
    }
}

}  // namespace orcinus
