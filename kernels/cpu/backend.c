// The CPU as a backend: the verbs of kernels.h as parallel loops over the kernels of one instruction set.
//
// A layer of one token is five dispatches of the pool (the products, attention); steps that take about a
// microsecond (norms, rotation, cache append of a few rows) run on the caller alone. Which worker computes
// what never changes what is computed, so results do not depend on the number of threads.
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef FLUTE_CPU_X86
#include <cpuid.h>
#endif

#include "engine/base/fail.h"
#include "kernels/batch.h"
#include "kernels/cpu/cpu.h"
#include "kernels/layout.h"
#include "kernels/sample.h"

enum {
    CHUNK_PANELS = 16, // panels that a worker takes at a time: 295 KB of 4-bit weights at K = 2048
    CHUNK_COLS = CHUNK_PANELS * PANEL_ROWS,
    INLINE_WORK = 1 << 15, // elements below which a dispatch costs more than it gains
    ROPE_TABLES = 2,       // frequencies in use within a step: Gemma 3 has two
    MAX_UNIT_COLS = 256,   // what a rank's columns share their first and their last unit with is less
};

typedef struct cpu_backend {
    backend base;
    thread_pool *pool; // borrowed
    const cpu_kernels *kernels;
    char description[128];
} cpu_backend;

typedef struct rope_table {
    const float *inv_freq;  // NULL: not filled in this step
    float *cosines, *sines; // (max_rows, head_dim / 2)
} rope_table;

struct backend_state {
    thread_pool *pool; // borrowed
    const cpu_kernels *kernels;
    comm *comm; // borrowed; NULL: a single rank
    kernel_dims dims;
    flute_error error; // the first one of the step
    void *memory;      // everything below but tables, in one piece

    // The step's batch, copied by begin.
    int n_rows, n_logits, max_blocks;
    int32_t *ids, *positions, *sequences; // (max_rows)
    int32_t *logits_rows;                 // (max_logits)
    int32_t *tables;                      // (n_sequences, max_blocks); grows in begin when tables do
    size_t tables_capacity;               // its elements
    kv_pool cache;
    rope_table ropes[ROPE_TABLES];
    int next_rope;

    float *x;       // (max_rows, hidden) the residual stream
    float *normed;  // (rows, hidden) of the tile that is being prepared, and products before a post-norm
    void *prepared; // activations as the kernels want them
    float *qkv;     // (max_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    float *attn;    // (max_rows, n_heads·head_dim)
    float *ff;      // (max_rows, n_ff)
    float *gains;   // (2, head_dim) norm weights of q and k heads in stored order
    float *chunks;  // (threads, max_rows, CHUNK_COLS) products on their way into x or ff
    float *logits;  // (max_logits, logits_stride)
    int64_t logits_stride;
    float *slots;    // (ranks, n_logits, rows of the head on rank 0, whole panels) of several ranks
    int32_t *tokens; // (max_logits)
    void *sample_scratch;
};

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

static int64_t qkv_width(const kernel_dims *dims) {
    return (int64_t)(dims->n_heads + 2 * dims->n_kv_heads) * dims->head_dim;
}

// Columns of logits that rank 0 computes, the most of all ranks.
static int64_t slot_width(const backend_state *s) {
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
    s->qkv = carve(&c, rows * (size_t)qkv_width(dims), f);
    s->attn = carve(&c, rows * (size_t)heads, f);
    s->ff = carve(&c, rows * (size_t)dims->n_ff, f);
    s->gains = carve(&c, 4 * half, f);
    s->chunks = carve(&c, (size_t)threads_count(s->pool) * rows * CHUNK_COLS, f);
    s->logits_stride = round_up(dims->n_vocab, PANEL_ROWS);
    s->logits = carve(&c, n_logits * (size_t)s->logits_stride, f);
    if (s->comm) s->slots = carve(&c, (size_t)s->comm->size * n_logits * (size_t)slot_width(s), f);
    s->tokens = carve(&c, n_logits, sizeof *s->tokens);
    s->sample_scratch = carve(&c, 1, sample_scratch_bytes(dims->n_vocab));
    return c.used;
}

static void cpu_state_free(backend_state *state) {
    if (!state) return;
    free(state->memory);
    free(state->tables);
    free(state);
}

static int cpu_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
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

