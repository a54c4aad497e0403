// How a model is cut: the parts of all ranks make up the whole, each weight where it belongs, for every kind
// of tensor, width and number of ranks.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/json.h"
#include "engine/shard.h"

enum { MAX_RANKS = 16 };

static arch arch_of(int hidden, int heads, int kv_heads, int head_dim, int ff, int vocab) {
    char config[512];
    arch a;
    flute_error err;
    snprintf(config, sizeof config,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":1,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,"
             "\"vocab_size\":%d}",
             hidden, ff, heads, kv_heads, head_dim, vocab);
    yyjson_doc *doc = json_parse(config, strlen(config), "config", &err);
    assert_non_null(doc);
    if (arch_from_config(&a, yyjson_doc_get_root(doc), NULL, "config", &err)) fail_msg("%s", err.message);
    yyjson_doc_free(doc);
    return a;
}

// Tensors with random contents, quantized where the group divides K.
static weight *tensors_of(const arch *a, weight_type type, int group) {
    weight *tensors = calloc((size_t)arch_n_tensors(a), sizeof *tensors);
    for (int i = 0; i < arch_n_tensors(a); i++) {
        arch_tensor t;
        arch_tensor_at(a, i, &t);
        if (t.role == ROLE_ABSENT) continue;
        weight *w = &tensors[i];
        *w = (weight){.type = WEIGHT_BF16, .n_rows = t.n_rows, .n_cols = t.n_cols};
        w->size = (size_t)(t.n_rows * t.n_cols) * sizeof(bf16);
        if (t.role != ROLE_NORM && weight_is_quantized(type) && t.n_cols % group == 0) {
            w->type = type;
            w->group_size = group;
            for (int code = 0; code < 16; code++) w->table[code] = bf16_from_float((float)code - 7.5f);
            w->size = layout_matrix_bytes(type, t.n_rows, t.n_cols, group);
        }
        uint8_t *bytes = malloc(w->size);
        assert_non_null(bytes);
        if (weight_is_quantized(w->type))
            layout_random_panels(type, t.n_cols, group, 0, layout_padded_rows(t.n_rows) / PANEL_ROWS,
                                 (uint64_t)i, 1, bytes);
        else
            for (size_t k = 0; k < w->size / sizeof(bf16); k++)
                ((bf16 *)(void *)bytes)[k] = bf16_from_float((float)(k % 251) - 100);
        w->data = bytes;
    }
    return tensors;
}

static void free_tensors(const arch *a, weight *tensors) {
    for (int i = 0; i < arch_n_tensors(a); i++) free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
}

// The row of the whole matrix that row `row` of a rank's part is.
static int64_t whole_row(const shard *s, const arch *a, int index, const weight *part, int64_t row) {
    const int64_t n_queries = a->n_heads / a->n_kv_heads;
    if (index != arch_layer_tensor(0, SLOT_QKV)) return part->first_row + row;
    const int64_t own = s->kv_heads.n > 0 ? s->heads.n / s->kv_heads.n : 0, width = (own + 2) * a->head_dim;
    const int64_t group = row / width, head = row % width / a->head_dim;
    const int64_t query = s->heads.first - s->kv_heads.first * n_queries; // 0 for whole groups
    const int64_t place = head < own ? query + head : n_queries + head - own;
    return ((s->kv_heads.first + group) * (n_queries + 2) + place) * a->head_dim + row % a->head_dim;
}

// What is kept of the whole tensor, as it comes in chunks, is the same part.
static void check_keep(const weight *whole, const weight *part, const layout_span *spans, int n_spans) {
    enum { CHUNK = 1000 };
    weight kept = *whole;
    void *room = calloc(whole->size, 1), *parts[2] = {malloc(part->size), malloc(part->size)};
    assert_true(room && parts[0] && parts[1]);
    kept.data = room;
    for (size_t at = 0; at < whole->size; at += CHUNK)
        for (int s = 0; s < n_spans; s++)
            shard_keep(&spans[s], (const uint8_t *)whole->data + at, at,
                       whole->size - at < CHUNK ? whole->size - at : CHUNK, room);
    shard_copy(whole, spans, n_spans, parts[0]);
    shard_copy(&kept, spans, n_spans, parts[1]);
    assert_memory_equal(parts[0], parts[1], part->size);
    free(room);
    for (int i = 0; i < 2; i++) free(parts[i]);
}

// Every value of a part; counts[row of the whole, column] how many ranks have it as their own.
static void check_part(const shard *s, const arch *a, int index, const weight *whole, uint8_t *counts) {
    weight part;
    layout_span spans[2];
    const int n_spans = shard_weight(s, a, index, whole, &part, spans);
    if (n_spans == 0) {
        assert_null(part.data);
        return;
    }
    check_keep(whole, &part, spans, n_spans);
    void *copy = NULL;
    if (!part.data) {
        copy = malloc(part.size);
        assert_non_null(copy);
        shard_copy(whole, spans, n_spans, copy);
        part.data = copy;
    }
    const int slot = index < N_MODEL_TENSORS ? -1 : (index - N_MODEL_TENSORS) % N_LAYER_SLOTS;
    int64_t first_col = 0, n_own = whole->n_cols;
    if (slot == SLOT_O_PROJ) first_col = s->heads.first * a->head_dim, n_own = s->heads.n * a->head_dim;
    if (slot == SLOT_DOWN_PROJ) first_col = s->ff.first, n_own = s->ff.n;
    assert_true(part.lead_cols >= 0 && part.lead_cols + n_own <= part.n_cols);
    assert_true(part.n_cols < n_own + 2 * 256); // nothing but the rest of two units
    for (int64_t row = 0; row < part.n_rows; row++) {
        const int64_t from = whole_row(s, a, index, &part, row);
        assert_true(from < whole->n_rows);
        for (int64_t col = 0; col < part.n_cols; col++) {
            const int64_t at = first_col - part.lead_cols + col;
            if (weight_value(&part, row, col) != weight_value(whole, from, at))
                fail_msg("rank %d of %d, tensor %d: (%d, %d) is not (%d, %d)", s->rank, s->size, index,
                         (int)row, (int)col, (int)from, (int)at);
            if (col >= part.lead_cols && col < part.lead_cols + n_own) counts[from * whole->n_cols + at]++;
        }
    }
    free(copy);
}

