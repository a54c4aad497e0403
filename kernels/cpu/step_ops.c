// The verbs of kernels.h as parallel loops over the kernels of one instruction set.
//
// A layer of one token is five dispatches of the pool (the products, attention); steps that take about a
// microsecond (norms, rotation, cache append of a few rows) run on the caller alone. Which worker computes
// what never changes what is computed, so results do not depend on the number of threads.
#include "kernels/cpu/step_ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/state.h"

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
    cpu_parallel(job->state, (job->n_rows + tile_rows - 1) / tile_rows, tile_rows * job->weight->n_cols,
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
    float *product = job->out ? job->out + first
                              : state->chunks + (int64_t)worker * state->step.dims.max_rows * CHUNK_COLS;
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

typedef struct embed_job {
    backend_state *state;
    const weight *embedding;
    float scale;
} embed_job;

static void embed_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const embed_job *job = (const embed_job *)argument;
    const int64_t hidden = job->state->step.dims.hidden;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        const int64_t id =
            job->state->step.ids[row] - job->embedding->first_row; // in this rank's rows, or not
        float *out = job->state->x + row * hidden;
        if (id >= 0 && id < job->embedding->n_rows)
            cpu_weight_row(job->embedding, id, job->scale, out);
        else
            memset(out, 0, (size_t)hidden * sizeof *out);
    }
}

void cpu_embed(backend_state *state, const weight *embedding, float scale) {
    if (state->step.error.code) return;
    embed_job job = {state, embedding, scale};
    cpu_parallel(state, state->step.n_rows, state->step.dims.hidden, embed_chunk, &job);
    host_sum_ranks(&state->step, state->x, (int64_t)state->step.n_rows * state->step.dims.hidden);
}

// cos and sin of all rows for these frequencies, computed once a step.
static const rope_table *rope_of(backend_state *state, const float *inv_freq) {
    for (int i = 0; i < ROPE_TABLES; i++)
        if (state->ropes[i].inv_freq == inv_freq) return &state->ropes[i];
    rope_table *table = &state->ropes[state->next_rope++ % ROPE_TABLES];
    const int half = state->step.dims.head_dim / 2;
    table->inv_freq = inv_freq;
    for (int row = 0; row < state->step.n_rows; row++)
        for (int i = 0; i < half; i++) {
            float angle = (float)state->step.positions[row] * inv_freq[i];
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
    const kernel_dims *dims = &state->step.dims;
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
        const cpu_kv kv = cpu_cached_head(state, job->args->layer, kv_head, row);
        cpu_kv_append(&kv, state->step.positions[row], head - head_dim, head);
    }
}

void cpu_qkv(backend_state *state, const qkv_args *args) {
    if (state->step.error.code || state->step.dims.n_heads == 0) return;
    const kernel_dims *dims = &state->step.dims;
    prepare(&(prepare_job){state, args->weight, &args->norm, state->x, NULL, state->step.n_rows,
                           state->step.dims.hidden});
    gemm(&(gemm_job){.state = state,
                     .weight = args->weight,
                     .n_rows = state->step.n_rows,
                     .out = state->qkv,
                     .stride = cpu_qkv_width(dims)});
    weight stored[2];
    norm_args norms[2];
    if (args->q_norm.weight) store_gain(&args->q_norm, dims->head_dim, state->gains, &stored[0], &norms[0]);
    if (args->k_norm.weight)
        store_gain(&args->k_norm, dims->head_dim, state->gains + dims->head_dim, &stored[1], &norms[1]);
    rotate_job job = {state, args, rope_of(state, args->inv_freq), args->q_norm.weight ? &norms[0] : NULL,
                      args->k_norm.weight ? &norms[1] : NULL};
    cpu_parallel(state, (int64_t)state->step.n_rows * dims->n_kv_heads,
                 cpu_qkv_width(dims) / dims->n_kv_heads, rotate_chunk, &job);
}

typedef struct attend_job {
    backend_state *state;
    const attend_args *args;
    int tiles; // pieces of at most CPU_ATTENTION_HEADS query heads in a KV head
} attend_job;

static void attend_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const attend_job *job = (const attend_job *)argument;
    const backend_state *state = job->state;
    const kernel_dims *dims = &state->step.dims;
    const int head_dim = dims->head_dim, n_queries = dims->n_heads / dims->n_kv_heads;
    const int window = job->args->window;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / job->tiles; // (row, KV head)
        const int row = (int)(head / dims->n_kv_heads), kv_head = (int)(head % dims->n_kv_heads);
        const int query = (int)(i % job->tiles) * CPU_ATTENTION_HEADS;
        const int n = n_queries - query < CPU_ATTENTION_HEADS ? n_queries - query : CPU_ATTENTION_HEADS;
        const int last = state->step.positions[row];
        const int first = window > 0 && last >= window ? last - window + 1 : 0;
        const cpu_kv kv = cpu_cached_head(state, job->args->layer, kv_head, row);
        state->kernels->attention(&kv, state->qkv + (head * (n_queries + 2) + query) * head_dim, n, first,
                                  last, job->args->softcap,
                                  state->attn + (head * n_queries + query) * head_dim);
    }
}

