// The forward step: verbs are collected, and finish runs them. A decode step of a known shape is one graph
// launch between one copy to the device and one back; anything else is queued kernel by kernel.
#include "kernels/cuda/state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/batch.h"
#include "kernels/layout.h"

enum { OPS_A_LAYER = 5, OPS_A_MODEL = 2, MAX_QUERIES = 64 };

// ---- Buffers. They are laid out twice by the same code: without memory, for the size, and then with it.

typedef struct carver {
    uint8_t *memory; // NULL: measuring
    size_t used;
} carver;

template <typename T> static void carve(carver *c, T **out, size_t n) {
    *out = c->memory ? (T *)(c->memory + c->used) : NULL;
    c->used += (size_t)round_up((int64_t)(n * sizeof(T)), 256);
}

static size_t state_carve(backend_state *s, uint8_t *memory) {
    const kernel_dims *dims = &s->dims;
    const size_t rows = (size_t)dims->max_rows, hidden = (size_t)dims->hidden,
                 n_logits = (size_t)dims->max_logits;
    const size_t heads = (size_t)dims->n_heads * (size_t)dims->head_dim;
    const size_t kv_heads = (size_t)dims->n_kv_heads * (size_t)dims->head_dim;
    const int n_sms = s->be->device.lut.n_sms;
    carver c = {memory, 0};
    uint8_t *sample_scratch, *weights, *gate_up, *counters, *partials;
    carve(&c, &counters, cuda_attention_counters_bytes(dims->max_rows, dims->n_heads, dims->n_kv_heads));
    if (!s->ranks) carve(&c, &s->x, rows * hidden);
    carve(&c, &s->normed,
          lut_order_bytes((int64_t)(rows > n_logits ? rows : n_logits), (int64_t)hidden) / sizeof(bf16));
    carve(&c, &s->squares, (size_t)LUT_NORM_TOKENS * LUT_MAX_PARTS);
    carve(&c, &s->qkv, rows * (heads + 2 * kv_heads));
    carve(&c, &s->q, rows * heads);
    carve(&c, &s->attn, lut_order_bytes((int64_t)rows, (int64_t)heads) / sizeof(bf16));
    s->ff_stride = round_up(dims->n_ff, 8);
    carve(&c, &s->ff, lut_order_bytes((int64_t)rows, s->ff_stride) / sizeof(bf16));
    if (!s->ranks) carve(&c, &s->product, rows * hidden);
    if (s->ranks) {
        const size_t own = heads > (size_t)s->ff_stride ? heads : (size_t)s->ff_stride;
        s->slot_width = round_up(layout_share_rows(dims->n_vocab, 0, s->ranks->size).n, PANEL_ROWS);
        carve(&c, &s->wide, rows * (own + 2 * MAX_UNIT_COLS));
        carve(&c, &s->slots, (size_t)s->ranks->size * n_logits * (size_t)s->slot_width);
    }
    carve(&c, &s->logits, n_logits * (size_t)dims->n_vocab);
    carve(&c, &s->tokens, n_logits);
    carve(&c, &sample_scratch, cuda_sample_scratch_bytes(dims->max_logits, dims->n_vocab));
    carve(&c, &partials,
          cuda_attention_partials_bytes(dims->max_rows, dims->n_heads, dims->n_kv_heads, dims->head_dim,
                                        n_sms));
    carve(&c, &weights, product_weights_bytes(&s->be->device, dims));
    carve(&c, &gate_up, product_gate_up_bytes(dims));
    s->sample_scratch = sample_scratch, s->counters = (uint32_t *)counters, s->partials = (float *)partials;
    s->scratch.weights = (bf16 *)weights, s->scratch.gate_up = (float *)gate_up;
    return c.used;
}

// Decode steps of 1, 2, 4, … rows; what lies between is padded.
static int bucket_of(int n_rows) {
    int bucket = 1;
    while (bucket < n_rows) bucket *= 2;
    return bucket;
}

static int padded(int n_rows) {
    return n_rows <= MAX_GRAPH_ROWS ? bucket_of(n_rows) : n_rows;
}

static void drop_graphs(backend_state *state) {
    for (int i = 0; i < state->n_graphs; i++) {
        cudaGraphExecDestroy(state->graphs[i].exec);
        free(state->graphs[i].ops);
    }
    state->n_graphs = 0;
}