// How many ranks must have a row: all have norms; those that share a KV head have its k and v.
static void check_counts(const arch *a, int index, const weight *whole, int size, const uint8_t *counts) {
    arch_tensor t;
    arch_tensor_at(a, index, &t);
    const int64_t n_queries = a->n_heads / a->n_kv_heads;
    for (int64_t i = 0; i < whole->n_rows * whole->n_cols; i++) {
        const int64_t head = i / whole->n_cols / a->head_dim % (n_queries + 2);
        if (t.role == ROLE_NORM)
            assert_int_equal(counts[i], size);
        else if (index == arch_layer_tensor(0, SLOT_QKV) && head >= n_queries)
            assert_true(counts[i] >= 1);
        else
            assert_int_equal(counts[i], 1);
    }
}

static void check_model(const arch *a, weight_type type, int group) {
    static const int sizes[] = {1, 2, 3, 4, 5, 8, MAX_RANKS};
    weight *tensors = tensors_of(a, type, group);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        shard shards[MAX_RANKS];
        for (int rank = 0; rank < sizes[i]; rank++) shard_init(&shards[rank], a, tensors, rank, sizes[i]);
        for (int index = 0; index < arch_n_tensors(a); index++) {
            const weight *whole = &tensors[index];
            if (!whole->data) continue;
            uint8_t *counts = calloc((size_t)(whole->n_rows * whole->n_cols), 1);
            assert_non_null(counts);
            for (int rank = 0; rank < sizes[i]; rank++) check_part(&shards[rank], a, index, whole, counts);
            check_counts(a, index, whole, sizes[i], counts);
            free(counts);
        }
    }
    free_tensors(a, tensors);
}

static void test_parts(void **state) {
    (void)state;
    const arch odd = arch_of(192, 6, 3, 48, 352, 777); // no unit is filled, no number of ranks divides
    const arch grouped = arch_of(128, 8, 2, 32, 640, 100);
    const arch single = arch_of(128, 3, 1, 64, 24, 33); // one KV head
    check_model(&odd, WEIGHT_LUT4, 32);
    check_model(&odd, WEIGHT_LUT3, 32);
    check_model(&grouped, WEIGHT_LUT2, 128);
    check_model(&grouped, WEIGHT_INT8, 64);
    check_model(&grouped, WEIGHT_LUT4, 256); // o_proj: 256 columns, one unit
    check_model(&single, WEIGHT_LUT3, 64);
    check_model(&single, WEIGHT_BF16, 0);
}

// A single rank's part is the file itself: nothing is copied.
static void test_alone(void **state) {
    (void)state;
    const arch a = arch_of(192, 6, 3, 48, 352, 777);
    weight *tensors = tensors_of(&a, WEIGHT_LUT3, 32);
    shard s;
    kernel_dims dims, whole;
    shard_init(&s, &a, tensors, 0, 1);
    for (int i = 0; i < arch_n_tensors(&a); i++) {
        weight part;
        layout_span spans[2];
        if (!tensors[i].data) continue;
        assert_int_equal(shard_weight(&s, &a, i, &tensors[i], &part, spans), 1);
        assert_memory_equal(&part, &tensors[i], sizeof part);
    }
    shard_kernel_dims(&s, &a, 7, 3, &dims);
    arch_kernel_dims(&a, 7, 3, &whole);
    assert_memory_equal(&dims, &whole, sizeof dims);
    free_tensors(&a, tensors);
}

// 11008 channels on 8 ranks: units of 128, 11 or 10 to a rank, none read twice.
static void test_llama2_channels(void **state) {
    (void)state;
    arch a = arch_of(4096, 32, 32, 128, 11008, 32000);
    weight *tensors = calloc((size_t)arch_n_tensors(&a), sizeof *tensors);
    tensors[arch_layer_tensor(0, SLOT_DOWN_PROJ)] = (weight){.type = WEIGHT_LUT4, .group_size = 128};
    int64_t next = 0;
    for (int rank = 0; rank < 8; rank++) {
        shard s;
        shard_init(&s, &a, tensors, rank, 8);
        assert_int_equal(s.ff.first, next);
        assert_int_equal(s.ff.n, rank < 6 ? 11 * 128 : 10 * 128);
        assert_int_equal(s.heads.n, 4);
        next += s.ff.n;
    }
    assert_int_equal(next, 11008);
    free(tensors);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_llama2_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
