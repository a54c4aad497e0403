// The verbs of a collected step as kernels on the stream.
#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/cuda/state.h"
#include "kernels/layout.h"

static const int32_t *input32(const backend_state *state, size_t place) {
    return (const int32_t *)(state->inputs + place);
}

static int check(flute_error *err, cudaError_t code, const char *what) {
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, what);
}

static cuda_rows rows_of(const backend_state *state, int layer) {
    const kernel_dims *dims = &state->dims;
    const step_shape *shape = &state->shape;
    cuda_rows rows = {};
    rows.n_rows = shape->n_rows;
    rows.positions = input32(state, state->places.positions);
    rows.sequences = input32(state, state->places.sequences);
    rows.tables = input32(state, state->places.tables), rows.max_blocks = shape->max_blocks;
    rows.n_heads = dims->n_heads, rows.n_kv_heads = dims->n_kv_heads, rows.head_dim = dims->head_dim;
    rows.block_tokens = shape->block_tokens, rows.tile_tokens = cuda_tile_tokens(shape->block_tokens);
    rows.block_stride = cuda_block_stride(dims, shape->block_tokens);
    rows.cache =
        (bf16 *)shape->cache + (int64_t)layer * dims->n_kv_heads * 2 * dims->head_dim * rows.tile_tokens;
    return rows;
}

// ---- Products, and the norms between them

typedef struct product_output {
    void *y;
    int64_t stride;
    lut_epilogue epilogue;
    lut_order order = {};
} product_output;

static lut_gemm_args describe_product(const weight *w, const bf16 *x, int64_t x_stride, int n_rows,
                                      product_output to) {
    lut_gemm_args args = {};
    args.w = w, args.x = x, args.x_stride = x_stride, args.n_tokens = n_rows;
    args.y = to.y, args.y_stride = to.stride, args.epilogue = to.epilogue, args.overlap = true;
    return args;
}

static bool is_last(const backend_state *state, const step_op *op) {
    return op + 1 == state->ops + state->shape.n_ops;
}

// How the norm that `op` wants of its input comes about. It follows a project_add, but for the first.
enum norm_source {
    NORM_KERNEL,  // a kernel of its own
    NORM_DONE,    // the kernel ahead, which adds the norm of a product, has done it: cuda_norm_add
    NORM_PRODUCT, // the product ahead has begun it, this one ends it: lut_norm
};

static norm_source norm_of(const backend_state *state, const step_op *op) {
    const step_op *before = op - 1;
    if (op == state->ops || before->verb != VERB_PROJECT_ADD || op->verb == VERB_PROJECT_ADD ||
        !op->norm.weight)
        return NORM_KERNEL;
    if (op->verb == VERB_HEAD && state->shape.n_runs > 0) return NORM_KERNEL; // of some rows only
    if (before->norm.weight) return NORM_DONE;
    if (state->ranks) return NORM_KERNEL; // a sum stands between
    const int n_rows = state->shape.n_rows;
    const product_device *device = &state->be->device;
    const bool fuses =
        product_fuses_norm(device, before->weight, n_rows) && product_fuses_norm(device, op->weight, n_rows);
    return fuses ? NORM_PRODUCT : NORM_KERNEL;
}

// The norm that project_add `op` prepares.
static lut_next next_norm(const backend_state *state, const step_op *op) {
    lut_next next = {};
    if (is_last(state, op) || norm_of(state, op + 1) != NORM_PRODUCT) return next;
    next.squares = state->squares, next.weight = (const float *)op[1].norm.weight->data,
    next.offset = op[1].norm.offset;
    next.x = state->normed, next.x_stride = state->dims.hidden;
    return next;
}

// The order in which project_add `op` takes its input; each rank's part of it lies in rows.
static lut_order input_order(const backend_state *state, const step_op *op) {
    const product_device *device = &state->be->device;
    const int n_rows = state->shape.n_rows;
    if (state->ranks) return lut_order{};
    if (op->choice != PROJECT_ATTENTION &&
        (op == state->ops || !product_is_fused(device, op[-1].weight, n_rows)))
        return lut_order{};
    return product_order(device, op->weight, n_rows);
}

