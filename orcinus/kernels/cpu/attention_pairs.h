// Attention over paged keys and values in bfloat16 by products of pairs: as attention.h, but keys, values and weights stay
// in bfloat16 and only sums are float32.
//
// Keys and values are read where they lie, in pairs (see kv_layout.h). Weights are rounded to bfloat16 before they meet the
// values, as flash attention does; their total is summed before.
#pragma once
#include <algorithm>

#include "attention.h"
#include "kv_layout.h"
#include "pair_tile.h"

#if defined(__AVX512BF16__)

namespace orcinus {

// 2^x for x <= 0, to 3e-6: it will be rounded to bfloat16. Exactly 1 at 0, exactly 0 below -150; NaN stays NaN.
inline Vec falling_power_of_two(Vec x) {
    const Vec clamped = max(splat(-200.0f), x), n = round_even(clamped), f = sub(clamped, n);
    Vec p = fma(splat(9.582852945e-3f), f, splat(5.590642616e-2f));
    p = fma(p, f, splat(2.402409911e-1f));
    p = fma(p, f, splat(6.931241751e-1f));
    return _mm512_scalef_ps(fma(p, f, splat(1.0f)), n);
}

// Work space of one task.
struct PairScratch {
    bf16 *q, *weights, *last;
    float *sums, *scores, *peak, *total;
    Range* seen;

    static PairScratch take(int64_t rows, int64_t head_dim) {
        thread_local Scratch halves, floats, ranges;
        bf16* h = halves.take<bf16>(rows * (head_dim + KEYS) + 2 * head_dim);
        float* f = floats.take<float>(rows * (head_dim + KEYS + 2));
        PairScratch s;
        s.last = h;
        s.weights = s.last + 2 * head_dim;
        s.q = s.weights + rows * KEYS;
        s.scores = f;
        s.sums = s.scores + rows * KEYS;
        s.peak = s.sums + rows * head_dim;
        s.total = s.peak + rows;
        s.seen = ranges.take<Range>(rows);
        return s;
    }
};

class PairAttentionKernel {
  public:
    PairAttentionKernel(const AttentionLayer& layer, const AttentionTables& tables, const AttentionData<bf16>& data)
        : layer_(layer),
          tables_(tables),
          data_(data),
          group_(layer.num_heads / layer.num_kv_heads),
          width_(layer.head_dim),
          // Scores are kept as powers of two, which saves a product a score.
          scale_((layer.soft_cap > 0 ? 1.0f : LOG2_E) * layer.scale) {}

    // `next` is the task after this one on this thread: its first keys are fetched during this one's last.
    void run(const AttentionTask& task, const AttentionTask& next) const {
        const int64_t rows = task.tokens * group_;
        const PairScratch s = PairScratch::take(rows, width_);
        load_queries(task, s);
        const Range seen = seen_by_any(s.seen, rows);
        for (int64_t tile = seen.from / KEYS * KEYS; tile < seen.to; tile += KEYS) {
            const int64_t some = std::min(KEYS, tables_.context_lengths[task.sequence] - tile);
            fetch(tile + KEYS < seen.to ? Coming{task, {tile + KEYS, seen.to}} : first_of(next));
            const Groups groups = groups_of(task, tile, some);
            multiply_keys(rows, groups, s);
            for (int64_t r = 0; r < rows; r++) weigh(r, tile, s);
            multiply_values(rows, some, groups, s);
        }
        store_attention(layer_, tables_, data_, task, s.sums, width_, s.total);
    }

  private:
    static constexpr float LOG2_E = 1.44269504f;

    static constexpr int64_t GROUPS = KEYS / KV_GROUP;
    static_assert(KV_GROUP == W && GROUPS == PAIR_VECTORS);

    // Where the keys and values of one tile lie.
    struct Groups {
        const bf16 *keys[GROUPS], *values[GROUPS];
        int64_t count;
    };

    // Positions of a task's KV that will be wanted soon.
    struct Coming {
        const AttentionTask& task;
        Range positions;
    };

    Coming first_of(const AttentionTask& task) const {
        const Range seen = query_row(layer_, tables_, task, 0).seen;
        return {task, {seen.from / KEYS * KEYS, seen.to}};
    }

    void load_queries(const AttentionTask& task, const PairScratch& s) const {
        for (int64_t r = 0; r < task.tokens * group_; r++) {
            const QueryRow row = query_row(layer_, tables_, task, r);
            const bf16* from = data_.q + row.token * data_.q_stride + row.head * data_.q_head_stride;
            std::memcpy(static_cast<void*>(s.q + r * width_), from, width_ * sizeof(bf16));
            s.seen[r] = row.seen;
            s.peak[r] = -std::numeric_limits<float>::infinity();
            s.total[r] = 0;
        }
        std::memset(s.sums, 0, task.tokens * group_ * width_ * sizeof(float));
    }

    Groups groups_of(const AttentionTask& task, int64_t tile, int64_t keys) const {
        Groups groups{};
        for (; groups.count * KV_GROUP < keys; groups.count++) {
            const int64_t element = kv_line(layer_, tables_, task, tile + groups.count * KV_GROUP) * width_;
            groups.keys[groups.count] = data_.keys + element;
            groups.values[groups.count] = data_.values + element;
        }
        return groups;
    }

