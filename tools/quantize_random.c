// flute-quantize --random NAME: a model of a published shape with random weights, to measure speed with.
// Codes come straight from a generator; nothing is quantized.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "kernels/layout.h"
#include "tools/quantize.h"

enum { BATCH_BYTES = 64 << 20, PIECE_BYTES = 1 << 20 };

static int dense_type(void *user, int index, weight_type *type, flute_error *err) {
    (void)user;
    (void)index;
    (void)err;
    *type = WEIGHT_BF16;
    return FLUTE_OK;
}

typedef struct fill {
    const weight *w;
    uint64_t seed;
    float scale;
    int64_t first; // panel or 2-byte element at which the batch begins
    uint8_t *out;
} fill;

static void fill_panels(void *argument, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const fill *f = argument;
    const size_t panel = layout_panel_bytes(f->w->type, f->w->n_cols, f->w->group_size);
    layout_random_panels(f->w->type, f->w->n_cols, f->w->group_size, f->first + begin, end - begin, f->seed,
                         f->scale, f->out + (size_t)begin * panel);
}

// Dense weights: uniform in ±2·scale.
static void fill_dense(void *argument, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const fill *f = argument;
    bf16 *out = (bf16 *)(void *)f->out;
    uint64_t state = (f->seed + 1) * 0x9e3779b97f4a7c15u + (uint64_t)(f->first + begin) * 0xd1342543de82ef95u;
    for (int64_t i = begin; i < end; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = bf16_from_float(f->scale * ((float)(int32_t)(state >> 32) * 0x1p-30f));
    }
}

// Appends n_items items of item_bytes in batches that all threads fill, pieces at a time.
static int write_filled(quantize_job *job, flt_writer *writer, fill *f, int64_t n_items, size_t item_bytes,
                        threads_chunk *chunk, const char *name, flute_error *err) {
    const int64_t batch = item_bytes < BATCH_BYTES ? (int64_t)(BATCH_BYTES / item_bytes) : 1;
    const int64_t grain = item_bytes < PIECE_BYTES ? (int64_t)(PIECE_BYTES / item_bytes) : 1;
    int code = FLUTE_OK;
    f->out = malloc((size_t)(batch < n_items ? batch : n_items) * item_bytes);
    if (!f->out) return fail_memory(err, (uint64_t)batch * item_bytes, "random weights");
    for (f->first = 0; !code && f->first < n_items; f->first += batch) {
        const int64_t n = n_items - f->first < batch ? n_items - f->first : batch;
        threads_for(job->pool, n, grain, chunk, f);
        code = flt_writer_append(writer, f->out, (size_t)n * item_bytes, err);
        quantize_progress(job, (uint64_t)n * item_bytes, name);
    }
    free(f->out);
    return code;
}

// Norms are ones, as stored: Gemma keeps them minus one.
static int write_norm(quantize_job *job, flt_writer *writer, const weight *w, flute_error *err) {
    bf16 *values = malloc(w->size);
    if (!values) return fail_memory(err, w->size, "a norm");
    for (int64_t i = 0; i < w->n_cols; i++) values[i] = bf16_from_float(1 - job->arch.norm_offset);
    int code = flt_writer_append(writer, values, w->size, err);
    free(values);
    return code;
}

static int write_tensor(quantize_job *job, flt_writer *writer, int index, flute_error *err) {
    const tensor_report *report = &job->reports[index];
    if (report->role == ROLE_ABSENT) return FLUTE_OK;
    weight w = job->plan[index];
    if (weight_is_quantized(w.type) && w.type != WEIGHT_INT8)
        quantize_builtin_table(QUANTIZE_OPT, w.type, w.group_size, w.table);
    int code = flt_writer_begin(writer, index, &w, err);
    if (code) return code;
    // Products keep the size of their inputs: the variance of a weight is about 1/K.
    const float deviation = 1 / sqrtf((float)w.n_cols);
    fill f = {.w = &w, .seed = job->options->seed + (uint64_t)index, .scale = deviation};
    if (report->role == ROLE_NORM) {
        code = write_norm(job, writer, &w, err);
    } else if (weight_is_quantized(w.type)) {
        f.scale =
            w.type == WEIGHT_INT8 ? deviation / 74 : 2 * deviation; // uniform codes: 74 is their deviation
        code =
            write_filled(job, writer, &f, layout_padded_rows(w.n_rows) / PANEL_ROWS,
                         layout_panel_bytes(w.type, w.n_cols, w.group_size), fill_panels, report->name, err);
    } else {
        code =
            write_filled(job, writer, &f, w.n_rows * w.n_cols, sizeof(bf16), fill_dense, report->name, err);
    }
    return code ? code : flt_writer_end(writer, err);
}

int quantize_random(const quantize_options *options, thread_pool *pool, flute_error *err) {
    flt_writer *writer = NULL;
    quantize_job *job = calloc(1, sizeof *job);
    if (!job) return fail_memory(err, sizeof *job, "the model");
    quantize_job_init(job, options, pool);
    int code = arch_from_name(&job->arch, options->random, err);
    if (!code) code = quantize_plan(job, dense_type, NULL, err);
    if (!code) code = quantize_job_open(job, TOKENIZER_NONE, NULL, 0, &writer, err);
    for (int i = 0; !code && i < arch_n_tensors(&job->arch); i++) code = write_tensor(job, writer, i, err);
    quantize_progress_end(job);
    if (code) {
        flt_writer_abort(writer);
    } else {
        code = flt_writer_commit(writer, err);
        if (!code && !options->quiet) quantize_job_print(job);
    }
    quantize_job_free(job);
    free(job);
    return code;
}
