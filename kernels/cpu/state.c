#include "kernels/cpu/state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "kernels/batch.h"
#include "kernels/sample.h"

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Buffers. They are laid out twice by the same code: without memory, for the size, and then with it.

typedef struct carver {
    uint8_t *memory; // NULL: measuring
    size_t used;
} carver;

static void *carve(carver *c, size_t n, size_t size) {
    void *at = c->memory ? c->memory + c->used : NULL;
    c->used += (n * size + 127) / 64 * 64; // a cache line to itself, and one that vector loads may run into
    return at;
}

int64_t cpu_qkv_width(const kernel_dims *dims) {
    return (int64_t)(dims->n_heads + 2 * dims->n_kv_heads) * dims->head_dim;
}

int64_t cpu_slot_width(const backend_state *s) {
    return round_up(layout_share_rows(s->dims.n_vocab, 0, s->comm->size).n, PANEL_ROWS);
}

static size_t state_carve(backend_state *s, uint8_t *memory) {
    const kernel_dims *dims = &s->dims;
    const int most = dims->max_rows > dims->max_logits ? dims->max_rows : dims->max_logits;
    const size_t rows = (size_t)most, hidden = (size_t)dims->hidden, f = sizeof(float);
    const size_t n_logits = (size_t)dims->max_logits, half = (size_t)dims->head_dim / 2;
    const int64_t heads = (int64_t)dims->n_heads * dims->head_dim;
    carver c = {memory, 0};
    s->ids = carve(&c, rows, sizeof *s->ids);
    s->positions = carve(&c, rows, sizeof *s->positions);
    s->sequences = carve(&c, rows, sizeof *s->sequences);
    s->logits_rows = carve(&c, n_logits, sizeof *s->logits_rows);
    for (int i = 0; i < ROPE_TABLES; i++) {
        s->ropes[i].cosines = carve(&c, rows * half, f);
        s->ropes[i].sines = carve(&c, rows * half, f);
    }
    s->x = carve(&c, rows * hidden, f);
    const int64_t widest = max64(heads, dims->n_ff) + (s->comm ? 2 * MAX_UNIT_COLS : 0);
    s->normed = carve(&c, rows * (size_t)max64(s->comm ? widest : 0, round_up(dims->hidden, PANEL_ROWS)), f);
    s->prepared = carve(&c, s->kernels->prepared_bytes(most, max64(widest, dims->hidden)), 1);
    s->qkv = carve(&c, rows * (size_t)cpu_qkv_width(dims), f);
    s->attn = carve(&c, rows * (size_t)heads, f);
    s->ff = carve(&c, rows * (size_t)dims->n_ff, f);
    s->gains = carve(&c, 4 * half, f);
    s->chunks = carve(&c, (size_t)threads_count(s->pool) * rows * CHUNK_COLS, f);
    s->logits_stride = round_up(dims->n_vocab, PANEL_ROWS);
    s->logits = carve(&c, n_logits * (size_t)s->logits_stride, f);
    if (s->comm) s->slots = carve(&c, (size_t)s->comm->size * n_logits * (size_t)cpu_slot_width(s), f);
    s->tokens = carve(&c, n_logits, sizeof *s->tokens);
    s->sample_scratch = carve(&c, 1, sample_scratch_bytes(dims->n_vocab));
    return c.used;
}

void cpu_state_free(backend_state *state) {
    if (!state) return;
    free(state->memory);
    free(state->tables);
    free(state);
}

int cpu_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
    const cpu_backend *cpu = (const cpu_backend *)be;
    assert(dims->head_dim % 16 == 0 && (dims->n_heads == 0 || dims->n_heads % dims->n_kv_heads == 0));
    backend_state *state = calloc(1, sizeof *state);
    if (!state) return fail_memory(err, sizeof *state, "the state of a forward step");
    state->pool = cpu->pool;
    state->kernels = cpu->kernels;
    state->comm = be->comm;
    state->dims = *dims;
    const size_t bytes = state_carve(state, NULL);
    if (posix_memalign(&state->memory, 4096, bytes) != 0) {
        state->memory = NULL;
        cpu_state_free(state);
        return fail_memory(err, bytes, "the buffers of a forward step");
    }
    memset(state->memory, 0, bytes); // touched now rather than in the first token
    state_carve(state, (uint8_t *)state->memory);
    *out = state;
    return FLUTE_OK;
}

// The cache.

static int64_t padded_tokens(int block_tokens) {
    return round_up(block_tokens, CPU_KV_TOKENS);
}

