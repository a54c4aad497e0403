#include "engine/step.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/lead.h"

void step_init(step *s, const arch *a, const shard *own, const model_weights *weights, backend *be) {
    *s = (step){.arch = a, .shard = own, .weights = weights, .be = be};
}

static void free_arrays(step *s) {
    free(s->ids);
    free(s->positions);
    free(s->sequences);
    free(s->logits_rows);
    free(s->block_tables);
    free(s->samples);
}

void step_free(step *s) {
    if (s->state) s->be->ops->state_free(s->state);
    free_arrays(s);
    *s = (step){0};
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

int step_reserve(step *s, int max_rows, int max_logits, int max_sequences, int max_blocks, flute_error *err) {
    step next = {.arch = s->arch,
                 .shard = s->shard,
                 .lead = s->lead,
                 .weights = s->weights,
                 .be = s->be,
                 .state = s->state,
                 .max_rows = larger(s->max_rows, max_rows),
                 .max_logits = larger(s->max_logits, max_logits),
                 .max_sequences = larger(s->max_sequences, max_sequences),
                 .max_blocks = larger(s->max_blocks, max_blocks)};
    const bool same_state = next.max_rows == s->max_rows && next.max_logits == s->max_logits;
    if (same_state && next.max_sequences == s->max_sequences && next.max_blocks == s->max_blocks)
        return FLUTE_OK;

    const size_t rows = (size_t)next.max_rows;
    const size_t entries = (size_t)next.max_sequences * (size_t)next.max_blocks;
    next.ids = malloc(rows * sizeof *next.ids);
    next.positions = malloc(rows * sizeof *next.positions);
    next.sequences = malloc(rows * sizeof *next.sequences);
    next.logits_rows = malloc(rows * sizeof *next.logits_rows);
    next.block_tables = malloc(entries * sizeof *next.block_tables);
    next.samples = malloc((size_t)next.max_logits * sizeof *next.samples);
    int code = FLUTE_OK;
    if (!next.ids || !next.positions || !next.sequences || !next.logits_rows || !next.block_tables ||
        !next.samples)
        code = fail_memory(err, (4 * rows + entries) * sizeof *next.ids, "the rows of a forward step");
    if (!code) {
        const reserve_message sizes = {next.max_rows, next.max_logits, next.max_sequences, next.max_blocks};
        code = lead_reserve(s->lead, &sizes, err);
    }
    if (!code && !same_state) {
        kernel_dims dims;
        shard_kernel_dims(s->shard, s->arch, next.max_rows, next.max_logits, &dims);
        code = s->be->ops->state_create(s->be, &dims, &next.state, err);
        if (code) code = lead_reserved(s->lead, code, err);
    }
    if (code) {
        free_arrays(&next);
        return code;
    }
    if (!same_state && s->state) s->be->ops->state_free(s->state);
    free_arrays(s);
    *s = next;
    return lead_reserved(s->lead, FLUTE_OK, err); // if it failed elsewhere, room to spare here does no harm
}

void step_begin(step *s) {
    s->batch = (kernel_batch){.ids = s->ids,
                              .positions = s->positions,
                              .sequences = s->sequences,
                              .max_blocks = s->max_blocks,
                              .block_tables = s->block_tables,
                              .logits_rows = s->logits_rows};
}

void step_add(step *s, const kv_sequence *sequence, const int32_t *ids, int n, step_logits logits) {
    kernel_batch *batch = &s->batch;
    assert(n > 0 && batch->n_rows + n <= s->max_rows && batch->n_sequences < s->max_sequences);
    assert(sequence->length >= n && sequence->n_blocks <= s->max_blocks);
    memcpy(s->block_tables + (size_t)batch->n_sequences * (size_t)s->max_blocks, sequence->blocks,
           (size_t)sequence->n_blocks * sizeof *s->block_tables);
    for (int i = 0; i < n; i++) {
        const int row = batch->n_rows++;
        s->ids[row] = ids[i];
        s->positions[row] = sequence->length - n + i;
        s->sequences[row] = batch->n_sequences;
        if (logits == STEP_ALL_LOGITS || (logits == STEP_LAST_LOGITS && i == n - 1)) {
            assert(batch->n_logits < s->max_logits);
            s->logits_rows[batch->n_logits++] = row;
        }
    }
    batch->n_sequences++;
}

int step_run(step *s, kv_pool *pool, bool sample, flute_error *err) {
    int code = lead_step(s->lead, &s->batch, err);
    if (!code)
        code = graph_forward(s->arch, s->weights, s->be, s->state, pool, &s->batch,
                             sample ? s->samples : NULL, err);
    return lead_failure(s->lead, code, err);
}
