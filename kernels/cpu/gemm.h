// Prepared activations and products, for whatever VECTOR_FLOATS says: dense matrices here, as dot products
// along K; quantized ones in the functions that an including file defines behind this header (lut.h, or
// portable.c).
//
// An including file defines DENSE_ROWS (rows of a dense matrix at a time) to suit its number of registers,
// and may define LOAD_F16, its own way to load a vector of f16.
#ifndef FLUTE_KERNELS_CPU_GEMM_H
#define FLUTE_KERNELS_CPU_GEMM_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector.h"
#include "kernels/layout.h"

enum { PANEL_VECTORS = PANEL_ROWS / VECTOR_FLOATS, DENSE_TOKENS = 4 };

// As prepare and gemm of cpu_kernels, for quantized weights.
static void prepare_quantized(const weight *w, const float *x, int n_rows, int tile, void *prepared);
static void gemm_quantized(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last,
                           float *out, int64_t stride);

// Padding of K: whole units for quantized weights, whole vectors of any instruction set for dense ones.
static int64_t padded_cols(const weight *w) {
    return weight_is_quantized(w->type) ? layout_padded_cols(w->n_cols, w->group_size)
                                        : round_up(w->n_cols, 32);
}

static size_t prepared_bytes(int n_rows, int64_t n_cols) {
    return (size_t)round_up(n_rows, 16) * (size_t)round_up(n_cols, 256) * sizeof(float);
}

// Dense: (rows, padded K) floats.
static void prepare(const weight *w, const float *x, int n_rows, int tile, void *prepared) {
    if (weight_is_quantized(w->type)) {
        prepare_quantized(w, x, n_rows, tile, prepared);
        return;
    }
    const int64_t n_cols = w->n_cols, padded = padded_cols(w);
    const int last = n_rows < (tile + 1) * TILE_ROWS ? n_rows : (tile + 1) * TILE_ROWS;
    for (int m = tile * TILE_ROWS; m < last; m++) {
        float *out = (float *)prepared + m * padded;
        for (int64_t k = 0; k < n_cols; k++) out[k] = bf16_to_float(bf16_from_float(x[m * n_cols + k]));
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

static void gemm(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last, float *out,
                 int64_t stride) {
    const float *x = (const float *)prepared;
    if (w->type == WEIGHT_F32)
        gemm_dense_type(WEIGHT_F32, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_F16)
        gemm_dense_type(WEIGHT_F16, w, x, n_rows, first, last, out, stride);
    else if (w->type == WEIGHT_BF16)
        gemm_dense_type(WEIGHT_BF16, w, x, n_rows, first, last, out, stride);
    else
        gemm_quantized(w, prepared, n_rows, first, last, out, stride);
}

#endif
