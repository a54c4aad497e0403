// The walk through a model: one forward step in the seven verbs, written once for all architectures.
#ifndef FLUTE_GRAPH_H
#define FLUTE_GRAPH_H

#include "models/arch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct model_weights {
    const weight
        *tensors;       // indexed as arch_tensor_at; absent ones have data == NULL; a tied model has no head
    float *inv_freq[2]; // (head_dim / 2) each, for arch.rope
} model_weights;

// Runs the rows of batch through the model. Logits of batch->logits_rows are in state afterwards; with
// samples not NULL (n_logits of them) tokens are, too.
int graph_forward(const arch *a, const model_weights *weights, backend *be, backend_state *state,
                  kv_pool *pool, const kernel_batch *batch, const sample_args *samples, flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
