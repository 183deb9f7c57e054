// What pair_tile.h does, by AMX tiles, on operands that are padded to whole tiles: for attention.
#pragma once
#include "pair_tile.h"
#include "tiles.h"

#if defined(ORCINUS_TILES)

namespace orcinus::amx {

// Rows that scratch must have for `rows`: a few are one short tile, more are whole tiles, the last partly idle.
inline int64_t tiled_rows(int64_t rows) { return rows <= TILE ? rows : (rows + TILE - 1) / TILE * TILE; }

inline void configure_rows(int64_t rows) { configure(rows < TILE ? rows : TILE, TILE); }

// c[up to 32][up to 32] = (fresh ? 0 : c) + a · b. The second row tile and column tile are left out where not wanted.
inline void tile_square(int64_t steps, Operand<const bf16> a, Operand<const bf16> b, Operand<float> c, bool fresh, bool two_rows,
                        bool two_columns) {
    const int64_t sums = c.stride * 4, left = a.stride * 2, right = b.stride * 2;
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    if (!fresh) {
        AMX_LOAD(0, c.at, sums);
        if (two_columns) AMX_LOAD(1, c.at + TILE, sums);
        if (two_rows) AMX_LOAD(2, c.row(TILE), sums);
        if (two_rows && two_columns) AMX_LOAD(3, c.row(TILE) + TILE, sums);
    }
    for (int64_t s = 0; s < steps; s++) {
        const bf16* line = b.row(s * TILE);
        AMX_LOAD(4, a.at + s * STEP, left);
        AMX_LOAD(6, line, right);
        AMX_DOT(0, 4, 6);
        if (two_columns) {
            AMX_LOAD(7, line + STEP, right);
            AMX_DOT(1, 4, 7);
        }
        if (!two_rows) continue;
        AMX_LOAD(5, a.row(TILE) + s * STEP, left);
        AMX_DOT(2, 5, 6);
        if (two_columns) AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, c.at, sums);
    if (two_columns) AMX_STORE(1, c.at + TILE, sums);
    if (two_rows) AMX_STORE(2, c.row(TILE), sums);
    if (two_rows && two_columns) AMX_STORE(3, c.row(TILE) + TILE, sums);
}

// c[rows][vectors · 16] = (fresh ? 0 : c) + a[rows][2 · pairs] · b, after configure_rows(rows). a and b hold zeros from
// 2 · pairs to the next multiple of 32.
inline void tile_product(int64_t rows, int64_t vectors, int64_t pairs, Operand<const bf16> a, Operand<const bf16> b,
                         Operand<float> c, bool fresh) {
    const int64_t steps = (pairs + TILE - 1) / TILE;
    for (int64_t r = 0; r < rows; r += 2 * TILE)
        for (int64_t v = 0; v < vectors; v += 2)
            tile_square(steps, {a.row(r), a.stride}, {b.at + v * 2 * W, b.stride}, {c.row(r) + v * W, c.stride}, fresh,
                        rows - r > TILE, vectors - v > 1);
}

}  // namespace orcinus::amx

#endif
