// Products: random weights of every type, compared with ref_gemm on activations rounded to bf16.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/layout.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/check_cpu.h"

enum { MAX_ROWS = 33 }; // M

// ---- Random weights

// Scales of both signs, now and then zero or subnormal.
static f16 random_scale(void) {
    const int kind = check_below(16);
    return kind == 0 ? 0 : f16_from_float(check_float(kind == 1 ? 1e-5f : 0.05f));
}

static void random_panels(weight *w, uint8_t *out) {
    const size_t bytes = layout_panel_bytes(w->type, w->n_cols, w->group_size);
    const int64_t n_scales = PANEL_ROWS * (w->n_cols / w->group_size);
    uint8_t *codes = malloc((size_t)(PANEL_ROWS * w->n_cols));
    f16 *scales = malloc((size_t)n_scales * sizeof *scales);
    for (int64_t row = 0; row < w->n_rows; row += PANEL_ROWS, out += bytes) {
        for (int64_t i = 0; i < PANEL_ROWS * w->n_cols; i++)
            codes[i] = (uint8_t)check_below(1 << weight_type_bits(w->type));
        for (int64_t i = 0; i < n_scales; i++) scales[i] = random_scale();
        const int n = w->n_rows - row < PANEL_ROWS ? (int)(w->n_rows - row) : PANEL_ROWS;
        layout_pack_panel(w->type, w->n_cols, w->group_size, n, codes, scales, out);
    }
    free(codes);
    free(scales);
}

static void random_dense(const weight *w, void *out) {
    for (int64_t i = 0; i < w->n_rows * w->n_cols; i++) {
        const float value = check_float(0.05f);
        const uint16_t half = w->type == WEIGHT_F16 ? f16_from_float(value) : bf16_from_float(value);
        if (w->type == WEIGHT_F32)
            ((float *)out)[i] = value;
        else
            memcpy((char *)out + 2 * i, &half, sizeof half);
    }
}

static weight random_weight(weight_type type, int group_size, int64_t n_rows, int64_t n_cols,
                            check_memory *memory) {
    weight w = {.type = type, .n_rows = n_rows, .n_cols = n_cols};
    if (!weight_is_quantized(type)) {
        w.size = (size_t)(n_rows * n_cols) * (size_t)weight_type_bits(type) / 8;
        *memory = check_allocate(w.size, (size_t)weight_type_bits(type) / 8);
        random_dense(&w, memory->data);
    } else {
        w.group_size = group_size;
        w.size = layout_matrix_bytes(type, n_rows, n_cols, group_size);
        *memory = check_allocate(w.size, 2);
        for (int i = 0; type != WEIGHT_INT8 && i < 1 << weight_type_bits(type); i++)
            w.table[i] = bf16_from_float(check_float(1));
        random_panels(&w, memory->data);
    }
    w.data = memory->data;
    return w;
}

// ---- Comparison

typedef struct gemm_case {
    weight w;
    check_memory weights;
    int n_rows;      // M
    float *x;        // (M, K) as the kernels get it
    float *expected; // (M, N) by the twin, from x rounded to bf16
    float *allowed;  // (M, N)
} gemm_case;

static double norm_of(const float *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)values[i] * values[i];
    return sqrt(sum);
}

// Products of bf16 with table entries are exact in float; what remains is the rounding of sums, some ulps of
// |x|·|W[n]| in either order. One wrong code among K changes the sum by about |x|·|W[n]| / K: a thousand
// times as much.
static gemm_case case_create(weight_type type, int group_size, int n_rows, int64_t n, int64_t k) {
    gemm_case c = {.n_rows = n_rows};
    c.w = random_weight(type, group_size, n, k, &c.weights);
    c.x = malloc((size_t)(n_rows * k) * sizeof *c.x);
    c.expected = malloc((size_t)(n_rows * n) * sizeof *c.expected);
    c.allowed = malloc((size_t)(n_rows * n) * sizeof *c.allowed);
    float *rounded = malloc((size_t)(n_rows * k) * sizeof *rounded);
    float *row = malloc((size_t)k * sizeof *row);
    for (int64_t i = 0; i < n_rows * k; i++) {
        c.x[i] = check_float(1) * (check_below(50) ? 1 : 30); // outliers, as models have them
        rounded[i] = bf16_to_float(bf16_from_float(c.x[i]));
    }
    ref_gemm(&c.w, rounded, n_rows, c.expected);
    for (int64_t i = 0; i < n; i++) {
        weight_row(&c.w, i, row);
        const double size = norm_of(row, k);
        for (int m = 0; m < n_rows; m++)
            c.allowed[m * n + i] = (float)(2e-6 * size * norm_of(rounded + m * k, k) + 1e-30);
    }
    free(rounded);
    free(row);
    return c;
}

