// y = x · wᵀ + b in bfloat16 by AMX tiles: 16 × 16 float32 sums stay in tile registers across all of k.
//
// The weight is packed into panels of 32 output columns, [panel][k / 32][2 tiles][16 pairs of k][16 columns][2], zeros
// past the last column and the last k. x is packed into tiles of 16 rows, [row tile][k / 32][rows][32]. A tile product
// treats each row alone, so a row's bits depend neither on how many rows its tile has nor on which.
#pragma once
#include <algorithm>

#include "linear.h"
#include "tiles.h"

namespace orcinus::amx {

constexpr int64_t PANEL = 32;
constexpr int64_t STEP_ELEMENTS = PANEL * STEP;  // of one panel: two tiles, 2 KiB

inline int64_t packed_elements(int64_t out_features, int64_t in_features) {
    return ceil_div(out_features, PANEL) * ceil_div(in_features, STEP) * STEP_ELEMENTS;
}

inline void pack(const bf16* weight, int64_t row_stride, int64_t out_features, int64_t in_features, bf16* packed) {
    const int64_t steps = ceil_div(in_features, STEP);
    for_each_task(ceil_div(out_features, PANEL), [=](int64_t panel) {
        bf16* to = packed + panel * steps * STEP_ELEMENTS;
        std::memset(static_cast<void*>(to), 0, steps * STEP_ELEMENTS * sizeof(bf16));
        for (int64_t c = 0; c < PANEL && panel * PANEL + c < out_features; c++) {
            const bf16* row = weight + (panel * PANEL + c) * row_stride;
            bf16* column = to + c / TILE * TILE * STEP + c % TILE * 2;
            for (int64_t k = 0; k < in_features; k++)
                column[k / STEP * STEP_ELEMENTS + k % STEP / 2 * STEP + k % 2] = row[k];
        }
    });
}

// One row tile of x as [k / 32][rows][32], zeros past the last k.
inline void pack_rows(const bf16* x, int64_t x_stride, int64_t rows, int64_t in_features, bf16* to) {
    const int64_t whole = in_features / STEP, rest = in_features % STEP;
    for (int64_t r = 0; r < rows; r++) {
        const bf16* row = x + r * x_stride;
        for (int64_t s = 0; s < whole; s++) std::memcpy(to + (s * rows + r) * STEP, row + s * STEP, STEP * sizeof(bf16));
        if (rest == 0) continue;
        bf16* last = to + (whole * rows + r) * STEP;
        std::memset(static_cast<void*>(last), 0, STEP * sizeof(bf16));
        std::memcpy(last, row + whole * STEP, rest * sizeof(bf16));
    }
}

// Where the tiles of 16 rows of x lie: straight in x, or repacked.
struct RowTile {
    const bf16* at;
    int64_t row_stride, step_stride;  // elements from row to row, and from one 32 of k to the next
};

// Weights to fetch into L2 while others are in use: `lines` cache lines a step.
struct Ahead {
    const char* at;
    int64_t lines;

