// The plan of flute-quantize (a type for every tensor), its progress bar, and its table at the end.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "kernels/layout.h"
#include "tools/cli.h"
#include "tools/quantize.h"

// ---- The plan

static weight_type type_of_bits(int bits) {
    switch (bits) {
    case 2:
        return WEIGHT_LUT2;
    case 3:
        return WEIGHT_LUT3;
    case 4:
        return WEIGHT_LUT4;
    default:
        return WEIGHT_INT8;
    }
}

// The width of a tensor; 16 is dense. Head and embedding see every token's logits and rows: at 8 bits they
// cost nothing measurable in accuracy.
static int bits_of_role(const quantize_options *options, const arch *a, tensor_role role) {
    const int outer = options->bits < 8 ? 8 : options->bits;
    switch (role) {
    case ROLE_NORM:
        return 16;
    case ROLE_HEAD:
        return options->head_bits ? options->head_bits : outer;
    case ROLE_EMBEDDING:
        if (options->embed_bits) return options->embed_bits;
        return a->tied && options->head_bits ? options->head_bits : outer;
    default:
        return options->bits;
    }
}

static int check_tied(const quantize_options *options, const arch *a, flute_error *err) {
    if (!a->tied || !options->head_bits || !options->embed_bits || options->head_bits == options->embed_bits)
        return FLUTE_OK;
    return fail(
        err, FLUTE_EINVAL,
        "this model's head is its embedding, stored once: --head-bits %d and --embed-bits %d contradict each "
        "other; give one",
        options->head_bits, options->embed_bits);
}

static int plan_tensor(quantize_job *job, int index, quantize_dense_type *dense, void *user,
                       flute_error *err) {
    arch_tensor tensor;
    arch_tensor_at(&job->arch, index, &tensor);
    tensor_report *report = &job->reports[index];
    weight *w = &job->plan[index];
    *report = (tensor_report){.role = tensor.role, .n_rows = tensor.n_rows, .n_cols = tensor.n_cols};
    *w = (weight){.n_rows = tensor.n_rows, .n_cols = tensor.n_cols};
    if (tensor.role == ROLE_ABSENT) return FLUTE_OK;
    memcpy(report->name, tensor.name, sizeof report->name);

    const int bits = bits_of_role(job->options, &job->arch, tensor.role);
    if (bits == 16) {
        int code = dense(user, index, &w->type, err);
        if (code) return code;
        w->size = (size_t)w->n_rows * (size_t)w->n_cols * (size_t)(weight_type_bits(w->type) / 8);
    } else {
        const int group = job->options->group_size;
        if (w->n_cols % group)
            return fail(err, FLUTE_ESHAPE, "%s: %s: K=%lld is not a multiple of the group size %d; %s",
                        job->options->random ? job->options->random : job->options->input, tensor.name,
                        (long long)w->n_cols, group,
                        group > 32 ? "choose a smaller --group" : "keep it dense (16 bits)");
        w->type = type_of_bits(bits);
        w->group_size = group;
        w->size = layout_matrix_bytes(w->type, w->n_rows, w->n_cols, group);
    }
    report->type = w->type;
    report->bytes = w->size;
    job->bytes_total += w->size;
    return FLUTE_OK;
}

int quantize_plan(quantize_job *job, quantize_dense_type *dense, void *user, flute_error *err) {
    const int n = arch_n_tensors(&job->arch);
    job->plan = calloc((size_t)n, sizeof *job->plan);
    job->reports = calloc((size_t)n, sizeof *job->reports);
    if (!job->plan || !job->reports)
        return fail_memory(err, (uint64_t)n * (sizeof *job->plan + sizeof *job->reports),
                           "the list of tensors");
    int code = check_tied(job->options, &job->arch, err);
    for (int i = 0; !code && i < n; i++) code = plan_tensor(job, i, dense, user, err);
    return code;
}

// ---- The output

// "Meta-Llama-3-8B" of "path/to/Meta-Llama-3-8B/".
static void base_name(const char *path, char *out, size_t size) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    snprintf(out, size, "%.*s", (int)(end - begin), path + begin);
}

void quantize_job_init(quantize_job *job, const quantize_options *options, thread_pool *pool) {
    *job = (quantize_job){.options = options, .pool = pool};
    if (options->random)
        snprintf(job->name, sizeof job->name, "random %s", options->random);
    else
        base_name(options->input, job->name, sizeof job->name);
    if (strcmp(job->name, ".") != 0 && strcmp(job->name, "..") != 0) return;
    char *real = realpath(options->input, NULL);
    if (real) base_name(real, job->name, sizeof job->name);
    free(real);
}

