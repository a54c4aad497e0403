// Matrix products in plain vectors. Quantized: a panel's block of 16 × 128 weights is decoded once into
// floats (table value, exact), lane = row, and multiplied by tiles of tokens; the group's scale enters once
// per group, on the sums. Dense: dot products along K.
//
// An including file defines TILE_ROWS (tokens of a tile: 2, 4 or 6) and DENSE_ROWS (rows of a dense matrix at
// a time) to suit its number of registers, and may define DECODE_BLOCK and LOAD_F16, its own ways to decode a
// block and to load a vector of f16.
#ifndef FLUTE_KERNELS_CPU_GEMM_H
#define FLUTE_KERNELS_CPU_GEMM_H

#include <stdalign.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/octet.h"
#include "kernels/cpu/vector.h"
#include "kernels/layout.h"

enum { PANEL_VECTORS = PANEL_ROWS / VECTOR_FLOATS, DENSE_TOKENS = 4 };

// Padding of K: whole units for quantized weights, whole vectors of any instruction set for dense ones.
static int64_t padded_cols(const weight *w) {
    return weight_is_quantized(w->type) ? layout_padded_cols(w->n_cols, w->group_size)
                                        : round_up(w->n_cols, 32);
}

static size_t prepared_bytes(int n_rows, int64_t n_cols) {
    return (size_t)round_up(n_rows, 16) * (size_t)round_up(n_cols, 256) * sizeof(float);
}

// Quantized weights: tile i holds rows [i·TILE_ROWS, …) as (padded K, rows of the tile): the rows of one k
// are neighbours. Dense: (rows, padded K).
static void prepare_floats(const weight *w, const float *x, int n_rows, int tile, void *prepared) {
    const int64_t n_cols = w->n_cols, padded = padded_cols(w);
    const int first = tile * TILE_ROWS, n = n_rows - first < TILE_ROWS ? n_rows - first : TILE_ROWS;
    const bool across = weight_is_quantized(w->type);
    float *out = (float *)prepared + first * padded;
    for (int m = 0; m < n; m++) {
        const float *row = x + (first + m) * n_cols;
        float *at = across ? out + m : out + m * padded;
        const int64_t step = across ? n : 1;
        for (int64_t k = 0; k < n_cols; k++) at[k * step] = bf16_to_float(bf16_from_float(row[k]));
        for (int64_t k = n_cols; k < padded; k++) at[k * step] = 0;
    }
}

// The rows of a panel as lanes, in the order of its scales: 0, 8, 1, 9, … 7, 15.
INLINE int lane_row(int lane) {
    return lane / 2 + lane % 2 * 8;
}

// Every value that a code can stand for, as floats: 16 of a table, 256 of INT8.
static void code_values(const weight *w, float values[256]) {
    if (w->type == WEIGHT_INT8)
        for (int code = 0; code < 256; code++) values[code] = (float)(code - 128);
    else
        for (int code = 0; code < 16; code++) values[code] = bf16_to_float(w->table[code]);
}

#ifndef DECODE_BLOCK
#define DECODE_BLOCK decode_block
// tile[k][lane] = values[code].
static void decode_block(weight_type type, const float *values, const uint8_t *block, float *tile) {
    for (int run = 0; run < 4; run++)
        for (int lane = 0; lane < 32; lane++) {
            uint8_t codes[2][8];
            float *out = tile + (size_t)(run * RUN_COLS + lane % 4 * 8) * PANEL_ROWS + lane / 4 * 2;
            octet_codes(type, block, run, lane, codes);
            for (int i = 0; i < 8; i++) {
                out[i * PANEL_ROWS] = values[codes[0][i]];
                out[i * PANEL_ROWS + 1] = values[codes[1][i]];
            }
        }
}
#endif

