// What the parts of flute-bench share: options, statistics, records that become a table and JSON.
#ifndef FLUTE_BENCH_H
#define FLUTE_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <yyjson.h>

#include "engine/flute.h"
#include "kernels/weight.h"

enum { BENCH_MAX_VALUES = 32 };

typedef struct bench_list {
    int n;
    int values[BENCH_MAX_VALUES];
} bench_list;

typedef struct bench_options {
    const char *model_path;
    flute_model_options model;
    bench_list prompts;  // prompt lengths, tokens
    bench_list contexts; // tokens in the cache when decoding starts
    bench_list batches;  // sequences decoded together
    int n_decode;        // decoded tokens per measurement
    int repeats;         // measurements; the median is reported
    int n_shapes;        // kernels: matrices N × K
    int64_t shapes[BENCH_MAX_VALUES][2];
    int n_types; // kernels: weight types
    weight_type types[WEIGHT_N_TYPES];
    bench_list rows; // kernels: M
    int group_size;  // kernels
} bench_options;

// The median of n ≥ 1 values, which it sorts; and the p-th percentile (0 to 100) of sorted values.
double bench_median(double *values, int n);
double bench_percentile(const double *sorted, int n, double p);

// Each prints its table to `out` (unless NULL) and appends its records to the array `records`.
int bench_prefill(flute_model *model, const bench_options *options, double bandwidth, FILE *out,
                  yyjson_mut_doc *doc, yyjson_mut_val *records, flute_error *err);
int bench_decode(flute_model *model, const bench_options *options, double bandwidth, FILE *out,
                 yyjson_mut_doc *doc, yyjson_mut_val *records, flute_error *err);
int bench_kernels(const bench_options *options, FILE *out, yyjson_mut_doc *doc, yyjson_mut_val *results,
                  flute_error *err);

#endif