void cpu_attend(backend_state *state, const attend_args *args) {
    if (state->step.error.code || state->step.dims.n_heads == 0) return;
    const kernel_dims *dims = &state->step.dims;
    const int n_queries = dims->n_heads / dims->n_kv_heads;
    attend_job job = {state, args, (n_queries + CPU_ATTENTION_HEADS - 1) / CPU_ATTENTION_HEADS};
    int64_t tokens = 0; // of all rows, as a measure of the work
    for (int row = 0; row < state->step.n_rows; row++) tokens += state->step.positions[row] + 1;
    const int64_t n = (int64_t)state->step.n_rows * dims->n_kv_heads * job.tiles;
    cpu_parallel(state, n, state->step.n_rows ? tokens / state->step.n_rows * dims->head_dim : 0,
                 attend_chunk, &job);
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
    const int hidden = job->state->step.dims.hidden;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        float *product = job->state->normed + row * job->stride;
        if (job->norm->weight) job->state->kernels->rms_norm(job->norm, product, hidden, product);
        job->state->kernels->add(job->state->x + row * hidden, product, hidden);
    }
}

void cpu_project_add(backend_state *state, const project_args *args) {
    if (state->step.error.code) return;
    const kernel_dims *dims = &state->step.dims;
    const bool attention = args->input == PROJECT_ATTENTION;
    const float *input = attention ? state->attn : state->ff;
    const int64_t width = attention ? (int64_t)dims->n_heads * dims->head_dim : dims->n_ff;
    const int64_t stride = round_up(dims->hidden, PANEL_ROWS);
    gemm_job job = {.state = state, .weight = args->weight, .n_rows = state->step.n_rows};
    if (width > 0) prepare(&(prepare_job){state, args->weight, NULL, input, NULL, state->step.n_rows, width});
    if (!args->post_norm.weight && !state->step.comm) {
        job.finish = finish_add;
        gemm(&job);
        return;
    }
    job.out = state->normed;
    job.stride = stride;
    if (width > 0)
        gemm(&job);
    else
        memset(state->normed, 0, (size_t)(state->step.n_rows * stride) * sizeof *state->normed);
    host_sum_ranks(&state->step, state->normed, state->step.n_rows * stride);
    post_norm_job norm = {state, &args->post_norm, stride};
    cpu_parallel(state, state->step.n_rows, dims->hidden, post_norm_chunk, &norm);
}

static void finish_activate(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride) {
    const int64_t n_ff = job->state->step.dims.n_ff, channel = first / 2;
    const int64_t wanted = channel + n / 2 < n_ff ? n / 2 : n_ff - channel, whole = wanted / 8 * 8;
    for (int row = 0; row < job->n_rows; row++, product += stride) {
        float *out = job->state->ff + row * n_ff + channel, rest[8];
        job->state->kernels->activate(job->act, product, whole, out);
        if (whole == wanted) continue;
        job->state->kernels->activate(job->act, product + 2 * whole, 8, rest);
        memcpy(out + whole, rest, (size_t)(wanted - whole) * sizeof *out);
    }
}

void cpu_gate_up(backend_state *state, const gate_up_args *args) {
    if (state->step.error.code || state->step.dims.n_ff == 0) return;
    prepare(&(prepare_job){state, args->weight, &args->norm, state->x, NULL, state->step.n_rows,
                           state->step.dims.hidden});
    gemm(&(gemm_job){.state = state,
                     .weight = args->weight,
                     .n_rows = state->step.n_rows,
                     .finish = finish_activate,
                     .act = args->act});
}

static void finish_softcap(const gemm_job *job, int64_t first, int64_t n, float *product, int64_t stride) {
    (void)first;
    for (int row = 0; row < job->n_rows; row++)
        job->state->kernels->softcap(product + row * stride, n, job->cap);
}

void cpu_head(backend_state *state, const head_args *args) {
    if (state->step.error.code || state->step.n_logits == 0) return;
    if (args->weight->n_rows > 0) { // a rank's part may be empty
        prepare(&(prepare_job){state, args->weight, &args->norm, state->x, state->step.logits_rows,
                               state->step.n_logits, state->step.dims.hidden});
        gemm(&(gemm_job){.state = state,
                         .weight = args->weight,
                         .n_rows = state->step.n_logits,
                         .out = host_own_logits(&state->step),
                         .stride = round_up(args->weight->n_rows, PANEL_ROWS),
                         .finish = args->softcap != 0 ? finish_softcap : NULL,
                         .cap = args->softcap});
    }
    host_gather_logits(&state->step);
}
