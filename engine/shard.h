// How a model is cut among the ranks of tensor parallelism (weights.md, "Shards for tensor parallelism"). A
// rank has whole KV heads with their query heads, or, where ranks outnumber KV heads, some query heads of
// one; a run of feed-forward channels; and a run of the vocabulary.
#ifndef FLUTE_SHARD_H
#define FLUTE_SHARD_H

#include "kernels/layout.h"
#include "models/arch.h"

typedef struct shard {
    int rank, size;
    layout_run heads, kv_heads, ff; // the rank's own ones; empty where there are more ranks than things
} shard;

// tensors: the model's (arch_n_tensors), for the units in which down_proj can be cut.
void shard_init(shard *out, const arch *a, const weight *tensors, int rank, int size);

// arch_kernel_dims with what is the rank's own.
void shard_kernel_dims(const shard *s, const arch *a, int max_rows, int max_logits, kernel_dims *out);

// The rank's part of tensor `index`: *out is the matrix that it is by itself, and spans are the bytes of the
// whole one that make it up, laid end to end. Returns the number of spans (0: an empty part). out->data is
// set where the part lies in one piece, and NULL where it has to be copied together.
int shard_weight(const shard *s, const arch *a, int index, const weight *whole, weight *out,
                 layout_span spans[2]);
// Copies it together; to: (out->size).
void shard_copy(const weight *whole, const layout_span *spans, int n_spans, void *to);
// Of a chunk, bytes [first, first + size) of the whole tensor, copies what is in the span to its place there.
void shard_keep(const layout_span *span, const void *chunk, size_t first, size_t size, void *whole);

#endif