static size_t cpu_kv_bytes(backend *be, const kernel_dims *dims, int64_t n_tokens) {
    (void)be;
    return (size_t)n_tokens * (size_t)(dims->n_layers * dims->n_kv_heads) * 2 * (size_t)dims->head_dim *
           sizeof(bf16);
}

static int cpu_kv_create(backend *be, const kernel_dims *dims, int block_tokens, int n_blocks, kv_pool *pool,
                         flute_error *err) {
    (void)be;
    const size_t bytes = (size_t)n_blocks * (size_t)block_stride(dims, block_tokens) * sizeof(bf16);
    void *data = calloc(bytes > 0 ? bytes : 1, 1);
    if (!data) return fail_memory(err, bytes, "the KV cache; ask for a smaller context with -c");
    *pool = (kv_pool){.block_tokens = block_tokens, .n_blocks = n_blocks, .data = data};
    return FLUTE_OK;
}

static void cpu_kv_free(backend *be, kv_pool *pool) {
    (void)be;
    free(pool->data);
    *pool = (kv_pool){0};
}

static void cpu_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from,
                              kv_pool *target, int to) {
    (void)be;
    const int64_t stride = block_stride(dims, source->block_tokens);
    assert(source->block_tokens == target->block_tokens);
    memcpy((bf16 *)target->data + to * stride, (const bf16 *)source->data + from * stride,
           (size_t)stride * sizeof(bf16));
}

static cpu_kv cached_head(const backend_state *state, int layer, int kv_head, int row) {
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

static void cpu_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
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

static int cpu_finish(backend_state *state, flute_error *err) {
    return state->error.code ? fail(err, state->error.code, "%s", state->error.message) : FLUTE_OK;
}

// Runs `chunk` over n items of `work` elements each: on all threads, or on the caller alone where it is not
// worth a dispatch.
static void parallel(backend_state *state, int64_t n, int64_t work, threads_chunk *chunk, void *argument) {
    if (n * work < INLINE_WORK) {
        chunk(argument, 0, n, 0);
        return;
    }
    const int64_t grain = n / (4 * (int64_t)threads_count(state->pool));
    threads_for(state->pool, n, grain > 0 ? grain : 1, chunk, argument);
}

// Products: activations are normed and prepared, then chunks of panels multiplied.

typedef struct prepare_job {
    backend_state *state;
    const weight *weight;
    const norm_args *norm; // NULL, or without weight: none
    const float *x;        // (rows, width)
    const int32_t *rows;   // which rows of x; NULL: 0, 1, …
    int n_rows;
    int64_t width; // K, or less: a rank's own columns of its part of the weight
} prepare_job;

static void prepare_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const prepare_job *job = (const prepare_job *)argument;
    const cpu_kernels *kernels = job->state->kernels;
    const int64_t width = job->width, n_cols = job->weight->n_cols;
    const bool normed = job->norm && job->norm->weight, copied = normed || job->rows || width < n_cols;
    (void)worker;
    for (int64_t tile = begin; tile < end; tile++) {
        const int first = (int)tile * kernels->tile_rows;
        const int last = first + kernels->tile_rows < job->n_rows ? first + kernels->tile_rows : job->n_rows;
        for (int row = first; row < last && copied; row++) {
            const float *from = job->x + (job->rows ? job->rows[row] : row) * width;
            float *to = job->state->normed + row * n_cols;
            if (width < n_cols) memset(to, 0, (size_t)n_cols * sizeof *to);
            if (normed)
                kernels->rms_norm(job->norm, from, (int)width, to);
            else
                memcpy(to + job->weight->lead_cols, from, (size_t)width * sizeof *from);
        }
        kernels->prepare(job->weight, copied ? job->state->normed : job->x, job->n_rows, (int)tile,
                         job->state->prepared);
    }
}

static void prepare(const prepare_job *job) {
    const int tile_rows = job->state->kernels->tile_rows;
    parallel(job->state, (job->n_rows + tile_rows - 1) / tile_rows, tile_rows * job->weight->n_cols,
             prepare_chunk, (void *)(uintptr_t)job);
}

typedef struct gemm_job gemm_job;
// What happens to the columns [first, first + n) of a product while they are in the cache: (n_rows, stride).
typedef void gemm_finish(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride);
struct gemm_job {
    backend_state *state;
    const weight *weight;
    int n_rows;
    float *out;          // (n_rows, stride), or NULL: into a worker's chunk, and finish puts it where it goes
    int64_t stride;      // a multiple of 16
    gemm_finish *finish; // or NULL
    activation act;
    float cap;
};

