// No allocation per decoded token: malloc and its kin are wrapped by the linker and counted.
//   test_allocations MODEL.flt
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/flute.h"

static const char *model_path;
static atomic_long n_allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *data, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **out, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *data, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size);

void *__wrap_malloc(size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *data, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __real_realloc(data, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __real_posix_memalign(out, alignment, size);
}

static void decode_tokens(flute_kernels kernels) {
    flute_error err = {0};
    flute_model *model;
    flute_session *session;
    const flute_model_options options = {.device = FLUTE_DEVICE_CPU, .kernels = kernels};
    const long at_start = atomic_load(&n_allocations);
    if (flute_model_open(&model, model_path, &options, &err)) fail_msg("%s", err.message);
    assert_int_equal(flute_session_create(&session, model, NULL, &err), 0);
    assert_true(atomic_load(&n_allocations) > at_start); // the counter counts

    static const int32_t prompt[] = {1, 5, 9, 2, 6};
    flute_sampling sampling = flute_sampling_default();
    sampling.repeat_penalty = 1.2f;
    int32_t id;
    assert_int_equal(flute_session_prefill(session, prompt, 5, &err), 0);
    assert_int_equal(flute_session_sample(session, &sampling, &id, &err), 0);
    const long before = atomic_load(&n_allocations);
    for (int i = 0; i < 40; i++) // over the edge of a block, too
        if (flute_session_step(session, id, &sampling, &id, &err)) fail_msg("%s", err.message);
    for (int i = 0; i < 10; i++)
        if (flute_session_decode(session, id, &err) || flute_session_sample(session, &sampling, &id, &err))
            fail_msg("%s", err.message);
    assert_int_equal(atomic_load(&n_allocations), before);
    flute_session_free(session);
    flute_model_free(model);
}

static void test_reference_kernels(void **state) {
    (void)state;
    decode_tokens(FLUTE_KERNELS_REF);
}

static void test_fast_kernels(void **state) {
    (void)state;
    decode_tokens(FLUTE_KERNELS_AUTO);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: test_allocations MODEL.flt\n"), 2;
    model_path = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference_kernels),
                                       cmocka_unit_test(test_fast_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
