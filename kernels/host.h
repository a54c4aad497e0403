// What the backends in host memory, kernels/cpu and kernels/ref, have in common: the batch of a step, the
// logits and their columns of other ranks, tokens, blocks of the KV cache, weights.
#ifndef FLUTE_KERNELS_HOST_H
#define FLUTE_KERNELS_HOST_H

#include "kernels/kernels.h"

// One forward step. The backend_state of these backends begins with one.
typedef struct host_step {
    comm *comm; // borrowed; NULL: a single rank
    kernel_dims dims;
    flute_error error; // the first one of the step

    // The batch, copied by begin.
    int n_rows, n_logits, max_blocks;
    int32_t *ids, *positions, *sequences; // (max_rows)
    int32_t *logits_rows;                 // (max_logits)
    int32_t *tables;                      // (n_sequences, max_blocks); grows in begin when tables do
    size_t tables_capacity;               // its elements
    kv_pool cache;

    // What head and sample leave.
    int multiple;          // rows of logits and of slots are padded to a multiple of so many columns
    int64_t logits_stride; // of a row of logits: n_vocab, padded
    int64_t slot_width;    // of a row in the slot of rank 0, the widest of all ranks
    float *logits;         // (max_logits, logits_stride)
    float *slots;          // (ranks, n_logits, slot_width); NULL for a single rank
    int32_t *tokens;       // (max_logits)
    void *sample_scratch;
} host_step;

// Memory of whole pages, zeroed and touched now rather than in the first token. NULL: there is none, which
// *err says of `what`.
void *host_allocate(size_t bytes, const char *what, flute_error *err);

// Fills a step that is all zeros; the caller frees it even when that fails with FLUTE_ENOMEM.
int host_step_create(host_step *step, const backend *be, const kernel_dims *dims, int multiple,
                     flute_error *err);
void host_step_free(host_step *step);

// The block table of a row's sequence.
static inline const int32_t *host_row_table(const host_step *step, int row) {
    return step->tables + (int64_t)step->sequences[row] * step->max_blocks;
}

// Tensor parallelism; what fails is the step's error. x: (n) becomes the sum over all ranks.
void host_sum_ranks(host_step *step, float *x, int64_t n);
// Where head writes the columns of its rows, (n_logits, rows of the head, padded); all ranks' columns
// together are then the logits.
float *host_own_logits(host_step *step);
void host_gather_logits(host_step *step);

// A KV cache of zeroed blocks of block_bytes each.
int host_kv_create(size_t block_bytes, int block_tokens, int n_blocks, kv_pool *pool, flute_error *err);
void host_kv_copy_block(size_t block_bytes, const kv_pool *source, int from, kv_pool *target, int to);

// Bytes per second that all threads of the pool together read from memory with plain vector loads: the best
// of several passes over 512 MB (0.2 s and the time to fill them). 0 without memory for the buffer.
double host_read_bandwidth(thread_pool *pool);

// As backend_ops says. Weights stay where the host has them.
void host_free(backend *be);
int host_weight_place(backend *be, const weight *host, weight *placed, flute_error *err);
void host_weight_release(backend *be, weight *placed);
void host_kv_free(backend *be, kv_pool *pool);
void host_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool);
void host_sample(backend_state *state, const sample_args *args);
int host_finish(backend_state *state, flute_error *err);
const int32_t *host_tokens(backend_state *state);
const float *host_logits(backend_state *state, int i);

#endif
