// Where activations lie: in rows, or arranged in the order in which wgmma reads them, which the kernels that
// produce them can write at once.
//
// Arranged: for each tile of tokens and each 64 columns one image of tile_tokens × 128 bytes, as it lies in
// shared memory: a row is a token, its 16-byte chunks swizzled by the row. A run of 32 columns is four chunks
// of four words, transposed, because the packed weights want columns 8t..8t + 7 in one lane.
#ifndef FLUTE_CUDA_ORDER_CUH
#define FLUTE_CUDA_ORDER_CUH

#include <stdint.h>

#include "kernels/cuda/lut_gemm.h"

// The word of columns `column` and `column` + 1, an even one, of a token. row_bytes: from token to token, in
// rows.
__device__ __forceinline__ uint32_t *order_word(void *base, const lut_order &order, int64_t row_bytes,
                                                int token, int column) {
    if (order.tile_tokens == 0) return (uint32_t *)((uint8_t *)base + token * row_bytes + column * 2);
    const int shift = 31 - __clz(order.tile_tokens), tile = token >> shift;
    const int row = token & (order.tile_tokens - 1), image = column / 64;
    const int chunk = column % 64 / 32 * 4 + column % 8 / 2, word = column % 32 / 8;
    const int64_t rows = ((int64_t)tile * order.n_blocks * 2 + image) * order.tile_tokens + row;
    return (uint32_t *)((uint8_t *)base + rows * 128 + (chunk ^ row % 8) * 16 + word * 4);
}

#endif
