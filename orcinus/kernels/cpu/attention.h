// Attention over paged keys and values, for ragged batches, decode and prefill alike.
//
// A task is one sequence, one KV head and up to QUERY_ROWS rows: some consecutive tokens times the query heads that share
// the KV head, so that each KV block is read once for its group. Keys are taken in tiles of KEYS absolute positions
// (0-63, 64-127, ...) with an online softmax from tile to tile; a row's keys outside its own range get weight exactly 0.
// A tile that gives a row nothing, or a key that does, changes none of its bits, hence neither do its neighbours in the
// task. Slots past the context are never read.
#pragma once
#include <cmath>
#include <limits>

#include "fma_tile.h"
#include "parallel.h"
#include "vec.h"

namespace orcinus {

constexpr int64_t KEYS = 64;
constexpr int64_t QUERY_ROWS = 96;

// One layer's constants. `window` <= 0 means none, `soft_cap` <= 0 means none.
struct AttentionLayer {
    int64_t num_heads, num_kv_heads, head_dim, block_size, causal, window;
    float scale, soft_cap;
};

struct AttentionTables {
    const int32_t* query_starts;
    const int32_t* context_lengths;
    const int32_t* block_tables;
    int64_t sequences, max_blocks;
};

// Queries and output: token strides in elements, heads contiguous.
template <class T>
struct AttentionData {
    const T* q;
    int64_t q_stride, q_head_stride;
    const T* keys;
    const T* values;
    T* out;
};

struct Range {
    int64_t from, to;  // of key positions

    bool empty() const { return from >= to; }
};

inline Range keys_seen(const AttentionLayer& layer, int64_t position, int64_t context) {
    const int64_t to = layer.causal ? position + 1 : context;
    const int64_t from = layer.window > 0 && position + 1 > layer.window ? position + 1 - layer.window : 0;
    return {from, to};
}

inline Range seen_by_any(const Range* seen, int64_t rows) {
    Range all = seen[0];
    for (int64_t r = 1; r < rows; r++) {
        if (seen[r].from < all.from) all.from = seen[r].from;
        if (seen[r].to > all.to) all.to = seen[r].to;
    }
    return all;
}

struct AttentionTask {
    int64_t sequence, kv_head, first_token, tokens;  // tokens counted from the sequence's first new one
};

// Row r of a task: its token among all, its query head, and the keys that it sees.
struct QueryRow {
    int64_t token, head;
    Range seen;
};

inline QueryRow query_row(const AttentionLayer& layer, const AttentionTables& tables, const AttentionTask& task, int64_t r) {
    const int64_t row0 = tables.query_starts[task.sequence], count = tables.query_starts[task.sequence + 1] - row0;
    const int64_t context = tables.context_lengths[task.sequence], group = layer.num_heads / layer.num_kv_heads;
    const int64_t token = task.first_token + r / group;
    return {row0 + token, task.kv_head * group + r % group, keys_seen(layer, context - count + token, context)};
}

// Which line of head_dim elements of the KV tensors holds a position of the task's sequence and KV head.
inline int64_t kv_line(const AttentionLayer& layer, const AttentionTables& tables, const AttentionTask& task, int64_t position) {
    const int32_t* table = tables.block_tables + task.sequence * tables.max_blocks;
    const int64_t block = table[position / layer.block_size];
    return (block * layer.num_kv_heads + task.kv_head) * layer.block_size + position % layer.block_size;
}

// A task's output: each row's weighted sum of values over the total of its weights. `width`: floats from row to row.
template <class T>
void store_attention(const AttentionLayer& layer, const AttentionTables& tables, const AttentionData<T>& data,
                     const AttentionTask& task, const float* sums, int64_t width, const float* totals) {
    for (int64_t r = 0; r < task.tokens * (layer.num_heads / layer.num_kv_heads); r++) {
        const QueryRow row = query_row(layer, tables, task, r);
        T* to = data.out + (row.token * layer.num_heads + row.head) * layer.head_dim;
        const Vec total = splat(totals[r]);
        for (int64_t d = 0, left = layer.head_dim; left > 0; d += W, left -= W) {
            // + 0: keys of weight 0 may have turned a -0 into a 0, so that zeros carry no history.
            const Vec y = add(div(load(sums + r * width + d), total), zero());
            if (left >= W)
                store(to + d, y);
            else
                store_first(to + d, y, left);
        }
    }
}

// Work space of one task; all float32, head_dim padded to whole vectors with zeros.
struct AttentionScratch {
    float *q, *sums, *scores, *keys, *values, *peak, *total;
    Range* seen;

