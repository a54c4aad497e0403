// What the checks of CUDA kernels share: random numbers from one seed, memory, and failures of CUDA itself,
// which end the program as TAP says ("Bail out!").
#ifndef FLUTE_TESTS_KERNELS_CUDA_CHECK_H
#define FLUTE_TESTS_KERNELS_CUDA_CHECK_H

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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

static inline void *host_memory(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    if (memory) return memory;
    printf("Bail out! out of memory\n");
    exit(1);
}

#endif