// W · norm(x) of all rows of the residual stream, or of n_rows that are listed.
static int multiply_normed(const backend_state *state, const step_op *op, const int32_t *rows, int n_rows,
                           product_output to, flute_error *err) {
    const int hidden = state->dims.hidden;
    lut_gemm_args args = describe_product(op->weight, state->normed, hidden, n_rows, to);
    args.x_order = product_order(&state->be->device, op->weight, n_rows);
    args.y_order = to.order;
    args.held = state->ranks != NULL && op->verb == VERB_HEAD;
    const norm_source source = norm_of(state, op);
    if (source == NORM_PRODUCT) {
        args.norm.squares = state->squares, args.norm.eps = op->norm.eps;
        args.norm.n_parts = lut_gemm_parts(&state->be->device.lut, op[-1].weight);
    } else if (source == NORM_KERNEL) {
        const cudaError_t code = cuda_rms_norm(&op->norm, state->x, rows, n_rows, hidden, state->normed,
                                               args.x_order, state->be->device.stream);
        if (code != cudaSuccess) return cuda_fail(err, code, "a norm");
    }
    return product(&state->be->device, &state->scratch, &args, err);
}

// ---- Verbs

static rotate_args rotation_of(const backend_state *state, const step_op *op, const cuda_rows *rows) {
    rotate_args args = {};
    args.rows = rows, args.qkv = state->qkv, args.q_norm = op->q_norm, args.k_norm = op->k_norm;
    args.inv_freq = op->inv_freq, args.q_scale = op->scale;
    return args;
}

// Of prefill; decoding rotates inside attention.
static int queue_qkv(const backend_state *state, const step_op *op, flute_error *err) {
    const cuda_rows rows = rows_of(state, op->layer);
    const product_output to = {state->qkv, op->weight->n_rows, LUT_STORE_F32};
    const int code = multiply_normed(state, op, NULL, rows.n_rows, to, err);
    if (code || state->shape.n_runs == 0) return code;
    const rotate_args rotation = rotation_of(state, op, &rows);
    return check(err, cuda_rotate(&rotation, state->q, state->be->device.stream), "rotation");
}

static int queue_attend(const backend_state *state, const step_op *op, flute_error *err) {
    const cuda_rows rows = rows_of(state, op->layer);
    const rotate_args rotation = rotation_of(state, op - 1, &rows); // attend follows the qkv of its layer
    attention_args args = {};
    args.rows = &rows, args.out = state->attn;
    if (!is_last(state, op)) args.order = input_order(state, op + 1); // project_add follows
    args.window = op->window, args.softcap = op->softcap;
    args.shared = state->be->device.lut.shared;
    if (state->shape.n_runs > 0) {
        args.runs = (const attention_run *)(state->inputs + state->places.runs);
        args.n_runs = state->shape.n_runs, args.q = state->q;
    } else {
        args.rotation = &rotation;
        args.counters = state->counters, args.partials = state->partials,
        args.n_sms = state->be->device.lut.n_sms;
        args.most_cluster = state->be->device.lut.most_cluster;
    }
    return check(err, cuda_attention(&args, state->be->device.stream), "attention");
}

// Of a step that is timed: an event before (0) or behind (1) the collective of op.
static int mark(const backend_state *state, const step_op *op, int behind, flute_error *err) {
    if (!state->shape.timed) return FLUTE_OK;
    const unsigned flags = step_is_captured(state) ? cudaEventRecordExternal : cudaEventRecordDefault;
    const cudaEvent_t event = state->marks[2 * (op - state->ops) + behind];
    return check(err, cudaEventRecordWithFlags(event, state->be->device.stream, flags), "an event");
}

// data: (n_rows, hidden) becomes the sum over all ranks.
static int sum_ranks(const backend_state *state, const step_op *op, float *data, flute_error *err) {
    const size_t n = (size_t)state->shape.n_rows * (size_t)state->dims.hidden;
    int code = mark(state, op, 0, err);
    if (!code) code = state->ranks->ops->all_reduce(state->ranks, data, n, state->be->device.stream, err);
    return code ? code : mark(state, op, 1, err);
}

