// Converts a Hugging Face folder. Memory stays bounded whatever the size of the checkpoint: rows are read
// from the mapping batch by batch, quantized panel by panel on all threads, appended to the output, and their
// pages dropped.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/safetensors.h"
#include "kernels/layout.h"
#include "tools/quantize.h"

// A batch is this many bytes of packed panels, or one panel: enough to keep all threads busy, little to hold.
enum { BATCH_BYTES = 8 << 20 };

typedef struct checkpoint {
    quantize_job job;
    safetensors *tensors;
    tokenizer_kind tokenizer;
    char *blob; // of the tokenizer
    size_t blob_size;
    flt_writer *writer;
} checkpoint;

// One tensor on its way.
typedef struct conversion {
    const weight *w;
    arch_tensor tensor;
    safetensors_tensor sources[3];
    quantizer method;
    int64_t first_panel;    // of the batch
    uint8_t *packed;        // the batch
    double *error, *energy; // (panels of the matrix) so that sums do not depend on the threads
    flute_error *errors;    // (workers) first failure of each
} conversion;

static int find_sources(checkpoint *c, int index, arch_tensor *tensor, safetensors_tensor *sources,
                        flute_error *err) {
    int code = FLUTE_OK;
    arch_tensor_at(&c->job.arch, index, tensor);
    for (int i = 0; !code && i < tensor->n_sources; i++)
        code = safetensors_find(c->tensors, tensor->sources[i].name, tensor->sources[i].n_rows,
                                tensor->n_cols, &sources[i], err);
    return code;
}

// Dense tensors keep the checkpoint's type; parts of a fused matrix that differ in type meet in f32.
static int dense_type(void *user, int index, weight_type *type, flute_error *err) {
    arch_tensor tensor;
    safetensors_tensor sources[3];
    int code = find_sources(user, index, &tensor, sources, err);
    if (code) return code;
    *type = sources[0].type;
    for (int i = 1; i < tensor.n_sources; i++)
        if (sources[i].type != *type) *type = WEIGHT_F32;
    return FLUTE_OK;
}

// ---- Rows in fused order

static void read_row(const conversion *v, int64_t row, float *out) {
    const row_source source = layout_row_source(v->tensor.order, &v->tensor.dims, row);
    if (source.row < 0)
        memset(out, 0, (size_t)v->w->n_cols * sizeof *out);
    else
        safetensors_read_rows(&v->sources[source.source], source.row, 1, out);
}

// Tells the checkpoint that stored rows [begin, end) have been used. Rows of one source that a batch uses are
// those between the first and the last it touches: exact for plain and gate/up order, and within one KV head
// for qkv.
static void release_rows(const checkpoint *c, const conversion *v, int64_t begin, int64_t end) {
    int64_t low[3] = {INT64_MAX, INT64_MAX, INT64_MAX}, high[3] = {-1, -1, -1};
    for (int64_t row = begin; row < end; row++) {
        const row_source source = layout_row_source(v->tensor.order, &v->tensor.dims, row);
        if (source.row < 0) continue;
        if (source.row < low[source.source]) low[source.source] = source.row;
        if (source.row > high[source.source]) high[source.source] = source.row;
    }
    for (int i = 0; i < v->tensor.n_sources; i++)
        if (high[i] >= 0) safetensors_release_rows(c->tensors, &v->sources[i], low[i], high[i] + 1 - low[i]);
}

// ---- Dense tensors

static void dense_row(const conversion *v, int64_t row, uint8_t *out, float *scratch) {
    const row_source source = layout_row_source(v->tensor.order, &v->tensor.dims, row);
    const size_t bytes = (size_t)v->w->n_cols * (size_t)(weight_type_bits(v->w->type) / 8);
    if (source.row < 0) {
        memset(out, 0, bytes);
    } else if (v->sources[source.source].type == v->w->type) {
        memcpy(out, v->sources[source.source].data + (size_t)source.row * bytes, bytes);
    } else { // v->w->type is f32
        read_row(v, row, scratch);
        memcpy(out, scratch, bytes);
    }
}

