// The host side of the GPU's LUT-GEMM, on the emulator's device: how lut_wide divides its tiles among few and
// many SMs, which is where blocks wait for each other, which kernels run where, and what is refused.
// check_cuda compares the arithmetic.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/lut_gemm.h"
#include "kernels/layout.h"
#include "tests/simt/control.h"
#include "tests/simt/cuda_runtime_api.h"

static uint32_t random_state = 20261125;
static float next_random(void) { // in [−1, 1)
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(int32_t)random_state * 0x1p-31f;
}

// A product in memory that host and device share.
typedef struct product {
    weight w;
    uint8_t *data;
    bf16 *x;
    float *y;
    int n_tokens;
} product;

static product product_new(weight_type type, int64_t n_rows, int64_t n_cols, int group_size, int n_tokens) {
    product p = {.w = {.type = type, .group_size = group_size, .n_rows = n_rows, .n_cols = n_cols},
                 .n_tokens = n_tokens};
    p.w.size = layout_matrix_bytes(p.w.type, n_rows, n_cols, group_size);
    assert_int_equal(cudaMalloc((void **)&p.data, p.w.size), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&p.x, (size_t)(n_tokens * n_cols) * sizeof *p.x), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&p.y, (size_t)(n_tokens * n_rows) * sizeof *p.y), cudaSuccess);
    layout_random_panels(p.w.type, n_cols, group_size, 0, layout_padded_rows(n_rows) / PANEL_ROWS, 7, 0.02f,
                         p.data);
    for (int i = 0; i < 16; i++) p.w.table[i] = bf16_from_float(next_random());
    for (int64_t i = 0; i < n_tokens * n_cols; i++) p.x[i] = bf16_from_float(next_random());
    p.w.data = p.data;
    return p;
}

static void product_free(product *p) {
    cudaFree(p->data);
    cudaFree(p->x);
    cudaFree(p->y);
}

static int product_run(const lut_device *device, product *p, lut_path path, int variant, flute_error *err) {
    const lut_gemm_args args = {.w = &p->w,
                                .x = p->x,
                                .x_stride = p->w.n_cols,
                                .n_tokens = p->n_tokens,
                                .y = p->y,
                                .y_stride = p->w.n_rows,
                                .path = path,
                                .variant = variant};
    memset(p->y, 0xff, (size_t)(p->n_tokens * p->w.n_rows) * sizeof *p->y);
    const int code = lut_gemm(device, &args, NULL, err);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return code;
}

// Every element; beyond LUT_EXACT_TOKENS scales and weights are rounded to eight bits.
static void product_check(const product *p) {
    float *row = malloc((size_t)p->w.n_cols * sizeof *row);
    for (int64_t n = 0; n < p->w.n_rows; n++) {
        weight_row(&p->w, n, row);
        for (int64_t m = 0; m < p->n_tokens; m++) {
            double sum = 0, squares = 0;
            for (int64_t k = 0; k < p->w.n_cols; k++) {
                const double term = (double)row[k] * bf16_to_float(p->x[m * p->w.n_cols + k]);
                sum += term, squares += term * term;
            }
            // Rounding errors of at most 2^-9 of random sign, one of each term and one that a group has in
            // common, which is why deviations of the sum are not quite those of as many independent errors.
            const double allowed = sqrt(squares) * (p->n_tokens > LUT_EXACT_TOKENS ? 8 * 0x1p-9 : 1e-5);
            const double error = fabs((double)p->y[m * p->w.n_rows + n] - sum);
            if (!(error <= allowed))
                print_message("N=%lld K=%lld M=%d: row %lld, token %lld is off by %g, allowed are %g\n",
                              (long long)p->w.n_rows, (long long)p->w.n_cols, p->n_tokens, (long long)n,
                              (long long)m, error, allowed);
            assert_true(error <= allowed);
        }
    }
    free(row);
}