static void case_free(gemm_case *c) {
    check_free(&c->weights);
    free(c->x);
    free(c->expected);
    free(c->allowed);
}

enum { OUT_PADDING = 3 }; // elements behind each row of the product that nobody may touch

// Prepares and multiplies in two pieces of panels; out: (M, stride).
static void case_run(const gemm_case *c, const cpu_kernels *kernels, float *out, int64_t stride) {
    const int64_t k = c->w.n_cols, n_panels = layout_padded_rows(c->w.n_rows) / PANEL_ROWS;
    const int64_t split = check_below((int)n_panels + 1);
    check_memory prepared = check_allocate(kernels->prepared_bytes(c->n_rows, k), sizeof(float));
    check_memory x = check_allocate((size_t)(c->n_rows * k) * sizeof(float), sizeof(float));
    memcpy(x.data, c->x, (size_t)(c->n_rows * k) * sizeof(float));
    for (int tile = 0; tile * kernels->tile_rows < c->n_rows; tile++)
        kernels->prepare(&c->w, x.data, c->n_rows, tile, prepared.data);
    if (split > 0) kernels->gemm(&c->w, prepared.data, c->n_rows, 0, split, out, stride);
    if (split < n_panels)
        kernels->gemm(&c->w, prepared.data, c->n_rows, split, n_panels, out + split * PANEL_ROWS, stride);
    check_free(&x);
    check_free(&prepared);
}

static const char *case_compare(const gemm_case *c, const float *out, int64_t stride, double *worst) {
    const int64_t n = c->w.n_rows;
    *worst = 0;
    for (int m = 0; m < c->n_rows; m++, out += stride) {
        for (int64_t i = 0; i < n; i++)
            *worst = fmax(*worst, check_error((double)out[i], (double)c->expected[m * n + i],
                                              (double)c->allowed[m * n + i]));
        for (int64_t i = stride - OUT_PADDING; i < stride; i++)
            if (float_to_bits(out[i]) != 0xffffffffu) return "wrote outside its panels";
    }
    return *worst > 1 ? "wrong sums" : NULL;
}

static bool case_check(const gemm_case *c, cpu_isa isa) {
    const int64_t stride = layout_padded_rows(c->w.n_rows) + OUT_PADDING;
    const size_t bytes = (size_t)(c->n_rows * stride) * sizeof(float);
    check_memory out = check_allocate(bytes, sizeof(float)), again = check_allocate(bytes, sizeof(float));
    double worst = 0;
    case_run(c, cpu_kernels_of(isa), out.data, stride);
    case_run(c, cpu_kernels_of(isa), again.data, stride);
    const char *wrong = case_compare(c, out.data, stride, &worst);
    for (int m = 0; !wrong && m < c->n_rows; m++) // columns past the last row of the matrix are garbage
        if (memcmp((float *)out.data + m * stride, (float *)again.data + m * stride,
                   (size_t)c->w.n_rows * sizeof(float)) != 0)
            wrong = "two runs differ";
    if (wrong)
        printf("# %s %s g%d N=%lld K=%lld M=%d: %s (error %.3g times the allowed)\n", cpu_isa_name(isa),
               weight_type_name(c->w.type), c->w.group_size, (long long)c->w.n_rows, (long long)c->w.n_cols,
               c->n_rows, wrong, worst);
    check_free(&out);
    check_free(&again);
    return !wrong;
}

// Ragged shapes: N around the panels, K from one group, ragged against 128 and against units; for dense
// matrices any K.
static void random_shape(weight_type type, int group_size, int64_t *n, int64_t *k) {
    static const int sizes[] = {1, 15, 16, 17, 31, 32, 33, 48, 100};
    const int kind = check_below(60);
    *n = kind == 0 ? 777 : kind < 40 ? sizes[kind % 9] : 1 + check_below(80);
    *k = weight_is_quantized(type) ? (int64_t)group_size * (1 + check_below(kind < 30 ? 3 : 768 / group_size))
                                   : 1 + check_below(kind < 30 ? 64 : 600);
}

