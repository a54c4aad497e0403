// Sampling parameters: defaults, refusals, and the window that the penalties look at.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampling.h"

static void test_defaults_are_valid(void **state) {
    (void)state;
    const flute_sampling sampling = flute_sampling_default();
    assert_int_equal(flute_sampling_check(&sampling, NULL), FLUTE_OK);
}

static void test_refusals_name_the_parameter(void **state) {
    (void)state;
    static const struct {
        size_t offset;
        float value;
        const char *name;
    } cases[] = {
        {offsetof(flute_sampling, temperature), -0.1f, "temperature"},
        {offsetof(flute_sampling, temperature), NAN, "temperature"},
        {offsetof(flute_sampling, temperature), INFINITY, "temperature"},
        {offsetof(flute_sampling, top_p), 1.5f, "top-p"},
        {offsetof(flute_sampling, min_p), -1, "min-p"},
        {offsetof(flute_sampling, repeat_penalty), 0, "repeat penalty"},
        {offsetof(flute_sampling, presence_penalty), NAN, "presence penalty"},
        {offsetof(flute_sampling, frequency_penalty), 1000, "frequency penalty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flute_sampling sampling = flute_sampling_default();
        flute_error err = {0};
        memcpy((char *)&sampling + cases[i].offset, &cases[i].value, sizeof(float));
        assert_int_equal(flute_sampling_check(&sampling, &err), FLUTE_EINVAL);
        assert_non_null(strstr(err.message, cases[i].name));
    }
    flute_sampling sampling = flute_sampling_default();
    sampling.top_k = -1;
    assert_int_equal(flute_sampling_check(&sampling, NULL), FLUTE_EINVAL);
    sampling = flute_sampling_default();
    sampling.penalty_window = -2;
    assert_int_equal(flute_sampling_check(&sampling, NULL), FLUTE_EINVAL);
}

static void test_penalty_window(void **state) {
    (void)state;
    static const int32_t tokens[10] = {0};
    static const struct {
        int window, n_tokens, first, n;
    } cases[] = {{4, 10, 6, 4},  {10, 10, 0, 10}, {11, 10, 0, 10},
                 {0, 10, 10, 0}, {-1, 10, 0, 10}, {64, 0, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flute_sampling sampling = flute_sampling_default();
        sample_args args;
        sampling.penalty_window = cases[i].window;
        sampling.seed = 7;
        sampling_args(&sampling, tokens, cases[i].n_tokens, &args);
        assert_ptr_equal(args.history, tokens + cases[i].first);
        assert_int_equal(args.n_history, cases[i].n);
        assert_int_equal(args.position, cases[i].n_tokens);
        assert_int_equal(args.seed, 7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_valid),
        cmocka_unit_test(test_refusals_name_the_parameter),
        cmocka_unit_test(test_penalty_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
