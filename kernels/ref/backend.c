// The oracle as a backend: the scalar twins strung together, parallel over outputs only.
//
// KV cache: block b holds, for each layer and KV head in turn, keys (head_dim, block_tokens) and values
// (block_tokens, head_dim) in float32. Keys keep the stored order of ROWS_QKV, as queries do.
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/fail.h"
#include "kernels/batch.h"
#include "kernels/layout.h"
#include "kernels/ref/ref.h"
#include "kernels/sample.h"

typedef struct ref_backend {
    backend base;
    thread_pool *pool; // borrowed
} ref_backend;

struct backend_state {
    thread_pool *pool; // borrowed
    comm *comm;        // borrowed; NULL: a single rank
    kernel_dims dims;
    flute_error error; // the first one of the step

    // The step's batch, copied by begin.
    int n_rows, n_logits, max_blocks;
    int32_t *ids, *positions, *sequences; // (max_rows)
    int32_t *logits_rows;                 // (max_logits)
    int32_t *tables;                      // (n_sequences, max_blocks); grows in begin when tables do
    size_t tables_capacity;               // its elements
    kv_pool cache;

    float *x;       // (max_rows, hidden) the residual stream
    float *normed;  // (max_rows, hidden)
    float *qkv;     // (max_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    float *attn;    // (max_rows, n_heads·head_dim)
    float *gate_up; // (max_rows, 2·round_up(n_ff, 8)) in ROWS_GATE_UP order
    float *ff;      // (max_rows, n_ff)
    float *product; // (max_rows, hidden)
    float *wide;    // (max_rows, own columns + what else is in their first and last unit) of several ranks
    float *logits;  // (max_logits, n_vocab)
    float *slots;   // (ranks, max_logits, rows of the head on rank 0) of several ranks
    int32_t *tokens;
    void *sample_scratch;
};

// Buffers and the cache.

static void *take(size_t n, size_t size, const char *what, flute_error *err) {
    void *memory = calloc(n > 0 ? n : 1, size);
    if (!memory) fail_memory(err, (unsigned long long)n * size, what);
    return memory;
}

static void ref_state_free(backend_state *state) {
    if (!state) return;
    void *buffers[] = {
        state->ids,  state->positions, state->sequences, state->logits_rows, state->tables,
        state->x,    state->normed,    state->qkv,       state->attn,        state->gate_up,
        state->ff,   state->product,   state->logits,    state->tokens,      state->sample_scratch,
        state->wide, state->slots};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    free(state);
}

static int ref_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
    const size_t rows = (size_t)dims->max_rows, n_logits = (size_t)dims->max_logits;
    const size_t hidden = (size_t)dims->hidden, head_dim = (size_t)dims->head_dim;
    const size_t n_heads = (size_t)dims->n_heads, n_kv_heads = (size_t)dims->n_kv_heads;
    const size_t n_ff = (size_t)dims->n_ff, n_vocab = (size_t)dims->n_vocab;
    const char *what = "the buffers of a forward step";
    assert(dims->head_dim % 16 == 0 && (dims->n_heads == 0 || dims->n_heads % dims->n_kv_heads == 0));

    backend_state *state = (backend_state *)take(1, sizeof *state, what, err);
    if (!state) return FLUTE_ENOMEM;
    state->pool = ((ref_backend *)be)->pool;
    state->comm = be->comm;
    state->dims = *dims;
    if (!(state->ids = take(rows, sizeof(int32_t), what, err))) goto error;
    if (!(state->positions = take(rows, sizeof(int32_t), what, err))) goto error;
    if (!(state->sequences = take(rows, sizeof(int32_t), what, err))) goto error;
    if (!(state->logits_rows = take(n_logits, sizeof(int32_t), what, err))) goto error;
    if (!(state->x = take(rows * hidden, sizeof(float), what, err))) goto error;
    if (!(state->normed = take(rows * hidden, sizeof(float), what, err))) goto error;
    if (!(state->qkv = take(rows * (n_heads + 2 * n_kv_heads) * head_dim, sizeof(float), what, err)))
        goto error;
    if (!(state->attn = take(rows * n_heads * head_dim, sizeof(float), what, err))) goto error;
    if (!(state->gate_up = take(rows * 2 * ((n_ff + 7) / 8 * 8), sizeof(float), what, err))) goto error;
    if (!(state->ff = take(rows * n_ff, sizeof(float), what, err))) goto error;
    if (!(state->product = take(rows * hidden, sizeof(float), what, err))) goto error;
    if (!(state->logits = take(n_logits * n_vocab, sizeof(float), what, err))) goto error;
    if (!(state->tokens = take(n_logits, sizeof(int32_t), what, err))) goto error;
    if (!(state->sample_scratch = take(1, sample_scratch_bytes(dims->n_vocab), what, err))) goto error;
    if (be->comm) {
        const size_t widest = (n_heads * head_dim > n_ff ? n_heads * head_dim : n_ff) + 2 * MAX_UNIT_COLS;
        const size_t slot = (size_t)layout_share_rows(dims->n_vocab, 0, be->comm->size).n;
        const size_t n_slots = (size_t)be->comm->size * n_logits;
        if (!(state->wide = take(rows * widest, sizeof(float), what, err))) goto error;
        if (!(state->slots = take(n_slots * slot, sizeof(float), what, err))) goto error;
    }
    *out = state;
    return FLUTE_OK;
