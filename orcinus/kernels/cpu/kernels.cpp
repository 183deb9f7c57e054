// The C interface of one instruction set's kernels. Compiled once per instruction set into a library of its own, so that
// no inlined function of a wider set can be linked into a narrower one.
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "attention.h"
#include "attention_pairs.h"
#include "linear.h"
#include "linear_quantized.h"
#include "parallel.h"
#include "rows.h"
#include "tiles.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#endif
#if defined(ORCINUS_TILES)
#include "linear_amx.h"
namespace bfloat16 = orcinus::amx;
#define BFLOAT16_PRODUCTS 1
#elif defined(__AVX512BF16__)
#include "linear_pairs.h"
namespace bfloat16 = orcinus::pairs;
#define BFLOAT16_PRODUCTS 1
#endif

using namespace orcinus;

namespace {

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };
enum Status : int32_t { OK = 0, BAD_INDEX = 1, BAD_DTYPE = 2, BAD_POSITION = 3 };

// Calls f(T{}) for the element type that `dtype` names.
template <class F>
auto with_dtype(int64_t dtype, const F& f) {
    return dtype == FLOAT32 ? f(float{}) : f(bf16{});
}

template <Activation KIND, class T>
void apply(bool gate, const T* x, const Rows& shape, T* out) {
    if (gate)
        gated_rows<KIND>(x, shape, out);
    else
        activate_rows<KIND>(x, shape, out);
}

// `packed` is untouched memory: asking for huge pages before it is written keeps decode's reads off the page tables.
void advise_huge_pages(void* packed, int64_t packed_bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(packed);
    const uintptr_t first = (start + page - 1) / page * page, end = (start + packed_bytes) / page * page;
    // Advice only: a refusal costs speed, nothing else.
    if (first < end) (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void orcinus_use_threads(void* function) { num_threads() = reinterpret_cast<NumThreads>(function); }

int64_t orcinus_packed_elements(int64_t dtype, int64_t out_features, int64_t in_features) {
#if defined(BFLOAT16_PRODUCTS)
    if (dtype == BFLOAT16) return bfloat16::packed_elements(out_features, in_features);
#endif
    return with_dtype(dtype, [&](auto t) { return panel_elements<decltype(t)>(out_features, in_features); });
}

void orcinus_pack(int64_t dtype, const void* weight, int64_t row_stride, int64_t out_features, int64_t in_features,
                  void* packed, int64_t packed_bytes) {
    advise_huge_pages(packed, packed_bytes);
#if defined(BFLOAT16_PRODUCTS)
    if (dtype == BFLOAT16)
        return bfloat16::pack(static_cast<const bf16*>(weight), row_stride, out_features, in_features, static_cast<bf16*>(packed));
#endif
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        pack_panels(static_cast<const T*>(weight), row_stride, out_features, in_features, static_cast<T*>(packed));
    });
}

// `out_dtype` is `dtype`, or float32.
int32_t orcinus_linear(int64_t dtype, int64_t out_dtype, const void* x, const void* packed, const void* bias, int64_t rows,
                       int64_t in_features, int64_t out_features, int64_t x_stride, void* out) {
    if (dtype == FLOAT32 && out_dtype != FLOAT32) return BAD_DTYPE;
    const LinearShape shape{rows, in_features, out_features, x_stride, out_features, static_cast<const float*>(bias)};
    if (dtype == FLOAT32) {
        linear_fma(static_cast<const float*>(x), static_cast<const float*>(packed), shape, static_cast<float*>(out));
        return OK;
    }
    with_dtype(out_dtype, [&](auto t) {
        using Out = decltype(t);
#if defined(BFLOAT16_PRODUCTS)
        bfloat16::Product<Out>(static_cast<const bf16*>(x), static_cast<const bf16*>(packed), shape, static_cast<Out*>(out)).run();
#else
        linear_fma(static_cast<const bf16*>(x), static_cast<const bf16*>(packed), shape, static_cast<Out*>(out));
#endif
    });
    return OK;
}

