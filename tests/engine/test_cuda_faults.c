// The CUDA backend when something fails, on the emulator's device: no device, an old one, memory that runs
// out at any allocation, a launch that fails at any kernel. Each gives its message, leaves nothing allocated,
// and what can go on goes on.
//
//     test_cuda_faults MODEL.flt
#include "tests/engine/placed_model.h"

#include "tests/models/checkpoint.h"
#include "tests/simt/control.h"

enum { N_IDS = 12, BLOCK_TOKENS = 32 };

static const char *path;
static thread_pool *pool;

static void assert_says(const flute_error *err, const char *text) {
    if (!strstr(err->message, text)) fail_msg("'%s' lacks '%s'", err->message, text);
}

static void test_no_device(void **unused) {
    (void)unused;
    backend *be = NULL;
    flute_error err = {0};
    simt_set_devices(0);
    assert_int_equal(backend_create_cuda(pool, &be, &err), FLUTE_EDEVICE);
    simt_set_devices(1);
    simt_set_capability(7, 5);
    assert_int_equal(backend_create_cuda(pool, &be, &err), FLUTE_EUNSUPPORTED);
    assert_says(&err, "compute capability 7.5; the kernels need 8.0 (Ampere) or later");
    simt_set_capability(8, 6);
    simt_set_code(90); // a build for Hopper only
    assert_int_equal(backend_create_cuda(pool, &be, &err), FLUTE_EUNSUPPORTED);
    assert_says(&err, "no code for the GPU's compute capability 8.6");
    assert_says(&err, "-Dgpu_arch=86");
    simt_set_capability(9, 0);
    simt_set_code(0);
    assert_int_equal(simt_allocated(), 0);
}

// Everything from the backend to a decoded token. Returns the first failure.
static int run(flute_error *err) {
    backend *be = NULL;
    placed_model m = {0};
    runner steps = {0};
    int32_t ids[N_IDS], token = 0;
    for (int i = 0; i < N_IDS; i++) ids[i] = 3 + i;
    int code = backend_create_cuda(pool, &be, err);
    if (!code) code = placed_model_open(&m, path, be, err);
    if (!code) {
        const int max_blocks = 1;
        checkpoint *view = (checkpoint *)allocate(1, sizeof *view);
        *view = (checkpoint){.arch = m.file.arch, .tensors = m.tensors};
        view->weights.tensors = m.tensors;
        for (int i = 0; i < 2; i++) view->weights.inv_freq[i] = m.inv_freq[i];
        steps = (runner){.model = view, .be = be, .n_sequences = 1, .max_blocks = max_blocks};
        steps.tables = (int32_t *)allocate(1, sizeof *steps.tables);
        arch_kernel_dims(&m.file.arch, N_IDS, N_IDS, &steps.dims);
        code = be->ops->kv_create(be, &steps.dims, BLOCK_TOKENS, max_blocks, &steps.cache, err);
        if (!code) code = be->ops->state_create(be, &steps.dims, &steps.state, err);
        const piece prompt = {0, 0, N_IDS - 1, ids}, next = {0, N_IDS - 1, 1, ids + N_IDS - 1};
        if (!code) code = runner_step(&steps, &prompt, 1, NULL, &token, err);
        if (!code) code = runner_step(&steps, &next, 1, NULL, &token, err);
        if (steps.state) be->ops->state_free(steps.state);
        if (steps.cache.data) be->ops->kv_free(be, &steps.cache);
        free(steps.tables);
        free(view);
    }
    placed_model_close(&m);
    if (be) be->ops->free(be);
    return code;
}

static void test_memory_runs_out_at_any_allocation(void **unused) {
    (void)unused;
    int failures = 0;
    for (int n = 1;; n++) {
        flute_error err = {0};
        simt_fail_allocation(n);
        const int code = run(&err);
        simt_fail_allocation(0);
        assert_int_equal(simt_allocated(), 0);
        if (code == FLUTE_OK) break; // the whole run has fewer allocations than n
        if (code != FLUTE_ENOMEM) fail_msg("allocation %d: %s: %s", n, flute_code_text(code), err.message);
        assert_says(&err, "memory");
        failures++;
    }
    print_message("# %d allocations, each failed once\n", failures);
    assert_true(failures > 20);
}

static void test_a_launch_fails_at_any_kernel(void **unused) {
    (void)unused;
    int failures = 0;
    for (int n = 1;; n += 3) {
        flute_error err = {0};
        simt_fail_launch(n);
        const int code = run(&err);
        simt_fail_launch(0);
        assert_int_equal(simt_allocated(), 0);
        if (code == FLUTE_OK) break;
        assert_int_equal(code, FLUTE_EDEVICE);
        assert_says(&err, "CUDA");
        failures++;
    }
    print_message("# %d launches failed\n", failures);
    assert_true(failures > 5);
}

static void test_too_little_memory_says_how_much(void **unused) {
    (void)unused;
    flute_error err = {0};
    simt_set_memory((size_t)40 << 20); // little more than the workspace of cuBLAS
    assert_int_equal(run(&err), FLUTE_ENOMEM);
    simt_set_memory((size_t)1 << 30);
    assert_says(&err, "MiB");
    assert_int_equal(simt_allocated(), 0);
}

int main(int argc, char **argv) {
    flute_error err = {0};
    if (argc != 2) return fputs("usage: test_cuda_faults MODEL.flt\n", stderr), 2;
    path = argv[1];
    pool = threads_create(1, &err);
    if (!pool) return printf("Bail out! %s\n", err.message), 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_device),
        cmocka_unit_test(test_memory_runs_out_at_any_allocation),
        cmocka_unit_test(test_a_launch_fails_at_any_kernel),
        cmocka_unit_test(test_too_little_memory_says_how_much),
    };
    const int failed = cmocka_run_group_tests_name("faults of the GPU", tests, NULL, NULL);
    threads_free(pool);
    return failed;
}
