// What is done to each row alone: norms, rotary embedding, storing K and V, activations.
#pragma once
#include <cmath>
#include <cstdint>

#include "kv_layout.h"
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

template <class T>
void add_rows(const T* x, const T* y, int64_t count, T* out) {
    for_row_ranges(count, GRAIN_ELEMENTS, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, left = end - begin; left > 0; i += W, left -= W)
            store_some(out + i, add(load_some(x + i, left), load_some(y + i, left)), left);
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

// Heads of one token, one after the other; elements from token to token.
template <class T>
struct Heads {
    T* at;
    int64_t count, stride;

    T* head(int64_t token, int64_t h, int64_t head_dim) const { return at + token * stride + h * head_dim; }
};

// Rotary embedding of one head (halves, not pairs), `half` elements each; what follows them stays. `to` may be `from`.
template <class T>
inline void turn(const T* from, const float* cos, int64_t half, int64_t head_dim, T* to) {
    const float* sin = cos + half;
    for (int64_t c = 0, left = half; left > 0; c += W, left -= W) {
        const Vec first = load_some(from + c, left), second = load_some(from + half + c, left);
        const Vec cosine = load_some(cos + c, left), sine = load_some(sin + c, left);
        store_some(to + c, negated_fma(second, sine, mul(first, cosine)), left);
        store_some(to + half + c, fma(first, sine, mul(second, cosine)), left);
    }
    if (to != from) std::memcpy(static_cast<void*>(to + 2 * half), from + 2 * half, (head_dim - 2 * half) * sizeof(T));
}

// `table` is [positions, 2, half]; null: nothing is turned.
struct Rotation {
    const float* table;
    int64_t half;
    const int64_t* positions;

    const float* row(int64_t token) const { return table + positions[token] * 2 * half; }
};

// Turns q in place, and puts the turned k and v into their slots.
template <class T>
void place(const Heads<T>& q, const Heads<const T>& k, const Heads<const T>& v, const Rotation& rotation, const int64_t* slots,
           const KvShape& shape, int64_t tokens, T* keys, T* values) {
    for_row_ranges(tokens, row_grain((q.count + 2 * k.count) * shape.head_dim), [&](int64_t begin, int64_t end) {
        thread_local Scratch scratch;
        T* turned = scratch.take<T>(shape.head_dim);
        const auto turns = [&](int64_t t, const T* from, T* to) { turn(from, rotation.row(t), rotation.half, shape.head_dim, to); };
        for (int64_t t = begin; t < end; t++) {
            for (int64_t h = 0; rotation.table != nullptr && h < q.count; h++)
                turns(t, q.head(t, h, shape.head_dim), q.head(t, h, shape.head_dim));
            for (int64_t h = 0; h < k.count; h++) {
                const T* key = k.head(t, h, shape.head_dim);
                if (rotation.table != nullptr) turns(t, key, turned);
                put_kv(shape, slots[t], h, rotation.table != nullptr ? turned : key, v.head(t, h, shape.head_dim), keys, values);
            }
        }
    });
}

inline bool all_within(const int64_t* indices, int64_t count, int64_t bound) {
    for (int64_t i = 0; i < count; i++)
        if (indices[i] < 0 || indices[i] >= bound) return false;
    return true;
}

}  // namespace orcinus