static void gemm_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const gemm_job *job = (const gemm_job *)argument;
    const backend_state *state = job->state;
    const int64_t first = begin * PANEL_ROWS;
    const int64_t last = end * PANEL_ROWS < job->weight->n_rows ? end * PANEL_ROWS : job->weight->n_rows;
    float *product =
        job->out ? job->out + first : state->chunks + (int64_t)worker * state->dims.max_rows * CHUNK_COLS;
    const int64_t stride = job->out ? job->stride : CHUNK_COLS;
    state->kernels->gemm(job->weight, state->prepared, job->n_rows, begin, end, product, stride);
    if (job->finish) job->finish(job, first, last - first, product, stride);
}

static void gemm(gemm_job *job) {
    const int64_t n_panels = layout_padded_rows(job->weight->n_rows) / PANEL_ROWS;
    // At least four chunks a worker, so that one that is held up does not hold up all; pairs of panels, which
    // kernels for many rows take together.
    int64_t grain = n_panels / (4 * (int64_t)threads_count(job->state->pool)) & ~(int64_t)1;
    if (grain < 1) grain = 1;
    if (grain > CHUNK_PANELS) grain = CHUNK_PANELS;
    threads_for(job->state->pool, n_panels, grain, gemm_chunk, job);
}

// The verbs.

// x becomes the sum over all ranks.
static void sum_ranks(backend_state *state, float *x, int64_t n) {
    if (state->comm) state->comm->ops->all_reduce(state->comm, x, (size_t)n, NULL, &state->error);
}

typedef struct embed_job {
    backend_state *state;
    const weight *embedding;
    float scale;
} embed_job;

static void embed_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const embed_job *job = (const embed_job *)argument;
    const int64_t hidden = job->state->dims.hidden;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        const int64_t id = job->state->ids[row] - job->embedding->first_row; // in this rank's rows, or not
        float *out = job->state->x + row * hidden;
        if (id >= 0 && id < job->embedding->n_rows)
            cpu_weight_row(job->embedding, id, job->scale, out);
        else
            memset(out, 0, (size_t)hidden * sizeof *out);
    }
}

static void cpu_embed(backend_state *state, const weight *embedding, float scale) {
    if (state->error.code) return;
    embed_job job = {state, embedding, scale};
    parallel(state, state->n_rows, state->dims.hidden, embed_chunk, &job);
    sum_ranks(state, state->x, (int64_t)state->n_rows * state->dims.hidden);
}

// cos and sin of all rows for these frequencies, computed once a step.
static const rope_table *rope_of(backend_state *state, const float *inv_freq) {
    for (int i = 0; i < ROPE_TABLES; i++)
        if (state->ropes[i].inv_freq == inv_freq) return &state->ropes[i];
    rope_table *table = &state->ropes[state->next_rope++ % ROPE_TABLES];
    const int half = state->dims.head_dim / 2;
    table->inv_freq = inv_freq;
    for (int row = 0; row < state->n_rows; row++)
        for (int i = 0; i < half; i++) {
            float angle = (float)state->positions[row] * inv_freq[i];
            table->cosines[row * half + i] = cosf(angle);
            table->sines[row * half + i] = sinf(angle);
        }
    return table;
}

typedef struct rotate_job {
    backend_state *state;
    const qkv_args *args;
    const rope_table *rope;
    const norm_args *q_norm, *k_norm; // with weights in stored order; NULL: none
} rotate_job;

// Places of a q or k head in stored order take channels eight apart (layout.h, ROWS_QKV): so do the weights
// of their norm.
static void store_gain(const norm_args *norm, int head_dim, float *gain, weight *stored, norm_args *out) {
    for (int i = 0; i < head_dim; i++)
        gain[i] = weight_value(norm->weight, 0, i / 16 * 8 + i % 8 + (i % 16 < 8 ? 0 : head_dim / 2));
    *stored = (weight){.type = WEIGHT_F32, .n_rows = 1, .n_cols = head_dim, .data = gain};
    *out = (norm_args){.weight = stored, .eps = norm->eps, .offset = norm->offset};
}

