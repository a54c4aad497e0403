// One forward step on the device, as data: the shape of its inputs and the list of its verbs. A step that
// looks like an earlier one is that one's graph, replayed with new inputs.
#ifndef FLUTE_CUDA_STATE_H
#define FLUTE_CUDA_STATE_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/sample.h"

enum { MAX_ROPES = 4, MAX_GRAPHS = 16, MAX_GRAPH_ROWS = 256 };

typedef enum step_verb {
    VERB_EMBED,
    VERB_QKV,
    VERB_ATTEND,
    VERB_PROJECT_ADD,
    VERB_GATE_UP,
    VERB_HEAD
} step_verb;

// A verb and its arguments. Fields that a verb does not have are zero, so that two lists compare byte by
// byte; there is no padding between them.
typedef struct step_op {
    int32_t verb, layer; // a step_verb
    const struct weight *weight;
    norm_args norm, q_norm, k_norm; // norm: of the input; of the product in VERB_PROJECT_ADD
    const float *inv_freq;          // device memory
    float scale, softcap;
    int32_t window, choice; // choice: a project_input or an activation
} step_op;

// What decides which kernels a step launches, and where its inputs lie.
typedef struct step_shape {
    int32_t n_rows, n_logits, n_sequences,
        max_blocks; // of decode: a bucket, some rows of which may be padding
    int32_t n_runs; // of prefill; 0: decode
    int32_t sampled, timed;
    int32_t block_tokens, n_ops;
    void *cache;
} step_shape;

typedef struct step_graph {
    step_shape shape;
    step_op *ops; // (shape.n_ops)
    cudaGraphExec_t exec;
    uint64_t used; // number of the step that used it last
} step_graph;

// Places in the inputs, in bytes: one copy brings all of them to the device.
typedef struct step_places {
    size_t ids, positions, sequences; // (n_rows) int32
    size_t logits_rows;               // (n_logits) int32
    size_t runs;                      // (n_runs) attention_run
    size_t tables;                    // (n_sequences, max_blocks) int32
    size_t samples;                   // (n_logits) cuda_sample_row
    size_t histories;                 // int32, as many as there are
} step_places;

struct backend_state {
    cuda_backend *be;
    kernel_dims dims;  // max_rows and max_logits rounded up to buckets
    flute_error error; // the first one of the step
    uint64_t n_steps;

    // The step that is being collected.
    step_shape shape;
    step_places places;
    int n_rows, n_logits; // without padding
    step_op *ops;         // (max_ops)
    int max_ops;
    uint8_t *host, *inputs; // (capacity) pinned, and on the device
    size_t capacity, input_bytes;
    step_graph graphs[MAX_GRAPHS];
    int n_graphs;
    struct {
        const float *host, *device; // (head_dim / 2)
    } ropes[MAX_ROPES];

    // Several ranks: NULL for a single one.
    comm *ranks;        // borrowed
    cudaEvent_t *marks; // (max_ops, 2) around the collective of a verb; NULL before a step is timed
    bool idle;          // this rank has no heads
    bf16 *wide;         // (max_rows, own columns and what else is in their first and last unit)
    float *slots;       // (ranks, max_logits, slot_width)
    int64_t slot_width; // logits that rank 0 computes, whole panels: the most of all ranks

    // Device memory, one allocation; x and product of several ranks are the comm's.
    uint8_t *memory;
    float *x;        // (max_rows, hidden) the residual stream
    bf16 *normed;    // (max_rows, hidden)
    float *squares;  // (LUT_NORM_TOKENS, LUT_MAX_PARTS), of lut_norm
    float *qkv;      // (max_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    bf16 *q;         // (max_rows, n_heads·head_dim)
    bf16 *attn;      // (max_rows, n_heads·head_dim)
    bf16 *ff;        // (max_rows, ff_stride)
    float *product;  // (max_rows, hidden) before a post-norm
    float *logits;   // (max_logits, n_vocab)
    int32_t *tokens; // (max_logits)
    void *sample_scratch;
    uint32_t *counters;
    float *partials;
    product_scratch scratch;
    int64_t ff_stride;

    // On the host, pinned.
    float *host_logits;   // (max_logits, n_vocab)
    int32_t *host_tokens; // (max_logits)
    bool has_host_logits;
};

// A step that becomes a graph: decoding repeats, and its collectives, if any, can be captured.
static inline bool step_is_captured(const backend_state *state) {
    return state->shape.n_runs == 0 && (!state->ranks || state->ranks->queued);
}

// step_ops.cu: queues the verbs of the step, and the sampling if it is sampled.
int cuda_queue_step(backend_state *state, flute_error *err);

#endif