void cuda_state_free(backend_state *state) {
    if (!state) return;
    drop_graphs(state);
    for (int i = 0; state->marks && i < 2 * state->max_ops; i++)
        if (state->marks[i]) cudaEventDestroy(state->marks[i]);
    free(state->marks);
    for (int i = 0; i < MAX_ROPES; i++) cudaFree((void *)state->ropes[i].device);
    if (state->ranks) {
        state->ranks->ops->release(state->ranks, state->x);
        state->ranks->ops->release(state->ranks, state->product);
    }
    cudaFree(state->memory);
    cudaFree(state->inputs);
    cudaFreeHost(state->host);
    cudaFreeHost(state->host_logits);
    cudaFreeHost(state->host_tokens);
    free(state->ops);
    free(state);
}

static int check_dims(const kernel_dims *dims, flute_error *err) {
    if (dims->hidden % 8 || dims->hidden > 16384)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "a model %d wide: the GPU kernels take multiples of 8 up to 16384; use the cpu",
                    dims->hidden);
    if (dims->head_dim % 16 || dims->head_dim > 256 || dims->n_heads / dims->n_kv_heads > MAX_QUERIES)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%d heads of %d and %d KV heads: the GPU kernels take heads of multiples of 16 up to "
                    "256, and up to %d "
                    "for each KV head; use the cpu",
                    dims->n_heads, dims->head_dim, dims->n_kv_heads, (int)MAX_QUERIES);
    return FLUTE_OK;
}

// What ranks sum up. All ranks come here, so it goes before what may fail at some.
static int allocate_sums(backend_state *state, flute_error *err) {
    comm *ranks = state->ranks;
    if (!ranks) return FLUTE_OK;
    const size_t bytes = (size_t)state->dims.max_rows * (size_t)state->dims.hidden * sizeof(float);
    void *x = NULL, *product = NULL;
    int code = ranks->ops->alloc(ranks, &x, bytes, err);
    if (!code) code = ranks->ops->alloc(ranks, &product, bytes, err);
    state->x = (float *)x, state->product = (float *)product;
    return code;
}

static int allocate_state(backend_state *state, flute_error *err) {
    const size_t bytes = state_carve(state, NULL), n_logits = (size_t)state->dims.max_logits;
    void *memory = NULL;
    int code = allocate_sums(state, err);
    if (!code)
        code = cuda_allocate(&memory, bytes, "the buffers of a forward step; use a smaller batch", err);
    if (code) return code;
    state->memory = (uint8_t *)memory;
    state_carve(state, state->memory);
    const size_t counters =
        cuda_attention_counters_bytes(state->dims.max_rows, state->dims.n_heads, state->dims.n_kv_heads);
    cudaError_t cuda = cudaMemsetAsync(state->counters, 0, counters, state->be->device.stream);
    if (cuda == cudaSuccess)
        cuda = cudaHostAlloc((void **)&state->host_logits,
                             n_logits * (size_t)state->dims.n_vocab * sizeof(float), cudaHostAllocDefault);
    if (cuda == cudaSuccess)
        cuda = cudaHostAlloc((void **)&state->host_tokens, n_logits * sizeof(int32_t), cudaHostAllocDefault);
    return cuda == cudaSuccess ? FLUTE_OK : cuda_fail(err, cuda, "the buffers of a forward step");
}

int cuda_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err) {
    int code = dims->n_heads > 0 ? check_dims(dims, err) : FLUTE_OK;
    if (code) return code;
    backend_state *state = (backend_state *)calloc(1, sizeof *state);
    if (!state) return fail_memory(err, sizeof *state, "the state of a forward step");
    state->be = (cuda_backend *)be;
    state->dims = *dims;
    state->ranks = be->comm;
    state->idle = dims->n_heads == 0;
    if (state->idle) state->dims.n_heads = state->dims.n_kv_heads = 1; // buffers want to be somewhere
    state->dims.max_rows = padded(dims->max_rows), state->dims.max_logits = padded(dims->max_logits);
    state->max_ops = OPS_A_LAYER * dims->n_layers + OPS_A_MODEL;
    state->ops = (step_op *)calloc((size_t)state->max_ops, sizeof *state->ops);
    code = state->ops
               ? allocate_state(state, err)
               : fail_memory(err, (size_t)state->max_ops * sizeof *state->ops, "the verbs of a forward step");
    if (code) {
        cuda_state_free(state);
        return code;
    }
    *out = state;
    return FLUTE_OK;
}

