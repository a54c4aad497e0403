// From float weights to codes, tables and scales, without data: tables fitted to the distribution of weights,
// and for each group a search over scales and signs, refined by least squares.
#ifndef FLUTE_QUANTIZE_H
#define FLUTE_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum quantize_table {
    QUANTIZE_OPT,  // learned: least squared error after the scale search
    QUANTIZE_NF,   // NormalFloat (Dettmers et al. 2023), quantiles of the normal distribution with an exact
                   // zero
    QUANTIZE_INT,  // uniform
    QUANTIZE_LLOYD // learned for each tensor: a few Lloyd passes from OPT
} quantize_table;

// How the matrices of one type are quantized.
typedef struct quantizer {
    weight_type type; // LUT2, LUT3, LUT4 or INT8
    int group_size;
    bool absmax;    // the scale is the largest magnitude of the group; no search
    bf16 table[16]; // LUT types: 2^b numbers, increasing
} quantizer;

// The built-in table for a LUT type (QUANTIZE_LLOYD starts from OPT), rounded to bf16, increasing, largest
// magnitude 1.
void quantize_builtin_table(quantize_table which, weight_type type, int group_size, bf16 table[16]);
// Reads a table from a text file: 2^b finite numbers separated by white space or commas, in any order, not
// all zero.
int quantize_read_table(const char *path, weight_type type, bf16 table[16], flute_error *err);

// Quantizes rows: (n_rows, n_cols) float, n_rows ≤ 16, into codes: (16, n_cols) and scales: (16, n_cols /
// group), as layout_pack_panel takes them. Adds the squared error and the squared weights to *error and
// *energy. Groups are independent: the result depends on nothing else. FLUTE_ERANGE for NaN, infinities and
// groups beyond f16: the message names row and column of the panel.
int quantize_panel(const quantizer *q, const float *rows, int n_rows, int64_t n_cols, uint8_t *codes,
                   f16 *scales, double *error, double *energy, flute_error *err);

// Lloyd's algorithm on a sample: moves the table of *q to the least squares of the groups in rows: (n_rows,
// n_cols), a few passes; the largest magnitude stays 1.
int quantize_fit_table(quantizer *q, const float *rows, int64_t n_rows, int64_t n_cols, flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