int64_t orcinus_code_bytes(const CodeForm* form) { return form->panels() * form->panel_bytes(); }

void orcinus_pack_codes(const CodeForm* form, const uint8_t* codes, const float* scales, const uint8_t* zeros, uint8_t* packed) {
    advise_huge_pages(packed, orcinus_code_bytes(form));
    pack_codes(*form, codes, scales, zeros, packed);
}

// `out_dtype` is `dtype`, or float32.
int32_t orcinus_quantized_linear(const CodeForm* form, int64_t dtype, int64_t out_dtype, const void* x, const uint8_t* packed,
                                 const float* bias, int64_t rows, int64_t x_stride, void* out) {
    if (dtype == FLOAT32 && out_dtype != FLOAT32) return BAD_DTYPE;
    const LinearShape shape{rows, form->in_features, form->out_features, x_stride, form->out_features, bias};
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        if (out_dtype == FLOAT32)
            QuantizedProduct<T, float>(*form, static_cast<const T*>(x), packed, shape, static_cast<float*>(out)).run();
        else
            QuantizedProduct<T, T>(*form, static_cast<const T*>(x), packed, shape, static_cast<T*>(out)).run();
    });
    return OK;
}

void orcinus_rms_norm(int64_t dtype, int64_t weight_dtype, const void* x, const void* weight, float eps, int64_t rows,
                      int64_t columns, int64_t x_stride, void* out) {
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        with_dtype(weight_dtype, [&](auto w) {
            using Weight = decltype(w);
            rms_norm(static_cast<const T*>(x), static_cast<const Weight*>(weight), eps, Rows{rows, columns, x_stride},
                     static_cast<T*>(out));
        });
    });
}

void orcinus_layer_norm(int64_t dtype, int64_t weight_dtype, const void* x, const void* weight, const void* bias, float eps,
                        int64_t rows, int64_t columns, int64_t x_stride, void* out) {
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        with_dtype(weight_dtype, [&](auto w) {
            using Weight = decltype(w);
            layer_norm(static_cast<const T*>(x), static_cast<const Weight*>(weight), static_cast<const Weight*>(bias), eps,
                       Rows{rows, columns, x_stride}, static_cast<T*>(out));
        });
    });
}

// out = x + y, all `count` elements contiguous.
void orcinus_add(int64_t dtype, const void* x, const void* y, int64_t count, void* out) {
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        add_rows(static_cast<const T*>(x), static_cast<const T*>(y), count, static_cast<T*>(out));
    });
}

// `gate` != 0: rows are [gate | up] and out is half as wide.
void orcinus_activate(int64_t dtype, int64_t activation, int64_t gate, const void* x, int64_t rows, int64_t columns,
                      int64_t x_stride, void* out) {
    const Rows shape{rows, columns, x_stride};
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        auto* from = static_cast<const T*>(x);
        auto* to = static_cast<T*>(out);
        switch (activation) {
            case SILU: return apply<SILU>(gate != 0, from, shape, to);
            case GELU: return apply<GELU>(gate != 0, from, shape, to);
            case GELU_TANH: return apply<GELU_TANH>(gate != 0, from, shape, to);
            default: return apply<RELU>(gate != 0, from, shape, to);
        }
    });
}

// q [tokens, heads, head_dim] is turned in place; k, turned, and v [tokens, kv_heads, head_dim] go to `slots`. Strides are from
// token to token. Without `cos_sin` nothing is turned. Nothing is written unless all positions and slots exist.
int32_t orcinus_place(int64_t dtype, void* q, const void* k, const void* v, int64_t q_stride, int64_t k_stride, int64_t v_stride,
                      int64_t heads, int64_t kv_heads, const int64_t* positions, const float* cos_sin, int64_t num_positions,
                      int64_t half, const int64_t* slots, void* keys, void* values, int64_t num_blocks, int64_t block_size,
                      int64_t tokens, int64_t head_dim) {
    if (!all_within(slots, tokens, num_blocks * block_size)) return BAD_INDEX;
    if (cos_sin != nullptr && !all_within(positions, tokens, num_positions)) return BAD_POSITION;
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        place(Heads<T>{static_cast<T*>(q), heads, q_stride}, Heads<const T>{static_cast<const T*>(k), kv_heads, k_stride},
              Heads<const T>{static_cast<const T*>(v), kv_heads, v_stride}, Rotation{cos_sin, half, positions}, slots,
              KvShape{num_blocks, kv_heads, block_size, head_dim}, tokens, static_cast<T*>(keys), static_cast<T*>(values));
    });
    return OK;
}