// ---- Inputs

static size_t take(size_t *used, size_t bytes) {
    const size_t at = *used;
    *used = (size_t)round_up((int64_t)(at + bytes), 16);
    return at;
}

// Lays the inputs out; returns where histories begin, which is the end of what has a known size.
static size_t place_inputs(backend_state *state) {
    const step_shape *shape = &state->shape;
    const size_t rows = (size_t)shape->n_rows * sizeof(int32_t), n_logits = (size_t)shape->n_logits;
    size_t used = 0;
    step_places *places = &state->places;
    places->ids = take(&used, rows);
    places->positions = take(&used, rows);
    places->sequences = take(&used, rows);
    places->logits_rows = take(&used, n_logits * sizeof(int32_t));
    places->runs = take(&used, (size_t)shape->n_runs * sizeof(attention_run));
    places->tables = take(&used, (size_t)shape->n_sequences * (size_t)shape->max_blocks * sizeof(int32_t));
    places->samples = take(&used, n_logits * sizeof(cuda_sample_row));
    places->histories = used;
    return used;
}

// Grows by half, so that a history that gets longer with every token does not reallocate with every token.
// Graphs know the old address.
static int reserve_inputs(backend_state *state, size_t bytes, flute_error *err) {
    if (bytes <= state->capacity) return FLUTE_OK;
    const size_t capacity = bytes + bytes / 2;
    uint8_t *host = NULL;
    void *inputs = NULL;
    int code = cuda_allocate(&inputs, capacity, "the inputs of a forward step", err);
    if (code) return code;
    const cudaError_t cuda = cudaHostAlloc((void **)&host, capacity, cudaHostAllocDefault);
    if (cuda != cudaSuccess) {
        cudaFree(inputs);
        return cuda_fail(err, cuda, "the inputs of a forward step");
    }
    if (state->host) memcpy(host, state->host, state->capacity);
    drop_graphs(state);
    cudaFreeHost(state->host);
    cudaFree(state->inputs);
    state->host = host, state->inputs = (uint8_t *)inputs, state->capacity = capacity;
    return FLUTE_OK;
}

// One row for each sequence, and all of them wanted: the steps that repeat.
static bool is_decode(const kernel_batch *batch) {
    if (batch->n_rows > MAX_GRAPH_ROWS) return false;
    if (batch->n_logits != batch->n_rows && batch->n_logits != 0) return false;
    for (int row = 1; row < batch->n_rows; row++)
        if (batch->sequences[row] == batch->sequences[row - 1]) return false;
    return true;
}

// Runs of rows of one sequence, cut to what a block of threads takes; with runs NULL only counts them.
static int cut_runs(const backend_state *state, const kernel_batch *batch, attention_run *runs) {
    const int most = cuda_attention_run_rows(state->dims.n_heads, state->dims.n_kv_heads);
    int n = 0;
    for (int row = 0; row < batch->n_rows; n++) {
        int end = row + 1;
        while (end < batch->n_rows && end - row < most && batch->sequences[end] == batch->sequences[row])
            end++;
        if (runs) runs[n] = attention_run{row, end - row};
        row = end;
    }
    return n;
}

static void fill_rows(int32_t *to, const int32_t *from, int n, int n_padded, int32_t filling) {
    memcpy(to, from, (size_t)n * sizeof *to);
    for (int i = n; i < n_padded; i++) to[i] = filling;
}

static int32_t *host32(const backend_state *state, size_t place) {
    return (int32_t *)(state->host + place);
}

static void set_shape(backend_state *state, const kernel_batch *batch, const kv_pool *pool) {
    step_shape *shape = &state->shape;
    const bool decode = is_decode(batch);
    memset(shape, 0, sizeof *shape);
    shape->n_rows = decode ? bucket_of(batch->n_rows) : batch->n_rows;
    shape->n_logits = decode && batch->n_logits ? shape->n_rows : batch->n_logits;
    shape->n_sequences = batch->n_sequences, shape->max_blocks = batch->max_blocks;
    // Of a bucket of rows, as many tables: the number of sequences must not distinguish the graphs of a
    // bucket.
    if (decode && shape->n_sequences < shape->n_rows) shape->n_sequences = shape->n_rows;
    shape->n_runs = decode ? 0 : cut_runs(state, batch, NULL);
    shape->block_tokens = pool->block_tokens, shape->cache = pool->data;
    shape->timed = state->ranks && state->ranks->timed;
}

