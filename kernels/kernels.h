// The contract between the model and whatever computes it: weights, batches, the KV cache, and the seven
// verbs that a backend implements. kernels/cpu and kernels/cuda are backends; kernels/ref is the scalar
// oracle.
//
//   embed → [ qkv → attend → project_add → gate_up → project_add ] × layers → head → sample
//
// The verbs are as coarse as the fusions that pay: norms, rotary embedding, cache append, activations and
// residual adds happen inside them. A verb may run asynchronously; finish() waits. Everything that differs
// between architectures is a parameter.
#ifndef FLUTE_KERNELS_H
#define FLUTE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "engine/base/threads.h"
#include "kernels/comm.h"
#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct backend backend;             // a device, with its queue or threads
typedef struct backend_state backend_state; // the buffers of one stream of forward steps

// Sizes of a model as the buffers need them. A rank of a tensor-parallel model counts what is its own: heads
// and n_ff, which may then be 0.
typedef struct kernel_dims {
    int hidden;     // width of the residual stream
    int n_heads;    // query heads
    int n_kv_heads; // key/value heads, a divisor of n_heads; 0 where n_heads is 0
    int head_dim;   // 32 to 256, a multiple of 16
    int n_ff;       // inner width of the feed-forward block
    int n_vocab;
    int n_layers;
    int max_rows;   // most rows of one forward step
    int max_logits; // most rows of one step whose logits are wanted
} kernel_dims;

// The KV cache: fixed-size blocks of tokens, drawn from one pool, mapped per sequence by a block table.
// Token p of a sequence lies in block table[p / block_tokens] at p % block_tokens. Element type and order
// inside a block are the backend's own business. engine/kv_cache hands the blocks out.
typedef struct kv_pool {
    int block_tokens; // tokens in a block
    int n_blocks;     // blocks of the pool
    void *data;       // the backend's memory
} kv_pool;

// The rows of one forward step: prefill, decode and mixtures look the same. Rows of one sequence are
// adjacent and their positions consecutive. Host memory, read before forward_begin returns.
typedef struct kernel_batch {
    int n_rows;
    const int32_t *ids;          // (n_rows) token ids
    const int32_t *positions;    // (n_rows) position in the sequence, from 0
    const int32_t *sequences;    // (n_rows) row of block_tables
    int n_sequences;             // rows of block_tables
    int max_blocks;              // columns of block_tables
    const int32_t *block_tables; // (n_sequences, max_blocks) block numbers; entries past the end are ignored
    int n_logits;                // rows that reach the head
    const int32_t *logits_rows;  // (n_logits) their row numbers, increasing
} kernel_batch;

typedef struct norm_args {       // RMS norm: x / sqrt(mean(x²) + eps) · (offset + weight)
    const struct weight *weight; // (1, width); NULL: no norm
    float eps;
    float offset; // 1 for Gemma, whose weights are stored minus one
} norm_args;

typedef struct qkv_args {
    int layer;
    norm_args norm;              // before the projection
    const struct weight *weight; // ROWS_QKV order, ((n_heads + 2·n_kv_heads)·head_dim, hidden)
    norm_args q_norm, k_norm;    // per head, before rotation, weights in channel order; weight NULL: none
    const float *inv_freq; // (head_dim / 2) rotary frequencies, host memory that lives as long as the state
    float q_scale;         // multiplies q after rotation: 1/sqrt(head_dim) or the model's own
} qkv_args;

typedef struct attend_args {
    int layer;
    int window;    // a token sees itself and window − 1 tokens before it; 0: all
    float softcap; // s → softcap · tanh(s / softcap); 0: none
} attend_args;

// Which buffer project_add multiplies.
typedef enum project_input { PROJECT_ATTENTION, PROJECT_FF } project_input;

typedef struct project_args {
    project_input input;
    const struct weight *weight; // (hidden, n_heads·head_dim) or (hidden, n_ff)
    norm_args post_norm;         // of the product, before the add; weight NULL: none
} project_args;

typedef enum activation { ACT_SILU, ACT_GELU_TANH } activation;

typedef struct gate_up_args {
    norm_args norm;
    const struct weight *weight; // ROWS_GATE_UP order, (2·n_ff, hidden)
    activation act;              // act(gate) · up
} gate_up_args;

typedef struct head_args {
    norm_args norm;
    const struct weight *weight; // (n_vocab, hidden)
    float softcap;               // as in attend_args
} head_args;

// How the next token of one row is chosen. Order: penalties, temperature, top-k, top-p, min-p, draw.
typedef struct sample_args {
    float temperature;       // 0: greedy (the largest logit, the lowest id among equals)
    int top_k;               // 0: all
    float top_p;             // keep the fewest tokens that hold this much probability; 1: all
    float min_p;             // drop tokens less probable than min_p × the best; 0: none
    float repeat_penalty;    // divides positive and multiplies negative logits of tokens in history; 1: none
    float presence_penalty;  // subtracted once for tokens in history
    float frequency_penalty; // subtracted for each occurrence in history
    uint64_t seed;           // the draw is a function of (seed, position) alone, so that every backend agrees
    uint64_t position;
    const int32_t *history; // (n_history) tokens that the penalties look at, host memory
    int n_history;
} sample_args;

// The uniform number in [0, 1) that sampling at (seed, position) uses: the same on every backend.
double sample_uniform(uint64_t seed, uint64_t position);