// out[m][lane] += scale[lane] · Σ_k x[k][m] · tile[k][lane] over a span of one group, for a tile of tokens.
INLINE void multiply_span(const float *tile, const float *x, int n_cols, const int n_tokens,
                          const float *scales, bool first, float *out, int64_t stride) {
    vfloat sums[TILE_ROWS][PANEL_VECTORS] = {0};
    for (int k = 0; k < n_cols; k++, tile += PANEL_ROWS, x += n_tokens)
        for (int v = 0; v < PANEL_VECTORS; v++) {
            vfloat weights = vload(tile + v * VECTOR_FLOATS);
            for (int m = 0; m < n_tokens; m++) sums[m][v] += x[m] * weights;
        }
    for (int m = 0; m < n_tokens; m++)
        for (int v = 0; v < PANEL_VECTORS; v++) {
            float *at = out + m * stride + v * VECTOR_FLOATS;
            vfloat before = first ? (vfloat){0} : vload(at);
            vstore(at, before + sums[m][v] * vload(scales + v * VECTOR_FLOATS));
        }
}

static void multiply_tile(const float *tile, const float *x, int n_cols, int n_tokens, const float *scales,
                          bool first, float *out, int64_t stride) {
    switch (n_tokens) { // constants, so that the sums stay in registers
    case 1:
        multiply_span(tile, x, n_cols, 1, scales, first, out, stride);
        break;
    case 2:
        multiply_span(tile, x, n_cols, 2, scales, first, out, stride);
        break;
#if TILE_ROWS > 2
    case 3:
        multiply_span(tile, x, n_cols, 3, scales, first, out, stride);
        break;
    case 4:
        multiply_span(tile, x, n_cols, 4, scales, first, out, stride);
        break;
#endif
#if TILE_ROWS > 4
    case 5:
        multiply_span(tile, x, n_cols, 5, scales, first, out, stride);
        break;
    case 6:
        multiply_span(tile, x, n_cols, 6, scales, first, out, stride);
        break;
#endif
    }
}

// Back from the order of lanes to that of rows.
static void reorder_lanes(float *out, int n_rows, int64_t stride) {
    for (int m = 0; m < n_rows; m++, out += stride) {
        float lanes[PANEL_ROWS];
        memcpy(lanes, out, sizeof lanes);
        for (int lane = 0; lane < PANEL_ROWS; lane++) out[lane_row(lane)] = lanes[lane];
    }
}

// All tokens of x against the columns [col, col + 128) of one panel, decoded in tile. scales: of the first
// group in these columns.
static void multiply_block(const weight *w, const float *tile, const float *x, int n_rows, int64_t col,
                           const uint8_t *scales, float *out, int64_t stride) {
    const int64_t padded = padded_cols(w);
    const int span = w->group_size < BLOCK_COLS ? w->group_size : BLOCK_COLS;
    for (int first = 0; first < BLOCK_COLS; first += span, scales += PANEL_ROWS * sizeof(f16)) {
        float factors[PANEL_ROWS];
        for (int lane = 0; lane < PANEL_ROWS; lane++) {
            f16 bits;
            memcpy(&bits, scales + lane * sizeof bits, sizeof bits);
            factors[lane] = f16_to_float(bits);
        }
        for (int m = 0; m < n_rows; m += TILE_ROWS) {
            const int n = n_rows - m < TILE_ROWS ? n_rows - m : TILE_ROWS;
            multiply_tile(tile + first * PANEL_ROWS, x + m * padded + (col + first) * n, span, n, factors,
                          col + first == 0, out + m * stride, stride);
        }
    }
}

static void gemm_quantized(const weight *w, const float *x, int n_rows, int64_t first, int64_t last,
                           float *out, int64_t stride) {
    const size_t panel_bytes = layout_panel_bytes(w->type, w->n_cols, w->group_size);
    const size_t block_bytes = layout_block_bytes(w->type);
    const size_t unit_bytes = layout_unit_bytes(w->type, w->group_size);
    const int unit_cols = layout_unit_cols(w->group_size);
    const int64_t padded = padded_cols(w);
    float values[256];
    alignas(64) float tile[BLOCK_COLS * PANEL_ROWS];
    code_values(w, values);
    for (int64_t panel = first; panel < last; panel++, out += PANEL_ROWS) {
        const uint8_t *unit = (const uint8_t *)w->data + (size_t)panel * panel_bytes;
        for (int64_t col = 0; col < padded; col += unit_cols, unit += unit_bytes)
            for (int block = 0; block < unit_cols / BLOCK_COLS; block++) {
                const size_t group = (size_t)(block * BLOCK_COLS / w->group_size);
                DECODE_BLOCK(w->type, values, unit + (size_t)block * block_bytes, tile);
                multiply_block(w, tile, x, n_rows, col + block * BLOCK_COLS,
                               unit + (size_t)(unit_cols / BLOCK_COLS) * block_bytes +
                                   group * PANEL_ROWS * sizeof(f16),
                               out, stride);
            }
        reorder_lanes(out, n_rows, stride);
    }
}