static int convert_dense(checkpoint *c, conversion *v, flute_error *err) {
    const size_t row_bytes = v->w->size / (size_t)v->w->n_rows;
    const int64_t rows = row_bytes < BATCH_BYTES ? (int64_t)(BATCH_BYTES / row_bytes) : 1;
    const int64_t batch = rows < v->w->n_rows ? rows : v->w->n_rows;
    int code = FLUTE_OK;
    uint8_t *bytes = malloc((size_t)batch * row_bytes);
    float *scratch = malloc((size_t)v->w->n_cols * sizeof *scratch);
    if (!bytes || !scratch) code = fail_memory(err, (uint64_t)batch * row_bytes, "rows of a tensor");
    for (int64_t first = 0; !code && first < v->w->n_rows; first += batch) {
        const int64_t n = v->w->n_rows - first < batch ? v->w->n_rows - first : batch;
        for (int64_t i = 0; i < n; i++) dense_row(v, first + i, bytes + (size_t)i * row_bytes, scratch);
        code = flt_writer_append(c->writer, bytes, (size_t)n * row_bytes, err);
        release_rows(c, v, first, first + n);
        quantize_progress(&c->job, (uint64_t)n * row_bytes, v->tensor.name);
    }
    free(bytes);
    free(scratch);
    return code;
}

// ---- Quantized tensors

static int convert_panel(conversion *v, int64_t panel, uint8_t *out, flute_error *err) {
    const int64_t n_cols = v->w->n_cols, first = panel * PANEL_ROWS;
    const int n_rows = (int)(v->w->n_rows - first < PANEL_ROWS ? v->w->n_rows - first : PANEL_ROWS);
    const size_t n = (size_t)PANEL_ROWS * (size_t)n_cols;
    int code = FLUTE_OK;
    float *rows = malloc(n * sizeof *rows);
    uint8_t *codes = malloc(n);
    f16 *scales = malloc(n / (size_t)v->w->group_size * sizeof *scales);
    if (!rows || !codes || !scales) {
        code = fail_memory(err, n * sizeof *rows, "a panel of weights");
        goto done;
    }
    for (int i = 0; i < n_rows; i++) read_row(v, first + i, rows + i * n_cols);
    code = quantize_panel(&v->method, rows, n_rows, n_cols, codes, scales, &v->error[panel],
                          &v->energy[panel], err);
    if (!code) layout_pack_panel(v->w->type, n_cols, v->w->group_size, n_rows, codes, scales, out);
done:
    free(rows);
    free(codes);
    free(scales);
    return code;
}

static void convert_panels(void *argument, int64_t begin, int64_t end, int worker) {
    conversion *v = argument;
    const size_t panel_bytes = layout_panel_bytes(v->w->type, v->w->n_cols, v->w->group_size);
    for (int64_t i = begin; i < end && !v->errors[worker].code; i++)
        convert_panel(v, v->first_panel + i, v->packed + (size_t)i * panel_bytes, &v->errors[worker]);
}

// A panel failed: its message says where in the panel; the user wants to know in which tensor.
static int first_failure(const checkpoint *c, const conversion *v, flute_error *err) {
    for (int i = 0; i < threads_count(c->job.pool); i++)
        if (v->errors[i].code)
            return fail(err, v->errors[i].code, "%s: %s: %.360s", c->job.options->input,
                        v->tensor.sources[0].name, v->errors[i].message);
    return FLUTE_OK;
}

