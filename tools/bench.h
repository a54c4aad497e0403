// What the parts of flute-bench share: options, the devices of `kernels`, and the report that becomes tables,
// JSON and a plot.
#ifndef FLUTE_BENCH_H
#define FLUTE_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <yyjson.h>

#include "engine/base/file.h"
#include "engine/base/threads.h"
#include "engine/flute.h"
#include "kernels/kernels.h"
#include "kernels/weight.h"
#include "tools/ranks.h"

enum {
    BENCH_MAX_VALUES = 32, // of a list
    BENCH_MAX_PAIRS = BENCH_MAX_VALUES * BENCH_MAX_VALUES,
    BENCH_MAX_TYPES = WEIGHT_N_TYPES + 1, // bf16, and what was asked for
};

typedef struct bench_list {
    int n;
    int values[BENCH_MAX_VALUES];
    bool chosen; // given on the command line: values that do not fit the model are refused, not left out
} bench_list;

typedef struct bench_options {
    const char *model_path; // NULL: the model that comes with flute
    flute_model_options model;
    ranks_options ranks;
    bench_list degrees;  // of --tp: more than one are measured one after the other
    const char *command; // the part that is measured, or "all"
    FILE *results;       // NULL; where one of several degrees writes its JSON
    const char *plot_path;
    bool json;
    bench_list prompts;  // prompt lengths, tokens
    bench_list contexts; // tokens in the cache when decoding starts
    bench_list batches;  // sequences decoded together
    int n_generate;      // tokens that each sequence generates in a measurement
    int repeats;         // measurements; the median is reported; 0: as many as the device of kernels takes
    int n_shapes;        // kernels: matrices N × K; 0: those of the device
    int64_t shapes[BENCH_MAX_VALUES][2];
    int n_types; // kernels: weight types, bf16 first
    weight_type types[BENCH_MAX_TYPES];
    bench_list rows; // kernels: M; n 0: those of the device
    int group_size;  // kernels
    int path;        // kernels on a GPU: a lut_path
} bench_options;

// The median of n ≥ 1 values, which it sorts.
double bench_median(double *values, int n);

typedef struct bench_percentiles {
    double p50, p90, p99;
} bench_percentiles;

// Sorts the n ≥ 1 values.
bench_percentiles bench_percentiles_of(double *values, int n);

// ---- What was measured. Times are in seconds; flops are operations per second, bytes those per second that
// cannot be avoided; intensity is operations per such byte.

typedef struct bench_prefill_record {
    int prompt;
    double seconds, tokens, flops, intensity; // tokens per second
} bench_prefill_record;

typedef struct bench_decode_record {
    int context, batch;
    double tokens, bytes, flops, intensity; // tokens per second, of all sequences together
    bench_percentiles step;
    double collectives; // share of the time that rank 0 spends in collectives; 0 for a single rank
} bench_decode_record;

typedef struct bench_latency_record {
    int prompt, batch;
    bench_percentiles first; // from the arrival of all prompts to a sequence's first token
    bench_percentiles token; // between one token of a sequence and its next
} bench_latency_record;

typedef struct bench_sum_record {
    int64_t bytes; // of one all-reduce
    double seconds;
} bench_sum_record;

typedef struct bench_kernel_record {
    int64_t n, k; // rows and columns of the matrix
    weight_type type;
    int group_size, m;
    double seconds, bytes, flops, intensity;
    double speedup; // over bf16 in the same run
} bench_kernel_record;

typedef struct bench_report {
    const char *command; // bench_options.command
    char date[32];       // "2026-11-25 02:22 UTC"
    char device[256];
    double read_bandwidth;  // bytes per second
    flute_model_info model; // name NULL: none, as for kernels; strings are the model's own
    int n_prefill, n_decode, n_latency, n_sums, n_kernels;
    bench_prefill_record prefill[BENCH_MAX_VALUES];
    bench_decode_record decode[BENCH_MAX_PAIRS];
    bench_latency_record latency[BENCH_MAX_PAIRS];
    bench_sum_record sums[BENCH_MAX_VALUES];
    bench_kernel_record kernels[BENCH_MAX_PAIRS * BENCH_MAX_TYPES];
} bench_report;

// Each measures, prints its table to `out` (unless NULL) row by row, and fills its part of the report.
int bench_prefill(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                  flute_error *err);
int bench_decode(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                 flute_error *err);
int bench_latency(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                  flute_error *err);
// Nothing for a single rank.
int bench_sums(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
               flute_error *err);
int bench_kernels(const bench_options *options, bench_report *report, FILE *out, flute_error *err);

// Several degrees of --tp: calls run in a process for each, and reports how they scale. Returns the exit
// status.
typedef int bench_main(bench_options *options);
int bench_degrees(const bench_options *options, bench_main *run);

void bench_report_json(const bench_report *report, yyjson_mut_doc *doc);
// Whether a plot can have this name: .svg and .html are known. FLUTE_EINVAL if not.
int bench_plot_check(const char *path, flute_error *err);
// Draws the charts into the file, in the format that its name asks for.
int bench_report_plot(const bench_report *report, const char *path, file_writer *writer, flute_error *err);

// ---- Devices of `kernels`

// A random matrix of bf16 or quantized weights, less its data, and the data of some panels of 16 rows (of
// dense ones, as many rows as there are). Panels depend on seed and number alone: threads may share the work.
weight bench_random_weight(weight_type type, int64_t n_rows, int64_t n_cols, int group_size);
void bench_random_panels(const weight *w, int64_t first, int64_t n, uint64_t seed, uint8_t *out);

// y = x · Wᵀ for random W: n × k.
typedef struct bench_product {
    weight_type type; // quantized, or bf16
    int64_t n, k;
    int group_size;      // of quantized weights
    const bench_list *m; // rows of x; each is measured
    int repeats;
} bench_product;

typedef struct bench_backend {
    thread_pool *pool;
    backend *be;
    int path; // as bench_options
} bench_backend;

typedef struct bench_device {
    flute_device id;
    int n_shapes; // what is measured unless the command line says otherwise
    int64_t shapes[BENCH_MAX_VALUES][2];
    bench_list rows;
    int repeats;
    // Makes the backend that is measured; out is zeroed, and keeps what was made also after a failure.
    int (*create)(const bench_options *options, bench_backend *out, flute_error *err);
    // Median seconds of one product for each M, none of whose weights are in a cache.
    int (*measure)(const bench_backend *on, const bench_product *product, double *seconds, flute_error *err);
} bench_device;

extern const bench_device bench_device_cpu, bench_device_cuda; // the latter where the build has CUDA

#endif
