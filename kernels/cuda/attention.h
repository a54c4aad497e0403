// Attention over the cache on tensor cores. Twin: ref_attention of kernels/ref/ref.h.
#ifndef FLUTE_CUDA_ATTENTION_H
#define FLUTE_CUDA_ATTENTION_H

#include "kernels/cuda/elementwise.h"

#ifdef __cplusplus
extern "C" {
#endif

// A run of rows of one sequence, at consecutive positions.
typedef struct attention_run {
    int32_t first_row, n_rows;
} attention_run;

typedef struct attention_args {
    const cuda_rows *rows;
    bf16 *out; // (n_rows, n_heads · head_dim)
    lut_order order;
    int window; // as attend_args
    float softcap;
    int shared; // bytes of shared memory that a block of threads may have: lut_device
    // Prefill: (n_runs) in device memory, each of at most cuda_attention_run_rows() rows, and the queries,
    // (n_rows, n_heads, head_dim), rotated and scaled; keys and values are in the cache.
    const attention_run *runs;
    int n_runs;
    const bf16 *q;
    // Decode, runs == NULL: every row is a sequence of its own. The rotation is part of the kernel, and so is
    // what it appends to the cache. Device memory of the sizes below; counters are zeroed once before the
    // first use.
    const rotate_args *rotation;
    uint32_t *counters;
    float *partials;
    int n_sms;
    int most_cluster; // blocks that a cluster may have; 1: the device has none
} attention_args;

// Rows of a run that one block of threads takes: 64 / (n_heads / n_kv_heads), at least 1.
int cuda_attention_run_rows(int n_heads, int n_kv_heads);
// For steps of at most n_rows rows.
size_t cuda_attention_counters_bytes(int n_rows, int n_heads, int n_kv_heads);
size_t cuda_attention_partials_bytes(int n_rows, int n_heads, int n_kv_heads, int head_dim, int n_sms);
// Allows the kernels the shared memory that they need, of the bytes that a block may have; once a device.
cudaError_t cuda_attention_open(int shared);

// Queues the product; deterministic. head_dim: a multiple of 16 from 16 to 256; any window and soft-cap.
cudaError_t cuda_attention(const attention_args *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