error:
    ref_state_free(state);
    return FLUTE_ENOMEM;
}

// Floats of one KV head of one layer in one block: its keys, and as many for its values.
static int64_t head_stride(const kernel_dims *dims, int block_tokens) {
    return 2 * (int64_t)dims->head_dim * block_tokens;
}

static int64_t block_stride(const kernel_dims *dims, int block_tokens) {
    return (int64_t)dims->n_layers * dims->n_kv_heads * head_stride(dims, block_tokens);
}

static size_t ref_kv_bytes(backend *be, const kernel_dims *dims, int64_t n_tokens) {
    (void)be;
    return (size_t)n_tokens * (size_t)block_stride(dims, 1) * sizeof(float);
}

static int ref_kv_create(backend *be, const kernel_dims *dims, int block_tokens, int n_blocks, kv_pool *pool,
                         flute_error *err) {
    (void)be;
    void *data = take((size_t)n_blocks, (size_t)block_stride(dims, block_tokens) * sizeof(float),
                      "the KV cache; ask for a smaller context with -c", err);
    if (!data) return FLUTE_ENOMEM;
    *pool = (kv_pool){.block_tokens = block_tokens, .n_blocks = n_blocks, .data = data};
    return FLUTE_OK;
}

static void ref_kv_free(backend *be, kv_pool *pool) {
    (void)be;
    free(pool->data);
    *pool = (kv_pool){0};
}

static void ref_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from,
                              kv_pool *target, int to) {
    (void)be;
    const int64_t stride = block_stride(dims, source->block_tokens);
    assert(source->block_tokens == target->block_tokens);
    memcpy((float *)target->data + to * stride, (const float *)source->data + from * stride,
           (size_t)stride * sizeof(float));
}

// Keys, and behind them the values, of one KV head in block 0.
static float *cache_head(const backend_state *state, int layer, int kv_head) {
    const int64_t index = (int64_t)layer * state->dims.n_kv_heads + kv_head;
    return (float *)state->cache.data + index * head_stride(&state->dims, state->cache.block_tokens);
}

static const int32_t *row_table(const backend_state *state, int row) {
    return state->tables + (int64_t)state->sequences[row] * state->max_blocks;
}

// Begin: copies the batch, and refuses what would lead outside of the tables.

static int reserve_tables(backend_state *state, size_t n, flute_error *err) {
    if (n <= state->tables_capacity) return FLUTE_OK;
    int32_t *tables = realloc(state->tables, n * sizeof *tables);
    if (!tables) return fail_memory(err, n * sizeof *tables, "block tables");
    state->tables = tables;
    state->tables_capacity = n;
    return FLUTE_OK;
}

static void ref_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
    const size_t n_rows = (size_t)batch->n_rows, n_logits = (size_t)batch->n_logits;
    const size_t n_table = (size_t)batch->n_sequences * (size_t)batch->max_blocks;
    state->error = (flute_error){0};
    if (kernel_batch_check(batch, &state->dims, pool, &state->error)) return;
    if (reserve_tables(state, n_table, &state->error)) return;
    state->n_rows = batch->n_rows;
    state->n_logits = batch->n_logits;
    state->max_blocks = batch->max_blocks;
    state->cache = *pool;
    memcpy(state->ids, batch->ids, n_rows * sizeof *state->ids);
    memcpy(state->positions, batch->positions, n_rows * sizeof *state->positions);
    memcpy(state->sequences, batch->sequences, n_rows * sizeof *state->sequences);
    memcpy(state->tables, batch->block_tables, n_table * sizeof *state->tables);
    if (n_logits) memcpy(state->logits_rows, batch->logits_rows, n_logits * sizeof *state->logits_rows);
}

