// Whether a batch fits the buffers and the cache: what every backend checks before a step.
#ifndef FLUTE_KERNELS_BATCH_H
#define FLUTE_KERNELS_BATCH_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// FLUTE_ERANGE, or FLUTE_ECONTEXT for a position beyond the block table, naming the row. Afterwards every id
// is in the vocabulary and every block that attention of these rows will read is in the pool.
int kernel_batch_check(const kernel_batch *batch, const kernel_dims *dims, const kv_pool *pool,
                       flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