static int convert_batches(checkpoint *c, conversion *v, flute_error *err) {
    const size_t panel_bytes = layout_panel_bytes(v->w->type, v->w->n_cols, v->w->group_size);
    const int64_t n_panels = layout_padded_rows(v->w->n_rows) / PANEL_ROWS;
    const int64_t batch = panel_bytes < BATCH_BYTES ? (int64_t)(BATCH_BYTES / panel_bytes) : 1;
    int code = FLUTE_OK;
    v->packed = malloc((size_t)batch * panel_bytes);
    if (!v->packed) return fail_memory(err, (uint64_t)batch * panel_bytes, "packed weights");
    for (int64_t first = 0; !code && first < n_panels; first += batch) {
        const int64_t n = n_panels - first < batch ? n_panels - first : batch;
        v->first_panel = first;
        threads_for(c->job.pool, n, 1, convert_panels, v);
        code = first_failure(c, v, err);
        if (!code) code = flt_writer_append(c->writer, v->packed, (size_t)n * panel_bytes, err);
        const int64_t end = (first + n) * PANEL_ROWS;
        release_rows(c, v, first * PANEL_ROWS, end < v->w->n_rows ? end : v->w->n_rows);
        quantize_progress(&c->job, (uint64_t)n * panel_bytes, v->tensor.name);
    }
    free(v->packed);
    return code;
}

// Rows evenly spread over the matrix, enough for a table of 16 numbers.
static int fit_table(conversion *v, flute_error *err) {
    enum { SAMPLE_ROWS = 256 };
    const int64_t n = v->w->n_rows < SAMPLE_ROWS ? v->w->n_rows : SAMPLE_ROWS;
    float *rows = malloc((size_t)n * (size_t)v->w->n_cols * sizeof *rows);
    if (!rows)
        return fail_memory(err, (uint64_t)n * (uint64_t)v->w->n_cols * sizeof *rows, "a sample of weights");
    for (int64_t i = 0; i < n; i++) read_row(v, i * v->w->n_rows / n, rows + i * v->w->n_cols);
    int code = quantize_fit_table(&v->method, rows, n, v->w->n_cols, err);
    free(rows);
    return code;
}

static int choose_table(const quantize_options *options, conversion *v, flute_error *err) {
    static const char *const names[] = {
        [QUANTIZE_OPT] = "opt", [QUANTIZE_NF] = "nf", [QUANTIZE_INT] = "int", [QUANTIZE_LLOYD] = "lloyd"};
    v->method = (quantizer){.type = v->w->type, .group_size = v->w->group_size, .absmax = options->absmax};
    if (v->w->type == WEIGHT_INT8) return FLUTE_OK;
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (strcmp(options->table, names[i]) != 0) continue;
        quantize_builtin_table((quantize_table)i, v->w->type, v->w->group_size, v->method.table);
        return i == QUANTIZE_LLOYD ? fit_table(v, err) : FLUTE_OK;
    }
    // A file has the entries of the projections' width; head and embedding of another width take the learned
    // table.
    if (weight_type_bits(v->w->type) == options->bits)
        return quantize_read_table(options->table, v->w->type, v->method.table, err);
    quantize_builtin_table(QUANTIZE_OPT, v->w->type, v->w->group_size, v->method.table);
    return FLUTE_OK;
}

static int convert_quantized(checkpoint *c, conversion *v, tensor_report *report, flute_error *err) {
    const size_t n_panels = (size_t)(layout_padded_rows(v->w->n_rows) / PANEL_ROWS);
    v->error = calloc(n_panels, sizeof *v->error);
    v->energy = calloc(n_panels, sizeof *v->energy);
    v->errors = calloc((size_t)threads_count(c->job.pool), sizeof *v->errors);
    int code = v->error && v->energy && v->errors
                   ? FLUTE_OK
                   : fail_memory(err, n_panels * 2 * sizeof(double), "the error table");
    if (!code) code = convert_batches(c, v, err);
    for (size_t i = 0; !code && i < n_panels; i++) {
        report->error += v->error[i];
        report->energy += v->energy[i];
    }
    free(v->error);
    free(v->energy);
    free(v->errors);
    return code;
}

static int convert_tensor(checkpoint *c, int index, flute_error *err) {
    conversion v = {.w = &c->job.plan[index]};
    if (c->job.reports[index].role == ROLE_ABSENT) return FLUTE_OK;
    int code = find_sources(c, index, &v.tensor, v.sources, err);
    if (code) return code;
    weight stored = *v.w;
    const bool quantized = weight_is_quantized(v.w->type);
    if (quantized) {
        if ((code = choose_table(c->job.options, &v, err))) return code;
        memcpy(stored.table, v.method.table, sizeof stored.table);
    }
    if ((code = flt_writer_begin(c->writer, index, &stored, err))) return code;
    code = quantized ? convert_quantized(c, &v, &c->job.reports[index], err) : convert_dense(c, &v, err);
    return code ? code : flt_writer_end(c->writer, err);
}

