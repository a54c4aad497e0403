// What happens between the products of a forward step, one small kernel each. Twins: kernels/ref/ref.h.
//
// All pointers are device memory. Kernels are queued as programmatic dependents: they start while the kernel
// ahead still runs, and wait for it before they touch activations; weights are never written and are read
// ahead of that. Functions return what the launch returned. Rows whose position is negative are padding of a
// batch bucket: they leave no trace.
#ifndef FLUTE_CUDA_ELEMENTWISE_H
#define FLUTE_CUDA_ELEMENTWISE_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/lut_gemm.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// x[m] = scale · W[ids[m]], zeros for an id that is not among the rows of w, as a negative one.  w: rows
// [first_row, first_row + n_rows) of (n_vocab, width) of any type, x: (n_rows, width) f32. held: as
// lut_gemm_args.
cudaError_t cuda_embed(const weight *w, const int32_t *ids, int n_rows, float scale, float *x, bool held,
                       cudaStream_t stream);

// out[m] = norm(x[rows[m]]) in bf16.  x: (…, width) f32, rows: (n_rows) or NULL for 0, 1, …; norm->weight (1,
// width) f32 in device memory, NULL: none. width: a multiple of 4, at most 16384. out: (n_rows, width), in
// any order.
cudaError_t cuda_rms_norm(const norm_args *norm, const float *x, const int32_t *rows, int n_rows, int width,
                          bf16 *out, lut_order order, cudaStream_t stream);
// x[m] += norm(product[m]).  x, product: (n_rows, width) f32. And, unless next is NULL, the norm behind the
// sum at once: out[m] = next(x[m]) in bf16, as cuda_rms_norm.
cudaError_t cuda_norm_add(const norm_args *norm, const float *product, int n_rows, int width, float *x,
                          const norm_args *next, bf16 *out, lut_order order, cudaStream_t stream);

// Where rows are, as the batch says, and the cache of one layer.
//
// The cache: a block of tokens holds, for each layer and KV head, keys (tile_tokens, head_dim) and values
// (head_dim, tile_tokens) in bf16: a lane of an mma then finds eight channels of a key, or a channel of eight
// values, in 16 adjacent bytes. tile_tokens is block_tokens rounded up to KV_TILE.
enum { KV_TILE = 32 };
typedef struct cuda_rows {
    int n_rows;
    const int32_t *positions, *sequences; // (n_rows)
    const int32_t *tables;                // (n_sequences, max_blocks)
    int max_blocks;
    int n_heads, n_kv_heads, head_dim;
    int block_tokens, tile_tokens;
    int64_t block_stride; // elements from block to block
    bf16 *cache;          // of the layer: KV head h starts at h · 2 · head_dim · tile_tokens
} cuda_rows;

// The product of qkv and what becomes of it: norms of q and k heads, rotation, keys and values to the cache.
typedef struct rotate_args {
    const cuda_rows *rows;
    const float *qkv; // (n_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    norm_args q_norm,
        k_norm;            // weights (1, head_dim) f32 in device memory, in channel order; weight NULL: none
    const float *inv_freq; // (head_dim / 2) in device memory
    float q_scale;
} rotate_args;

// q: (n_rows, n_heads, head_dim), in stored order.
cudaError_t cuda_rotate(const rotate_args *args, bf16 *q, cudaStream_t stream);

// out[m][c] = act(gate) · up from (n_rows, in_stride) f32 in ROWS_GATE_UP order: n_channels of them, a
// multiple of 8.
cudaError_t cuda_activate(activation act, const float *gate_up, int64_t in_stride, int n_rows, int n_channels,
                          bf16 *out, int64_t out_stride, cudaStream_t stream);

// logits = cap · tanh(logits / cap), n of them.
cudaError_t cuda_softcap(float *logits, int64_t n, float cap, cudaStream_t stream);

// Rows [first_row, first_row + n_rows) of a quantized weight in bf16: (n_rows, n_cols).
cudaError_t cuda_dequantize(const weight *w, int64_t first_row, int64_t n_rows, bf16 *out,
                            cudaStream_t stream);

// bf16 from f32 or f16, n of them: dense weights as they are uploaded.
cudaError_t cuda_convert(weight_type from, const void *in, int64_t n, bf16 *out, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
