#include "kernels/cpu/state.h"

#include <stdlib.h>

#include "engine/base/fail.h"

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

static size_t state_carve(backend_state *s, uint8_t *memory) {
    const kernel_dims *dims = &s->step.dims;
    const int most = dims->max_rows > dims->max_logits ? dims->max_rows : dims->max_logits;
    const size_t rows = (size_t)most, hidden = (size_t)dims->hidden, f = sizeof(float);
    const size_t half = (size_t)dims->head_dim / 2;
    const int64_t heads = (int64_t)dims->n_heads * dims->head_dim;
    carver c = {memory, 0};
    for (int i = 0; i < ROPE_TABLES; i++) {
        s->ropes[i].cosines = carve(&c, rows * half, f);
        s->ropes[i].sines = carve(&c, rows * half, f);
    }
    s->x = carve(&c, rows * hidden, f);
    const int64_t widest = max64(heads, dims->n_ff) + (s->step.comm ? 2 * MAX_UNIT_COLS : 0);
    s->normed =
        carve(&c, rows * (size_t)max64(s->step.comm ? widest : 0, round_up(dims->hidden, PANEL_ROWS)), f);
    s->prepared = carve(&c, s->kernels->prepared_bytes(most, max64(widest, dims->hidden)), 1);
    s->qkv = carve(&c, rows * (size_t)cpu_qkv_width(dims), f);
    s->attn = carve(&c, rows * (size_t)heads, f);
    s->ff = carve(&c, rows * (size_t)dims->n_ff, f);
    s->gains = carve(&c, 4 * half, f);
    s->chunks = carve(&c, (size_t)threads_count(s->pool) * rows * CHUNK_COLS, f);
    return c.used;
}

void cpu_state_free(backend_state *state) {
    if (!state) return;
    free(state->memory);
    host_step_free(&state->step);
    free(state);
}

int cpu_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
    backend_state *state = calloc(1, sizeof *state);
    if (!state) return fail_memory(err, sizeof *state, "the state of a forward step");
    state->pool = ((cpu_backend *)be)->pool;
    state->kernels = ((cpu_backend *)be)->kernels;
    if (host_step_create(&state->step, be, dims, PANEL_ROWS, err)) goto error;
    state->memory = host_allocate(state_carve(state, NULL), "the buffers of a forward step", err);
    if (!state->memory) goto error;
    state_carve(state, (uint8_t *)state->memory);
    *out = state;
    return FLUTE_OK;
error:
    cpu_state_free(state);
    return FLUTE_ENOMEM;
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
    return host_kv_create((size_t)block_stride(dims, block_tokens) * sizeof(bf16), block_tokens, n_blocks,
                          pool, err);
}

void cpu_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from, kv_pool *target,
                       int to) {
    (void)be;
    host_kv_copy_block((size_t)block_stride(dims, source->block_tokens) * sizeof(bf16), source, from, target,
                       to);
}

cpu_kv cpu_cached_head(const backend_state *state, int layer, int kv_head, int row) {
    const kernel_dims *dims = &state->step.dims;
    const int block_tokens = state->step.cache.block_tokens;
    const int64_t index = (int64_t)layer * dims->n_kv_heads + kv_head;
    return (cpu_kv){.data = (bf16 *)state->step.cache.data + index * head_stride(dims, block_tokens),
                    .block_stride = block_stride(dims, block_tokens),
                    .blocks = host_row_table(&state->step, row),
                    .block_tokens = block_tokens,
                    .padded_tokens = (int)padded_tokens(block_tokens),
                    .head_dim = dims->head_dim};
}

void cpu_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
    host_begin(state, batch, pool);
    for (int i = 0; i < ROPE_TABLES; i++) state->ropes[i].inv_freq = NULL;
}

void cpu_parallel(backend_state *state, int64_t n, int64_t work, threads_chunk *chunk, void *argument) {
    if (n * work < INLINE_WORK) {
        chunk(argument, 0, n, 0);
        return;
    }
    const int64_t grain = n / (4 * (int64_t)threads_count(state->pool));
    threads_for(state->pool, n, grain > 0 ? grain : 1, chunk, argument);
}