static void fill_inputs(backend_state *state, const kernel_batch *batch) {
    const step_shape *shape = &state->shape;
    const step_places *places = &state->places;
    fill_rows(host32(state, places->ids), batch->ids, batch->n_rows, shape->n_rows, -1);
    fill_rows(host32(state, places->positions), batch->positions, batch->n_rows, shape->n_rows, -1);
    fill_rows(host32(state, places->sequences), batch->sequences, batch->n_rows, shape->n_rows, 0);
    if (batch->n_logits)
        fill_rows(host32(state, places->logits_rows), batch->logits_rows, batch->n_logits, shape->n_logits,
                  0);
    if (shape->n_runs) cut_runs(state, batch, (attention_run *)(state->host + places->runs));
    memcpy(host32(state, places->tables), batch->block_tables,
           (size_t)batch->n_sequences * (size_t)batch->max_blocks * sizeof(int32_t));
}

static int reserve_marks(backend_state *state, flute_error *err) {
    const size_t n = 2 * (size_t)state->max_ops;
    if (state->marks || !state->ranks || !state->ranks->timed) return FLUTE_OK;
    state->marks = (cudaEvent_t *)calloc(n, sizeof *state->marks);
    if (!state->marks) return fail_memory(err, n * sizeof *state->marks, "events");
    cudaError_t code = cudaSuccess;
    for (size_t i = 0; i < n && code == cudaSuccess; i++) code = cudaEventCreate(&state->marks[i]);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "events");
}

void cuda_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
    memset(&state->error, 0, sizeof state->error);
    if (kernel_batch_check(batch, &state->dims, pool, &state->error)) return;
    if (reserve_marks(state, &state->error)) return;
    set_shape(state, batch, pool);
    if (reserve_inputs(state, place_inputs(state), &state->error)) return;
    state->n_rows = batch->n_rows, state->n_logits = batch->n_logits, state->has_host_logits = false;
    state->input_bytes = state->places.histories;
    fill_inputs(state, batch);
}

// ---- Verbs

static step_op *add_op(backend_state *state, step_verb verb, const weight *w) {
    static step_op ignored;
    if (!state->error.code && state->shape.n_ops == state->max_ops)
        fail(&state->error, FLUTE_EINVAL, "more than the %d verbs that a step of this model has",
             state->max_ops);
    if (state->error.code) return &ignored;
    step_op *op = &state->ops[state->shape.n_ops++];
    memset(op, 0, sizeof *op);
    op->verb = verb, op->weight = w;
    return op;
}

void cuda_verb_embed(backend_state *state, const weight *embedding, float scale) {
    add_op(state, VERB_EMBED, embedding)->scale = scale;
}

// The device's copy of rotary frequencies.
static const float *place_rope(backend_state *state, const float *inv_freq) {
    int i = 0;
    while (i < MAX_ROPES && state->ropes[i].host && state->ropes[i].host != inv_freq) i++;
    if (i == MAX_ROPES) {
        fail(&state->error, FLUTE_EUNSUPPORTED, "more than %d tables of rotary frequencies", (int)MAX_ROPES);
        return NULL;
    }
    if (state->ropes[i].host) return state->ropes[i].device;
    const size_t bytes = (size_t)(state->dims.head_dim / 2) * sizeof(float);
    void *device = NULL;
    if (cuda_allocate(&device, bytes, "rotary frequencies", &state->error)) return NULL;
    const cudaError_t code = cudaMemcpy(device, inv_freq, bytes, cudaMemcpyHostToDevice);
    if (code != cudaSuccess) {
        cudaFree(device);
        cuda_fail(&state->error, code, "rotary frequencies");
        return NULL;
    }
    state->ropes[i].host = inv_freq, state->ropes[i].device = (const float *)device;
    return state->ropes[i].device;
}

void cuda_verb_qkv(backend_state *state, const qkv_args *args) {
    if (state->error.code || state->idle) return;
    const float *inv_freq = place_rope(state, args->inv_freq);
    step_op *op = add_op(state, VERB_QKV, args->weight);
    op->layer = args->layer, op->norm = args->norm, op->q_norm = args->q_norm, op->k_norm = args->k_norm;
    op->inv_freq = inv_freq, op->scale = args->q_scale;
}