// SMs, rows, columns, group, tokens: two SMs; whole waves and a rest; a tile for each SM and more; more
// blocks in a tile than parts of its tokens; a block with a tile of its own between two that it shares;
// stages of half a unit; several tiles of tokens; a last stage of one block; pairs of blocks, one with no
// rows in the last tile, one slice of K.
static void test_division(void **state) {
    (void)state;
    static const int cases[][5] = {{2, 300, 512, 128, 20},   {2, 1800, 256, 64, 33},  {3, 552, 640, 128, 17},
                                   {16, 40, 4096, 32, 8},    {7, 1030, 640, 128, 40}, {4, 1030, 384, 128, 64},
                                   {7, 256, 1792, 256, 130}, {4, 300, 512, 128, 200}, {9, 500, 896, 128, 3},
                                   {4, 1100, 1280, 128, 100}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int *c = cases[i];
        lut_device device;
        flute_error err = {0};
        simt_set_sms(c[0]);
        assert_int_equal(lut_device_open(&device, &err), FLUTE_OK);
        product p = product_new(WEIGHT_LUT4, c[1], c[2], c[3], c[4]);
        const size_t size = (size_t)(c[1] * c[4]) * sizeof *p.y;
        float *before = malloc(size);
        for (int warpgroups = 2; warpgroups <= 4; warpgroups++)
            for (unsigned seed = 1; seed <= 2; seed++) { // with places for sums that others have used
                simt_set_seed(seed);
                assert_int_equal(product_run(&device, &p, LUT_PATH_WIDE, warpgroups, &err), FLUTE_OK);
                product_check(&p);
                if (seed > 1) assert_memory_equal(before, p.y, size);
                memcpy(before, p.y, size);
            }
        free(before);
        product_free(&p);
        lut_device_close(&device);
    }
    assert_int_equal(simt_allocated(), 0);
    simt_set_sms(4);
}

// Pairs of blocks that keep the sums of several chunks, of five panels: with one stage or several; and where
// none fits beside the sums, so that blocks work for themselves.
static void test_pairs(void **state) {
    (void)state;
    static const struct {
        weight_type type;
        int group_size, n_cols;
        bool fits;
    } cases[] = {{WEIGHT_LUT4, 128, 8448, true},
                 {WEIGHT_LUT3, 64, 12544, true},
                 {WEIGHT_LUT4, 256, 9728, true},
                 {WEIGHT_INT8, 128, 8320, true},
                 {WEIGHT_INT8, 256, 8448, false}};
    lut_device device;
    flute_error err = {0};
    simt_set_sms(2);
    assert_int_equal(lut_device_open(&device, &err), FLUTE_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        product p = product_new(cases[i].type, 160, cases[i].n_cols, cases[i].group_size, 4);
        const size_t size = 160 * 4 * sizeof *p.y;
        float *single = malloc(size);
        assert_int_equal(product_run(&device, &p, LUT_PATH_GEMV, 1, &err), FLUTE_OK);
        product_check(&p);
        memcpy(single, p.y, size);
        assert_int_equal(product_run(&device, &p, LUT_PATH_GEMV, 2, &err), FLUTE_OK);
        product_check(&p);
        assert_int_equal(memcmp(single, p.y, size) != 0, cases[i].fits); // in pairs sums are in another order
        free(single);
        product_free(&p);
    }
    lut_device_close(&device);
    simt_set_sms(4);
}

static void test_other_gpus(void **state) {
    (void)state;
    lut_device device;
    flute_error err = {0};
    simt_set_sms(1);
    assert_int_equal(lut_device_open(&device, &err), FLUTE_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "has no two SMs for a cluster"));
    lut_device_close(&device);
    simt_set_sms(4);
    simt_set_capability(10, 0);
    assert_int_equal(lut_device_open(&device, &err), FLUTE_OK);
    assert_int_equal(device.code_version, 90);
    assert_false(device.has_wide);
    product p = product_new(WEIGHT_LUT4, 40, 256, 128, 40);
    assert_int_equal(lut_gemm_path(&device, 1000), LUT_PATH_TILE);
    assert_int_equal(product_run(&device, &p, LUT_PATH_AUTO, 0, &err), FLUTE_OK);
    product_check(&p);
    assert_int_equal(product_run(&device, &p, LUT_PATH_WIDE, 0, &err), FLUTE_EINVAL);
    assert_non_null(strstr(err.message, "LUT_PATH_WIDE needs compute capability 9.0"));
    product_free(&p);
    lut_device_close(&device);
    simt_set_capability(9, 0);
}

