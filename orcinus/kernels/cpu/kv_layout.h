// Where keys and values lie in the cache, whose tensors are [blocks, heads, block_size, head_dim].
//
// Plain: one line of head_dim elements a slot. In pairs, where bfloat16 is multiplied by pairs and head_dim allows it: each 16
// slots of a block and head, as many bytes, hold keys as [head_dim / 2][16 slots][2] and values as [8 pairs of slots][head_dim]
// [2], the order in which products read them. Turning them once when they are written saves turning them at every read.
#pragma once
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace orcinus {

constexpr int64_t KV_GROUP = 16;  // slots

template <class T>
constexpr bool may_lie_in_pairs() {
#if defined(__AVX512BF16__)
    return std::is_same_v<T, bf16>;
#else
    return false;
#endif
}

template <class T>
inline bool lies_in_pairs(int64_t head_dim) {
    return may_lie_in_pairs<T>() && head_dim % W == 0;
}

struct KvShape {
    int64_t blocks, heads, block_size, head_dim;

    // Element at which the 16 slots begin that hold this one's head.
    int64_t group(int64_t slot, int64_t head) const {
        return ((slot / block_size * heads + head) * block_size + slot % block_size / KV_GROUP * KV_GROUP) * head_dim;
    }
};

// Key and value of one slot and head, head_dim elements each.
template <class T>
inline void put_kv(const KvShape& shape, int64_t slot, int64_t head, const T* key, const T* value, T* keys, T* values) {
    const int64_t place = slot % shape.block_size % KV_GROUP;
    T *k = keys + shape.group(slot, head), *v = values + shape.group(slot, head);
#if defined(__AVX512BF16__)
    if constexpr (may_lie_in_pairs<T>()) {
        if (lies_in_pairs<T>(shape.head_dim)) {
            for (int64_t d = 0; d < shape.head_dim; d += 2) std::memcpy(static_cast<void*>(k + (d / 2 * KV_GROUP + place) * 2), key + d, 4);
            const __mmask32 mine = place % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
            for (int64_t d = 0; d < shape.head_dim; d += W) {
                const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + d)));
                const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
                // The other of the pair may be written meanwhile, by another thread.
                _mm512_mask_storeu_epi16(v + (place / 2 * shape.head_dim + d) * 2, mine, both);
            }
            return;
        }
    }
#endif
    std::memcpy(static_cast<void*>(k + place * shape.head_dim), key, shape.head_dim * sizeof(T));
    std::memcpy(static_cast<void*>(v + place * shape.head_dim), value, shape.head_dim * sizeof(T));
}

}  // namespace orcinus
