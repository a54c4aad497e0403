// The oracle as a backend: the scalar twins strung together, parallel over outputs only.
//
// KV cache: block b holds, for each layer and KV head in turn, keys (head_dim, block_tokens) and values
// (block_tokens, head_dim) in float32. Keys keep the stored order of ROWS_QKV, as queries do.
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "kernels/host.h"
#include "kernels/layout.h"
#include "kernels/ref/ref.h"

typedef struct ref_backend {
    backend base;
    thread_pool *pool; // borrowed
} ref_backend;

struct backend_state {
    host_step step;
    thread_pool *pool; // borrowed

    float *x;       // (max_rows, hidden) the residual stream
    float *normed;  // (max_rows, hidden)
    float *qkv;     // (max_rows, (n_heads + 2·n_kv_heads)·head_dim) in ROWS_QKV order
    float *attn;    // (max_rows, n_heads·head_dim)
    float *gate_up; // (max_rows, 2·round_up(n_ff, 8)) in ROWS_GATE_UP order
    float *ff;      // (max_rows, n_ff)
    float *product; // (max_rows, hidden)
    float *wide;    // (max_rows, own columns + what else is in their first and last unit) of several ranks
};

// Buffers and the cache.

static void ref_state_free(backend_state *state) {
    if (!state) return;
    float *buffers[] = {state->x,       state->normed, state->qkv,     state->attn,
                        state->gate_up, state->ff,     state->product, state->wide};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    host_step_free(&state->step);
    free(state);
}

static int ref_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
    const size_t hidden = (size_t)dims->hidden, n_ff = (size_t)dims->n_ff, head_dim = (size_t)dims->head_dim;
    const size_t heads = (size_t)dims->n_heads * head_dim, kv_heads = (size_t)dims->n_kv_heads * head_dim;
    backend_state *state = calloc(1, sizeof *state);
    if (!state) return fail_memory(err, sizeof *state, "the state of a forward step");
    state->pool = ((ref_backend *)be)->pool;
    const struct {
        float **at;
        size_t width;
    } buffers[] = {
        {&state->x, hidden},
        {&state->normed, hidden},
        {&state->qkv, heads + 2 * kv_heads},
        {&state->attn, heads},
        {&state->gate_up, 2 * ((n_ff + 7) / 8 * 8)},
        {&state->ff, n_ff},
        {&state->product, hidden},
        {&state->wide, be->comm ? (heads > n_ff ? heads : n_ff) + 2 * MAX_UNIT_COLS : 0},
    };
    int code = host_step_create(&state->step, be, dims, 1, err);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers && !code; i++) {
        const size_t bytes = (size_t)dims->max_rows * buffers[i].width * sizeof(float);
        *buffers[i].at = host_allocate(bytes, "the buffers of a forward step", err);
        if (!*buffers[i].at) code = FLUTE_ENOMEM;
    }
    if (code) {
        ref_state_free(state);
        return code;
    }
    *out = state;
    return FLUTE_OK;
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
    return host_kv_create((size_t)block_stride(dims, block_tokens) * sizeof(float), block_tokens, n_blocks,
                          pool, err);
}

static void ref_kv_copy_block(backend *be, const kernel_dims *dims, const kv_pool *source, int from,
                              kv_pool *target, int to) {
    (void)be;
    host_kv_copy_block((size_t)block_stride(dims, source->block_tokens) * sizeof(float), source, from, target,
                       to);
}