    void step() {
        for (int64_t line = 0; line < lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T1);
        at += 64 * lines;
    }
};

// sums[up to 16][32] += one row tile · one panel.
inline void one_by_two(RowTile x, const bf16* weights, int64_t steps, bool fresh, float* sums, Ahead& ahead) {
    if (fresh) {
        AMX_ZERO(0);
        AMX_ZERO(1);
    } else {
        AMX_LOAD(0, sums, PANEL * 4);
        AMX_LOAD(1, sums + TILE, PANEL * 4);
    }
    for (int64_t s = 0; s < steps; s++, x.at += x.step_stride, weights += STEP_ELEMENTS) {
        ahead.step();
        AMX_LOAD(4, x.at, x.row_stride * 2);
        AMX_LOAD(6, weights, 64);
        AMX_DOT(0, 4, 6);
        AMX_LOAD(7, weights + TILE * STEP, 64);
        AMX_DOT(1, 4, 7);
    }
    AMX_STORE(0, sums, PANEL * 4);
    AMX_STORE(1, sums + TILE, PANEL * 4);
}

// sums[up to 32][32] += two row tiles · one panel.
inline void two_by_two(RowTile x, RowTile y, const bf16* weights, int64_t steps, bool fresh, float* sums, Ahead& ahead) {
    float* lower = sums + TILE * PANEL;
    if (fresh) {
        AMX_ZERO(0);
        AMX_ZERO(1);
        AMX_ZERO(2);
        AMX_ZERO(3);
    } else {
        AMX_LOAD(0, sums, PANEL * 4);
        AMX_LOAD(1, sums + TILE, PANEL * 4);
        AMX_LOAD(2, lower, PANEL * 4);
        AMX_LOAD(3, lower + TILE, PANEL * 4);
    }
    for (int64_t s = 0; s < steps; s++, x.at += x.step_stride, y.at += y.step_stride, weights += STEP_ELEMENTS) {
        ahead.step();
        AMX_LOAD(4, x.at, x.row_stride * 2);
        AMX_LOAD(6, weights, 64);
        AMX_DOT(0, 4, 6);
        AMX_LOAD(5, y.at, y.row_stride * 2);
        AMX_DOT(2, 5, 6);
        AMX_LOAD(7, weights + TILE * STEP, 64);
        AMX_DOT(1, 4, 7);
        AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, sums, PANEL * 4);
    AMX_STORE(1, sums + TILE, PANEL * 4);
    AMX_STORE(2, lower, PANEL * 4);
    AMX_STORE(3, lower + TILE, PANEL * 4);
}

// The same as finish_panel for a whole panel: one cache line a row. `streaming` writes past the caches: lines that won't
// be in L2 anyway when they are read would otherwise be fetched first only to be overwritten.
inline void finish_lines(const float* sums, int64_t rows, const float* bias, bf16* out, int64_t out_stride, bool streaming) {
    const Vec first = bias == nullptr ? zero() : load(bias), second = bias == nullptr ? zero() : load(bias + W);
    for (int64_t r = 0; r < rows; r++, sums += PANEL, out += out_stride) {
        const Vec low = add(load(sums), first), high = add(load(sums + W), second);
        const __m512i line = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        if (streaming)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out), line);
        else
            _mm512_storeu_si512(out, line);
    }
}

// One call's operands. x is read in place where its rows are made of whole tiles and don't fight for the same cache sets.
//
// A task is a block of rows times a group of panels. k is cut twice, sums being put down and taken up again: so that a
// block's cut of x stays in L2 while weights stream past, and within it so that 32 rows' share stays in L1 for the group.
template <class Out>
class Product {
  public:
    Product(const bf16* x, const bf16* packed, const LinearShape& shape, Out* out)
        : x_(x),
          packed_(packed),
          shape_(shape),
          out_(out),
          steps_(ceil_div(shape.in_features, STEP)),
          cut_(steps_ <= WHOLE ? steps_ : LONG_CUT),
          panels_(ceil_div(shape.out_features, PANEL)),
          in_place_(shape.in_features % STEP == 0 && (shape.in_features <= IN_PLACE_K || shape.rows <= TILE)),
          streaming_(shape.rows * shape.out_features * static_cast<int64_t>(sizeof(Out)) >= STREAMED_BYTES &&
                     shape.out_stride % 32 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0),
          block_rows_(std::min(MAX_BLOCK_ROWS, X_BYTES / (cut_ * STEP * 2) / (2 * TILE) * 2 * TILE)),
          group_(shape.rows <= 4 * TILE ? 1 : std::max<int64_t>(1, weight_bytes() / (cut_ * STEP_ELEMENTS * 2))),
          groups_(ceil_div(panels_, group_)) {}

    void run() {
        if (!in_place_) repack();
        const int64_t tasks = ceil_div(shape_.rows, block_rows_) * groups_;
        for_each_task_ahead(tasks, [&](int64_t task, int64_t next) { block(task, next < tasks ? next : task); });
    }

  private:
    // Measured with 2 MiB of L2 and 48 KiB of L1. Steps of 32: k up to WHOLE is one cut; LONG_CUT otherwise.
    static constexpr int64_t IN_PLACE_K = 4096, WHOLE = 64, LONG_CUT = 32, INNER_CUT = 8;
    static constexpr int64_t MAX_BLOCK_ROWS = 512, X_BYTES = 1 << 20, STREAMED_BYTES = 512 << 10;

    // Weights of a group: more of them where x, read again for each group, is in several cuts.
    int64_t weight_bytes() const { return cut_ == steps_ ? 128 << 10 : 256 << 10; }

    const bf16* slice(int64_t panel, int64_t step) const { return packed_ + (panel * steps_ + step) * STEP_ELEMENTS; }

