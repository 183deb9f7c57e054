// y = x · wᵀ + b by fused multiply-add, for float32, and for bfloat16 widened to it.
//
// The weight is packed into panels of TILE_COLUMNS output columns, [panel][k][column], zeros past the last column. Each
// output element is one chain of fused multiply-adds over k ascending; blocks over k put the float32 sums down and take
// them up again, which changes no bit. Work is split over columns and rows, never over k.
#pragma once
#include <cstdint>
#include <type_traits>

#include "fma_tile.h"
#include "parallel.h"
#include "vec.h"

namespace orcinus {

// Shapes of one call; strides are in elements, the innermost one is 1. `bias` may be null.
struct LinearShape {
    int64_t rows, in_features, out_features, x_stride, out_stride;
    const float* bias;
};

constexpr int64_t PASS_ROWS = 384;   // rows whose input is prepared at a time: bounds the scratch
constexpr int64_t BLOCK_ROWS = 96;   // rows of one task
constexpr int64_t K_BLOCK = 256;     // 64 KiB of a float32 panel, which stays in L2 (and mostly in L1) for all rows

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// out[rows][columns] = sums + bias, `columns` being those of this panel that exist.
template <class Out>
void finish_panel(const float* sums, int64_t sums_stride, int64_t rows, int64_t columns, const float* bias, Out* out,
                  int64_t out_stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += W) {
            const Vec s = load(sums + r * sums_stride + c);
            const Vec y = bias == nullptr ? s : add(s, load_first(bias + c, columns - c));
            if (columns - c >= W)
                store(out + r * out_stride + c, y);
            else
                store_first(out + r * out_stride + c, y, columns - c);
        }
}

template <class T>
int64_t panel_elements(int64_t out_features, int64_t in_features) {
    return ceil_div(out_features, TILE_COLUMNS) * in_features * TILE_COLUMNS;
}

template <class T>
void pack_panels(const T* weight, int64_t row_stride, int64_t out_features, int64_t in_features, T* packed) {
    for_each_task(ceil_div(out_features, TILE_COLUMNS), [=](int64_t panel) {
        T* to = packed + panel * in_features * TILE_COLUMNS;
        const int64_t first = panel * TILE_COLUMNS;
        const int64_t columns = out_features - first < TILE_COLUMNS ? out_features - first : TILE_COLUMNS;
        std::memset(static_cast<void*>(to), 0, in_features * TILE_COLUMNS * sizeof(T));
        for (int64_t c = 0; c < columns; c++) {
            const T* row = weight + (first + c) * row_stride;
            for (int64_t k = 0; k < in_features; k++) to[k * TILE_COLUMNS + c] = row[k];
        }
    });
}

// The panel's next k rows as float32: in place for float32, widened into scratch for bfloat16.
inline const float* float_rows(const float* panel, int64_t) { return panel; }
inline const float* float_rows(const bf16* panel, int64_t k) {
    thread_local Scratch scratch;
    float* wide = scratch.take<float>(K_BLOCK * TILE_COLUMNS);
    for (int64_t i = 0; i < k * TILE_COLUMNS; i += W) store(wide + i, load(panel + i));
    return wide;
}

template <class T, class Out>
void panel_product(const float* x, int64_t x_stride, const LinearShape& shape, int64_t first_row, int64_t rows,
                   int64_t panel, const T* packed, Out* out) {
    thread_local Scratch scratch;
    float* sums = scratch.take<float>(BLOCK_ROWS * TILE_COLUMNS);
    std::memset(sums, 0, rows * TILE_COLUMNS * sizeof(float));
    const T* weights = packed + panel * shape.in_features * TILE_COLUMNS;
    for (int64_t k = 0; k < shape.in_features; k += K_BLOCK) {
        const int64_t some = shape.in_features - k < K_BLOCK ? shape.in_features - k : K_BLOCK;
        const float* wide = float_rows(weights + k * TILE_COLUMNS, some);
        fma_product(rows, TILE_VECTORS, some, x + k, x_stride, wide, TILE_COLUMNS, sums, TILE_COLUMNS);
    }
    const int64_t column = panel * TILE_COLUMNS, left = shape.out_features - column;
    finish_panel(sums, TILE_COLUMNS, rows, left < TILE_COLUMNS ? left : TILE_COLUMNS,
                 shape.bias == nullptr ? nullptr : shape.bias + column, out + first_row * shape.out_stride + column,
                 shape.out_stride);
}

template <class T, class Out>
void linear_fma(const T* x, const T* packed, const LinearShape& shape, Out* out) {
    thread_local Scratch scratch;
    const int64_t panels = ceil_div(shape.out_features, TILE_COLUMNS);
    for (int64_t start = 0; start < shape.rows; start += PASS_ROWS) {
        const int64_t rows = shape.rows - start < PASS_ROWS ? shape.rows - start : PASS_ROWS;
        const float* wide = nullptr;
        int64_t wide_stride = shape.x_stride;
        if constexpr (std::is_same_v<T, float>) {
            wide = x + start * shape.x_stride;
        } else {
            wide_stride = ceil_div(shape.in_features, W) * W;
            float* to = scratch.take<float>(rows * wide_stride);
            for_row_ranges(rows, 32, [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; r++)
                    for (int64_t k = 0; k < shape.in_features; k += W)
                        store(to + r * wide_stride + k,
                              load_first(x + (start + r) * shape.x_stride + k, shape.in_features - k));
            });
            wide = to;
        }
        const int64_t blocks = ceil_div(rows, BLOCK_ROWS);
        for_each_task(panels * blocks, [&](int64_t task) {
            const int64_t first = task % blocks * BLOCK_ROWS;
            const int64_t some = rows - first < BLOCK_ROWS ? rows - first : BLOCK_ROWS;
            panel_product(wide + first * wide_stride, wide_stride, shape, start + first, some, task / blocks, packed, out);
        });
    }
}

}  // namespace orcinus
