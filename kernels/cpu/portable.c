// The kernels in vectors of 128 bits, which every 64-bit processor has (SSE2, NEON).
//
// Quantized weights: a panel's block of 16 × 128 is decoded once into floats (table value, exact), lane =
// row, and multiplied by tiles of tokens; the group's scale enters once per group, on the sums.
#include <stdalign.h>

#define VECTOR_FLOATS 4
#define TILE_ROWS 2 // tokens of a tile
#define DENSE_ROWS 2

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/octet.h"

// Tile i holds rows [i·TILE_ROWS, …) as (padded K, rows of the tile): the rows of one k are neighbours.
static void prepare_quantized(const weight *w, const float *x, int n_rows, int tile, void *prepared) {
    const int64_t n_cols = w->n_cols, padded = padded_cols(w);
    const int first = tile * TILE_ROWS, n = n_rows - first < TILE_ROWS ? n_rows - first : TILE_ROWS;
    float *out = (float *)prepared + first * padded;
    for (int m = 0; m < n; m++, out++) {
        const float *row = x + (first + m) * n_cols;
        for (int64_t k = 0; k < n_cols; k++) out[k * n] = bf16_to_float(bf16_from_float(row[k]));
        for (int64_t k = n_cols; k < padded; k++) out[k * n] = 0;
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

static void gemm_quantized(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last,
                           float *out, int64_t stride) {
    const size_t panel_bytes = layout_panel_bytes(w->type, w->n_cols, w->group_size);
    const size_t block_bytes = layout_block_bytes(w->type);
    const size_t unit_bytes = layout_unit_bytes(w->type, w->group_size);
    const int unit_cols = layout_unit_cols(w->group_size);
    const int64_t padded = padded_cols(w);
    const float *x = (const float *)prepared;
    float values[256];
    alignas(64) float tile[BLOCK_COLS * PANEL_ROWS];
    code_values(w, values);
    for (int64_t panel = first; panel < last; panel++, out += PANEL_ROWS) {
        const uint8_t *unit = (const uint8_t *)w->data + (size_t)panel * panel_bytes;
        for (int64_t col = 0; col < padded; col += unit_cols, unit += unit_bytes)
            for (int block = 0; block < unit_cols / BLOCK_COLS; block++) {
                const size_t group = (size_t)(block * BLOCK_COLS / w->group_size);
                decode_block(w->type, values, unit + (size_t)block * block_bytes, tile);
                multiply_block(w, tile, x, n_rows, col + block * BLOCK_COLS,
                               unit + (size_t)(unit_cols / BLOCK_COLS) * block_bytes +
                                   group * PANEL_ROWS * sizeof(f16),
                               out, stride);
            }
        reorder_lanes(out, n_rows, stride);
    }
}

const cpu_kernels cpu_kernels_portable = {
    .tile_rows = TILE_ROWS,
    .prepared_bytes = prepared_bytes,
    .prepare = prepare,
    .gemm = gemm,
    .rms_norm = rms_norm,
    .activate = activate,
    .add = add,
    .softcap = softcap,
    .rotate = rotate,
    .attention = attention,
};