// Keys, and behind them the values, of one KV head in block 0.
static float *cache_head(const backend_state *state, int layer, int kv_head) {
    const int64_t index = (int64_t)layer * state->step.dims.n_kv_heads + kv_head;
    return (float *)state->step.cache.data +
           index * head_stride(&state->step.dims, state->step.cache.block_tokens);
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

// x: (n_rows, width) as (n_rows, w->n_cols), where a rank's part of w begins and ends with whole units.
static const float *widen_rows(backend_state *state, const weight *w, const float *x, int width) {
    if (w->n_cols == width) return x;
    memset(state->wide, 0, (size_t)state->step.n_rows * (size_t)w->n_cols * sizeof *x);
    for (int row = 0; row < state->step.n_rows; row++)
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
    if (state->step.error.code) return;
    const int64_t hidden = state->step.dims.hidden;
    for (int row = 0; row < state->step.n_rows; row++) {
        float *out = state->x + row * hidden;
        const int64_t id = state->step.ids[row] - embedding->first_row; // in this rank's rows, if it is there
        if (id >= 0 && id < embedding->n_rows)
            ref_embed(embedding, &(int32_t){(int32_t)id}, 1, scale, out);
        else
            memset(out, 0, (size_t)hidden * sizeof *out);
    }
    host_sum_ranks(&state->step, state->x, state->step.n_rows * hidden);
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
    const kernel_dims *dims = &state->step.dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int block_tokens = state->step.cache.block_tokens;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int row = (int)(i / dims->n_kv_heads), kv_head = (int)(i % dims->n_kv_heads);
        const int position = state->step.positions[row];
        float *head = state->qkv + i * (n_queries + 2) * head_dim;
        for (int query = 0; query <= n_queries; query++, head += head_dim) { // the last is the key
            const norm_args *norm = query < n_queries ? &args->q_norm : &args->k_norm;
            if (norm->weight) ref_head_norm(norm, head, head_dim);
            ref_rope(head, head_dim, args->inv_freq, position);
            for (int d = 0; d < head_dim && query < n_queries; d++) head[d] *= args->q_scale;
        }
        const float *key = head - head_dim, *value = head;
        const int token = position % block_tokens;
        float *keys =
            cache_head(state, args->layer, kv_head) +
            host_row_table(&state->step, row)[position / block_tokens] * block_stride(dims, block_tokens);
        float *values = keys + (int64_t)head_dim * block_tokens;
        for (int d = 0; d < head_dim; d++) keys[d * block_tokens + token] = key[d];
        memcpy(values + (int64_t)token * head_dim, value, (size_t)head_dim * sizeof *value);
    }
}

static void ref_backend_qkv(backend_state *state, const qkv_args *args) {
    if (state->step.error.code || state->step.dims.n_heads == 0) return;
    norm_rows(&args->norm, state->x, state->step.n_rows, state->step.dims.hidden, state->normed);
    gemm(state, args->weight, state->normed, state->step.n_rows, state->qkv);
    qkv_job job = {state, args};
    threads_for(state->pool, (int64_t)state->step.n_rows * state->step.dims.n_kv_heads, 16, qkv_chunk, &job);
}

typedef struct attend_job {
    backend_state *state;
    const attend_args *args;
} attend_job;

// One chunk is one query head of one row.
static void attend_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const attend_job *job = (const attend_job *)argument;
    const backend_state *state = job->state;
    const kernel_dims *dims = &state->step.dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int block_tokens = state->step.cache.block_tokens, window = job->args->window;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int row = (int)(i / dims->n_heads), head = (int)(i % dims->n_heads);
        const int kv_head = head / n_queries, last = state->step.positions[row];
        const int first = window > 0 && last >= window ? last - window + 1 : 0;
        const float *q = state->qkv + (int64_t)row * (dims->n_heads + 2 * dims->n_kv_heads) * head_dim +
                         (int64_t)(head + 2 * kv_head) * head_dim; // two heads, k and v, per group before
        const float *keys = cache_head(state, job->args->layer, kv_head);
        ref_kv kv = {.keys = keys,
                     .values = keys + (int64_t)head_dim * block_tokens,
                     .blocks = host_row_table(&state->step, row),
                     .block_tokens = block_tokens,
                     .block_stride = block_stride(dims, block_tokens),
                     .head_dim = head_dim};
        ref_attention(q, &kv, first, last, job->args->softcap, state->attn + i * head_dim);
    }
}