// ---- The folder

static int read_config(checkpoint *c, flute_error *err) {
    char path[4096];
    struct stat status;
    int code = FLUTE_OK;
    if (stat(c->job.options->input, &status) == 0 && !S_ISDIR(status.st_mode))
        return fail(err, FLUTE_EIO, "%s: is a file; give the folder of a checkpoint, which holds config.json",
                    c->job.options->input);
    yyjson_doc *generation = NULL;
    snprintf(path, sizeof path, "%s/generation_config.json", c->job.options->input);
    if (access(path, F_OK) == 0 && !(generation = json_parse_file(path, err))) return FLUTE_EFORMAT;
    snprintf(path, sizeof path, "%s/config.json", c->job.options->input);
    yyjson_doc *config = json_parse_file(path, err);
    if (!config)
        code = err->code;
    else
        code = arch_from_config(&c->job.arch, yyjson_doc_get_root(config), yyjson_doc_get_root(generation),
                                path, err);
    yyjson_doc_free(config);
    yyjson_doc_free(generation);
    return code;
}

// Reads the tokenizer, and what only it can say: whether the model speaks Llama 3's chat format.
static int read_tokenizer(checkpoint *c, flute_error *err) {
    char path[4096];
    tokenizer *tok = NULL;
    int code = tokenizer_find(c->job.options->input, &c->tokenizer, &c->blob, &c->blob_size, err);
    if (code || c->tokenizer == TOKENIZER_NONE) return code;
    snprintf(path, sizeof path, "%s/tokenizer.json", c->job.options->input);
    if (c->tokenizer == TOKENIZER_SENTENCEPIECE || access(path, F_OK) != 0)
        snprintf(path, sizeof path, "%s/tokenizer.model", c->job.options->input);
    if ((code = tokenizer_create(&tok, c->tokenizer, c->blob, c->blob_size, path, err))) return code;
    arch *a = &c->job.arch;
    if (a->chat == CHAT_PLAIN && tokenizer_find_token(tok, "<|start_header_id|>") >= 0) a->chat = CHAT_LLAMA3;
    if (tokenizer_vocab_size(tok) > a->n_vocab)
        code = fail(err, FLUTE_ESHAPE,
                    "%s: the tokenizer has %d tokens, the model only %d; are both of one model?", path,
                    tokenizer_vocab_size(tok), a->n_vocab);
    tokenizer_free(tok);
    return code;
}

int quantize_checkpoint(const quantize_options *options, thread_pool *pool, flute_error *err) {
    checkpoint *c = calloc(1, sizeof *c);
    if (!c) return fail_memory(err, sizeof *c, "the conversion");
    quantize_job_init(&c->job, options, pool);
    int code = read_config(c, err);
    if (!code) code = read_tokenizer(c, err);
    if (!code) code = safetensors_open(&c->tensors, options->input, err);
    if (!code) code = quantize_plan(&c->job, dense_type, c, err);
    if (!code) code = quantize_job_open(&c->job, c->tokenizer, c->blob, c->blob_size, &c->writer, err);
    for (int i = 0; !code && i < arch_n_tensors(&c->job.arch); i++) code = convert_tensor(c, i, err);
    quantize_progress_end(&c->job);
    if (code) {
        flt_writer_abort(c->writer);
    } else {
        code = flt_writer_commit(c->writer, err);
        if (!code && !options->quiet) quantize_job_print(&c->job);
        if (!code && !options->quiet && c->tokenizer == TOKENIZER_NONE)
            fprintf(
                stderr,
                "%s: neither tokenizer.model nor tokenizer.json is there: the model takes token ids only\n",
                options->input);
    }
    safetensors_free(c->tensors);
    free(c->blob);
    quantize_job_free(&c->job);
    free(c);
    return code;
}
