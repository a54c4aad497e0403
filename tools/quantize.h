// What the parts of flute-quantize share: the plan (a type for every tensor) and the report.
#ifndef FLUTE_TOOLS_QUANTIZE_H
#define FLUTE_TOOLS_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/threads.h"
#include "engine/flt.h"
#include "kernels/quantize.h"

typedef struct quantize_options {
    int bits;                  // of the projections: 2, 3, 4, 8, or 16 (dense)
    int head_bits, embed_bits; // 0: 8 for narrower models, else as bits
    int group_size;
    const char *table;  // opt (also when not given), nf, int, lloyd or a file of 2^bits numbers
    bool absmax;        // scales from the largest weight instead of the search
    const char *input;  // the checkpoint; NULL with random
    const char *random; // shape of a random model; NULL with input
    uint64_t seed;      // of the random weights
    bool has_seed;      // was given
    const char *output; // NULL: derived from the name
    int n_threads;      // 0: all
    bool quiet;
} quantize_options;

// What became of one tensor.
typedef struct tensor_report {
    char name[48];
    tensor_role role;
    weight_type type;
    int64_t n_rows, n_cols;
    uint64_t bytes;
    double error, energy; // sums of squares of the error and of the weights; error 0 for dense ones
} tensor_report;

// A file in the making.
typedef struct quantize_job {
    const quantize_options *options;
    thread_pool *pool;
    arch arch;
    char name[128];                   // of the model
    char output[4096];                // the file
    weight *plan;                     // (arch_n_tensors) type and group_size of every tensor, data NULL
    tensor_report *reports;           // (arch_n_tensors) role ROLE_ABSENT where there is none
    uint64_t bytes_total, bytes_done; // packed, for the progress bar
} quantize_job;

// Chooses a type for every tensor of job->arch. dense: the type of dense tensors, as the input has them, for
// a tensor index. Refuses shapes that the group does not divide, naming the tensor and the remedy, and
// contradictory widths of a tied head.
typedef int quantize_dense_type(void *user, int index, weight_type *type, flute_error *err);
int quantize_plan(quantize_job *job, quantize_dense_type *dense, void *user, flute_error *err);

// Draws the progress bar when stderr is a terminal and --quiet is off, and takes it away.
void quantize_progress(quantize_job *job, uint64_t bytes, const char *tensor);
void quantize_progress_end(const quantize_job *job);

// The two sources of weights. Both write every tensor of the plan to writer and fill job->reports.
int quantize_checkpoint(const quantize_options *options, thread_pool *pool, flute_error *err);
int quantize_random(const quantize_options *options, thread_pool *pool, flute_error *err);

// Names the model. The rest is set on the way.
void quantize_job_init(quantize_job *job, const quantize_options *options, thread_pool *pool);
// Opens the output, whose name it derives from the model's unless the options give one.
int quantize_job_open(quantize_job *job, tokenizer_kind kind, const void *blob, size_t size,
                      flt_writer **writer, flute_error *err);
// Prints the table of tensors with their relative errors (root of squared error over squared weights).
void quantize_job_print(const quantize_job *job);
void quantize_job_free(quantize_job *job);

#endif