// VECTOR_FLOATS weights of a dense type.
INLINE vfloat load_dense(const weight_type type, const void *data, int64_t i) {
    if (type == WEIGHT_F32) return vload((const float *)data + i);
    if (type == WEIGHT_BF16) return vload_bf16((const bf16 *)data + i);
#ifdef LOAD_F16
    return LOAD_F16((const f16 *)data + i);
#else
    float values[VECTOR_FLOATS];
    for (int j = 0; j < VECTOR_FLOATS; j++) values[j] = f16_to_float(((const f16 *)data)[i + j]);
    return vload(values);
#endif
}

// Rows [row, row + n_out) against tokens [0, n_tokens): dot products along K. x: (tokens, padded).
INLINE void multiply_dense(const weight_type type, const weight *w, int64_t row, const int n_out,
                           const float *x, int64_t padded, const int n_tokens, float *out, int64_t stride) {
    vfloat sums[DENSE_ROWS][DENSE_TOKENS] = {0};
    int64_t k = 0;
    for (; k + VECTOR_FLOATS <= w->n_cols; k += VECTOR_FLOATS)
        for (int r = 0; r < n_out; r++) {
            vfloat weights = load_dense(type, w->data, (row + r) * w->n_cols + k);
            for (int m = 0; m < n_tokens; m++) sums[r][m] += weights * vload(x + m * padded + k);
        }
    for (int r = 0; r < n_out; r++)
        for (int m = 0; m < n_tokens; m++) {
            float sum = vsum(sums[r][m]);
            for (int64_t i = k; i < w->n_cols; i++) sum += weight_value(w, row + r, i) * x[m * padded + i];
            out[m * stride + r] = sum;
        }
}

INLINE void gemm_dense_type(const weight_type type, const weight *w, const float *x, int n_rows,
                            int64_t first, int64_t last, float *out, int64_t stride) {
    const int64_t padded = padded_cols(w);
    const int64_t begin = first * PANEL_ROWS;
    const int64_t end = last * PANEL_ROWS < w->n_rows ? last * PANEL_ROWS : w->n_rows;
    int64_t row = begin;
    for (; row + DENSE_ROWS <= end; row += DENSE_ROWS) {
        int m = 0;
        for (; m + DENSE_TOKENS <= n_rows; m += DENSE_TOKENS)
            multiply_dense(type, w, row, DENSE_ROWS, x + m * padded, padded, DENSE_TOKENS,
                           out + m * stride + row - begin, stride);
        for (; m < n_rows; m++)
            multiply_dense(type, w, row, DENSE_ROWS, x + m * padded, padded, 1,
                           out + m * stride + row - begin, stride);
    }
    for (; row < end; row++)
        for (int m = 0; m < n_rows; m++)
            multiply_dense(type, w, row, 1, x + m * padded, padded, 1, out + m * stride + row - begin,
                           stride);
}

static void gemm_floats(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last,
                        float *out, int64_t stride) {
    const float *x = (const float *)prepared;
    if (w->type == WEIGHT_F32)
        gemm_dense_type(WEIGHT_F32, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_F16)
        gemm_dense_type(WEIGHT_F16, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_BF16)
        gemm_dense_type(WEIGHT_BF16, w, x, n_rows, first, last, out, stride);
    else
        gemm_quantized(w, x, n_rows, first, last, out, stride);
}

#endif