// Norm, rotation and scale of q heads, norm and rotation of keys, and the cache: one KV head of one row each.
static void rotate_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const rotate_job *job = (const rotate_job *)argument;
    const backend_state *state = job->state;
    const cpu_kernels *kernels = state->kernels;
    const kernel_dims *dims = &state->dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int row = (int)(i / dims->n_kv_heads), kv_head = (int)(i % dims->n_kv_heads);
        const float *cosines = job->rope->cosines + row * (head_dim / 2);
        const float *sines = job->rope->sines + row * (head_dim / 2);
        float *head = state->qkv + i * (n_queries + 2) * head_dim;
        for (int query = 0; query <= n_queries; query++, head += head_dim) { // the last is the key
            const bool is_key = query == n_queries;
            const norm_args *norm = is_key ? job->k_norm : job->q_norm;
            if (norm) kernels->rms_norm(norm, head, head_dim, head);
            kernels->rotate(head, head_dim, cosines, sines, is_key ? 1.0f : job->args->q_scale);
        }
        const cpu_kv kv = cached_head(state, job->args->layer, kv_head, row);
        cpu_kv_append(&kv, state->positions[row], head - head_dim, head);
    }
}

static void cpu_qkv(backend_state *state, const qkv_args *args) {
    if (state->error.code || state->dims.n_heads == 0) return;
    const kernel_dims *dims = &state->dims;
    prepare(
        &(prepare_job){state, args->weight, &args->norm, state->x, NULL, state->n_rows, state->dims.hidden});
    gemm(&(gemm_job){.state = state,
                     .weight = args->weight,
                     .n_rows = state->n_rows,
                     .out = state->qkv,
                     .stride = qkv_width(dims)});
    weight stored[2];
    norm_args norms[2];
    if (args->q_norm.weight) store_gain(&args->q_norm, dims->head_dim, state->gains, &stored[0], &norms[0]);
    if (args->k_norm.weight)
        store_gain(&args->k_norm, dims->head_dim, state->gains + dims->head_dim, &stored[1], &norms[1]);
    rotate_job job = {state, args, rope_of(state, args->inv_freq), args->q_norm.weight ? &norms[0] : NULL,
                      args->k_norm.weight ? &norms[1] : NULL};
    parallel(state, (int64_t)state->n_rows * dims->n_kv_heads, qkv_width(dims) / dims->n_kv_heads,
             rotate_chunk, &job);
}

typedef struct attend_job {
    backend_state *state;
    const attend_args *args;
    int tiles; // pieces of at most CPU_ATTENTION_HEADS query heads in a KV head
} attend_job;

static void attend_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const attend_job *job = (const attend_job *)argument;
    const backend_state *state = job->state;
    const kernel_dims *dims = &state->dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int window = job->args->window;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / job->tiles; // (row, KV head)
        const int row = (int)(head / dims->n_kv_heads), kv_head = (int)(head % dims->n_kv_heads);
        const int query = (int)(i % job->tiles) * CPU_ATTENTION_HEADS;
        const int n = n_queries - query < CPU_ATTENTION_HEADS ? n_queries - query : CPU_ATTENTION_HEADS;
        const int last = state->positions[row];
        const int first = window > 0 && last >= window ? last - window + 1 : 0;
        const cpu_kv kv = cached_head(state, job->args->layer, kv_head, row);
        state->kernels->attention(&kv, state->qkv + (head * (n_queries + 2) + query) * head_dim, n, first,
                                  last, job->args->softcap,
                                  state->attn + (head * n_queries + query) * head_dim);
    }
}

static void cpu_attend(backend_state *state, const attend_args *args) {
    if (state->error.code || state->dims.n_heads == 0) return;
    const kernel_dims *dims = &state->dims;
    const int n_queries = dims->n_heads / dims->n_kv_heads;
    attend_job job = {state, args, (n_queries + CPU_ATTENTION_HEADS - 1) / CPU_ATTENTION_HEADS};
    int64_t tokens = 0; // of all rows, as a measure of the work
    for (int row = 0; row < state->n_rows; row++) tokens += state->positions[row] + 1;
    const int64_t n = (int64_t)state->n_rows * dims->n_kv_heads * job.tiles;
    parallel(state, n, state->n_rows ? tokens / state->n_rows * dims->head_dim : 0, attend_chunk, &job);
}