static int queue_embed(const backend_state *state, const step_op *op, flute_error *err) {
    const int32_t *ids = input32(state, state->places.ids);
    const int n_rows = state->shape.n_rows;
    cudaStream_t stream = state->be->device.stream;
    const size_t bytes = (size_t)n_rows * (size_t)state->dims.hidden * sizeof(float);
    const cudaError_t code = op->weight->data ? cuda_embed(op->weight, ids, n_rows, op->scale, state->x,
                                                           state->ranks != NULL, stream)
                                              : cudaMemsetAsync(state->x, 0, bytes, stream);
    if (code != cudaSuccess || !state->ranks) return check(err, code, "embedding");
    return sum_ranks(state, op, state->x, err);
}

// x: (n_rows, width), stride apart, as (n_rows, w->n_cols): a rank's part of w begins and ends with whole
// units.
static cudaError_t widen(const backend_state *state, const weight *w, const bf16 **x, int64_t width,
                         int64_t *stride) {
    if (w->n_cols == width) return cudaSuccess;
    cudaStream_t stream = state->be->device.stream;
    const size_t n_rows = (size_t)state->shape.n_rows, wide = (size_t)round_up(w->n_cols, 8) * sizeof(bf16);
    cudaError_t code = cudaMemsetAsync(state->wide, 0, n_rows * wide, stream);
    if (code == cudaSuccess)
        code = cudaMemcpy2DAsync(state->wide + w->lead_cols, wide, *x, (size_t)*stride * sizeof(bf16),
                                 (size_t)width * sizeof(bf16), n_rows, cudaMemcpyDeviceToDevice, stream);
    *x = state->wide, *stride = (int64_t)(wide / sizeof(bf16));
    return code;
}

// A rank's part of the product, then the sum. What is added to x is summed in x itself: rank 0 adds its part,
// the others begin anew, and the sum is the new x of all.
static int queue_shared_product(const backend_state *state, const step_op *op, const bf16 *x, int64_t stride,
                                int64_t width, product_output to, flute_error *err) {
    const weight *w = op->weight;
    const int n_rows = state->shape.n_rows;
    const size_t bytes = (size_t)n_rows * (size_t)to.stride * sizeof(float);
    if (state->ranks->rank != 0) to.epilogue = LUT_STORE_F32;
    int code = FLUTE_OK;
    if (w->data) {
        code = check(err, widen(state, w, &x, width, &stride), "activations");
        lut_gemm_args args = describe_product(w, x, stride, n_rows, to);
        args.held = true;
        if (!code) code = product(&state->be->device, &state->scratch, &args, err);
    } else if (to.epilogue == LUT_STORE_F32) {
        code = check(err, cudaMemsetAsync(to.y, 0, bytes, state->be->device.stream), "a sum");
    }
    return code ? code : sum_ranks(state, op, (float *)to.y, err);
}

static int queue_project_add(const backend_state *state, const step_op *op, flute_error *err) {
    const int hidden = state->dims.hidden, n_rows = state->shape.n_rows;
    const bool attention = op->choice == PROJECT_ATTENTION, post_norm = op->norm.weight;
    const bf16 *x = attention ? state->attn : state->ff;
    const int64_t heads = (int64_t)state->dims.n_heads * state->dims.head_dim;
    const int64_t stride = attention ? heads : state->ff_stride;
    product_output to = {state->x, hidden, LUT_ADD_F32};
    if (post_norm) to = {state->product, hidden, LUT_STORE_F32};
    int code;
    if (state->ranks) {
        code = queue_shared_product(state, op, x, stride, attention ? heads : state->dims.n_ff, to, err);
    } else {
        lut_gemm_args args = describe_product(op->weight, x, stride, n_rows, to);
        args.x_order = input_order(state, op);
        if (!post_norm) args.next = next_norm(state, op);
        code = product(&state->be->device, &state->scratch, &args, err);
    }
    if (code || !post_norm) return code;
    const bool with_next = !is_last(state, op) && norm_of(state, op + 1) == NORM_DONE;
    const lut_order order = with_next ? product_order(&state->be->device, op[1].weight, n_rows) : lut_order{};
    return check(err,
                 cuda_norm_add(&op->norm, state->product, n_rows, hidden, state->x,
                               with_next ? &op[1].norm : NULL, state->normed, order,
                               state->be->device.stream),
                 "a norm");
}

