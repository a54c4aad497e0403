// The CPU kernels of every instruction set that this machine runs against their scalar twins (kernels/ref):
// every weight type, group and number of rows on ragged shapes, random data, poisoned outputs, the same bits
// twice; norms, rotation, attention and the rest. Prints TAP.
//
//     check_cpu [--seed N] [--share N]       --share: 1 / N of the numbers of rows, for slow builds
//     check_cpu --bench [N K [NAME]]         prints times instead, on one thread, the twin's beside them;
//                                            NAME: of one instruction set ("AVX2")
#include "tests/kernels/check_cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/layout.h"

static uint64_t random_state;

uint32_t check_bits(void) { // xorshift64* (Vigna 2016)
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 32);
}

int check_below(int n) {
    return (int)((uint64_t)check_bits() * (uint64_t)n >> 32);
}

float check_float(float range) {
    return (float)(int32_t)check_bits() * 0x1p-31f * range;
}

check_memory check_allocate(size_t size, size_t element) {
    // malloc aligns to 16: an odd multiple of `element` in front leaves the data aligned to no more than
    // that.
    check_memory memory = {.allocation = malloc(size + element)};
    if (!memory.allocation) {
        printf("Bail out! out of memory\n");
        exit(1);
    }
    memory.data = (char *)memory.allocation + element;
    memset(memory.data, 0xff, size);
    return memory;
}

void check_free(check_memory *memory) {
    free(memory->allocation);
}

float *check_floats(check_memory *memory, int64_t n) {
    *memory = check_allocate((size_t)n * sizeof(float), sizeof(float));
    float *values = memory->data;
    for (int64_t i = 0; i < n; i++) values[i] = check_float(1);
    return values;
}

double check_error(double got, double expected, double allowed) {
    return isfinite(got) ? fabs(got - expected) / allowed : INFINITY;
}

double check_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now); // what others do on a shared machine does not count
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// cpu_weight_row belongs to no instruction set: it must give the very bits of weight_row times the scale.
static bool check_rows(void) {
    for (int i = 0; i < 100; i++) {
        const weight_type type = (weight_type)(WEIGHT_LUT2 + i % 4);
        const int group_size = 32 << check_below(4);
        const int64_t n_rows = 1 + check_below(40), n_cols = group_size * (1 + check_below(6));
        const size_t size = layout_matrix_bytes(type, n_rows, n_cols, group_size);
        check_memory memory = check_allocate(size, 2);
        layout_random_panels(type, n_cols, group_size, 0, layout_padded_rows(n_rows) / PANEL_ROWS,
                             check_bits(), 0.02f, memory.data);
        weight w = {.type = type,
                    .group_size = group_size,
                    .n_rows = n_rows,
                    .n_cols = n_cols,
                    .data = memory.data,
                    .size = size};
        for (int j = 0; j < 16; j++) w.table[j] = bf16_from_float(check_float(1));
        const int64_t row = check_below((int)n_rows);
        float expected[6 * 256], got[6 * 256];
        weight_row(&w, row, expected);
        for (int64_t j = 0; j < n_cols; j++) expected[j] *= 3.0f;
        cpu_weight_row(&w, row, 3.0f, got);
        check_free(&memory);
        if (memcmp(expected, got, (size_t)n_cols * sizeof *got) == 0) continue;
        printf("# cpu_weight_row of %s g%d differs\n", weight_type_name(type), group_size);
        return false;
    }
    return true;
}

static int n_tests, n_failed;

static void report(bool good, const char *isa, const char *what) {
    printf("%sok %d - %s %s\n", good ? "" : "not ", ++n_tests, isa, what);
    fflush(stdout);
    n_failed += !good;
}

static void check_isa(cpu_isa isa, int share) {
    const cpu_kernels *kernels = cpu_kernels_of(isa);
    for (int i = 0; i < WEIGHT_N_TYPES + check_n_entries; i++) {
        const bool is_gemm = i < WEIGHT_N_TYPES;
        const char *what =
            is_gemm ? weight_type_name((weight_type)i) : check_entries[i - WEIGHT_N_TYPES].name;
        if (!kernels)
            printf("ok %d - %s %s # SKIP not on this machine\n", ++n_tests, cpu_isa_name(isa), what);
        else
            report(is_gemm ? check_gemm(isa, (weight_type)i, share)
                           : check_entries[i - WEIGHT_N_TYPES].check(kernels),
                   cpu_isa_name(isa), what);
    }
}

static int bench(int argc, char **argv) {
    const int64_t n = argc > 3 ? atoll(argv[2]) : 2048, k = argc > 3 ? atoll(argv[3]) : 2048;
    if (n < 1 || k < 128 || k % 128) return fprintf(stderr, "check_cpu: K must be a multiple of 128\n"), 2;
    printf("# N=%lld K=%lld, group 128, one thread\n", (long long)n, (long long)k);
    for (int isa = 0; isa < CPU_N_ISAS; isa++) {
        if (!cpu_isa_available((cpu_isa)isa)) continue;
        if (argc > 4 && strcmp(argv[4], cpu_isa_name((cpu_isa)isa)) != 0) continue;
        bench_gemm((cpu_isa)isa, n, k);
        bench_vectors((cpu_isa)isa);
    }
    return 0;
}

int main(int argc, char **argv) {
    uint64_t seed = (uint64_t)time(NULL);
    int share = 1;
    random_state = 1;
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench(argc, argv);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 0);
        else if (strcmp(argv[i], "--share") == 0 && atoi(argv[i + 1]) > 0)
            share = atoi(argv[i + 1]);
        else
            return fprintf(stderr, "usage: check_cpu [--seed N] [--share N] | --bench [N K [NAME]]\n"), 2;
    }
    random_state = seed * 2 + 1;
    printf("1..%d\n# seed %llu\n", CPU_N_ISAS * (WEIGHT_N_TYPES + check_n_entries) + 1,
           (unsigned long long)seed);
    report(check_rows(), "all", "rows");
    for (int isa = 0; isa < CPU_N_ISAS; isa++) check_isa((cpu_isa)isa, share);
    return n_failed > 0;
}
