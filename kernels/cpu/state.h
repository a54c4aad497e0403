// The state of a forward step on the CPU: what a step knows, its buffers, the KV cache.
#ifndef FLUTE_CPU_STATE_H
#define FLUTE_CPU_STATE_H

#include "engine/base/threads.h"
#include "kernels/cpu/cpu.h"
#include "kernels/host.h"
#include "kernels/layout.h"

enum {
    CHUNK_PANELS = 16, // panels that a worker takes at a time: 295 KB of 4-bit weights at K = 2048
    CHUNK_COLS = CHUNK_PANELS * PANEL_ROWS,
    INLINE_WORK = 1 << 15, // elements below which a dispatch costs more than it gains
    ROPE_TABLES = 2,       // frequencies in use within a step: Gemma 3 has two
};

typedef struct cpu_backend {
    backend base;
    thread_pool *pool; // borrowed
    const cpu_kernels *kernels;
    char description[128];
} cpu_backend;

typedef struct rope_table {
    const float *inv_freq;  // NULL: not filled in this step
    float *cosines, *sines; // (max_rows, head_dim / 2)
} rope_table;

struct backend_state {
    host_step step;
    thread_pool *pool; // borrowed
    const cpu_kernels *kernels;
    void *memory; // everything below, in one piece

    rope_table ropes[ROPE_TABLES];
    int next_rope;

    float *x;       // (max_rows, hidden) the residual stream
    float *normed;  // (rows, hidden) of the tile that is being prepared, and products before a post-norm
    void *prepared; // activations as the kernels want them
    float *qkv;     // (max_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    float *attn;    // (max_rows, n_heads·head_dim)
    float *ff;      // (max_rows, n_ff)
    float *gains;   // (2, head_dim) norm weights of q and k heads in stored order
    float *chunks;  // (threads, max_rows, CHUNK_COLS) products on their way into x or ff
};

// Columns of q, k and v of one row.
int64_t cpu_qkv_width(const kernel_dims *dims);

// Runs `chunk` over n items of `work` elements each: on all threads, or on the caller alone where it is not
// worth a dispatch.
void cpu_parallel(backend_state *state, int64_t n, int64_t work, threads_chunk *chunk, void *argument);

// One KV head of a layer in the sequence of a row of the step.
cpu_kv cpu_cached_head(const backend_state *state, int layer, int kv_head, int row);

// As backend_ops says.
int cpu_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err);
void cpu_state_free(backend_state *state);
size_t cpu_kv_bytes(backend *be, const kernel_dims *dims, int64_t n_tokens);
int cpu_kv_create(backend *be, const kernel_dims *dims, int block_tokens, int n_blocks, kv_pool *pool,
                  flute_error *err);
void cpu_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from, kv_pool *target,
                       int to);
void cpu_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool);

#endif