static void ref_backend_attend(backend_state *state, const attend_args *args) {
    if (state->step.error.code || state->step.dims.n_heads == 0) return;
    attend_job job = {state, args};
    threads_for(state->pool, (int64_t)state->step.n_rows * state->step.dims.n_heads, 4, attend_chunk, &job);
}

static void ref_backend_project_add(backend_state *state, const project_args *args) {
    if (state->step.error.code) return;
    const kernel_dims *dims = &state->step.dims;
    const bool attention = args->input == PROJECT_ATTENTION;
    const int hidden = dims->hidden, width = attention ? dims->n_heads * dims->head_dim : dims->n_ff;
    const float *input = attention ? state->attn : state->ff;
    if (width > 0)
        gemm(state, args->weight, widen_rows(state, args->weight, input, width), state->step.n_rows,
             state->product);
    else
        memset(state->product, 0, (size_t)state->step.n_rows * (size_t)hidden * sizeof(float));
    host_sum_ranks(&state->step, state->product, (int64_t)state->step.n_rows * hidden);
    norm_rows(&args->post_norm, state->product, state->step.n_rows, hidden, state->product);
    for (int64_t i = 0; i < (int64_t)state->step.n_rows * hidden; i++) state->x[i] += state->product[i];
}

static void ref_backend_gate_up(backend_state *state, const gate_up_args *args) {
    if (state->step.error.code || state->step.dims.n_ff == 0) return;
    norm_rows(&args->norm, state->x, state->step.n_rows, state->step.dims.hidden, state->normed);
    gemm(state, args->weight, state->normed, state->step.n_rows, state->gate_up);
    for (int row = 0; row < state->step.n_rows; row++)
        ref_activation(args->act, state->gate_up + row * args->weight->n_rows, state->step.dims.n_ff,
                       state->ff + (int64_t)row * state->step.dims.n_ff);
}

static void ref_backend_head(backend_state *state, const head_args *args) {
    if (state->step.error.code) return;
    const int hidden = state->step.dims.hidden;
    for (int i = 0; i < state->step.n_logits; i++)
        norm_rows(&args->norm, state->x + (int64_t)state->step.logits_rows[i] * hidden, 1, hidden,
                  state->normed + (int64_t)i * hidden);
    gemm(state, args->weight, state->normed, state->step.n_logits, host_own_logits(&state->step));
    host_gather_logits(&state->step);
    const int64_t n = (int64_t)state->step.n_logits * state->step.dims.n_vocab;
    for (int64_t i = 0; i < n && args->softcap != 0; i++)
        state->step.logits[i] = ref_softcap(state->step.logits[i], args->softcap);
}

// The device.

static const char *ref_describe(backend *be) {
    (void)be;
    return "scalar reference kernels, float32";
}

static double ref_read_bandwidth(backend *be) {
    return host_read_bandwidth(((ref_backend *)be)->pool);
}

static const backend_ops ref_ops = {
    .name = "ref",
    .batch_rows = 128,
    .free = host_free,
    .describe = ref_describe,
    .read_bandwidth = ref_read_bandwidth,
    .weight_place = host_weight_place,
    .weight_release = host_weight_release,
    .kv_bytes = ref_kv_bytes,
    .kv_create = ref_kv_create,
    .kv_free = host_kv_free,
    .kv_copy_block = ref_kv_copy_block,
    .state_create = ref_state_create,
    .state_free = ref_state_free,
    .begin = host_begin,
    .embed = ref_backend_embed,
    .qkv = ref_backend_qkv,
    .attend = ref_backend_attend,
    .project_add = ref_backend_project_add,
    .gate_up = ref_backend_gate_up,
    .head = ref_backend_head,
    .sample = host_sample,
    .finish = host_finish,
    .tokens = host_tokens,
    .logits = host_logits,
};

int backend_create_ref(thread_pool *pool, backend **out, flute_error *err) {
    ref_backend *be = calloc(1, sizeof *be);
    if (!be) return fail_memory(err, sizeof *be, "the backend");
    *be = (ref_backend){.base = {.ops = &ref_ops}, .pool = pool};
    *out = &be->base;
    return FLUTE_OK;
}