static int ref_finish(backend_state *state, flute_error *err) {
    return state->error.code ? fail(err, state->error.code, "%s", state->error.message) : FLUTE_OK;
}

// The steps that the verbs share.

typedef struct gemm_job {
    const weight *weight;
    const float *x;
    int n_rows;
    float *out;
} gemm_job;

static void gemm_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const gemm_job *job = (const gemm_job *)argument;
    const int64_t last = end * PANEL_ROWS < job->weight->n_rows ? end * PANEL_ROWS : job->weight->n_rows;
    (void)worker;
    ref_gemm_columns(job->weight, begin * PANEL_ROWS, last, job->x, job->n_rows, job->out);
}

static void gemm(backend_state *state, const weight *w, const float *x, int n_rows, float *out) {
    gemm_job job = {w, x, n_rows, out};
    threads_for(state->pool, (w->n_rows + PANEL_ROWS - 1) / PANEL_ROWS, 1, gemm_chunk, &job);
}

// x becomes the sum over all ranks.
static void sum_ranks(backend_state *state, float *x, int64_t n) {
    if (state->comm) state->comm->ops->all_reduce(state->comm, x, (size_t)n, NULL, &state->error);
}

// x: (n_rows, width) as (n_rows, w->n_cols), where a rank's part of w begins and ends with whole units.
static const float *widen_rows(backend_state *state, const weight *w, const float *x, int width) {
    if (w->n_cols == width) return x;
    memset(state->wide, 0, (size_t)state->n_rows * (size_t)w->n_cols * sizeof *x);
    for (int row = 0; row < state->n_rows; row++)
        memcpy(state->wide + row * w->n_cols + w->lead_cols, x + (int64_t)row * width,
               (size_t)width * sizeof *x);
    return state->wide;
}

// out = norm(x), row by row; a copy where there is no norm.
static void norm_rows(const norm_args *norm, const float *x, int n_rows, int width, float *out) {
    for (int row = 0; row < n_rows; row++, x += width, out += width)
        if (norm->weight)
            ref_rms_norm(norm, x, width, out);
        else
            memmove(out, x, (size_t)width * sizeof *x);
}

// The verbs.

static void ref_backend_embed(backend_state *state, const weight *embedding, float scale) {
    if (state->error.code) return;
    const int64_t hidden = state->dims.hidden;
    for (int row = 0; row < state->n_rows; row++) {
        float *out = state->x + row * hidden;
        const int64_t id = state->ids[row] - embedding->first_row; // in this rank's rows, if it is there
        if (id >= 0 && id < embedding->n_rows)
            ref_embed(embedding, &(int32_t){(int32_t)id}, 1, scale, out);
        else
            memset(out, 0, (size_t)hidden * sizeof *out);
    }
    sum_ranks(state, state->x, state->n_rows * hidden);
}

typedef struct qkv_job {
    backend_state *state;
    const qkv_args *args;
} qkv_job;

// Norm, rotation and scale of the query heads; norm and rotation of the keys; both and the values to where
// they belong. One chunk is one KV head of one row.
static void qkv_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const qkv_job *job = (const qkv_job *)argument;
    const qkv_args *args = job->args;
    const backend_state *state = job->state;
    const kernel_dims *dims = &state->dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int block_tokens = state->cache.block_tokens;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int row = (int)(i / dims->n_kv_heads), kv_head = (int)(i % dims->n_kv_heads);
        const int position = state->positions[row];
        float *head = state->qkv + i * (n_queries + 2) * head_dim;
        for (int query = 0; query <= n_queries; query++, head += head_dim) { // the last is the key
            const norm_args *norm = query < n_queries ? &args->q_norm : &args->k_norm;
            if (norm->weight) ref_head_norm(norm, head, head_dim);
            ref_rope(head, head_dim, args->inv_freq, position);
            for (int d = 0; d < head_dim && query < n_queries; d++) head[d] *= args->q_scale;
        }
        const float *key = head - head_dim, *value = head;
        const int token = position % block_tokens;
        float *keys = cache_head(state, args->layer, kv_head) +
                      row_table(state, row)[position / block_tokens] * block_stride(dims, block_tokens);
        float *values = keys + (int64_t)head_dim * block_tokens;
        for (int d = 0; d < head_dim; d++) keys[d * block_tokens + token] = key[d];
        memcpy(values + (int64_t)token * head_dim, value, (size_t)head_dim * sizeof *value);
    }
}