bool check_gemm(cpu_isa isa, weight_type type, int share) {
    enum { SHAPES = 3 };
    bool good = true;
    const int largest_group = weight_is_quantized(type) ? 256 : 32;
    for (int group_size = 32; group_size <= largest_group; group_size *= 2)
        for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows++) {
            if (n_rows > 1 && check_below(share) > 0) continue;
            for (int i = 0; i < SHAPES; i++) {
                int64_t n, k;
                random_shape(type, group_size, &n, &k);
                gemm_case c = case_create(type, group_size, n_rows, n, k);
                good = case_check(&c, isa) && good;
                case_free(&c);
            }
        }
    return good;
}

// ---- Times

enum { BENCH_BYTES = 96 << 20 }; // of copies that take turns: more than most caches hold

// Seconds of one product, the best of three passes over all copies.
static double bench_case(const weight *w, const uint8_t *copies, int64_t n_copies, const cpu_kernels *kernels,
                         const float *x, int n_rows) {
    const int64_t stride = layout_padded_rows(w->n_rows);
    void *prepared = malloc(kernels->prepared_bytes(n_rows, w->n_cols));
    float *out = malloc((size_t)(n_rows * stride) * sizeof *out);
    double best = INFINITY;
    for (int tile = 0; tile * kernels->tile_rows < n_rows; tile++)
        kernels->prepare(w, x, n_rows, tile, prepared);
    for (int pass = 0; pass < 3; pass++) {
        const double start = check_seconds();
        for (int64_t i = 0; i < n_copies; i++) {
            weight copy = *w;
            copy.data = copies + (size_t)i * w->size;
            kernels->gemm(&copy, prepared, n_rows, 0, stride / PANEL_ROWS, out, stride);
        }
        best = fmin(best, (check_seconds() - start) / (double)n_copies);
    }
    free(prepared);
    free(out);
    return best;
}

// GB/s of plain loads from the same copies.
static double bench_read(const uint8_t *copies, size_t bytes) {
    typedef uint64_t word8 __attribute__((vector_size(64), aligned(1)));
    double best = 0;
    for (int pass = 0; pass < 3; pass++) {
        const double start = check_seconds();
        word8 sums[4] = {{0}};
        for (size_t at = 0; at + 256 <= bytes; at += 256)
            for (int i = 0; i < 4; i++) sums[i] += *(const word8 *)(const void *)(copies + at + 64 * i);
        sums[0] += sums[1] + sums[2] + sums[3];
        __asm__ volatile("" : : "m"(sums[0])); // the sum is used
        best = fmax(best, 1e-9 * (double)bytes / (check_seconds() - start));
    }
    return best;
}

static double bench_twin(const weight *w, const float *x, int n_rows) {
    float *out = malloc((size_t)(n_rows * w->n_rows) * sizeof *out);
    const double start = check_seconds();
    ref_gemm(w, x, n_rows, out);
    const double seconds = check_seconds() - start;
    free(out);
    return seconds;
}

void bench_gemm(cpu_isa isa, int64_t n, int64_t k) {
    static const int rows[] = {1, 2, 4, 8, 16, 33};
    for (int type = 0; type < WEIGHT_N_TYPES; type++) {
        check_memory memory;
        const weight w = random_weight((weight_type)type, 128, n, k, &memory);
        const int64_t n_copies = (int64_t)(BENCH_BYTES / w.size) + 1;
        uint8_t *copies = malloc((size_t)n_copies * w.size);
        float *x = malloc((size_t)(MAX_ROWS * k) * sizeof *x);
        for (int64_t i = 0; i < MAX_ROWS * k; i++) x[i] = check_float(1);
        for (int64_t i = 0; i < n_copies; i++) memcpy(copies + (size_t)i * w.size, w.data, w.size);
        printf("# %-12s %-5s plain reads        %7.2f GB/s\n", cpu_isa_name(isa), weight_type_name(w.type),
               bench_read(copies, (size_t)n_copies * w.size));
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            const int m = rows[i];
            const double seconds = bench_case(&w, copies, n_copies, cpu_kernels_of(isa), x, m);
            printf("# %-12s %-5s M=%-4d %9.1f us %7.2f GB/s %7.1f GFLOP/s; twin %9.1f us\n",
                   cpu_isa_name(isa), weight_type_name(w.type), m, 1e6 * seconds,
                   1e-9 * (double)w.size / seconds, 2e-9 * (double)n * (double)k * m / seconds,
                   1e6 * bench_twin(&w, x, m));
            fflush(stdout);
        }
        free(x);
        free(copies);
        check_free(&memory);
    }
}
