// Choosing the next tokens on an NVIDIA GPU: what sample_token of kernels/sample.h says, for many rows at
// once.
#ifndef FLUTE_CUDA_SAMPLE_H
#define FLUTE_CUDA_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; // cudaStream_t

// The arguments of one row, as in sample_args. They lie in device memory, so that a captured graph can be
// replayed with new ones.
typedef struct cuda_sample_row {
    float temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, n_history;
    int64_t history_at; // the row's history is histories + history_at
    double uniform;     // sample_uniform(seed, position), computed on the host
} cuda_sample_row;

// Bytes of device memory that cuda_sample needs, aligned to 8; whatever is in it does not matter.
size_t cuda_sample_scratch_bytes(int n_rows, int n_vocab);

// Queues the choice of a token for each row on the stream; what is launched depends on n_rows and n_vocab
// alone. All pointers but err are to device memory.
//
//   logits: (n_rows, stride) floats, the first n_vocab of each row count; not modified
//   tokens: (n_rows); −1 where a logit is NaN or +infinity, or all are −infinity
//   overlap: start while the kernel ahead still runs (programmatic dependent launch); rows must have been
//            there before it began
//
// The distribution is that of sample_token, and so are the draws, except that weights are rounded to
// multiples of 2^−38 of the best token's: sums are then exact, and the same input gives the same tokens.
// FLUTE_EINVAL: no rows or tokens, or more than four million tokens; FLUTE_EDEVICE: a launch failed.
int cuda_sample(const float *logits, int64_t stride, int n_vocab, int n_rows, const cuda_sample_row *rows,
                const int32_t *histories, void *scratch, int32_t *tokens, bool overlap,
                struct CUstream_st *stream, flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