static void finish_add(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride) {
    for (int row = 0; row < job->n_rows; row++)
        job->state->kernels->add(job->state->x + row * job->weight->n_rows + first, product + row * stride,
                                 n);
}

typedef struct post_norm_job {
    backend_state *state;
    const norm_args *norm;
    int64_t stride;
} post_norm_job;

static void post_norm_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const post_norm_job *job = (const post_norm_job *)argument;
    const int hidden = job->state->dims.hidden;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        float *product = job->state->normed + row * job->stride;
        if (job->norm->weight) job->state->kernels->rms_norm(job->norm, product, hidden, product);
        job->state->kernels->add(job->state->x + row * hidden, product, hidden);
    }
}

static void cpu_project_add(backend_state *state, const project_args *args) {
    if (state->error.code) return;
    const kernel_dims *dims = &state->dims;
    const bool attention = args->input == PROJECT_ATTENTION;
    const float *input = attention ? state->attn : state->ff;
    const int64_t width = attention ? (int64_t)dims->n_heads * dims->head_dim : dims->n_ff;
    const int64_t stride = round_up(dims->hidden, PANEL_ROWS);
    gemm_job job = {.state = state, .weight = args->weight, .n_rows = state->n_rows};
    if (width > 0) prepare(&(prepare_job){state, args->weight, NULL, input, NULL, state->n_rows, width});
    if (!args->post_norm.weight && !state->comm) {
        job.finish = finish_add;
        gemm(&job);
        return;
    }
    job.out = state->normed;
    job.stride = stride;
    if (width > 0)
        gemm(&job);
    else
        memset(state->normed, 0, (size_t)(state->n_rows * stride) * sizeof *state->normed);
    sum_ranks(state, state->normed, state->n_rows * stride);
    post_norm_job norm = {state, &args->post_norm, stride};
    parallel(state, state->n_rows, dims->hidden, post_norm_chunk, &norm);
}

static void finish_activate(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride) {
    const int64_t n_ff = job->state->dims.n_ff, channel = first / 2;
    const int64_t wanted = channel + n / 2 < n_ff ? n / 2 : n_ff - channel, whole = wanted / 8 * 8;
    for (int row = 0; row < job->n_rows; row++, product += stride) {
        float *out = job->state->ff + row * n_ff + channel, rest[8];
        job->state->kernels->activate(job->act, product, whole, out);
        if (whole == wanted) continue;
        job->state->kernels->activate(job->act, product + 2 * whole, 8, rest);
        memcpy(out + whole, rest, (size_t)(wanted - whole) * sizeof *out);
    }
}

static void cpu_gate_up(backend_state *state, const gate_up_args *args) {
    if (state->error.code || state->dims.n_ff == 0) return;
    prepare(
        &(prepare_job){state, args->weight, &args->norm, state->x, NULL, state->n_rows, state->dims.hidden});
    gemm(&(gemm_job){.state = state,
                     .weight = args->weight,
                     .n_rows = state->n_rows,
                     .finish = finish_activate,
                     .act = args->act});
}

static void finish_softcap(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride) {
    (void)first;
    for (int row = 0; row < job->n_rows; row++)
        job->state->kernels->softcap(product + row * stride, n, job->cap);
}

// The columns of all ranks, of which slots holds this one's, as whole rows of logits.
static void gather_logits(backend_state *state) {
    const int size = state->comm->size;
    const int64_t slot = state->n_logits * slot_width(state);
    if (state->comm->ops->all_gather(state->comm, state->slots + state->comm->rank * slot, state->slots,
                                     (size_t)slot * sizeof(float), NULL, &state->error))
        return;
    for (int rank = 0; rank < size; rank++) {
        const layout_run run = layout_share_rows(state->dims.n_vocab, rank, size);
        const int64_t stride = round_up(run.n, PANEL_ROWS);
        for (int i = 0; i < state->n_logits; i++)
            memcpy(state->logits + i * state->logits_stride + run.first,
                   state->slots + rank * slot + i * stride, (size_t)run.n * sizeof(float));
    }
}

