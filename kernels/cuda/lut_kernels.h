// Between lut_gemm.cu, which plans and launches, and the kernels.
#ifndef FLUTE_CUDA_LUT_KERNELS_H
#define FLUTE_CUDA_LUT_KERNELS_H

#include <stdint.h>

#include "kernels/cuda/lut_gemm.h"

// By value into constant memory.
struct lut_params {
    const uint8_t *weights;
    const uint8_t *x;
    void *y;
    int64_t x_stride; // bytes
    int64_t y_stride; // elements
    int n_rows, n_cols, n_tokens;
    int n_panels;                      // of the matrix
    int panel_units;                   // units of a panel
    int cta_panels;                    // panels of a block of threads
    int stages;                        // of the ring
    int ring_at, sums_at, barriers_at; // offsets in shared memory; the table stands at 0
    int epilogue;                      // a lut_epilogue
    int overlap;
    uint32_t always_zero; // a zero that the compiler does not know: see barrier_arrive_after
    int group_panels;     // lut_gemv: panels that a block adds up at a time
    // lut_tile: panels of a pass; slices of K, one unit of each in a stage; bytes of a stage; bytes from one
    // token's activations to the next in it
    int tile_panels, k_slices, stage_bytes, x_row_bytes;
    lut_norm norm; // lut_gemv
    lut_next next;
    int factors_at;        // in shared memory: room for both
    uint16_t table[2][16]; // bf16; the second for the low plane of INT8
};

typedef void (*lut_kernel)(lut_params);

enum { GEMV_WARPS = 8, GEMV_MAX_TOKENS = 4, TILE_WARPS = 15, TILE_MAX_TOKENS = 32 };

// Units of a warp in a stage of the ring: enough bytes that a copy (about 50 clocks whatever its size) is
// not what limits the stream.
template <int BITS> struct gemv_warp {
    enum { units = BITS >= 4 ? 1 : 2 };
};

// The kernel for 1, 2 or 4 tokens; group 32, 64, 128 or 256. One file each, so that they compile in parallel.
lut_kernel lut_gemv_w2(int group, int tokens);
lut_kernel lut_gemv_w3(int group, int tokens);
lut_kernel lut_gemv_w4(int group, int tokens);
lut_kernel lut_gemv_w8(int group, int tokens);

// The kernel for 8, 16 or 32 tokens: 1, 2 or 4 tiles of eight.
lut_kernel lut_tile_w2(int group, int n_tiles);
lut_kernel lut_tile_w3(int group, int n_tiles);
lut_kernel lut_tile_w4(int group, int n_tiles);
lut_kernel lut_tile_w8(int group, int n_tiles);

#endif
