// What is done to each row alone: norms, rotary embedding, activations, and storing K and V.
#pragma once
#include <cmath>
#include <cstdint>

#include "parallel.h"
#include "vec.h"

namespace orcinus {

constexpr int64_t GRAIN_ELEMENTS = 16384;  // below this a second thread costs more than it brings

inline int64_t row_grain(int64_t row_elements) { return GRAIN_ELEMENTS / (row_elements > 0 ? row_elements : 1) + 1; }

template <class T>
inline Vec load_some(const T* p, int64_t left) {
    return left >= W ? load(p) : load_first(p, left);
}

template <class T>
inline void store_some(T* p, Vec x, int64_t left) {
    if (left >= W)
        store(p, x);
    else
        store_first(p, x, left);
}

// Sum over a row of term(values, index of their first): two chains of vectors, then the lanes, always in this order.
template <class T, class Term>
inline float sum_row(const T* row, int64_t columns, const Term& term) {
    Vec even = zero(), odd = zero();
    for (int64_t c = 0; c < columns; c += 2 * W) {
        even = add(even, term(load_some(row + c, columns - c), columns - c));
        if (columns - c > W) odd = add(odd, term(load_some(row + c + W, columns - c - W), columns - c - W));
    }
    return sum_lanes(add(even, odd));
}

struct Rows {
    int64_t rows, columns, x_stride;  // out is contiguous
};

template <class T, class Weight>
void rms_norm(const T* x, const Weight* weight, float eps, const Rows& shape, T* out) {
    for_row_ranges(shape.rows, row_grain(shape.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            const T* row = x + r * shape.x_stride;
            const float squares = sum_row(row, shape.columns, [](Vec v, int64_t) { return mul(v, v); });
            const Vec scale = splat(1.0f / std::sqrt(squares / static_cast<float>(shape.columns) + eps));
            for (int64_t c = 0, left = shape.columns; left > 0; c += W, left -= W)
                store_some(out + r * shape.columns + c, mul(mul(load_some(row + c, left), scale), load_some(weight + c, left)),
                           left);
        }
    });
}

template <class T, class Weight>
void layer_norm(const T* x, const Weight* weight, const Weight* bias, float eps, const Rows& shape, T* out) {
    const float count = static_cast<float>(shape.columns);
    for_row_ranges(shape.rows, row_grain(shape.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            const T* row = x + r * shape.x_stride;
            const Vec mean = splat(sum_row(row, shape.columns, [](Vec v, int64_t) { return v; }) / count);
            const float squares = sum_row(row, shape.columns, [&](Vec v, int64_t left) {
                const Vec d = keep_lanes(sub(v, mean), 0, left, zero());
                return mul(d, d);
            });
            const Vec scale = splat(1.0f / std::sqrt(squares / count + eps));
            for (int64_t c = 0, left = shape.columns; left > 0; c += W, left -= W) {
                const Vec shift = bias == nullptr ? zero() : load_some(bias + c, left);
                const Vec unit = mul(sub(load_some(row + c, left), mean), scale);
                store_some(out + r * shape.columns + c, fma(unit, load_some(weight + c, left), shift), left);
            }
        }
    });
}

enum Activation : int64_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

inline Vec sigmoid_times(Vec x, Vec gate) { return div(x, add(splat(1.0f), exponential(sub(zero(), gate)))); }

template <Activation KIND>
inline Vec activation_of(Vec x) {
    if constexpr (KIND == SILU) return sigmoid_times(x, x);
    if constexpr (KIND == GELU) return mul(mul(splat(0.5f), x), complementary_error(mul(x, splat(-0.70710678f))));
    if constexpr (KIND == GELU_TANH) {
        // 0.5 x (1 + tanh u) is x · sigmoid(2 u).
        const Vec cubic = fma(mul(mul(x, x), x), splat(0.044715f), x);
        return sigmoid_times(x, mul(cubic, splat(1.5957691f)));
    }
    return max(zero(), x);
}

template <Activation KIND, class T>
void gated_rows(const T* x, const Rows& shape, T* out) {
    const int64_t inner = shape.columns / 2;
    for_row_ranges(shape.rows, row_grain(shape.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            const T* gate = x + r * shape.x_stride;
            const T* up = gate + inner;
            for (int64_t c = 0, left = inner; left > 0; c += W, left -= W)
                store_some(out + r * inner + c, mul(activation_of<KIND>(load_some(gate + c, left)), load_some(up + c, left)),
                           left);
        }
    });
}

template <Activation KIND, class T>
void activate_rows(const T* x, const Rows& shape, T* out) {
    for_row_ranges(shape.rows, row_grain(shape.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++)
            for (int64_t c = 0, left = shape.columns; left > 0; c += W, left -= W)
                store_some(out + r * shape.columns + c, activation_of<KIND>(load_some(x + r * shape.x_stride + c, left)),
                           left);
    });
}

// x [tokens, heads, head_dim] with a stride between tokens and one between heads, all in elements.
struct Heads {
    int64_t tokens, heads, head_dim, token_stride, head_stride;
};

// out [tokens, heads, head_dim], contiguous; `cos_sin` is [positions, 2, half].
template <class T>
void rotate(const T* x, const int64_t* positions, const float* cos_sin, int64_t half, const Heads& shape, T* out) {
    for_row_ranges(shape.tokens, row_grain(shape.heads * shape.head_dim), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++)
            for (int64_t h = 0; h < shape.heads; h++) {
                const float *cos = cos_sin + positions[t] * 2 * half, *sin = cos + half;
                const T* from = x + t * shape.token_stride + h * shape.head_stride;
                T* to = out + (t * shape.heads + h) * shape.head_dim;
                for (int64_t c = 0, left = half; left > 0; c += W, left -= W) {
                    const Vec first = load_some(from + c, left), second = load_some(from + half + c, left);
                    const Vec cosine = load_some(cos + c, left), sine = load_some(sin + c, left);
                    store_some(to + c, negated_fma(second, sine, mul(first, cosine)), left);
                    store_some(to + half + c, fma(first, sine, mul(second, cosine)), left);
                }
                std::memcpy(static_cast<void*>(to + 2 * half), from + 2 * half, (shape.head_dim - 2 * half) * sizeof(T));
            }
    });
}

// cache is [blocks, heads, block_size, head_dim], contiguous; slot = block · block_size + offset.
template <class T>
void write_heads(const T* x, const Heads& shape, const int64_t* slots, int64_t block_size, T* cache) {
    for_row_ranges(shape.tokens, row_grain(shape.heads * shape.head_dim), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++)
            for (int64_t h = 0; h < shape.heads; h++) {
                const int64_t line = (slots[t] / block_size * shape.heads + h) * block_size + slots[t] % block_size;
                std::memcpy(static_cast<void*>(cache + line * shape.head_dim),
                            x + t * shape.token_stride + h * shape.head_stride, shape.head_dim * sizeof(T));
            }
    });
}

inline bool all_within(const int64_t* indices, int64_t count, int64_t bound) {
    for (int64_t i = 0; i < count; i++)
        if (indices[i] < 0 || indices[i] >= bound) return false;
    return true;
}

}  // namespace orcinus