static void cpu_head(backend_state *state, const head_args *args) {
    if (state->error.code || state->n_logits == 0) return;
    float *out = state->logits;
    int64_t stride = state->logits_stride;
    if (state->comm) {
        out = state->slots + state->comm->rank * state->n_logits * slot_width(state);
        stride = round_up(args->weight->n_rows, PANEL_ROWS);
    }
    if (args->weight->n_rows > 0) { // a rank's part may be empty
        prepare(&(prepare_job){state, args->weight, &args->norm, state->x, state->logits_rows,
                               state->n_logits, state->dims.hidden});
        gemm(&(gemm_job){.state = state,
                         .weight = args->weight,
                         .n_rows = state->n_logits,
                         .out = out,
                         .stride = stride,
                         .finish = args->softcap != 0 ? finish_softcap : NULL,
                         .cap = args->softcap});
    }
    if (state->comm) gather_logits(state);
}

static const float *cpu_logits(backend_state *state, int i) {
    return state->logits + i * state->logits_stride;
}

static void cpu_sample(backend_state *state, const sample_args *args) {
    for (int i = 0; i < state->n_logits && args && !state->error.code; i++)
        sample_token(&args[i], cpu_logits(state, i), state->dims.n_vocab, state->sample_scratch,
                     &state->tokens[i], &state->error);
}

static const int32_t *cpu_tokens(backend_state *state) {
    return state->tokens;
}

// Weights stay where the host has them.

static int cpu_weight_place(backend *be, const weight *host, weight *placed, flute_error *err) {
    (void)be, (void)err;
    *placed = *host;
    return FLUTE_OK;
}

static void cpu_weight_release(backend *be, weight *placed) {
    (void)be;
    placed->data = NULL;
}

// The device.

static const char *cpu_describe(backend *be) {
    return ((cpu_backend *)be)->description;
}

static void describe(char *out, size_t size, int n_threads, cpu_isa isa) {
    char brand[49] = "CPU";
#ifdef FLUTE_CPU_X86
    uint32_t words[12] = {0};
    if (__get_cpuid_max(0x80000000u, NULL) >= 0x80000004u) {
        for (unsigned i = 0; i < 3; i++)
            __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                        &words[4 * i + 3]);
        memcpy(brand, words, sizeof words);
        for (size_t n = strlen(brand); n > 0 && brand[n - 1] == ' '; n--) brand[n - 1] = 0;
    }
#endif
    snprintf(out, size, "%s, %d thread%s, %s", brand + strspn(brand, " "), n_threads,
             n_threads == 1 ? "" : "s", cpu_isa_name(isa));
}

static double cpu_backend_bandwidth(backend *be) {
    return cpu_read_bandwidth(((cpu_backend *)be)->pool);
}

static void cpu_free(backend *be) {
    free(be);
}

static const backend_ops cpu_ops = {
    .name = "cpu",
    .batch_rows = 128,
    .free = cpu_free,
    .describe = cpu_describe,
    .read_bandwidth = cpu_backend_bandwidth,
    .weight_place = cpu_weight_place,
    .weight_release = cpu_weight_release,
    .kv_bytes = cpu_kv_bytes,
    .kv_create = cpu_kv_create,
    .kv_free = cpu_kv_free,
    .kv_copy_block = cpu_kv_copy_block,
    .state_create = cpu_state_create,
    .state_free = cpu_state_free,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .qkv = cpu_qkv,
    .attend = cpu_attend,
    .project_add = cpu_project_add,
    .gate_up = cpu_gate_up,
    .head = cpu_head,
    .sample = cpu_sample,
    .finish = cpu_finish,
    .tokens = cpu_tokens,
    .logits = cpu_logits,
};

int backend_create_cpu_isa(thread_pool *pool, cpu_isa isa, backend **out, flute_error *err) {
    const cpu_kernels *kernels = cpu_kernels_of(isa);
    if (!kernels)
        return fail(err, FLUTE_EDEVICE, "this processor does not run the %s kernels; use %s",
                    cpu_isa_name(isa), cpu_isa_name(cpu_isa_best()));
    cpu_backend *be = calloc(1, sizeof *be);
    if (!be) return fail_memory(err, sizeof *be, "the CPU backend");
    *be = (cpu_backend){.base = {.ops = &cpu_ops}, .pool = pool, .kernels = kernels};
    describe(be->description, sizeof be->description, threads_count(pool), isa);
    *out = &be->base;
    return FLUTE_OK;
}

int backend_create_cpu(thread_pool *pool, backend **out, flute_error *err) {
    return backend_create_cpu_isa(pool, cpu_isa_best(), out, err);
}
