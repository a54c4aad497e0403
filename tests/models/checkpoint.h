// What tests of whole models share: a checkpoint as dense weights in memory, its golden figures, and a runner
// of forward steps over a backend.
#ifndef FLUTE_TESTS_MODELS_CHECKPOINT_H
#define FLUTE_TESTS_MODELS_CHECKPOINT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/safetensors.h"
#include "kernels/layout.h"
#include "models/graph.h"

static inline void check(int code, const flute_error *err) {
    if (code) fail_msg("%s: %s", flute_code_text(code), err->message);
}

static inline void *allocate(size_t n, size_t size) {
    void *memory = calloc(n > 0 ? n : 1, size);
    assert_non_null(memory);
    return memory;
}

typedef struct checkpoint {
    arch arch;
    weight *tensors; // (arch_n_tensors), dense, rows fused as arch_tensor_at says
    model_weights weights;
} checkpoint;

// Copies rows of the checkpoint's matrices to where the stored order has them. 16-bit tensors keep their
// type.
static inline void checkpoint_fuse(const safetensors *from, const arch_tensor *shape, weight *out) {
    flute_error err = {0};
    safetensors_tensor sources[3];
    for (int i = 0; i < shape->n_sources; i++)
        check(safetensors_find(from, shape->sources[i].name, shape->sources[i].n_rows, shape->n_cols,
                               &sources[i], &err),
              &err);
    const size_t row_bytes = (size_t)shape->n_cols * (size_t)weight_type_bits(sources[0].type) / 8;
    uint8_t *data = (uint8_t *)allocate((size_t)shape->n_rows, row_bytes);
    for (int64_t row = 0; row < shape->n_rows; row++) {
        row_source source = layout_row_source(shape->order, &shape->dims, row);
        if (source.row < 0) continue; // padding stays zero
        assert_int_equal(sources[source.source].type, sources[0].type);
        memcpy(data + (size_t)row * row_bytes, sources[source.source].data + (size_t)source.row * row_bytes,
               row_bytes);
    }
    *out = (weight){.type = sources[0].type,
                    .n_rows = shape->n_rows,
                    .n_cols = shape->n_cols,
                    .data = data,
                    .size = (size_t)shape->n_rows * row_bytes};
}

static inline checkpoint *checkpoint_open(const char *folder) {
    char path[4096];
    flute_error err = {0};
    checkpoint *model = (checkpoint *)allocate(1, sizeof *model);
    snprintf(path, sizeof path, "%s/config.json", folder);
    yyjson_doc *config = json_parse_file(path, &err);
    if (!config) fail_msg("%s", err.message);
    check(arch_from_config(&model->arch, yyjson_doc_get_root(config), NULL, path, &err), &err);
    yyjson_doc_free(config);

    safetensors *from = NULL;
    check(safetensors_open(&from, folder, &err), &err);
    const int n_tensors = arch_n_tensors(&model->arch);
    model->tensors = (weight *)allocate((size_t)n_tensors, sizeof *model->tensors);
    for (int i = 0; i < n_tensors; i++) {
        arch_tensor shape;
        arch_tensor_at(&model->arch, i, &shape);
        if (shape.role != ROLE_ABSENT) checkpoint_fuse(from, &shape, &model->tensors[i]);
    }
    safetensors_free(from);

    model->weights.tensors = model->tensors;
    for (int i = 0; i < model->arch.n_ropes; i++) {
        model->weights.inv_freq[i] = (float *)allocate((size_t)model->arch.head_dim / 2, sizeof(float));
        rope_inv_freq(&model->arch.rope[i], model->arch.head_dim, model->weights.inv_freq[i]);
    }
    return model;
}

static inline void checkpoint_free(checkpoint *model) {
    for (int i = 0; i < arch_n_tensors(&model->arch); i++) free((void *)model->tensors[i].data);
    for (int i = 0; i < 2; i++) free(model->weights.inv_freq[i]);
    free(model->tensors);
    free(model);
}