    static AttentionScratch take(int64_t rows, int64_t padded) {
        thread_local Scratch memory;
        float* p = memory.take<float>(2 * rows * padded + rows * KEYS + 2 * KEYS * padded + 2 * rows + 4 * rows);
        AttentionScratch s;
        s.q = p;
        s.sums = s.q + rows * padded;
        s.scores = s.sums + rows * padded;
        s.keys = s.scores + rows * KEYS;
        s.values = s.keys + KEYS * padded;
        s.seen = reinterpret_cast<Range*>(s.values + KEYS * padded);
        s.peak = reinterpret_cast<float*>(s.seen + rows);
        s.total = s.peak + rows;
        return s;
    }
};

template <class T>
class AttentionKernel {
  public:
    AttentionKernel(const AttentionLayer& layer, const AttentionTables& tables, const AttentionData<T>& data)
        : layer_(layer),
          tables_(tables),
          data_(data),
          group_(layer.num_heads / layer.num_kv_heads),
          padded_((layer.head_dim + W - 1) / W * W) {}

    void run(const AttentionTask& task, const AttentionTask&) const {
        const int64_t rows = task.tokens * group_;
        const AttentionScratch s = AttentionScratch::take(rows, padded_);
        load_queries(task, s);
        const Range seen = seen_by_any(s.seen, rows);
        const int64_t context = tables_.context_lengths[task.sequence];
        for (int64_t tile = seen.from / KEYS * KEYS; tile < seen.to; tile += KEYS) {
            const int64_t keys = context - tile < KEYS ? context - tile : KEYS;
            load_tile(task, tile, keys, s);
            std::memset(s.scores, 0, rows * KEYS * sizeof(float));
            fma_product(rows, (keys + W - 1) / W, layer_.head_dim, s.q, padded_, s.keys, KEYS, s.scores, KEYS);
            for (int64_t r = 0; r < rows; r++) weigh(r, tile, s);
            fma_product(rows, padded_ / W, keys, s.scores, KEYS, s.values, padded_, s.sums, padded_);
        }
        store_attention(layer_, tables_, data_, task, s.sums, padded_, s.total);
    }

  private:
    // Queries times the scale, as float32; softmax state at its start.
    void load_queries(const AttentionTask& task, const AttentionScratch& s) const {
        for (int64_t r = 0; r < task.tokens * group_; r++) {
            const QueryRow row = query_row(layer_, tables_, task, r);
            const T* from = data_.q + row.token * data_.q_stride + row.head * data_.q_head_stride;
            for (int64_t d = 0, left = layer_.head_dim; left > 0; d += W, left -= W)
                store(s.q + r * padded_ + d, mul(left >= W ? load(from + d) : load_first(from + d, left), splat(layer_.scale)));
            s.seen[r] = row.seen;
            s.peak[r] = -std::numeric_limits<float>::infinity();
            s.total[r] = 0;
        }
        std::memset(s.sums, 0, task.tokens * group_ * padded_ * sizeof(float));
    }

    // Keys transposed to [head_dim][KEYS], values as [KEYS][head_dim]; zeros for keys past the context.
    void load_tile(const AttentionTask& task, int64_t tile, int64_t keys, const AttentionScratch& s) const {
        for (int64_t first = 0; first < keys; first += W) {
            const int64_t some = keys - first < W ? keys - first : W;
            const int64_t line = kv_line(layer_, tables_, task, tile + first);
            load_lines(data_.keys + line * layer_.head_dim, data_.values + line * layer_.head_dim, first, some, s);
        }
    }

    void load_lines(const T* keys, const T* values, int64_t first, int64_t some, const AttentionScratch& s) const {
        for (int64_t d = 0, left = layer_.head_dim; left > 0; d += W, left -= W) {
            Vec block[W];
            for (int64_t i = 0; i < W; i++) {
                const bool exists = i < some;
                block[i] = !exists ? zero() : left >= W ? load(keys + i * layer_.head_dim + d) : load_first(keys + i * layer_.head_dim + d, left);
                if (exists)
                    store(s.values + (first + i) * padded_ + d,
                          left >= W ? load(values + i * layer_.head_dim + d) : load_first(values + i * layer_.head_dim + d, left));
            }
            transpose(block);
            for (int64_t i = 0; i < W && i < left; i++) store(s.keys + (d + i) * KEYS + first, block[i]);
        }
    }

