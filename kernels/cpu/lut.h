// Products with quantized weights in wide vectors. A row of a block is 16 octets of codes; a 32-bit lane
// holds octet 4t + u (layout.h: columns 32u + 8t … + 7), so a few shifts and table lookups decode a row into
// vectors that meet activations in the same order. Sums stay in those lanes until the panel ends; the scale
// of the group, which run u decides, enters once per block.
//
// An including file defines
//   lut_vector     decoded weights, and as many activations
//   LUT_VECTORS    vectors of activations of a block
//   LUT_ROW_PAIRS  pairs of rows that are decoded before they meet more than one token
//   VBROADCAST4(p) the four floats at p in every run of four lanes
//   lut_tables, lut_tables_make, lut_order, lut_load, lut_vectors, lut_halves, lut_decode, lut_dot
//                  as declared below
#ifndef FLUTE_KERNELS_CPU_LUT_H
#define FLUTE_KERNELS_CPU_LUT_H

#include <stdalign.h>

#include "kernels/cpu/gemm.h"

// LUT_TOKENS: tokens that a panel is decoded for at once. Their sums, 1 KiB each, and their activations share
// the first-level cache with the codes.
enum { PREFETCH_BYTES = 4096, LUT_TOKENS = 8, LUT_MAX_VECTORS = 2 * LUT_VECTORS };

INLINE lut_tables lut_tables_make(const weight *w);
// Writes the activations of one block, 128 floats, in the order of decoded weights.
INLINE void lut_order(weight_type type, const float *x, lut_vector *out);
// Rows g and g + 8 of a block, lut_vectors(type) each. Where lut_halves(type), both rows lie in every vector,
// g in its lower half, and rows[0] and rows[1] are different columns of them.
INLINE int lut_vectors(weight_type type);
INLINE bool lut_halves(weight_type type);
INLINE void lut_decode(weight_type type, const lut_tables *tables, const uint8_t *block, int g,
                       lut_vector rows[2][LUT_MAX_VECTORS]);
// The activations, out of those of a block, that vector v of rows[r] meets.
INLINE lut_vector lut_load(weight_type type, const uint8_t *x, int r, int v);
// sums + weights · x, lane by lane.
INLINE vfloat lut_dot(vfloat sums, lut_vector weights, lut_vector x);

// Each token is (padded K / 128, LUT_VECTORS) vectors.
static void prepare_quantized(const weight *w, const float *x, int n_rows, int tile, void *prepared) {
    const int64_t padded = padded_cols(w), n_blocks = padded / BLOCK_COLS;
    const int last = n_rows < (tile + 1) * TILE_ROWS ? n_rows : (tile + 1) * TILE_ROWS;
    for (int m = tile * TILE_ROWS; m < last; m++) {
        const float *row = x + m * w->n_cols;
        uint8_t *out = (uint8_t *)prepared + (size_t)(m * n_blocks) * LUT_VECTORS * sizeof(lut_vector);
        for (int64_t col = 0; col < padded; col += BLOCK_COLS) {
            const int64_t left = w->n_cols - col, n = left < 0 ? 0 : left < BLOCK_COLS ? left : BLOCK_COLS;
            float block[BLOCK_COLS] = {0};
            lut_vector ordered[LUT_VECTORS];
            if (n > 0) memcpy(block, row + col, (size_t)n * sizeof *block);
            lut_order(w->type, block, ordered);
            memcpy(out, ordered, sizeof ordered);
            out += sizeof ordered;
        }
    }
}

// The scales of a block: four floats for each row, one for each run. The row at place r of the panel's order
// of scales has its four at scale_at(r).
INLINE int scale_at(int r) {
    return r / VECTOR_FLOATS * 4 * VECTOR_FLOATS + r % 4 * VECTOR_FLOATS + r % VECTOR_FLOATS / 4 * 4;
}