// Compute capability, code, bytes of shared memory: the path follows the code that is loaded, not the card.
static void test_code_of_ampere(void **state) {
    (void)state;
    static const int cards[][4] = {{8, 0, 0, 163}, {8, 6, 0, 99}, {8, 9, 80, 99}, {9, 0, 80, 227}};
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        lut_device device;
        flute_error err = {0};
        simt_set_capability(cards[i][0], cards[i][1]);
        simt_set_code(cards[i][2]);
        assert_int_equal(lut_device_open(&device, &err), FLUTE_OK);
        assert_int_equal(device.shared, cards[i][3] * 1024);
        assert_false(device.has_wide);
        product p = product_new(WEIGHT_LUT4, 200, 1280, 128, 40);
        assert_int_equal(lut_gemm_path(&device, 1), LUT_PATH_AMPERE);
        assert_int_equal(lut_gemm_path(&device, 1000), LUT_PATH_AMPERE);
        const long before = simt_launches();
        assert_int_equal(product_run(&device, &p, LUT_PATH_AUTO, 0, &err), FLUTE_OK);
        product_check(&p);
        assert_int_equal(simt_launches() - before, cards[i][3] == 99 ? 3 : 2); // 16 or 32 tokens at a time
        assert_int_equal(product_run(&device, &p, LUT_PATH_GEMV, 0, &err), FLUTE_EINVAL);
        assert_non_null(strstr(err.message, "needs code for compute capability 9.0"));
        const float squares = 0;
        const lut_gemm_args normed = {.w = &p.w,
                                      .x = p.x,
                                      .x_stride = p.w.n_cols,
                                      .n_tokens = 1,
                                      .y = p.y,
                                      .y_stride = p.w.n_rows,
                                      .norm = {.squares = &squares, .n_parts = 1}};
        assert_int_equal(lut_gemm(&device, &normed, NULL, &err), FLUTE_EINVAL);
        assert_non_null(strstr(err.message, "only LUT_PATH_GEMV has norms"));
        product_free(&p);
        lut_device_close(&device);
    }
    simt_set_capability(9, 0);
    simt_set_code(0);
}

static void test_no_memory(void **state) {
    (void)state;
    lut_device device;
    flute_error err = {0};
    simt_fail_allocation(1);
    assert_int_equal(lut_device_open(&device, &err), FLUTE_ENOMEM);
    assert_non_null(strstr(err.message, "MiB for the workspace of the LUT-GEMM"));
    lut_device_close(&device);
    assert_int_equal(simt_allocated(), 0);
}

static void test_paths(void **state) {
    (void)state;
    lut_device device;
    flute_error err = {0};
    assert_int_equal(lut_device_open(&device, &err), FLUTE_OK);
    product p = product_new(WEIGHT_LUT4, 40, 256, 128, 11);
    assert_int_equal(lut_gemm_path(&device, 1), LUT_PATH_GEMV);
    assert_int_equal(lut_gemm_path(&device, 4), LUT_PATH_GEMV);
    assert_int_equal(lut_gemm_path(&device, 5), LUT_PATH_WIDE);
    assert_int_equal(lut_gemm_path(&device, 1000), LUT_PATH_WIDE);
    for (lut_path path = LUT_PATH_AUTO; path <= LUT_PATH_AMPERE; path++) {
        assert_int_equal(product_run(&device, &p, path, 0, &err), FLUTE_OK);
        product_check(&p);
    }
    assert_int_equal(product_run(&device, &p, LUT_PATH_WIDE, 5, &err), FLUTE_EINVAL);
    assert_non_null(strstr(err.message, "tiles of 5 warpgroups"));
    assert_int_equal(product_run(&device, &p, LUT_PATH_GEMV, 3, &err), FLUTE_EINVAL);
    assert_non_null(strstr(err.message, "rows of 3 blocks"));
    product_free(&p);
    lut_device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_division),   cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_other_gpus), cmocka_unit_test(test_code_of_ampere),
        cmocka_unit_test(test_no_memory),  cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