int32_t orcinus_attention(int64_t dtype, const AttentionLayer* layer, const void* q, int64_t q_stride, int64_t tokens,
                          const void* keys, const void* values, int64_t num_blocks, const int32_t* query_starts,
                          const int32_t* context_lengths, const int32_t* block_tables, int64_t sequences, int64_t max_blocks,
                          void* out) {
    const AttentionTables tables{query_starts, context_lengths, block_tables, sequences, max_blocks};
    if (!tables_fit(*layer, tables, tokens, num_blocks)) return BAD_INDEX;
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        const AttentionData<T> data{static_cast<const T*>(q), q_stride, layer->head_dim, static_cast<const T*>(keys),
                                    static_cast<const T*>(values), static_cast<T*>(out)};
#if defined(__AVX512BF16__)
        if constexpr (may_lie_in_pairs<T>())
            if (lies_in_pairs<T>(layer->head_dim)) return attention<PairAttentionKernel>(*layer, tables, data);
#endif
        attention<AttentionKernel<T>>(*layer, tables, data);
    });
    return OK;
}

// Asks the kernel for the AMX tile state, once a process. 0 if this library needs none or has it.
int32_t orcinus_enable() {
#if defined(__AMX_BF16__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 0 : -1;
#else
    return 0;
#endif
}

}  // extern "C"
#pragma GCC visibility pop

namespace {

// One call of a tape: which of STEPS, and its arguments, each in 8 bytes.
struct Call {
    int64_t step, arguments[20];
};

// An argument that differs from replay to replay: fields[field] times `factor`.
struct Change {
    int64_t call, argument, field, factor;
};

template <class A>
A argument_of(int64_t bits) {
    if constexpr (std::is_pointer_v<A>)
        return reinterpret_cast<A>(bits);
    else if constexpr (std::is_same_v<A, float>) {
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    } else
        return static_cast<A>(bits);
}

template <class Result, class... A, size_t... I>
int32_t call(Result (*function)(A...), const int64_t* arguments, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<Result>)
        return function(argument_of<A>(arguments[I])...), OK;
    else
        return function(argument_of<A>(arguments[I])...);
}

template <class Result, class... A>
int32_t call(Result (*function)(A...), const int64_t* arguments) {
    return call(function, arguments, std::index_sequence_for<A...>{});
}

template <auto FUNCTION>
int32_t step(const int64_t* arguments) {
    return call(FUNCTION, arguments);
}

using Step = int32_t (*)(const int64_t*);
// In the order of recording.py.
constexpr Step STEPS[] = {
    step<orcinus_linear>, step<orcinus_quantized_linear>, step<orcinus_rms_norm>, step<orcinus_layer_norm>,
    step<orcinus_add>,    step<orcinus_activate>,         step<orcinus_place>,    step<orcinus_attention>,
};

}  // namespace

// The calls of a tape one after the other; stops at one that fails, with its status.
extern "C" __attribute__((visibility("default"))) int32_t orcinus_replay(Call* calls, int64_t count, const Change* changes,
                                                                         int64_t num_changes, const int64_t* fields) {
    for (int64_t i = 0; i < num_changes; i++) {
        const Change& change = changes[i];
        calls[change.call].arguments[change.argument] = fields[change.field] * change.factor;
    }
    for (int64_t i = 0; i < count; i++)
        if (const int32_t status = STEPS[calls[i].step](calls[i].arguments); status != OK) return status;
    return OK;
}