void cuda_verb_attend(backend_state *state, const attend_args *args) {
    if (state->idle) return;
    step_op *op = add_op(state, VERB_ATTEND, NULL);
    op->layer = args->layer, op->window = args->window, op->softcap = args->softcap;
}

void cuda_verb_project_add(backend_state *state, const project_args *args) {
    step_op *op = add_op(state, VERB_PROJECT_ADD, args->weight);
    op->choice = args->input, op->norm = args->post_norm;
}

void cuda_verb_gate_up(backend_state *state, const gate_up_args *args) {
    if (state->dims.n_ff == 0) return;
    step_op *op = add_op(state, VERB_GATE_UP, args->weight);
    op->choice = args->act, op->norm = args->norm;
}

void cuda_verb_head(backend_state *state, const head_args *args) {
    if (state->n_logits == 0) return;
    step_op *op = add_op(state, VERB_HEAD, args->weight);
    op->norm = args->norm, op->softcap = args->softcap;
}

void cuda_verb_sample(backend_state *state, const sample_args *args) {
    if (state->error.code || state->n_logits == 0 || !args) return;
    size_t n_history = 0;
    for (int i = 0; i < state->n_logits; i++) n_history += (size_t)args[i].n_history;
    if (reserve_inputs(state, state->places.histories + n_history * sizeof(int32_t), &state->error)) return;
    cuda_sample_row *rows = (cuda_sample_row *)(state->host + state->places.samples);
    int32_t *histories = host32(state, state->places.histories);
    int64_t at = 0;
    memset(rows, 0, (size_t)state->shape.n_logits * sizeof *rows); // padding is greedy
    for (int i = 0; i < state->n_logits; i++) {
        const sample_args *a = &args[i];
        rows[i].temperature = a->temperature, rows[i].top_p = a->top_p, rows[i].min_p = a->min_p;
        rows[i].repeat_penalty = a->repeat_penalty, rows[i].presence_penalty = a->presence_penalty;
        rows[i].frequency_penalty = a->frequency_penalty, rows[i].top_k = a->top_k;
        rows[i].n_history = a->n_history, rows[i].history_at = at;
        rows[i].uniform = sample_uniform(a->seed, a->position);
        if (a->n_history) memcpy(histories + at, a->history, (size_t)a->n_history * sizeof *histories);
        at += a->n_history;
    }
    state->shape.sampled = 1;
    state->input_bytes = state->places.histories + (size_t)at * sizeof *histories;
}

// ---- Running

static bool same_step(const step_graph *graph, const backend_state *state) {
    return memcmp(&graph->shape, &state->shape, sizeof graph->shape) == 0 &&
           memcmp(graph->ops, state->ops, (size_t)state->shape.n_ops * sizeof *state->ops) == 0;
}

// A place for another graph: a free one, or that of the graph that has not been used for longest.
static step_graph *place_for_graph(backend_state *state) {
    if (state->n_graphs < MAX_GRAPHS) return &state->graphs[state->n_graphs++];
    step_graph *oldest = &state->graphs[0];
    for (int i = 1; i < MAX_GRAPHS; i++)
        if (state->graphs[i].used < oldest->used) oldest = &state->graphs[i];
    cudaGraphExecDestroy(oldest->exec);
    free(oldest->ops);
    return oldest;
}

