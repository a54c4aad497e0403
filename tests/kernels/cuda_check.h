// What the checks of CUDA kernels share: random numbers from one seed, memory, failures of CUDA itself, which
// end the program as TAP says ("Bail out!"), and activations in another order than rows.
#ifndef FLUTE_TESTS_KERNELS_CUDA_CHECK_H
#define FLUTE_TESTS_KERNELS_CUDA_CHECK_H

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/lut_gemm.h"

static uint64_t random_state; // odd

static inline uint32_t random_bits(void) { // xorshift64* (Vigna 2016)
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 32);
}

static inline int random_below(int n) {
    return (int)((uint64_t)random_bits() * (uint64_t)n >> 32);
}

static inline float random_float(void) { // in [−1, 1)
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static inline void check(cudaError_t code, const char *what) {
    if (code == cudaSuccess) return;
    printf("Bail out! %s: %s\n", what, cudaGetErrorString(code));
    exit(1);
}

// Where an element lies, by the description in kernels/cuda/order.cuh, step by step.
static inline size_t order_element(lut_order order, int64_t token, int64_t column) {
    const int64_t tile = token / order.tile_tokens, row = token % order.tile_tokens, image = column / 64;
    const int64_t run = column % 64 / 32, lane = column % 32 / 8, word = column % 8 / 2;
    const int64_t chunk = (run * 4 + word) ^ row % 8; // word w of lane t: chunk w, word t
    const int64_t bytes = (tile * order.n_blocks * 2 + image) * order.tile_tokens * 128 + row * 128 +
                          chunk * 16 + lane * 4 + column % 2 * 2;
    return (size_t)bytes / sizeof(bf16);
}

static inline void *host_memory(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    if (memory) return memory;
    printf("Bail out! out of memory\n");
    exit(1);
}

#endif
