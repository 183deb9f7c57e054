// y = x · wᵀ + b where w is stored as codes of 8 or 4 bits, a scale (and perhaps a zero) for each group of inputs.
//
// x is rounded to signed bytes first, with a scale of its own for each row and each of the weight's groups, so a group's sum
// is one of integers: exact, in any order. The groups' sums are added as floats, ascending. What a row gets depends on
// nothing but the row.
//
// The weight is packed into panels of INT_PANEL output columns, [panel][group], see CodeGroup; zeros past the last column
// and the last k. Work is split over columns and rows, never over k.
#pragma once
#include <algorithm>

#include "int_tile.h"
#include "linear.h"

namespace orcinus {

constexpr int64_t CHUNK = 256;  // elements of k: 16 KiB of a panel of bytes, half of L1

// How a weight is stored.
struct CodeForm {
    int64_t bits, group;  // inputs of a group, a multiple of 8 unless there is only one
    int64_t zeros;        // 0: all are in the middle
    int64_t out_features, in_features;

    int64_t groups() const { return ceil_div(in_features, group); }
    int64_t panels() const { return ceil_div(out_features, INT_PANEL); }
    // Elements of k that group `index` has, and with the zeros that complete its last step.
    int64_t length(int64_t index) const { return std::min(group, in_features - index * group); }
    int64_t padded(int64_t index) const { return ceil_div(length(index), 8) * 8; }
    int64_t padded_inputs() const { return ceil_div(in_features, 8) * 8; }
    int64_t bytes_of(int64_t padded) const {
        return padded * INT_PANEL * bits / 8 + INT_PANEL * static_cast<int64_t>(sizeof(float)) + (zeros != 0 ? INT_PANEL : 0);
    }
    int64_t group_start(int64_t index) const { return index * bytes_of(group); }
    int64_t panel_bytes() const { return group_start(groups() - 1) + bytes_of(padded(groups() - 1)); }
};

// codes [out][in], one a byte; scales, zeros [out][groups].
inline void pack_codes(const CodeForm& form, const uint8_t* codes, const float* scales, const uint8_t* zeros, uint8_t* packed) {
    for_each_task(form.panels(), [&](int64_t panel) {
        const int64_t first = panel * INT_PANEL, columns = std::min(INT_PANEL, form.out_features - first);
        std::memset(packed + panel * form.panel_bytes(), 0, form.panel_bytes());
        for (int64_t g = 0; g < form.groups(); g++) {
            uint8_t* to = packed + panel * form.panel_bytes() + form.group_start(g);
            auto* to_scales = reinterpret_cast<float*>(to + form.padded(g) * INT_PANEL * form.bits / 8);
            auto* to_zeros = reinterpret_cast<uint8_t*>(to_scales + INT_PANEL);
            for (int64_t c = 0; c < columns; c++) {
                const uint8_t* from = codes + (first + c) * form.in_features + g * form.group;
                for (int64_t k = 0; k < form.length(g); k++) {
                    if (form.bits == 8)
                        to[(k / 4 * INT_PANEL + c) * 4 + k % 4] = from[k];
                    else
                        to[(k / 8 * INT_PANEL + c) * 4 + k % 4] |= static_cast<uint8_t>(from[k] << (k / 4 % 2 * 4));
                }
                to_scales[c] = scales[(first + c) * form.groups() + g];
                if (form.zeros != 0) to_zeros[c] = zeros[(first + c) * form.groups() + g];
            }
        }
    });
}

// One row of one group to signed bytes, zeros up to `padded`.
template <class T>
void round_to_bytes(const T* x, int64_t length, int64_t padded, int8_t* codes, float* scale, int32_t* sum) {
    Vec largest = zero(), poison = zero();
    for (int64_t k = 0; k < length; k += W) {
        const Vec part = load_first(x + k, length - k);
        largest = max(largest, magnitude(part));
        poison = fma(part, zero(), poison);  // NaN where a value isn't finite: then so is all that comes of the row
    }
    const float most = max_lanes(largest), inverse = most > 0 ? 127.0f / most : 0.0f;
    Ints total = no_ints();
    for (int64_t k = 0; k < length; k += W) {
        const Ints rounded = to_nearest(mul(load_first(x + k, length - k), splat(inverse)));
        total = add_ints(total, rounded);
        store_bytes(codes + k, rounded, length - k);
    }
    std::memset(codes + length, 0, padded - length);
    *scale = most / 127.0f + sum_lanes(poison);
    *sum = sum_ints(total);
}

template <class T, class Out>
class QuantizedProduct {
  public:
    QuantizedProduct(const CodeForm& form, const T* x, const uint8_t* packed, const LinearShape& shape, Out* out)
        : form_(form), x_(x), packed_(packed), shape_(shape), out_(out) {}

