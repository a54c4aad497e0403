// One forward step: rows of one or several sequences are collected into a batch and run through the model.
// Everything that a step needs is allocated by step_reserve, so that decoding allocates nothing.
#ifndef FLUTE_STEP_H
#define FLUTE_STEP_H

#include "engine/kv_cache.h"
#include "engine/shard.h"
#include "models/graph.h"

typedef struct step {
    const arch *arch;
    const shard *shard;
    const struct lead *lead; // tells the other ranks; NULL: there are none
    const model_weights *weights;
    backend *be;
    backend_state *state; // made for max_rows and max_logits
    int max_rows, max_logits, max_sequences, max_blocks;
    kernel_batch batch;    // points to the arrays below
    int32_t *ids;          // (max_rows)
    int32_t *positions;    // (max_rows)
    int32_t *sequences;    // (max_rows)
    int32_t *logits_rows;  // (max_rows)
    int32_t *block_tables; // (max_sequences, max_blocks)
    sample_args *samples;  // (max_logits)
} step;

// Which rows of a sequence's piece reach the head.
typedef enum step_logits { STEP_NO_LOGITS, STEP_LAST_LOGITS, STEP_ALL_LOGITS } step_logits;

void step_init(step *s, const arch *a, const shard *own, const model_weights *weights, backend *be);
void step_free(step *s); // accepts a zeroed one

// Makes room for steps of at least these sizes; what was larger stays so. On failure the step takes at least
// what it did before.
int step_reserve(step *s, int max_rows, int max_logits, int max_sequences, int max_blocks, flute_error *err);

// Collects: step_begin, then step_add for every sequence, then step_run. The ids stand at positions
// sequence->length - n and on (kv_sequence_append comes first).
void step_begin(step *s);
void step_add(step *s, const kv_sequence *sequence, const int32_t *ids, int n, step_logits logits);
// With sample set, s->samples[0 … n_logits − 1] must be filled in and tokens are drawn in the same step.
int step_run(step *s, kv_pool *pool, bool sample, flute_error *err);

#endif