static int queue_gate_up(const backend_state *state, const step_op *op, flute_error *err) {
    const product_output to = {state->ff, state->ff_stride,
                               op->choice == ACT_SILU ? LUT_SILU_MUL : LUT_GELU_MUL,
                               is_last(state, op) ? lut_order{} : input_order(state, op + 1)};
    return multiply_normed(state, op, NULL, state->shape.n_rows, to, err);
}

// Columns of logits that a rank computes, from row to row of its slot.
static int64_t slot_stride(const backend_state *state, int rank) {
    return round_up(layout_share_rows(state->dims.n_vocab, rank, state->ranks->size).n, PANEL_ROWS);
}

// The slots of all ranks as whole rows of logits.
static int gather_logits(const backend_state *state, const step_op *op, flute_error *err) {
    comm *ranks = state->ranks;
    cudaStream_t stream = state->be->device.stream;
    const int64_t n_logits = state->shape.n_logits, n_vocab = state->dims.n_vocab;
    const int64_t slot = n_logits * state->slot_width;
    int code = mark(state, op, 0, err);
    if (!code)
        code = ranks->ops->all_gather(ranks, state->slots + ranks->rank * slot, state->slots,
                                      (size_t)slot * sizeof(float), stream, err);
    if (!code) code = mark(state, op, 1, err);
    for (int rank = 0; rank < ranks->size && !code && ranks->rank == 0; rank++) {
        const layout_run run = layout_share_rows(n_vocab, rank, ranks->size);
        if (run.n == 0) continue;
        code = check(err,
                     cudaMemcpy2DAsync(
                         state->logits + run.first, (size_t)n_vocab * sizeof(float),
                         state->slots + rank * slot, (size_t)slot_stride(state, rank) * sizeof(float),
                         (size_t)run.n * sizeof(float), (size_t)n_logits, cudaMemcpyDeviceToDevice, stream),
                     "logits");
    }
    return code;
}

static int queue_head(const backend_state *state, const step_op *op, flute_error *err) {
    const int n_logits = state->shape.n_logits;
    const int64_t n_vocab = state->dims.n_vocab;
    // A decode step wants the logits of all rows, in their order.
    const int32_t *rows = state->shape.n_runs ? input32(state, state->places.logits_rows) : NULL;
    product_output to = {state->logits, n_vocab, LUT_STORE_F32};
    if (state->ranks)
        to = {state->slots + state->ranks->rank * n_logits * state->slot_width,
              slot_stride(state, state->ranks->rank), LUT_STORE_F32};
    int code = FLUTE_OK;
    if (op->weight->data) code = multiply_normed(state, op, rows, n_logits, to, err);
    if (!code && state->ranks) code = gather_logits(state, op, err);
    if (code || op->softcap == 0) return code;
    return check(err, cuda_softcap(state->logits, n_logits * n_vocab, op->softcap, state->be->device.stream),
                 "the cap of logits");
}

static int queue_op(const backend_state *state, const step_op *op, flute_error *err) {
    switch ((step_verb)op->verb) {
    case VERB_EMBED:
        return queue_embed(state, op, err);
    case VERB_QKV:
        return queue_qkv(state, op, err);
    case VERB_ATTEND:
        return queue_attend(state, op, err);
    case VERB_PROJECT_ADD:
        return queue_project_add(state, op, err);
    case VERB_GATE_UP:
        return queue_gate_up(state, op, err);
    case VERB_HEAD:
        return queue_head(state, op, err);
    }
    return FLUTE_OK;
}

int cuda_queue_step(backend_state *state, flute_error *err) {
    const step_shape *shape = &state->shape;
    for (int i = 0; i < shape->n_ops; i++) {
        const int code = queue_op(state, &state->ops[i], err);
        if (code) return code;
    }
    if (!shape->sampled) return FLUTE_OK;
    return cuda_sample(state->logits, state->dims.n_vocab, state->dims.n_vocab, shape->n_logits,
                       (const cuda_sample_row *)(state->inputs + state->places.samples),
                       input32(state, state->places.histories), state->sample_scratch, state->tokens, true,
                       state->be->device.stream, err);
}