    void run() {
        for (int64_t start = 0; start < shape_.rows; start += PASS_ROWS) {
            const int64_t rows = std::min(PASS_ROWS, shape_.rows - start);
            const ByteRows bytes = rounded(start, rows);
            const int64_t blocks = ceil_div(rows, BLOCK_ROWS);
            for_each_task(form_.panels() * blocks, [&](int64_t task) {
                const int64_t first = task % blocks * BLOCK_ROWS, some = std::min(BLOCK_ROWS, rows - first);
                if (form_.bits == 8)
                    block<8>(task / blocks, bytes.from(first), start + first, some);
                else
                    block<4>(task / blocks, bytes.from(first), start + first, some);
            });
        }
    }

  private:
    ByteRows rounded(int64_t start, int64_t rows) const {
        thread_local Scratch codes_scratch, scales_scratch, sums_scratch;
        const int64_t stride = form_.padded_inputs(), groups = form_.groups();
        auto* codes = codes_scratch.take<int8_t>(rows * stride);
        auto* scales = scales_scratch.take<float>(rows * groups);
        auto* sums = sums_scratch.take<int32_t>(rows * groups);
        for_row_ranges(rows, 16, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++)
                for (int64_t g = 0; g < groups; g++)
                    round_to_bytes(x_ + (start + r) * shape_.x_stride + g * form_.group, form_.length(g), form_.padded(g),
                                   codes + r * stride + g * form_.group, scales + r * groups + g, sums + r * groups + g);
        });
        return {codes, stride, scales, sums, groups};
    }

    template <int BITS>
    void block(int64_t panel, const ByteRows& x, int64_t first_row, int64_t rows) const {
        thread_local Scratch sums_scratch, wholes_scratch;
        float* sums = sums_scratch.take<float>(BLOCK_ROWS * INT_PANEL);
        int32_t* wholes = wholes_scratch.take<int32_t>(BLOCK_ROWS * INT_PANEL);
        std::memset(sums, 0, rows * INT_PANEL * sizeof(float));
        const uint8_t* weights = packed_ + panel * form_.panel_bytes();
        // Evenly, so that no rows are left with the latency of too few sums.
        const int64_t together = ceil_div(rows, ceil_div(rows, INT_ROWS));
        for (int64_t g = 0; g < form_.groups(); g++) {
            const int64_t length = form_.padded(g), most = rows <= INT_ROWS ? length : CHUNK;
            const CodeGroup<BITS> group(weights + form_.group_start(g), length, form_.zeros != 0);
            for (int64_t k = 0; k < length; k += most) {
                const Chunk chunk{g, g * form_.group, k, std::min(k + most, length), length};
                for (int64_t r = 0; r < rows; r += together)
                    group_tile<BITS>(std::min(together, rows - r), group, x.from(r), chunk, wholes + r * INT_PANEL,
                                     sums + r * INT_PANEL, r == 0 ? codes_soon(rows) : 0);
            }
        }
        const int64_t column = panel * INT_PANEL;
        finish_panel(sums, INT_PANEL, rows, std::min(INT_PANEL, shape_.out_features - column),
                     shape_.bias == nullptr ? nullptr : shape_.bias + column, out_ + first_row * shape_.out_stride + column,
                     shape_.out_stride);
    }

    const CodeForm& form_;
    const T* const x_;
    const uint8_t* const packed_;
    const LinearShape& shape_;
    Out* const out_;
};

}  // namespace orcinus