// Elements of one KV head of one layer in one block: its keys, and as many for its values.
static int64_t head_stride(const kernel_dims *dims, int block_tokens) {
    return 2 * dims->head_dim * padded_tokens(block_tokens);
}

static int64_t block_stride(const kernel_dims *dims, int block_tokens) {
    return (int64_t)dims->n_layers * dims->n_kv_heads * head_stride(dims, block_tokens);
}

size_t cpu_kv_bytes(backend *be, const kernel_dims *dims, int64_t n_tokens) {
    (void)be;
    return (size_t)n_tokens * (size_t)(dims->n_layers * dims->n_kv_heads) * 2 * (size_t)dims->head_dim *
           sizeof(bf16);
}

int cpu_kv_create(backend *be, const kernel_dims *dims, int block_tokens, int n_blocks, kv_pool *pool,
                  flute_error *err) {
    (void)be;
    const size_t bytes = (size_t)n_blocks * (size_t)block_stride(dims, block_tokens) * sizeof(bf16);
    void *data = calloc(bytes > 0 ? bytes : 1, 1);
    if (!data) return fail_memory(err, bytes, "the KV cache; ask for a smaller context with -c");
    *pool = (kv_pool){.block_tokens = block_tokens, .n_blocks = n_blocks, .data = data};
    return FLUTE_OK;
}

void cpu_kv_free(backend *be, kv_pool *pool) {
    (void)be;
    free(pool->data);
    *pool = (kv_pool){0};
}

void cpu_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from, kv_pool *target,
                       int to) {
    (void)be;
    const int64_t stride = block_stride(dims, source->block_tokens);
    assert(source->block_tokens == target->block_tokens);
    memcpy((bf16 *)target->data + to * stride, (const bf16 *)source->data + from * stride,
           (size_t)stride * sizeof(bf16));
}

cpu_kv cpu_cached_head(const backend_state *state, int layer, int kv_head, int row) {
    const kernel_dims *dims = &state->dims;
    const int block_tokens = state->cache.block_tokens;
    const int64_t index = (int64_t)layer * dims->n_kv_heads + kv_head;
    return (cpu_kv){.data = (bf16 *)state->cache.data + index * head_stride(dims, block_tokens),
                    .block_stride = block_stride(dims, block_tokens),
                    .blocks = state->tables + (int64_t)state->sequences[row] * state->max_blocks,
                    .block_tokens = block_tokens,
                    .padded_tokens = (int)padded_tokens(block_tokens),
                    .head_dim = dims->head_dim};
}

// Begin and finish.

static int reserve_tables(backend_state *state, size_t n, flute_error *err) {
    if (n <= state->tables_capacity) return FLUTE_OK;
    int32_t *tables = realloc(state->tables, n * sizeof *tables);
    if (!tables) return fail_memory(err, n * sizeof *tables, "block tables");
    state->tables = tables;
    state->tables_capacity = n;
    return FLUTE_OK;
}

void cpu_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
    const size_t n_rows = (size_t)batch->n_rows, n_logits = (size_t)batch->n_logits;
    const size_t n_table = (size_t)batch->n_sequences * (size_t)batch->max_blocks;
    state->error = (flute_error){0};
    if (kernel_batch_check(batch, &state->dims, pool, &state->error)) return;
    if (reserve_tables(state, n_table, &state->error)) return;
    state->n_rows = batch->n_rows;
    state->n_logits = batch->n_logits;
    state->max_blocks = batch->max_blocks;
    state->cache = *pool;
    for (int i = 0; i < ROPE_TABLES; i++) state->ropes[i].inv_freq = NULL;
    memcpy(state->ids, batch->ids, n_rows * sizeof *state->ids);
    memcpy(state->positions, batch->positions, n_rows * sizeof *state->positions);
    memcpy(state->sequences, batch->sequences, n_rows * sizeof *state->sequences);
    memcpy(state->tables, batch->block_tables, n_table * sizeof *state->tables);
    if (n_logits) memcpy(state->logits_rows, batch->logits_rows, n_logits * sizeof *state->logits_rows);
}

int cpu_finish(backend_state *state, flute_error *err) {
    return state->error.code ? fail(err, state->error.code, "%s", state->error.message) : FLUTE_OK;
}

void cpu_parallel(backend_state *state, int64_t n, int64_t work, threads_chunk *chunk, void *argument) {
    if (n * work < INLINE_WORK) {
        chunk(argument, 0, n, 0);
        return;
    }
    const int64_t grain = n / (4 * (int64_t)threads_count(state->pool));
    threads_for(state->pool, n, grain > 0 ? grain : 1, chunk, argument);
}
