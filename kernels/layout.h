// The restructured order of quantized weights: what weights.md calls panels, units and runs. Everything that
// packs, reads or cuts quantized weights goes through this file or repeats its arithmetic in registers.
//
// A quantized matrix W (N outputs × K inputs) is cut into panels of 16 rows; a panel is one contiguous stream
// along K. The stream consists of units of 16 × max(128, group) weights: the codes of each 128-column block,
// then the unit's scales. Inside a block the codes stand in the register order of the A operand of
// mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane = 4·g + t owns rows g and g + 8 and, of
// each run of 32 columns, the eight columns 8t..8t+7. The two mma of a run take the first and the last four
// of these eight; which k a tensor core calls k does not matter as long as weights and activations agree.
#ifndef FLUTE_LAYOUT_H
#define FLUTE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/numeric.h"
#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PANEL_ROWS = 16,     // rows of a panel
    BLOCK_COLS = 128,    // columns of a block, the smallest piece along K
    RUN_COLS = 32,       // columns of a run: two mma of k = 16
    MAX_UNIT_COLS = 256, // columns of the longest unit, that of the largest group
};

// N rounded up to whole panels; padded rows have codes 0 and scales 0.
int64_t layout_padded_rows(int64_t n_rows);
// K rounded up to whole units; padded columns have codes 0, padded groups scales 0.
int64_t layout_padded_cols(int64_t n_cols, int group_size);
// Columns of a unit: max(128, group).
int layout_unit_cols(int group_size);
// Bytes of the codes of one 16 × 128 block, of one unit, of one panel, of the whole matrix.
size_t layout_block_bytes(weight_type type);
size_t layout_unit_bytes(weight_type type, int group_size);
size_t layout_panel_bytes(weight_type type, int64_t n_cols, int group_size);
size_t layout_matrix_bytes(weight_type type, int64_t n_rows, int64_t n_cols, int group_size);

// Packs one panel. codes: (16, n_cols) one byte each, row r at codes + r·n_cols; scales: (16, n_cols / group)
// f16. Rows from n_rows (1 to 16) on are padding and are not read. out: layout_panel_bytes, fully written.
void layout_pack_panel(weight_type type, int64_t n_cols, int group_size, int n_rows, const uint8_t *codes,
                       const f16 *scales, uint8_t *out);
// The inverse, for all 16 rows.
void layout_unpack_panel(weight_type type, int64_t n_cols, int group_size, const uint8_t *panel,
                         uint8_t *codes, f16 *scales);

// One code, one scale, by bit arithmetic on the packed form: the definition that every kernel is tested
// against. row < padded rows, col < padded columns.
unsigned layout_code(const weight *w, int64_t row, int64_t col);
float layout_scale(const weight *w, int64_t row, int64_t col);
// W[row][col] in float, for dense and quantized matrices.
float weight_value(const weight *w, int64_t row, int64_t col);
// Columns [col, col + n) of one row in float, the same values several times as fast; out: (n).
void weight_values(const weight *w, int64_t row, int64_t col, int64_t n, float *out);
// One row in float; out: (n_cols). Dense and quantized.
void weight_row(const weight *w, int64_t row, float *out);

// Fills panels [first_panel, first_panel + n_panels) of a packed matrix with uniform random codes and scales
// between 0.5 and 1.5 times `scale`: weights to measure with. Every panel depends on seed and its number
// alone, so threads may share the work. out: n_panels · layout_panel_bytes.
void layout_random_panels(weight_type type, int64_t n_cols, int group_size, int64_t first_panel,
                          int64_t n_panels, uint64_t seed, float scale, uint8_t *out);

// Fused matrices. The rows of a stored matrix come from up to three matrices of the checkpoint.
typedef enum row_order {
    ROWS_PLAIN,   // row i is row i of the one source
    ROWS_GATE_UP, // sources gate (0), up (1): eight rows of gate, the same eight of up, and so on, so that a
                  // lane that holds rows g and g + 8 of a panel holds gate and up of one channel
    ROWS_QKV, // sources q (0), k (1), v (2): for each KV head its query heads, then k, then v; inside q and k
              // heads, eight rows of the first half alternate with the matching eight of the second half,
              // so that a lane holds both members of a rotary pair. v heads keep their order.
} row_order;

typedef struct row_source {
    int source;  // which matrix
    int64_t row; // its row; -1: padding (a gate/up matrix whose size is no multiple of 8)
} row_source;

// Where stored row `row` comes from. For ROWS_QKV, n_heads, n_kv_heads and head_dim (a multiple of 16) of the
// attention; for ROWS_GATE_UP n_rows_source is the rows of gate; otherwise ignored.
typedef struct row_order_dims {
    int n_heads, n_kv_heads, head_dim;
    int64_t n_rows_source;
} row_order_dims;
row_source layout_row_source(row_order order, const row_order_dims *dims, int64_t row);
// Rows of the stored matrix.
int64_t layout_row_count(row_order order, const row_order_dims *dims);

// Tensor parallelism: part `rank` of n things dealt out in order among size ranks. The first parts are the
// larger ones, by one; parts may be empty.
typedef struct layout_run {
    int64_t first, n;
} layout_run;
static inline layout_run layout_share(int64_t n, int rank, int size) {
    const int64_t each = n / size, more = n % size;
    layout_run run = {rank * each + (rank < more ? rank : more), each + (rank < more ? 1 : 0)};
    return run;
}
// The rows of an embedding or a head that a rank has: whole panels, the last one cut at n_rows.
static inline layout_run layout_share_rows(int64_t n_rows, int rank, int size) {
    layout_run run = layout_share(round_up(n_rows, PANEL_ROWS) / PANEL_ROWS, rank, size);
    run.first *= PANEL_ROWS;
    run.n *= PANEL_ROWS;
    if (run.n > 0 && run.first + run.n > n_rows) run.n = n_rows - run.first;
    return run;
}
// Part of a matrix as bytes: n pieces, the first at offset, stride apart.
typedef struct layout_span {
    size_t offset, bytes, stride;
    int64_t n;
} layout_span;
// The bytes that hold some rows (the first one a multiple of 16 in quantized matrices) and some columns,
// whole units of them in quantized matrices. Laid end to end they are a matrix of *covered columns.
layout_span layout_cut(const weight *whole, layout_run rows, layout_run cols, layout_run *covered);

#ifdef __cplusplus
}
#endif
#endif
