// The scalar twins: what every kernel computes, as plainly as C can say it. Fast kernels are tested against
// these functions one by one (tests/kernels), and backend_create_ref strings them together.
//
// Everything is float32. Every sum runs over its index in increasing order, one float addition after the
// other, so that results depend neither on the number of threads nor on how many rows a batch has; loops are
// arranged so that compilers can still vectorise across outputs. Build with -ffp-contract=off.
#ifndef FLUTE_KERNELS_REF_H
#define FLUTE_KERNELS_REF_H

#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of the token table: out[i] = scale · W[ids[i]].  w: (n_vocab, width) of any type, ids: (n), all in
// [0, n_vocab), out: (n, width).
void ref_embed(const weight *w, const int32_t *ids, int n, float scale, float *out);

// out[m][n] = Σ_k x[m][k] · W[n][k], in the order of k.  w: (N, K) of any type, x: (n_rows, K), out: (n_rows,
// N). x and out must not overlap.
void ref_gemm(const weight *w, const float *x, int n_rows, float *out);
// The same for output columns [first, last) only; the rest of out is left alone. first is a multiple of 16.
void ref_gemm_columns(const weight *w, int64_t first, int64_t last, const float *x, int n_rows, float *out);

// out = x / sqrt(mean(x²) + eps) · (offset + weight); x, out: (width), may be the same. norm->weight is
// (1, width) of a dense type, and not NULL.
void ref_rms_norm(const norm_args *norm, const float *x, int width, float *out);

// ROWS_QKV puts rotary partners eight apart: the channel of a q or k head that stands at place i of it.
int ref_rotary_channel(int head_dim, int i);
// The same norm on one q or k head in stored order: x: (head_dim), in place. norm->weight is in the order of
// the checkpoint, so place i takes its entry ref_rotary_channel(head_dim, i).
void ref_head_norm(const norm_args *norm, float *x, int head_dim);
// Rotates one q or k head in stored order, in place: channel c < head_dim / 2 and its partner c + head_dim /
// 2 turn by position · inv_freq[c].  x: (head_dim), inv_freq: (head_dim / 2).
void ref_rope(float *x, int head_dim, const float *inv_freq, int position);

// cap · tanh(x / cap); x itself for cap = 0.
float ref_softcap(float x, float cap);

// act(gate) · up for one row.  gate_up: (2 · round_up(n_ff, 8)) in ROWS_GATE_UP order, out: (n_ff).
void ref_activation(activation act, const float *gate_up, int n_ff, float *out);

// Keys and values of one KV head of one sequence. Token p lies in block blocks[p / block_tokens] at t = p %
// block_tokens; block b starts at keys + b·block_stride and values + b·block_stride. Keys lie (head_dim,
// block_tokens), so that scores of neighbouring tokens are computed side by side; values (block_tokens,
// head_dim). Contiguous data is one block of n tokens: blocks = {0}.
typedef struct ref_kv {
    const float *keys, *values;
    const int32_t *blocks;
    int block_tokens;
    int64_t block_stride; // floats between blocks
    int head_dim;
} ref_kv;

// One query head over tokens first … last (both included): out = Σ softmax(softcap(q·k)) · v.  q: (head_dim)
// in the order of the keys, already scaled; out: (head_dim).
void ref_attention(const float *q, const ref_kv *kv, int first, int last, float softcap, float *out);

#ifdef __cplusplus
}
#endif
#endif