static void ref_backend_qkv(backend_state *state, const qkv_args *args) {
    if (state->error.code || state->dims.n_heads == 0) return;
    norm_rows(&args->norm, state->x, state->n_rows, state->dims.hidden, state->normed);
    gemm(state, args->weight, state->normed, state->n_rows, state->qkv);
    qkv_job job = {state, args};
    threads_for(state->pool, (int64_t)state->n_rows * state->dims.n_kv_heads, 16, qkv_chunk, &job);
}

typedef struct attend_job {
    backend_state *state;
    const attend_args *args;
} attend_job;

// One chunk is one query head of one row.
static void attend_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const attend_job *job = (const attend_job *)argument;
    const backend_state *state = job->state;
    const kernel_dims *dims = &state->dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int block_tokens = state->cache.block_tokens, window = job->args->window;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int row = (int)(i / dims->n_heads), head = (int)(i % dims->n_heads);
        const int kv_head = head / n_queries, last = state->positions[row];
        const int first = window > 0 && last >= window ? last - window + 1 : 0;
        const float *q = state->qkv + (int64_t)row * (dims->n_heads + 2 * dims->n_kv_heads) * head_dim +
                         (int64_t)(head + 2 * kv_head) * head_dim; // two heads, k and v, per group before
        const float *keys = cache_head(state, job->args->layer, kv_head);
        ref_kv kv = {.keys = keys,
                     .values = keys + (int64_t)head_dim * block_tokens,
                     .blocks = row_table(state, row),
                     .block_tokens = block_tokens,
                     .block_stride = block_stride(dims, block_tokens),
                     .head_dim = head_dim};
        ref_attention(q, &kv, first, last, job->args->softcap, state->attn + i * head_dim);
    }
}

static void ref_backend_attend(backend_state *state, const attend_args *args) {
    if (state->error.code || state->dims.n_heads == 0) return;
    attend_job job = {state, args};
    threads_for(state->pool, (int64_t)state->n_rows * state->dims.n_heads, 4, attend_chunk, &job);
}

static void ref_backend_project_add(backend_state *state, const project_args *args) {
    if (state->error.code) return;
    const kernel_dims *dims = &state->dims;
    const bool attention = args->input == PROJECT_ATTENTION;
    const int hidden = dims->hidden, width = attention ? dims->n_heads * dims->head_dim : dims->n_ff;
    const float *input = attention ? state->attn : state->ff;
    if (width > 0)
        gemm(state, args->weight, widen_rows(state, args->weight, input, width), state->n_rows,
             state->product);
    else
        memset(state->product, 0, (size_t)state->n_rows * (size_t)hidden * sizeof(float));
    sum_ranks(state, state->product, (int64_t)state->n_rows * hidden);
    norm_rows(&args->post_norm, state->product, state->n_rows, hidden, state->product);
    for (int64_t i = 0; i < (int64_t)state->n_rows * hidden; i++) state->x[i] += state->product[i];
}

static void ref_backend_gate_up(backend_state *state, const gate_up_args *args) {
    if (state->error.code || state->dims.n_ff == 0) return;
    norm_rows(&args->norm, state->x, state->n_rows, state->dims.hidden, state->normed);
    gemm(state, args->weight, state->normed, state->n_rows, state->gate_up);
    for (int row = 0; row < state->n_rows; row++)
        ref_activation(args->act, state->gate_up + row * args->weight->n_rows, state->dims.n_ff,
                       state->ff + (int64_t)row * state->dims.n_ff);
}

// The columns of all ranks, of which slots holds this one's, as whole rows of logits.
static void gather_logits(backend_state *state) {
    const int size = state->comm->size, n_vocab = state->dims.n_vocab;
    const int64_t slot = state->n_logits * layout_share_rows(n_vocab, 0, size).n;
    if (state->comm->ops->all_gather(state->comm, state->slots + state->comm->rank * slot, state->slots,
                                     (size_t)slot * sizeof(float), NULL, &state->error))
        return;
    for (int rank = 0; rank < size; rank++) {
        const layout_run run = layout_share_rows(n_vocab, rank, size);
        for (int i = 0; i < state->n_logits; i++)
            memcpy(state->logits + (int64_t)i * n_vocab + run.first, state->slots + rank * slot + i * run.n,
                   (size_t)run.n * sizeof(float));
    }
}