    void repack() {
        thread_local Scratch scratch;
        bf16* tiles = scratch.take<bf16>(shape_.rows * steps_ * STEP);
        for_row_ranges(shape_.rows, 4 * TILE, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r += TILE)
                pack_rows(x_ + r * shape_.x_stride, shape_.x_stride, std::min(TILE, end - r), shape_.in_features,
                          tiles + r * steps_ * STEP);
        });
        tiles_ = tiles;
    }

    RowTile row_tile(int64_t row, int64_t step) const {
        if (in_place_) return {x_ + row * shape_.x_stride + step * STEP, shape_.x_stride, STEP};
        const int64_t rows = std::min(TILE, shape_.rows - row);
        return {tiles_ + (row * steps_ + step * rows) * STEP, STEP, rows * STEP};
    }

    // `next` is the task after this one on this thread: its weights are fetched during this one's last cut.
    void block(int64_t task, int64_t next) const {
        thread_local Scratch scratch;
        const int64_t first_row = task / groups_ * block_rows_, rows = std::min(block_rows_, shape_.rows - first_row);
        const int64_t first_panel = task % groups_ * group_, panels = std::min(group_, panels_ - first_panel);
        float* sums = scratch.take<float>(block_rows_ * PANEL * group_);
        for (int64_t step = 0; step < steps_; step += cut_) {
            const int64_t end = std::min(step + cut_, steps_);
            const bf16* coming = end == steps_ ? slice(next % groups_ * group_, 0) : slice(first_panel, end);
            for (int64_t r = 0; r < rows; r += 2 * TILE) {
                const int64_t some = std::min(2 * TILE, rows - r);
                if (r == 0 || some < 2 * TILE) configure(std::min(TILE, some), some > TILE ? some - TILE : TILE);
                const Ahead ahead{reinterpret_cast<const char*>(coming), ceil_div(32, ceil_div(rows, 2 * TILE))};
                cut(first_row + r, some, first_panel, panels, step, end, r * cut_ / (2 * TILE), ahead, sums + r * PANEL,
                    rows * PANEL);
                for (int64_t p = 0; end == steps_ && p < panels; p++)
                    finish(first_row + r, some, first_panel + p, sums + (p * rows + r) * PANEL);
            }
        }
        if (streaming_) _mm_sfence();
        release();
    }

    // Up to 32 rows times some panels over k from `step` to `end`. `ahead` is where the first panel's next weights begin,
    // of which `done` steps have been spent on fetching; `apart` is the distance between the panels' sums.
    void cut(int64_t row, int64_t rows, int64_t panel, int64_t panels, int64_t step, int64_t end, int64_t done, Ahead ahead,
             float* sums, int64_t apart) const {
        const char* coming = ahead.at;
        const int64_t inner = shape_.rows <= 4 * TILE ? end - step : INNER_CUT;  // few rows: nothing to keep in L1
        for (int64_t s = step; s < end; s += inner)
            for (int64_t p = 0; p < panels; p++) {
                const int64_t some = std::min(inner, end - s);
                ahead.at = coming + p * steps_ * STEP_ELEMENTS * 2 + (done + s - step) * ahead.lines * 64;
                if (rows <= TILE)
                    one_by_two(row_tile(row, s), slice(panel + p, s), some, s == 0, sums + p * apart, ahead);
                else
                    two_by_two(row_tile(row, s), row_tile(row + TILE, s), slice(panel + p, s), some, s == 0, sums + p * apart,
                               ahead);
            }
    }

    void finish(int64_t row, int64_t rows, int64_t panel, const float* sums) const {
        const int64_t column = panel * PANEL, columns = std::min(PANEL, shape_.out_features - column);
        const float* bias = shape_.bias == nullptr ? nullptr : shape_.bias + column;
        Out* out = out_ + row * shape_.out_stride + column;
        if constexpr (std::is_same_v<Out, bf16>)
            if (columns == PANEL) return finish_lines(sums, rows, bias, out, shape_.out_stride, streaming_);
        finish_panel(sums, PANEL, rows, columns, bias, out, shape_.out_stride);
    }

    const bf16* const x_;
    const bf16* const packed_;
    const LinearShape& shape_;
    Out* const out_;
    const int64_t steps_, cut_, panels_;
    const bool in_place_, streaming_;
    const int64_t block_rows_, group_, groups_;
    const bf16* tiles_ = nullptr;
};

}  // namespace orcinus::amx