// NAME-lut4-g128.flt in the current folder, unless -o says otherwise.
static void output_path(const quantize_job *job, char *out, size_t size) {
    const quantize_options *options = job->options;
    if (options->output) {
        snprintf(out, size, "%s", options->output);
        return;
    }
    const char *name = options->random ? options->random : job->name;
    if (options->bits == 16)
        snprintf(out, size, "%s-dense.flt", name);
    else
        snprintf(out, size, "%s-%s-g%d.flt", name, weight_type_name(type_of_bits(options->bits)),
                 options->group_size);
}

// A slip of the finger must not cost a checkpoint: nothing is replaced but models and empty files.
static int check_output(const char *path, flute_error *err) {
    struct stat status;
    char start[sizeof FLT_MAGIC - 1];
    if (stat(path, &status) || !S_ISREG(status.st_mode) || status.st_size == 0) return FLUTE_OK;
    FILE *file = fopen(path, "re");
    if (!file) return FLUTE_OK; // the writer will say what is wrong
    const bool is_model =
        fread(start, 1, sizeof start, file) == sizeof start && memcmp(start, FLT_MAGIC, sizeof start) == 0;
    fclose(file);
    if (is_model) return FLUTE_OK;
    return fail(err, FLUTE_EIO,
                "%s: is there already and is no .flt file, so it stays; remove it or choose another output",
                path);
}

int quantize_job_open(quantize_job *job, tokenizer_kind kind, const void *blob, size_t size,
                      flt_writer **writer, flute_error *err) {
    const quantize_options *o = job->options;
    char generator[256];
    if (o->random)
        snprintf(generator, sizeof generator, "flute-quantize %s --random %s --bits %d --group %d",
                 flute_version(), o->random, o->bits, o->group_size);
    else if (o->bits == 16)
        snprintf(generator, sizeof generator, "flute-quantize %s --bits 16", flute_version());
    else
        snprintf(generator, sizeof generator, "flute-quantize %s --bits %d --group %d --table %.80s%s",
                 flute_version(), o->bits, o->group_size, o->table, o->absmax ? " --absmax" : "");
    output_path(job, job->output, sizeof job->output);
    int code = check_output(job->output, err);
    if (code) return code;
    const flt_writer_options options = {.arch = &job->arch,
                                        .name = job->name,
                                        .generator = generator,
                                        .tokenizer = kind,
                                        .tokenizer_blob = blob,
                                        .tokenizer_size = size};
    return flt_writer_create(writer, job->output, &options, err);
}

// ---- What people see

void quantize_progress(quantize_job *job, uint64_t bytes, const char *tensor) {
    job->bytes_done += bytes;
    if (job->options->quiet) return;
    cli_progress(job->bytes_total ? (double)job->bytes_done / (double)job->bytes_total : 1, tensor);
}

void quantize_progress_end(const quantize_job *job) {
    if (!job->options->quiet && job->bytes_done > 0) cli_progress_end();
}

static double relative_error(double error, double energy) {
    return energy > 0 ? sqrt(error / energy) : 0;
}

static void print_row(const char *name, const tensor_report *report, const char *shape) {
    printf("%-24s %-14s %-5s %14llu", name, shape, weight_type_name(report->type),
           (unsigned long long)report->bytes);
    if (weight_is_quantized(report->type) && report->energy > 0)
        printf(" %9.5f\n", relative_error(report->error, report->energy));
    else
        printf(" %9s\n", weight_is_quantized(report->type) ? "random" : "exact");
}

void quantize_job_print(const quantize_job *job) {
    double error = 0, energy = 0, parameters = 0;
    uint64_t bytes = 0, norm_bytes = 0;
    int n_norms = 0;
    printf("%-24s %-14s %-5s %14s %9s\n", "tensor", "shape", "type", "bytes", "error");
    for (int i = 0; i < arch_n_tensors(&job->arch); i++) {
        const tensor_report *report = &job->reports[i];
        if (report->role == ROLE_ABSENT) continue;
        parameters += (double)report->n_rows * (double)report->n_cols;
        bytes += report->bytes;
        if (report->role == ROLE_NORM) {
            norm_bytes += report->bytes;
            n_norms++;
            continue;
        }
        char shape[48];
        snprintf(shape, sizeof shape, "%lldx%lld", (long long)report->n_rows, (long long)report->n_cols);
        print_row(report->name, report, shape);
        error += report->error;
        energy += report->energy;
    }
    printf("%d norms %*llu bytes\n", n_norms, 53 - (n_norms > 99 ? 3 : 2), (unsigned long long)norm_bytes);
    const bool large = parameters >= 1e9;
    printf("%s: %.3f %s weights in %.3f %s, %.2f bits a weight", job->output,
           parameters / (large ? 1e9 : 1e6), large ? "billion" : "million",
           (double)bytes / (large ? 1e9 : 1e6), large ? "GB" : "MB", 8 * (double)bytes / parameters);
    if (energy > 0) printf(", relative error %.5f", relative_error(error, energy));
    printf("\n");
}

void quantize_job_free(quantize_job *job) {
    free(job->plan);
    free(job->reports);
}
