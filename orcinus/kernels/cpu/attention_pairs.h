// Attention over paged keys and values in bfloat16 by products of pairs: as attention.h, but keys, values and weights stay
// in bfloat16 and only sums are float32.
//
// Keys lie in scratch as [head_dim / 2][KEYS][2] and values as [KEYS / 2][head_dim][2], the order in which both the pair
// instruction and AMX tiles read them. Weights are rounded to bfloat16 before they meet the values, as flash attention
// does; their total is summed before.
#pragma once
#include <algorithm>

#include "attention.h"
#include "pair_tile.h"
#include "pair_tile_amx.h"

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

// How a task multiplies: by AMX tiles where there are some, which want whole tiles of rows.
// Attention by tiles has not been timed on a processor that has them; there the pairs are used until it is.
#if defined(ORCINUS_EMULATE_TILES)
struct PairProducts {
    explicit PairProducts(int64_t rows) { amx::configure_rows(rows); }
    PairProducts(const PairProducts&) = delete;
    PairProducts& operator=(const PairProducts&) = delete;
    ~PairProducts() { amx::release(); }

    static int64_t scratch_rows(int64_t rows) { return amx::tiled_rows(rows); }

    template <class... Operands>
    void operator()(Operands... operands) const {
        amx::tile_product(operands...);
    }
};
#else
struct PairProducts {
    explicit PairProducts(int64_t) {}

    static int64_t scratch_rows(int64_t rows) { return rows; }

    template <class... Operands>
    void operator()(Operands... operands) const {
        pair_product(operands...);
    }
};
#endif

// Work space of one task. `depth` and `width` are head_dim in whole vectors of 32 and of 16, zeros past its end.
struct PairScratch {
    bf16 *q, *weights, *keys, *values;
    float *sums, *scores, *peak, *total;
    Range* seen;

    static PairScratch take(int64_t rows, int64_t depth, int64_t width) {
        thread_local Scratch halves, floats, ranges;
        bf16* h = halves.take<bf16>(rows * (depth + KEYS) + KEYS * (depth + width));
        float* f = floats.take<float>(rows * (width + KEYS + 2));
        PairScratch s;
        s.keys = h;
        s.values = s.keys + KEYS * depth;
        s.weights = s.values + KEYS * width;
        s.q = s.weights + rows * KEYS;
        s.scores = f;
        s.sums = s.scores + rows * KEYS;
        s.peak = s.sums + rows * width;
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
          depth_((layer.head_dim + 2 * W - 1) / (2 * W) * 2 * W),
          width_((layer.head_dim + W - 1) / W * W),
          // Scores are kept as powers of two, which saves a product a score.
          scale_((layer.soft_cap > 0 ? 1.0f : LOG2_E) * layer.scale) {}

    // `next` is the task after this one on this thread: its first keys are fetched during this one's last.
    void run(const AttentionTask& task, const AttentionTask& next) const {
        const int64_t rows = task.tokens * group_;
        const PairScratch s = PairScratch::take(PairProducts::scratch_rows(rows), depth_, width_);
        const PairProducts product(rows);
        const Operand<const bf16> q{s.q, depth_}, weights{s.weights, KEYS}, keys{s.keys, 2 * KEYS}, values{s.values, 2 * width_};
        const Operand<float> scores{s.scores, KEYS}, sums{s.sums, width_};
        load_queries(task, s);
        const Range seen = seen_by_any(s.seen, rows);
        for (int64_t tile = seen.from / KEYS * KEYS; tile < seen.to; tile += KEYS) {
            const int64_t some = std::min(KEYS, tables_.context_lengths[task.sequence] - tile);
            load_tile(task, tile, some, tile + KEYS < seen.to ? Coming{task, {tile + KEYS, seen.to}} : first_of(next), s);
            product(rows, (some + W - 1) / W, pairs_of(layer_.head_dim), q, keys, scores, true);
            for (int64_t r = 0; r < rows; r++) weigh(r, tile, s);
            product(rows, width_ / W, pairs_of(some), weights, values, sums, false);
        }
        store_attention(layer_, tables_, data_, task, s.sums, width_, s.total);
    }

  private:
    static constexpr float LOG2_E = 1.44269504f;

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
            std::memcpy(static_cast<void*>(s.q + r * depth_), from, layer_.head_dim * sizeof(bf16));
            std::memset(static_cast<void*>(s.q + r * depth_ + layer_.head_dim), 0, (depth_ - layer_.head_dim) * sizeof(bf16));
            s.seen[r] = row.seen;
            s.peak[r] = -std::numeric_limits<float>::infinity();
            s.total[r] = 0;
        }
        std::memset(s.sums, 0, task.tokens * group_ * width_ * sizeof(float));
    }

    // Zeros for keys past the context, whose slots aren't read.
    void load_tile(const AttentionTask& task, int64_t tile, int64_t keys, const Coming& coming, const PairScratch& s) const {
        for (int64_t first = 0; first < KEYS; first += W) {
            const int64_t position = coming.positions.from + first;
            if (position < coming.positions.to) fetch_lines(kv_line(layer_, tables_, coming.task, position));
            if (first >= keys) {
                std::memset(static_cast<void*>(s.values + first * width_), 0, W * width_ * sizeof(bf16));
                continue;
            }
            const int64_t some = std::min<int64_t>(W, keys - first);
            const int64_t line = kv_line(layer_, tables_, task, tile + first) * layer_.head_dim;
            load_keys(data_.keys + line, some, s.keys + 2 * first);
            load_values(data_.values + line, some, s.values + first * width_);
        }
    }

    // Blocks lie anywhere in memory, so that the processor can't guess what comes next. Inlined by force: gcc takes a
    // function that only fetches for one without effect and leaves its calls out.
    inline __attribute__((always_inline)) void fetch_lines(int64_t line) const {
        const auto* keys = reinterpret_cast<const char*>(data_.keys + line * layer_.head_dim);
        const auto* values = reinterpret_cast<const char*>(data_.values + line * layer_.head_dim);
        for (int64_t byte = 0; byte < W * layer_.head_dim * 2; byte += 64) {
            _mm_prefetch(keys + byte, _MM_HINT_T1);
            _mm_prefetch(values + byte, _MM_HINT_T1);
        }
    }

    void load_keys(const bf16* from, int64_t some, bf16* to) const {
        for (int64_t d = 0; d < layer_.head_dim; d += 2 * W) {
            Vec turned[W];
            load_pairs_turned(from + d, layer_.head_dim, some, layer_.head_dim - d, turned);
            for (int64_t i = 0; i < W; i++) _mm512_storeu_ps(to + (d / 2 + i) * 2 * KEYS, turned[i]);
        }
    }

    // Two keys' values zipped: element d of both, then d + 1 of both.
    void load_values(const bf16* from, int64_t some, bf16* to) const {
        for (int64_t k = 0; k < W; k += 2, from += 2 * layer_.head_dim, to += 2 * width_)
            for (int64_t d = 0, left = layer_.head_dim; left > 0; d += W, left -= W) {
                const __mmask16 lanes = k < some ? first_lanes(left) : 0, partner = k + 1 < some ? lanes : 0;
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from + d));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(partner, from + layer_.head_dim + d));
                _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
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
    const int64_t group_, depth_, width_;
    const float scale_;
};

}  // namespace orcinus

#endif
