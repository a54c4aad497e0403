// The verbs of a collected step as kernels on the stream.
#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/cuda/state.h"

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
    const int n_rows = state->shape.n_rows;
    return product_fuses_norm(before->weight, n_rows) && product_fuses_norm(op->weight, n_rows) ? NORM_PRODUCT
                                                                                                : NORM_KERNEL;
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

// W · norm(x) of all rows of the residual stream, or of n_rows that are listed.
static int multiply_normed(const backend_state *state, const step_op *op, const int32_t *rows, int n_rows,
                           product_output to, flute_error *err) {
    const int hidden = state->dims.hidden;
    lut_gemm_args args = describe_product(op->weight, state->normed, hidden, n_rows, to);
    const norm_source source = norm_of(state, op);
    if (source == NORM_PRODUCT) {
        args.norm.squares = state->squares, args.norm.eps = op->norm.eps;
        args.norm.n_parts = lut_gemm_parts(&state->be->device.lut, op[-1].weight);
    } else if (source == NORM_KERNEL) {
        const cudaError_t code = cuda_rms_norm(&op->norm, state->x, rows, n_rows, hidden, state->normed,
                                               hidden, state->be->device.stream);
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
    args.rows = &rows, args.out = state->attn, args.window = op->window, args.softcap = op->softcap;
    if (state->shape.n_runs > 0) {
        args.runs = (const attention_run *)(state->inputs + state->places.runs);
        args.n_runs = state->shape.n_runs, args.q = state->q;
    } else {
        args.rotation = &rotation;
        args.counters = state->counters, args.partials = state->partials,
        args.n_sms = state->be->device.lut.n_sms;
    }
    return check(err, cuda_attention(&args, state->be->device.stream), "attention");
}

static int queue_project_add(const backend_state *state, const step_op *op, flute_error *err) {
    const int hidden = state->dims.hidden, n_rows = state->shape.n_rows;
    const bool attention = op->choice == PROJECT_ATTENTION, post_norm = op->norm.weight;
    const bf16 *x = attention ? state->attn : state->ff;
    const int64_t stride = attention ? (int64_t)state->dims.n_heads * state->dims.head_dim : state->ff_stride;
    product_output to = {state->x, hidden, LUT_ADD_F32};
    if (post_norm) to = {state->product, hidden, LUT_STORE_F32};
    lut_gemm_args args = describe_product(op->weight, x, stride, n_rows, to);
    if (!post_norm) args.next = next_norm(state, op);
    const int code = product(&state->be->device, &state->scratch, &args, err);
    if (code || !post_norm) return code;
    const norm_args *next = !is_last(state, op) && norm_of(state, op + 1) == NORM_DONE ? &op[1].norm : NULL;
    return check(err,
                 cuda_norm_add(&op->norm, state->product, n_rows, hidden, state->x, next, state->normed,
                               hidden, state->be->device.stream),
                 "a norm");
}

static int queue_gate_up(const backend_state *state, const step_op *op, flute_error *err) {
    const product_output to = {state->ff, state->ff_stride,
                               op->choice == ACT_SILU ? LUT_SILU_MUL : LUT_GELU_MUL};
    return multiply_normed(state, op, NULL, state->shape.n_rows, to, err);
}

static int queue_head(const backend_state *state, const step_op *op, flute_error *err) {
    const int n_logits = state->shape.n_logits;
    const int64_t n_vocab = state->dims.n_vocab;
    // A decode step wants the logits of all rows, in their order.
    const int32_t *rows = state->shape.n_runs ? input32(state, state->places.logits_rows) : NULL;
    const int code = multiply_normed(state, op, rows, n_logits, {state->logits, n_vocab, LUT_STORE_F32}, err);
    if (code || op->softcap == 0) return code;
    return check(err, cuda_softcap(state->logits, n_logits * n_vocab, op->softcap, state->be->device.stream),
                 "the cap of logits");
}

static int queue_op(const backend_state *state, const step_op *op, flute_error *err) {
    switch ((step_verb)op->verb) {
    case VERB_EMBED:
        return check(err,
                     cuda_embed(op->weight, input32(state, state->places.ids), state->shape.n_rows, op->scale,
                                state->x, state->be->device.stream),
                     "embedding");
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