INLINE void spread_scales(const uint8_t *scales, int group_size, float out[4 * PANEL_ROWS]) {
    for (int v = 0; v < PANEL_VECTORS; v++, out += 4 * VECTOR_FLOATS) {
        if (group_size >= BLOCK_COLS) { // all runs of a block have one scale
            const vfloat all = LOAD_F16(scales + (size_t)(v * VECTOR_FLOATS) * sizeof(f16));
            vstore(out, VSHUFFLE(all, all, 0, 0, 4, 4));
            vstore(out + VECTOR_FLOATS, VSHUFFLE(all, all, 1, 1, 5, 5));
            vstore(out + 2 * VECTOR_FLOATS, VSHUFFLE(all, all, 2, 2, 6, 6));
            vstore(out + 3 * VECTOR_FLOATS, VSHUFFLE(all, all, 3, 3, 7, 7));
            continue;
        }
        vfloat runs[4];
        for (int u = 0; u < 4; u++) {
            const int group = u * RUN_COLS / group_size;
            runs[u] = LOAD_F16(scales + (size_t)(group * PANEL_ROWS + v * VECTOR_FLOATS) * sizeof(f16));
        }
        const vfloat low = VSHUFFLE(runs[0], runs[1], 0, 4, 1, 5),
                     low2 = VSHUFFLE(runs[2], runs[3], 0, 4, 1, 5);
        const vfloat high = VSHUFFLE(runs[0], runs[1], 2, 6, 3, 7),
                     high2 = VSHUFFLE(runs[2], runs[3], 2, 6, 3, 7);
        vstore(out, VSHUFFLE(low, low2, 0, 1, 4, 5));
        vstore(out + VECTOR_FLOATS, VSHUFFLE(low, low2, 2, 3, 6, 7));
        vstore(out + 2 * VECTOR_FLOATS, VSHUFFLE(high, high2, 0, 1, 4, 5));
        vstore(out + 3 * VECTOR_FLOATS, VSHUFFLE(high, high2, 2, 3, 6, 7));
    }
}

// Rows of `pairs` pairs from g on against n_tokens tokens. totals: (tokens, 16) vectors, rows in the order of
// scales.
INLINE void multiply_rows(const weight_type type, const lut_tables *tables, const uint8_t *block, int g,
                          const int pairs, const uint8_t *x, size_t token_bytes, const int n_tokens,
                          const float *scales, vfloat *totals) {
    lut_vector rows[2 * LUT_ROW_PAIRS][LUT_MAX_VECTORS];
    for (int i = 0; i < pairs; i++) lut_decode(type, tables, block, g + i, rows + 2 * i);
    for (int m = 0; m < n_tokens; m++, x += token_bytes, totals += PANEL_ROWS) {
        vfloat sums[2 * LUT_ROW_PAIRS] = {0};
        for (int v = 0; v < lut_vectors(type); v++)
            for (int r = 0; r < 2 * pairs; r++)
                sums[r] = lut_dot(sums[r], rows[r][v], lut_load(type, x, r % 2, v));
        for (int r = 0; r < 2 * pairs; r += 2) {
            const vfloat scale = VBROADCAST4(scales + scale_at(2 * g + r)),
                         scale8 = VBROADCAST4(scales + scale_at(2 * g + r + 1));
            if (lut_halves(type)) {
                totals[2 * g + r] += (sums[r] + sums[r + 1]) * vhalves(scale, scale8);
            } else {
                totals[2 * g + r] += sums[r] * scale;
                totals[2 * g + r + 1] += sums[r + 1] * scale8;
            }
        }
    }
}

// Asks for an eighth of a block that lies a few blocks ahead, maybe in the next panel, which follows in
// memory: a core's own prefetcher stops at every page. A whole block at once fills the queue of misses: 10
// GB/s instead of 15 for INT8 on Zen 4, and twice as far ahead is no better.
INLINE void prefetch_part(const weight_type type, const uint8_t *block, int g) {
    const size_t bits = type == WEIGHT_LUT2 ? 2 : type == WEIGHT_LUT3 ? 3 : type == WEIGHT_LUT4 ? 4 : 8;
    const size_t bytes = PANEL_ROWS * BLOCK_COLS / 8 * bits / 8;
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(block + PREFETCH_BYTES + (size_t)g * bytes + at);
}

INLINE void multiply_block(const weight_type type, const lut_tables *tables, const uint8_t *block,
                           const uint8_t *x, size_t token_bytes, int n_tokens, const float *scales,
                           vfloat *totals) {
    const int pairs = lut_vectors(type) > LUT_VECTORS ? 1 : LUT_ROW_PAIRS;
    if (n_tokens == 1)
        for (int g = 0; g < 8; g++) {
            prefetch_part(type, block, g);
            multiply_rows(type, tables, block, g, 1, x, token_bytes, 1, scales, totals);
        }
    else
        for (int g = 0; g < 8; g += pairs) {
            for (int i = 0; i < pairs; i++) prefetch_part(type, block, g + i);
            multiply_rows(type, tables, block, g, pairs, x, token_bytes, n_tokens, scales, totals);
        }
}