// A JSON array of integers; the caller frees.
static inline int32_t *json_ids(yyjson_val *object, const char *key, int *n) {
    yyjson_val *array = yyjson_obj_get(object, key);
    assert_true(yyjson_is_arr(array));
    *n = (int)yyjson_arr_size(array);
    int32_t *ids = (int32_t *)allocate((size_t)*n, sizeof *ids);
    for (int i = 0; i < *n; i++) ids[i] = (int32_t)yyjson_get_int(yyjson_arr_get(array, (size_t)i));
    return ids;
}

// A backend with the model's cache and buffers. Sequence s takes the blocks s, s + n_sequences, … in falling
// order, so that no two neighbours are adjacent.
typedef struct runner {
    const checkpoint *model;
    backend *be;
    backend_state *state;
    kernel_dims dims;
    kv_pool cache;
    int n_sequences, max_blocks;
    int32_t *tables; // (n_sequences, max_blocks)
} runner;

static inline void runner_open(runner *run, const checkpoint *model, backend *be, int n_sequences,
                               int n_tokens, int block_tokens, int max_rows) {
    flute_error err = {0};
    const int max_blocks = (n_tokens + block_tokens - 1) / block_tokens, n_blocks = max_blocks * n_sequences;
    *run = (runner){.model = model, .be = be, .n_sequences = n_sequences, .max_blocks = max_blocks};
    arch_kernel_dims(&model->arch, max_rows, max_rows, &run->dims);
    check(be->ops->kv_create(be, &run->dims, block_tokens, n_blocks, &run->cache, &err), &err);
    check(be->ops->state_create(be, &run->dims, &run->state, &err), &err);
    run->tables = (int32_t *)allocate((size_t)n_blocks, sizeof *run->tables);
    for (int i = 0; i < n_blocks; i++)
        run->tables[i] = n_blocks - 1 - (i % max_blocks * n_sequences + i / max_blocks);
}

static inline void runner_close(runner *run) {
    run->be->ops->state_free(run->state);
    run->be->ops->kv_free(run->be, &run->cache);
    free(run->tables);
}

// A piece of a sequence: rows for one forward step.
typedef struct piece {
    int sequence, position, n;
    const int32_t *ids;
} piece;

// One step over the pieces, in order. logits: (rows, n_vocab) or NULL: none wanted. greedy: (1) the token
// after the last row, or NULL.
static inline int runner_step(runner *run, const piece *pieces, int n_pieces, float *logits, int32_t *greedy,
                              flute_error *err) {
    enum { MAX_ROWS = 512 };
    int32_t ids[MAX_ROWS], positions[MAX_ROWS], sequences[MAX_ROWS], rows[MAX_ROWS];
    int n_rows = 0;
    for (int p = 0; p < n_pieces; p++)
        for (int i = 0; i < pieces[p].n; i++, n_rows++) {
            assert_true(n_rows < MAX_ROWS);
            ids[n_rows] = pieces[p].ids[i];
            positions[n_rows] = pieces[p].position + i;
            sequences[n_rows] = pieces[p].sequence;
            rows[n_rows] = n_rows;
        }
    const int first_logits = logits ? 0 : n_rows - 1;
    kernel_batch batch = {.n_rows = n_rows,
                          .ids = ids,
                          .positions = positions,
                          .sequences = sequences,
                          .n_sequences = run->n_sequences,
                          .max_blocks = run->max_blocks,
                          .block_tables = run->tables,
                          .n_logits = logits || greedy ? n_rows - first_logits : 0,
                          .logits_rows = rows + first_logits};
    sample_args samples[MAX_ROWS] = {{0}}; // greedy, no penalties
    int code = graph_forward(&run->model->arch, &run->model->weights, run->be, run->state, &run->cache,
                             &batch, greedy ? samples : NULL, err);
    if (code) return code;
    const size_t n_vocab = (size_t)run->dims.n_vocab;
    for (int i = 0; i < n_rows && logits; i++)
        memcpy(logits + (size_t)i * n_vocab, run->be->ops->logits(run->state, i), n_vocab * sizeof(float));
    if (greedy) *greedy = run->be->ops->tokens(run->state)[batch.n_logits - 1];
    return FLUTE_OK;
}

#endif
