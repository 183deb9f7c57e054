// y = x · wᵀ + b in bfloat16 by products of pairs (AVX-512 BF16), summed in float32.
//
// The weight is packed into panels of 64 output columns, [panel][k / 2][column][2], zeros past the last column and the
// last k. Each output element is one chain over the pairs of k, ascending; blocks over k put the float32 sums down and
// take them up again, which changes no bit. Work is split over columns and rows, never over k.
#pragma once
#include <algorithm>

#include "linear.h"
#include "pair_tile.h"

namespace orcinus::pairs {

constexpr int64_t PANEL = PAIR_VECTORS * W;
constexpr int64_t STEP_ELEMENTS = 2 * PANEL;  // of one pair of k: 256 bytes
// Measured with 1 MiB of L2 and 32 KiB of L1.
constexpr int64_t STEPS_OF_FEW = 32, STEPS = 256;  // pairs of k in a block: 8 or 64 KiB of a panel
constexpr int64_t FEW_ROWS = 24;
// How far ahead weights are fetched that are read once: many products of a step fill the processor's own window sooner.
inline int64_t soon(int64_t rows) { return (rows < 5 ? 8 : 24) * STEP_ELEMENTS; }

inline int64_t packed_elements(int64_t out_features, int64_t in_features) {
    return ceil_div(out_features, PANEL) * pairs_of(in_features) * STEP_ELEMENTS;
}

inline void pack(const bf16* weight, int64_t row_stride, int64_t out_features, int64_t in_features, bf16* packed) {
    const int64_t steps = pairs_of(in_features);
    for_each_task(ceil_div(out_features, PANEL), [=](int64_t panel) {
        for (int64_t c = 0; c < PANEL; c += W) {
            const int64_t column = panel * PANEL + c;
            const bf16* from = weight + column * row_stride;
            for (int64_t step = 0; step < steps; step += W) {
                Vec turned[W];
                load_pairs_turned(from + 2 * step, row_stride, out_features - column, in_features - 2 * step, turned);
                for (int64_t i = 0; i < W && step + i < steps; i++)
                    _mm512_storeu_ps(packed + (panel * steps + step + i) * STEP_ELEMENTS + 2 * c, turned[i]);
            }
        }
    });
}

// One call's operands. A task is a block of rows times one panel, the blocks of a panel one after the other.
template <class Out>
class Product {
  public:
    Product(const bf16* x, const bf16* packed, const LinearShape& shape, Out* out)
        : x_{x, shape.x_stride},
          packed_(packed),
          shape_(shape),
          out_(out),
          steps_(pairs_of(shape.in_features)),
          panels_(ceil_div(shape.out_features, PANEL)),
          blocks_(ceil_div(shape.rows, BLOCK_ROWS)) {}

    void run() {
        if (shape_.in_features % 2 != 0) complete_pairs();
        const int64_t tasks = panels_ * blocks_;
        for_each_task_ahead(tasks, [&](int64_t task, int64_t next) { block(task, next < tasks ? next : task); });
    }

  private:
    // An odd last k has no partner in place: what follows it is another row, or nobody's memory.
    void complete_pairs() {
        thread_local Scratch scratch;
        bf16* to = scratch.take<bf16>(shape_.rows * steps_ * 2);
        for (int64_t r = 0; r < shape_.rows; r++) {
            std::memcpy(to + r * steps_ * 2, x_.row(r), shape_.in_features * sizeof(bf16));
            to[r * steps_ * 2 + shape_.in_features] = {0};
        }
        x_ = {to, steps_ * 2};
    }

    // `next` is the task after this one on this thread: its weights are fetched during this one's last block of k.
    void block(int64_t task, int64_t next) const {
        thread_local Scratch scratch;
        float* sums = scratch.take<float>(BLOCK_ROWS * PANEL);
        const int64_t panel = task / blocks_, row = task % blocks_ * BLOCK_ROWS, rows = std::min(BLOCK_ROWS, shape_.rows - row);
        // Evenly, so that no group is left with the latency of too few sums: 8 rows are 4 and 4.
        const int64_t groups = ceil_div(rows, PAIR_ROWS), group = ceil_div(rows, groups);
        const int64_t most = rows <= FEW_ROWS ? STEPS_OF_FEW : STEPS;
        for (int64_t step = 0; step < steps_; step += most) {
            const int64_t some = std::min(most, steps_ - step);
            const bf16* coming = step + some < steps_ ? weights(panel, step + some) : weights(next / blocks_, 0);
            // One group goes at the pace of memory, best fetched just before; several go over what lies in L2 already.
            if (groups == 1) coming = weights(panel, step) + soon(rows);
            Fetch fetch{reinterpret_cast<const char*>(coming), ceil_div(PAIR_VECTORS, groups)};
            for (int64_t r = 0; r < rows; r += group, fetch.at += some * fetch.lines * 64) {
                if (r >= PAIR_VECTORS * group) fetch.lines = 0;
                pair_tile_rows<PAIR_VECTORS>(std::min(group, rows - r), some, {x_.row(row + r) + 2 * step, x_.stride},
                                             Lines{weights(panel, step), STEP_ELEMENTS}, {sums + r * PANEL, PANEL}, step == 0, fetch);
            }
        }
        const int64_t column = panel * PANEL;
        finish_panel(sums, PANEL, rows, std::min(PANEL, shape_.out_features - column),
                     shape_.bias == nullptr ? nullptr : shape_.bias + column, out_ + row * shape_.out_stride + column,
                     shape_.out_stride);
    }

    const bf16* weights(int64_t panel, int64_t step) const { return packed_ + (panel * steps_ + step) * STEP_ELEMENTS; }

    Operand<const bf16> x_;
    const bf16* const packed_;
    const LinearShape& shape_;
    Out* const out_;
    const int64_t steps_, panels_, blocks_;
};

}  // namespace orcinus::pairs