// Tensor parallelism. Every rank runs the same verbs on the same rows with its own parts of the weights
// (engine/shard.h cuts them), and a backend whose comm has more than one rank adds up:
//
//   embed        the embedding has rows [first_row, first_row + n_rows): other ids give a row of zeros; x is
//                the all-reduced sum
//   qkv, attend  nothing: the rank's own heads; none where dims.n_heads is 0 (the weight has no data then)
//   gate_up      nothing: the rank's own dims.n_ff channels; the weight has 2 · round_up(n_ff, 8) rows, or no
//                data
//   project_add  the weight has n_cols >= lead_cols + the input's own columns: the input is moved lead_cols
//   to
//                the right, with zeros around it. The product is all-reduced before post-norm and add. A
//                weight without data gives zeros
//   head         the head has rows [first_row, first_row + n_rows), which are layout_share_rows(dims.n_vocab,
//                rank, size). Each rank's columns, in slots as wide as rank 0's, are all-gathered; logits are
//                whole on rank 0
//   sample       rank 0 only: the others get args == NULL
//
// x, and with it everything that is not cut, is the same on all ranks.

// What a backend implements. All functions take the backend or a state that it made.
typedef struct backend_ops {
    const char *name; // "cpu", "ref", "cuda"
    int batch_rows;   // rows of a forward step that prefill well
    // The backend's own way for ranks to communicate in its memory; NULL: it has none.
    const comm_kind *comm;
    // Makes of a comm of host memory one of this backend's; takes it over unless it fails. NULL: no need to.
    int (*comm_adopt)(struct comm **out, struct comm *host, flute_error *err);

    void (*free)(backend *be);
    // One line on the device ("AMD EPYC, 2 threads, AVX-512 BF16"); static or owned by the backend.
    const char *(*describe)(backend *be);
    // Read bandwidth of the memory that weights lie in, bytes per second, measured now (about 0.2 s).
    double (*read_bandwidth)(backend *be);

    // Places a weight: *placed is *host with data in the backend's memory. The CPU keeps the host mapping.
    int (*weight_place)(backend *be, const weight *host, weight *placed, flute_error *err);
    void (*weight_release)(backend *be, weight *placed);

    // Bytes that a KV cache of n_tokens tokens needs, and a pool of that many blocks (zeroed).
    size_t (*kv_bytes)(backend *be, const kernel_dims *dims, int64_t n_tokens);
    int (*kv_create)(backend *be, const kernel_dims *dims, int block_tokens, int n_blocks, kv_pool *pool,
                     flute_error *err);
    void (*kv_free)(backend *be, kv_pool *pool);
    // Copies a whole block of all layers, inside a pool (a sequence that shares a prefix gets its own last
    // block) or into another one of the same block_tokens (the cache grows).
    void (*kv_copy_block)(backend *be, const kernel_dims *dims, const kv_pool *source, int from,
                          kv_pool *target, int to);

    int (*state_create)(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err);
    void (*state_free)(backend_state *state);

    // One forward step: begin, verbs, finish. Nothing in between allocates, locks or waits. Errors inside are
    // sticky and come out of finish.
    void (*begin)(backend_state *state, const kernel_batch *batch, kv_pool *pool);
    void (*embed)(backend_state *state, const weight *embedding, float scale);
    void (*qkv)(backend_state *state, const qkv_args *args);
    void (*attend)(backend_state *state, const attend_args *args);
    void (*project_add)(backend_state *state, const project_args *args);
    void (*gate_up)(backend_state *state, const gate_up_args *args);
    void (*head)(backend_state *state, const head_args *args);
    // Samples a token for logits row i = 0 … n_logits − 1 from args[i]; rows with args == NULL are all
    // skipped.
    void (*sample)(backend_state *state, const sample_args *args);
    int (*finish)(backend_state *state, flute_error *err);

    // After finish: the sampled tokens, and the logits of row i: (n_vocab) f32 in host memory, valid until
    // the next begin.
    const int32_t *(*tokens)(backend_state *state);
    const float *(*logits)(backend_state *state, int i);
} backend_ops;

struct backend {
    const backend_ops *ops;
    comm *comm; // set by the owner before states are made; NULL: a single rank. Borrowed
};

// The scalar oracle: float activations and cache, sums in a fixed plain order, no intrinsics.
int backend_create_ref(thread_pool *pool, backend **out, flute_error *err);
// The fast CPU backend: bf16 activations and cache, AVX-512 or AVX2 kernels chosen at run time, the portable
// ones elsewhere. Both borrow the pool.
int backend_create_cpu(thread_pool *pool, backend **out, flute_error *err);

// An NVIDIA GPU of compute capability 9.0 or later, the current CUDA device; declared where the build has
// CUDA. The pool's threads copy weights to pinned memory. FLUTE_EDEVICE: no device, or its driver is too old;
// FLUTE_EUNSUPPORTED: too old a GPU.
int backend_create_cuda(thread_pool *pool, backend **out, flute_error *err);
// Makes a device the calling thread's current one: each rank of a host gets one of its own, as long as there
// are enough. FLUTE_EDEVICE: there is none.
int cuda_choose_device(int local_rank, flute_error *err);
int cuda_device_count(void);
// Bytes that can be allocated on the current device, less what the driver needs to work with.
uint64_t cuda_available_memory(void);

#ifdef __cplusplus
}
#endif
#endif
