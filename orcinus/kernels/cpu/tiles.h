// AMX tile registers: 8 of 16 rows of 64 bytes. With ORCINUS_EMULATE_TILES they are plain memory, so that what is written
// for tiles can be tested on processors without them; the bits of such sums are no hardware's.
#pragma once
#include "vec.h"

#if defined(__AMX_BF16__) || defined(ORCINUS_EMULATE_TILES)
#define ORCINUS_TILES 1

namespace orcinus::amx {

constexpr int64_t TILE = 16, STEP = 32;  // rows or columns of sums, and elements of k, that one instruction multiplies

#if defined(ORCINUS_EMULATE_TILES)

struct Tiles {
    uint8_t rows[8];
    uint8_t bytes[8][16][64];
};

inline Tiles& tiles() {
    thread_local Tiles instance;
    return instance;
}

inline void tile_zero(int tile) { std::memset(tiles().bytes[tile], 0, sizeof(tiles().bytes[tile])); }
inline void tile_load(int tile, const void* from, int64_t stride) {
    tile_zero(tile);
    for (int r = 0; r < tiles().rows[tile]; r++)
        std::memcpy(tiles().bytes[tile][r], static_cast<const char*>(from) + r * stride, 64);
}
inline void tile_store(int tile, void* to, int64_t stride) {
    for (int r = 0; r < tiles().rows[tile]; r++) std::memcpy(static_cast<char*>(to) + r * stride, tiles().bytes[tile][r], 64);
}
inline void tile_dot(int sum, int a, int b) {
    for (int r = 0; r < tiles().rows[sum]; r++)
        for (int pair = 0; pair < tiles().rows[b]; pair++)
            for (int half = 0; half < 2; half++) {
                const auto* line = reinterpret_cast<const uint32_t*>(tiles().bytes[b][pair]);
                const uint32_t left = reinterpret_cast<const uint32_t*>(tiles().bytes[a][r])[pair];
                auto* sums = reinterpret_cast<float*>(tiles().bytes[sum][r]);
                const __m512i both = _mm512_loadu_si512(line);
                const __m512i right = half == 0 ? _mm512_slli_epi32(both, 16) : _mm512_and_si512(both, _mm512_set1_epi32(-65536));
                const __m512i one = _mm512_set1_epi32(static_cast<int>(half == 0 ? left << 16 : left & 0xffff0000u));
                store(sums, fma(_mm512_castsi512_ps(one), _mm512_castsi512_ps(right), load(sums)));
            }
}
inline void tile_configure(const uint8_t config[64]) {
    for (int tile = 0; tile < 8; tile++) tiles().rows[tile] = config[48 + tile];
}
inline void release() {}

#define AMX_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define AMX_STORE(tile, to, stride) tile_store(tile, to, stride)
#define AMX_ZERO(tile) tile_zero(tile)
#define AMX_DOT(sum, a, b) tile_dot(sum, a, b)

#else

// Written here because gcc 12's _tile_loadconfig claims to read 8 of its 64 bytes, and its loads clobber no memory.
#define AMX_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define AMX_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define AMX_ZERO(tile) __asm__ volatile("tilezero %tmm" #tile)
#define AMX_DOT(sum, a, b) __asm__ volatile("tdpbf16ps %tmm" #b ", %tmm" #a ", %tmm" #sum)

inline void tile_configure(const uint8_t (&config)[64]) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
inline void release() { __asm__ volatile("tilerelease" ::: "memory"); }

#endif

// Tiles 0-3 hold sums (0, 1 of the first row tile, 2, 3 of the second), 4 and 5 rows of x, 6 and 7 weights.
inline void configure(int64_t rows_first, int64_t rows_second) {
    alignas(64) uint8_t config[64] = {1};
    const int64_t rows[8] = {rows_first, rows_first, rows_second, rows_second, rows_first, rows_second, TILE, TILE};
    for (int i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64;
        config[48 + i] = static_cast<uint8_t>(rows[i]);
    }
    tile_configure(config);
}

}  // namespace orcinus::amx

#endif