static int capture_graph(backend_state *state, cudaGraphExec_t *exec, flute_error *err) {
    cudaStream_t stream = state->be->device.stream;
    cudaGraph_t graph = NULL;
    cudaError_t cuda = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (cuda != cudaSuccess) return cuda_fail(err, cuda, "capturing a step");
    int code = cuda_queue_step(state, err);
    cuda = cudaStreamEndCapture(stream, &graph);
    if (!code && cuda == cudaSuccess) cuda = cudaGraphInstantiate(exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (code) cudaGetLastError(); // what invalidated the capture has been reported
    if (!code && cuda != cudaSuccess) code = cuda_fail(err, cuda, "capturing a step");
    return code;
}

static int find_graph(backend_state *state, cudaGraphExec_t *exec, flute_error *err) {
    for (int i = 0; i < state->n_graphs; i++) {
        if (!same_step(&state->graphs[i], state)) continue;
        state->graphs[i].used = state->n_steps;
        *exec = state->graphs[i].exec;
        return FLUTE_OK;
    }
    const size_t bytes = (size_t)state->shape.n_ops * sizeof *state->ops;
    step_op *ops = (step_op *)malloc(bytes);
    if (!ops) return fail_memory(err, bytes, "a graph");
    const int code = capture_graph(state, exec, err);
    if (code) {
        free(ops);
        return code;
    }
    memcpy(ops, state->ops, bytes);
    step_graph *graph = place_for_graph(state);
    graph->shape = state->shape, graph->ops = ops, graph->exec = *exec, graph->used = state->n_steps;
    return FLUTE_OK;
}

// What the step spent between the events around its collectives.
static cudaError_t add_collectives(const backend_state *state) {
    cudaError_t code = cudaSuccess;
    for (int i = 0; i < state->shape.n_ops && code == cudaSuccess; i++) {
        const int32_t verb = state->ops[i].verb;
        float ms = 0;
        if (verb != VERB_EMBED && verb != VERB_PROJECT_ADD && verb != VERB_HEAD) continue;
        code = cudaEventElapsedTime(&ms, state->marks[2 * i], state->marks[2 * i + 1]);
        state->ranks->seconds += ms * 1e-3;
    }
    return code;
}

static int run_step(backend_state *state, flute_error *err) {
    cudaStream_t stream = state->be->device.stream;
    const bool sampled = state->shape.sampled;
    cudaError_t cuda =
        cudaMemcpyAsync(state->inputs, state->host, state->input_bytes, cudaMemcpyHostToDevice, stream);
    if (cuda != cudaSuccess) return cuda_fail(err, cuda, "the inputs of a step");
    cudaGraphExec_t exec = NULL;
    int code = step_is_captured(state) ? find_graph(state, &exec, err) : cuda_queue_step(state, err);
    if (!code && exec) cuda = cudaGraphLaunch(exec, stream);
    const size_t n = (size_t)state->n_logits;
    if (!code && cuda == cudaSuccess && sampled)
        cuda = cudaMemcpyAsync(state->host_tokens, state->tokens, n * sizeof(int32_t), cudaMemcpyDeviceToHost,
                               stream);
    else if (!code && cuda == cudaSuccess && n > 0 && (!state->ranks || state->ranks->rank == 0))
        cuda =
            cudaMemcpyAsync(state->host_logits, state->logits,
                            n * (size_t)state->dims.n_vocab * sizeof(float), cudaMemcpyDeviceToHost, stream);
    state->has_host_logits = !sampled;
    // Wait in any case: whatever was queued reads the inputs.
    const cudaError_t waited = cudaStreamSynchronize(stream);
    if (!code && cuda == cudaSuccess) cuda = waited;
    if (!code && cuda == cudaSuccess && state->shape.timed) cuda = add_collectives(state);
    return code ? code : cuda == cudaSuccess ? FLUTE_OK : cuda_fail(err, cuda, "a forward step");
}

int cuda_finish(backend_state *state, flute_error *err) {
    flute_error *first = &state->error;
    state->n_steps++;
    if (!first->code) run_step(state, first);
    for (int i = 0; !first->code && state->shape.sampled && i < state->n_logits; i++)
        if (state->host_tokens[i] < 0)
            fail(first, FLUTE_ERANGE,
                 "the model's logits are not finite: its weights are damaged, or not those of this "
                 "architecture; convert "
                 "the checkpoint again");
    return first->code ? fail(err, first->code, "%s", first->message) : FLUTE_OK;
}

const int32_t *cuda_tokens(backend_state *state) {
    return state->host_tokens;
}

// A step that sampled left its logits on the device.
const float *cuda_logits(backend_state *state, int i) {
    const size_t n_vocab = (size_t)state->dims.n_vocab, n = (size_t)state->n_logits * n_vocab;
    if (!state->has_host_logits) {
        cudaStream_t stream = state->be->device.stream;
        cudaError_t code = cudaMemcpyAsync(state->host_logits, state->logits, n * sizeof(float),
                                           cudaMemcpyDeviceToHost, stream);
        if (code == cudaSuccess) code = cudaStreamSynchronize(stream);
        for (size_t k = 0; code != cudaSuccess && k < n; k++)
            state->host_logits[k] = NAN; // which nobody can take for logits
        state->has_host_logits = true;
    }
    return state->host_logits + (size_t)i * n_vocab;
}