static void ref_backend_head(backend_state *state, const head_args *args) {
    if (state->error.code) return;
    const int hidden = state->dims.hidden;
    for (int i = 0; i < state->n_logits; i++)
        norm_rows(&args->norm, state->x + (int64_t)state->logits_rows[i] * hidden, 1, hidden,
                  state->normed + (int64_t)i * hidden);
    float *out = state->logits;
    if (state->comm)
        out = state->slots + state->comm->rank * state->n_logits *
                                 layout_share_rows(state->dims.n_vocab, 0, state->comm->size).n;
    gemm(state, args->weight, state->normed, state->n_logits, out);
    if (state->comm) gather_logits(state);
    const int64_t n = (int64_t)state->n_logits * state->dims.n_vocab;
    for (int64_t i = 0; i < n && args->softcap != 0; i++)
        state->logits[i] = ref_softcap(state->logits[i], args->softcap);
}

static void ref_backend_sample(backend_state *state, const sample_args *args) {
    for (int i = 0; i < state->n_logits && args && !state->error.code; i++)
        sample_token(&args[i], state->logits + (int64_t)i * state->dims.n_vocab, state->dims.n_vocab,
                     state->sample_scratch, &state->tokens[i], &state->error);
}

static const int32_t *ref_tokens(backend_state *state) {
    return state->tokens;
}

static const float *ref_logits(backend_state *state, int i) {
    return state->logits + (int64_t)i * state->dims.n_vocab;
}

// Weights stay where the host has them.

static int ref_weight_place(backend *be, const weight *host, weight *placed, flute_error *err) {
    (void)be, (void)err;
    *placed = *host;
    return FLUTE_OK;
}

static void ref_weight_release(backend *be, weight *placed) {
    (void)be;
    placed->data = NULL;
}

// The device.

static const char *ref_describe(backend *be) {
    (void)be;
    return "scalar reference kernels, float32";
}

typedef struct read_job {
    const uint64_t *words;
    uint64_t *sums; // one a chunk, so that the reads have a use
} read_job;

enum { READ_CHUNK_WORDS = 1 << 17, READ_CHUNKS = 256 }; // 1 MiB each, 256 MiB together: beyond any cache

static void read_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const read_job *job = (const read_job *)argument;
    (void)worker;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        const uint64_t *words = job->words + chunk * READ_CHUNK_WORDS;
        uint64_t sum = 0;
        for (int i = 0; i < READ_CHUNK_WORDS; i++) sum += words[i];
        job->sums[chunk] += sum;
    }
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double ref_read_bandwidth(backend *be) {
    const size_t bytes = (size_t)READ_CHUNKS * READ_CHUNK_WORDS * sizeof(uint64_t);
    uint64_t sums[READ_CHUNKS] = {0}, *words = malloc(bytes);
    if (!words) return 0;
    memset(words, 1, bytes); // pages that were never written are all one zero page
    double best = 0, start = seconds_now(), before = start, now;
    do {
        threads_for(((ref_backend *)be)->pool, READ_CHUNKS, 1, read_chunk, &(read_job){words, sums});
        now = seconds_now();
        if ((double)bytes / (now - before) > best) best = (double)bytes / (now - before);
        before = now;
    } while (now - start < 0.2);
    uint64_t total = 0;
    for (int i = 0; i < READ_CHUNKS; i++) total += sums[i];
    free(words);
    return total != 0 ? best : 0;
}

static void ref_free(backend *be) {
    free(be);
}

static const backend_ops ref_ops = {
    .name = "ref",
    .batch_rows = 128,
    .free = ref_free,
    .describe = ref_describe,
    .read_bandwidth = ref_read_bandwidth,
    .weight_place = ref_weight_place,
    .weight_release = ref_weight_release,
    .kv_bytes = ref_kv_bytes,
    .kv_create = ref_kv_create,
    .kv_free = ref_kv_free,
    .kv_copy_block = ref_kv_copy_block,
    .state_create = ref_state_create,
    .state_free = ref_state_free,
    .begin = ref_begin,
    .embed = ref_backend_embed,
    .qkv = ref_backend_qkv,
    .attend = ref_backend_attend,
    .project_add = ref_backend_project_add,
    .gate_up = ref_backend_gate_up,
    .head = ref_backend_head,
    .sample = ref_backend_sample,
    .finish = ref_finish,
    .tokens = ref_tokens,
    .logits = ref_logits,
};

int backend_create_ref(thread_pool *pool, backend **out, flute_error *err) {
    ref_backend *be = (ref_backend *)take(1, sizeof *be, "the backend", err);
    if (!be) return FLUTE_ENOMEM;
    *be = (ref_backend){.base = {.ops = &ref_ops}, .pool = pool};
    *out = &be->base;
    return FLUTE_OK;
}