// Adds up the lanes of four rows, whose sums land side by side.
INLINE void sum_four(vfloat a, vfloat b, vfloat c, vfloat d, float *out) {
    typedef float four __attribute__((vector_size(16)));
    const vfloat ab = VSHUFFLE(a, b, 0, 4, 1, 5) + VSHUFFLE(a, b, 2, 6, 3, 7);
    const vfloat cd = VSHUFFLE(c, d, 0, 4, 1, 5) + VSHUFFLE(c, d, 2, 6, 3, 7);
    const vfloat abcd = VSHUFFLE(ab, cd, 0, 1, 4, 5) + VSHUFFLE(ab, cd, 2, 3, 6, 7);
    four parts[VECTOR_FLOATS / 4];
    memcpy(parts, &abcd, sizeof parts);
    for (int half = VECTOR_FLOATS / 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    memcpy(out, parts, sizeof *parts);
}

// One panel against at most LUT_TOKENS tokens.
INLINE void multiply_panel(const weight_type type, const weight *w, const lut_tables *tables,
                           const uint8_t *unit, const uint8_t *x, size_t token_bytes, int n_tokens,
                           float *out, int64_t stride) {
    const int64_t padded = padded_cols(w);
    const int n_blocks = layout_unit_cols(w->group_size) / BLOCK_COLS;
    const size_t block_bytes = layout_block_bytes(type);
    vfloat totals[LUT_TOKENS * PANEL_ROWS];
    alignas(64) float scales[4 * PANEL_ROWS];
    for (int i = 0; i < n_tokens * PANEL_ROWS; i++) totals[i] = (vfloat){0};
    for (int64_t col = 0; col < padded; col += n_blocks * BLOCK_COLS) {
        const uint8_t *unit_scales = unit + (size_t)n_blocks * block_bytes;
        spread_scales(unit_scales, w->group_size, scales); // of both blocks where a unit has two
        for (int i = 0; i < n_blocks; i++, unit += block_bytes) {
            multiply_block(type, tables, unit, x, token_bytes, n_tokens, scales, totals);
            x += LUT_VECTORS * sizeof(lut_vector);
        }
        unit = unit_scales +
               (w->group_size < BLOCK_COLS ? BLOCK_COLS / w->group_size : 1) * PANEL_ROWS * sizeof(f16);
    }
    if (lut_halves(type))
        for (int i = 0; i < n_tokens * PANEL_ROWS; i += 2) {
            totals[i + 1] = vhalves((vfloat){0}, totals[i]);
            totals[i] = vhalves(totals[i], (vfloat){0});
        }
    // Row n < 8 has place 2n in the order of scales, row n + 8 the next.
    for (int m = 0; m < n_tokens; m++, out += stride)
        for (int n = 0; n < PANEL_ROWS; n += 4) {
            const vfloat *rows = totals + m * PANEL_ROWS + n % 8 * 2 + n / 8;
            sum_four(rows[0], rows[2], rows[4], rows[6], out + n);
        }
}

INLINE void gemm_lut(const weight_type type, const weight *w, const uint8_t *x, int n_rows, int64_t first,
                     int64_t last, float *out, int64_t stride) {
    const size_t panel_bytes = layout_panel_bytes(type, w->n_cols, w->group_size);
    const size_t token_bytes = (size_t)(padded_cols(w) / BLOCK_COLS) * LUT_VECTORS * sizeof(lut_vector);
    const lut_tables tables = lut_tables_make(w);
    for (int64_t panel = first; panel < last; panel++, out += PANEL_ROWS) {
        const uint8_t *unit = (const uint8_t *)w->data + (size_t)panel * panel_bytes;
        for (int m = 0; m < n_rows; m += LUT_TOKENS)
            multiply_panel(type, w, &tables, unit, x + (size_t)m * token_bytes, token_bytes,
                           n_rows - m < LUT_TOKENS ? n_rows - m : LUT_TOKENS, out + m * stride, stride);
    }
}

static void gemm_quantized(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last,
                           float *out, int64_t stride) {
    const uint8_t *x = (const uint8_t *)prepared;
    if (w->type == WEIGHT_LUT2)
        gemm_lut(WEIGHT_LUT2, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_LUT3)
        gemm_lut(WEIGHT_LUT3, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_LUT4)
        gemm_lut(WEIGHT_LUT4, w, x, n_rows, first, last, out, stride);
    else
        gemm_lut(WEIGHT_INT8, w, x, n_rows, first, last, out, stride);
}

#endif
