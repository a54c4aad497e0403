// What the parts of check_cpu share: random numbers, memory whose end is guarded, and the comparison with a
// twin.
#ifndef FLUTE_TESTS_KERNELS_CHECK_CPU_H
#define FLUTE_TESTS_KERNELS_CHECK_CPU_H

#include "kernels/cpu/cpu.h"

uint32_t check_bits(void);      // random
int check_below(int n);         // in [0, n)
float check_float(float range); // in [−range, range)

// A block of `size` bytes full of 0xff (NaN in every format) that ends where the allocation ends, so that
// AddressSanitizer sees the first byte too much, and starts at an odd multiple of `element` bytes.
typedef struct check_memory {
    void *allocation, *data;
} check_memory;
check_memory check_allocate(size_t size, size_t element);
void check_free(check_memory *memory);
float *check_floats(check_memory *memory, int64_t n); // allocates and fills with numbers in [−1, 1)

// |got − expected| in units of what is allowed, infinite for NaN.
double check_error(double got, double expected, double allowed);

// Compares one kernel with its twin on many random inputs; false after printing what differed.
typedef bool check_kernel(const cpu_kernels *kernels);
bool check_gemm(cpu_isa isa, weight_type type, int share); // of 1 … 33 rows, 1 / share at random
extern const struct check_entry {
    const char *name;
    check_kernel *check;
} check_entries[];
extern const int check_n_entries;

// Times: one line for every type and number of rows, the twin beside it.
void bench_gemm(cpu_isa isa, int64_t n_rows, int64_t n_cols);
void bench_vectors(cpu_isa isa);
double check_seconds(void);

#endif