    // Scores of keys past the context are of whatever lies there; `weigh` doesn't look at them.
    void multiply_keys(int64_t rows, const Groups& groups, const PairScratch& s) const {
        const Operand<const bf16> q{s.q, width_};
        const int64_t pairs = pairs_of(width_);
        if (groups.count == GROUPS) return pair_tiles<GROUPS>(rows, pairs, q, KeyGroups{groups.keys}, {s.scores, KEYS}, true);
        for (int64_t g = 0; g < groups.count; g++)
            pair_tiles<1>(rows, pairs, q, KeyGroups{groups.keys + g}, {s.scores + g * KV_GROUP, KEYS}, true);
    }

    // A last key without a partner gets zeros for one: what lies there may be no number, and 0 times that is none either.
    void multiply_values(int64_t rows, int64_t keys, const Groups& groups, const PairScratch& s) const {
        const Operand<const bf16> weights{s.weights, KEYS};
        add_values(rows, keys / 2, weights, groups.values, s.sums);
        if (keys % 2 == 0) return;
        const bf16* from = groups.values[groups.count - 1] + keys / 2 % (KV_GROUP / 2) * 2 * width_;
        for (int64_t e = 0; e < 2 * width_; e += 2 * W)
            _mm512_storeu_si512(s.last + e, _mm512_maskz_loadu_epi16(0x55555555u, from + e));
        const bf16* const last = s.last;
        add_values(rows, 1, {weights.at + keys - 1, weights.stride}, &last, s.sums);
    }

    void add_values(int64_t rows, int64_t pairs, Operand<const bf16> weights, const bf16* const* groups, float* sums) const {
        int64_t d = 0;
        for (; d + PAIR_VECTORS * W <= width_; d += PAIR_VECTORS * W)
            pair_tiles<PAIR_VECTORS>(rows, pairs, weights, ValueGroups{groups, 2 * width_, 2 * d}, {sums + d, width_}, false);
        for (; d < width_; d += W)
            pair_tiles<1>(rows, pairs, weights, ValueGroups{groups, 2 * width_, 2 * d}, {sums + d, width_}, false);
    }

    // Blocks lie anywhere in memory, so that the processor can't guess what comes next.
    inline __attribute__((always_inline)) void fetch(const Coming& coming) const {
        const int64_t to = std::min(coming.positions.from + KEYS, coming.positions.to);
        for (int64_t position = coming.positions.from; position < to; position += KV_GROUP)
            fetch_lines(kv_line(layer_, tables_, coming.task, position));
    }

    // Inlined by force: gcc takes a function that only fetches for one without effect and leaves its calls out.
    inline __attribute__((always_inline)) void fetch_lines(int64_t line) const {
        const auto* keys = reinterpret_cast<const char*>(data_.keys + line * width_);
        const auto* values = reinterpret_cast<const char*>(data_.values + line * width_);
        for (int64_t byte = 0; byte < KV_GROUP * width_ * 2; byte += 64) {
            _mm_prefetch(keys + byte, _MM_HINT_T1);
            _mm_prefetch(values + byte, _MM_HINT_T1);
        }
    }

    Vec score(const float* from) const {
        const Vec x = mul(load(from), splat(scale_));
        if (layer_.soft_cap <= 0) return x;
        return mul(splat(layer_.soft_cap * LOG2_E), hyperbolic_tangent(div(x, splat(layer_.soft_cap))));
    }

    // Scores of one row and tile become weights 2^(score - peak); what was summed before is brought to the new peak.
    void weigh(int64_t r, int64_t tile, const PairScratch& s) const {
        const int64_t from = s.seen[r].from - tile, to = s.seen[r].to - tile;
        bf16* weights = s.weights + r * KEYS;
        if (to <= 0 || from >= KEYS) {
            std::memset(static_cast<void*>(weights), 0, KEYS * sizeof(bf16));
            return;
        }
        const Vec never = splat(-std::numeric_limits<float>::infinity());
        constexpr int VECTORS = KEYS / W;
        Vec x[VECTORS], highest = never, sum = zero();
        for (int v = 0; v < VECTORS; v++) {
            x[v] = keep_lanes(score(s.scores + r * KEYS + v * W), from - v * W, to - v * W, never);
            highest = max(highest, x[v]);
        }
        const float peak = std::fmax(s.peak[r], max_lanes(highest));
        for (int v = 0; v < VECTORS; v++) {
            x[v] = falling_power_of_two(sub(x[v], splat(peak)));
            sum = add(sum, x[v]);
        }
        for (int v = 0; v < VECTORS; v += 2)
            _mm512_storeu_si512(weights + v * W, (__m512i)_mm512_cvtne2ps_pbh(x[v + 1], x[v]));
        if (s.peak[r] != peak) rescale(r, peak, s);
        s.total[r] += sum_lanes(sum);
    }

    void rescale(int64_t r, float peak, const PairScratch& s) const {
        const Vec factor = falling_power_of_two(splat(s.peak[r] - peak));
        for (int64_t d = 0; d < width_; d += W) store(s.sums + r * width_ + d, mul(load(s.sums + r * width_ + d), factor));
        s.total[r] *= _mm512_cvtss_f32(factor);
        s.peak[r] = peak;
    }

    const AttentionLayer& layer_;
    const AttentionTables& tables_;
    const AttentionData<bf16>& data_;
    const int64_t group_, width_;
    const float scale_;
};

}  // namespace orcinus

#endif