    // Scores of one row and tile become weights e^(score - peak); what was summed before is brought to the new peak.
    void weigh(int64_t r, int64_t tile, const AttentionScratch& s) const {
        float* scores = s.scores + r * KEYS;
        const int64_t from = s.seen[r].from - tile, to = s.seen[r].to - tile;
        if (to <= 0 || from >= KEYS) {
            std::memset(scores, 0, KEYS * sizeof(float));
            return;
        }
        const Vec never = splat(-std::numeric_limits<float>::infinity());
        Vec highest = never;
        for (int64_t k = 0; k < KEYS; k += W) {
            Vec x = load(scores + k);
            if (layer_.soft_cap > 0) x = mul(splat(layer_.soft_cap), hyperbolic_tangent(div(x, splat(layer_.soft_cap))));
            x = keep_lanes(x, from - k, to - k, never);
            store(scores + k, x);
            highest = max(highest, x);
        }
        const float peak = std::fmax(s.peak[r], max_lanes(highest));
        Vec sum = zero();
        for (int64_t k = 0; k < KEYS; k += W) {
            const Vec weight = exponential(sub(load(scores + k), splat(peak)));
            store(scores + k, weight);
            sum = add(sum, weight);
        }
        if (s.peak[r] != peak) rescale(r, peak, s);
        s.total[r] += sum_lanes(sum);
    }

    void rescale(int64_t r, float peak, const AttentionScratch& s) const {
        alignas(64) float lanes[W];
        store(lanes, exponential(splat(s.peak[r] - peak)));
        for (int64_t d = 0; d < padded_; d += W) store(s.sums + r * padded_ + d, mul(load(s.sums + r * padded_ + d), splat(lanes[0])));
        s.total[r] *= lanes[0];
        s.peak[r] = peak;
    }

    const AttentionLayer& layer_;
    const AttentionTables& tables_;
    const AttentionData<T>& data_;
    const int64_t group_, padded_;
};

// A table entry out of bounds would read foreign memory: say no before the first task.
inline bool tables_fit(const AttentionLayer& layer, const AttentionTables& tables, int64_t tokens, int64_t num_blocks) {
    if (tables.query_starts[0] != 0 || tables.query_starts[tables.sequences] != tokens) return false;
    for (int64_t s = 0; s < tables.sequences; s++) {
        const int64_t count = tables.query_starts[s + 1] - tables.query_starts[s], context = tables.context_lengths[s];
        const int64_t blocks = (context + layer.block_size - 1) / layer.block_size;
        if (count < 0 || context < count || blocks > tables.max_blocks) return false;
        for (int64_t b = 0; b < blocks; b++) {
            const int32_t block = tables.block_tables[s * tables.max_blocks + b];
            if (block < 0 || block >= num_blocks) return false;
        }
    }
    return true;
}

template <class Kernel, class T>
void attention(const AttentionLayer& layer, const AttentionTables& tables, const AttentionData<T>& data) {
    const int64_t group = layer.num_heads / layer.num_kv_heads;
    const int64_t tokens_per_task = QUERY_ROWS / group > 1 ? QUERY_ROWS / group : 1;
    thread_local Scratch memory;
    auto tasks_of = [&](int64_t s) {
        return (tables.query_starts[s + 1] - tables.query_starts[s] + tokens_per_task - 1) / tokens_per_task;
    };
    int64_t count = 0;
    for (int64_t s = 0; s < tables.sequences; s++) count += tasks_of(s) * layer.num_kv_heads;
    AttentionTask* tasks = memory.take<AttentionTask>(count > 0 ? count : 1);
    int64_t n = 0;
    for (int64_t s = 0; s < tables.sequences; s++)
        for (int64_t head = 0; head < layer.num_kv_heads; head++)
            // Last tokens first: they see the most keys, and the longest task shouldn't be the last to start.
            for (int64_t t = tasks_of(s) - 1; t >= 0; t--) {
                const int64_t left = tables.query_starts[s + 1] - tables.query_starts[s] - t * tokens_per_task;
                tasks[n++] = {s, head, t * tokens_per_task, left < tokens_per_task ? left : tokens_per_task};
            }
    const Kernel kernel(layer, tables, data);
    for_each_task_ahead(count, [&](int64_t i, int64_t next) { kernel.run(tasks[i], tasks[next < count ? next : i]); });
}

}  // namespace orcinus
