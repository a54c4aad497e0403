// Sampling against brute force: every filter as its definition reads, on a fully sorted vocabulary.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "kernels/sample.h"

static uint64_t random_state;

static void random_seed(uint64_t seed) {
    print_message("# seed %llu\n", (unsigned long long)seed);
    random_state = seed;
}

static uint32_t random_bits(void) { // xorshift64* (Vigna 2016)
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 32);
}

static int random_below(int n) {
    return (int)(random_bits() % (uint32_t)n);
}

// Roughly normal.
static float random_logit(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += random_bits() * 0x1p-32;
    return (float)(3 * sum);
}

static const sample_args plain = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 1};

static int32_t sample_one(const sample_args *args, const float *logits, int n_vocab) {
    flute_error err = {0};
    int32_t token = -1;
    void *scratch = malloc(sample_scratch_bytes(n_vocab));
    assert_non_null(scratch);
    memset(scratch, 0x7f, sample_scratch_bytes(n_vocab)); // whatever is there must not matter
    if (sample_token(args, logits, n_vocab, scratch, &token, &err)) fail_msg("%s", err.message);
    free(scratch);
    assert_in_range(token, 0, n_vocab - 1);
    return token;
}

// ---- The generator

// The known answers that come with Random123, the authors' own implementation.
static void test_philox_gives_the_known_answers(void **unused) {
    (void)unused;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t words[4];
        memcpy(words, cases[i].counter, sizeof words);
        sample_philox(cases[i].key, words);
        assert_memory_equal(words, cases[i].expected, sizeof words);
    }
    // Words 1 and 0 of the first case, as the header says.
    assert_true(sample_uniform(0, 0) == (double)(0xe169c58d6627e8d5u >> 11) * 0x1p-53);
}

// Pearson's statistic over n cells, against a limit that a good generator passes with overwhelming
// probability: mean + 5 standard deviations.
static void assert_chi_square(const int *counts, const double *expected, int n) {
    double statistic = 0;
    for (int i = 0; i < n; i++) {
        double off = counts[i] - expected[i];
        statistic += off * off / expected[i];
    }
    const double freedom = n - 1;
    if (statistic > freedom + 5 * sqrt(2 * freedom))
        fail_msg("chi-square %.1f with %d degrees of freedom", statistic, n - 1);
}

static void test_uniform_is_uniform(void **unused) {
    (void)unused;
    enum { CELLS = 64, DRAWS = 64000 };
    for (int by_seed = 0; by_seed < 2; by_seed++) {
        int counts[CELLS] = {0};
        double expected[CELLS];
        for (int i = 0; i < CELLS; i++) expected[i] = (double)DRAWS / CELLS;
        for (uint64_t i = 0; i < DRAWS; i++) {
            double u = by_seed ? sample_uniform(i, 7) : sample_uniform(7, i);
            assert_true(u >= 0 && u < 1);
            counts[(int)(u * CELLS)]++;
        }
        assert_chi_square(counts, expected, CELLS);
    }
}

static void test_draws_follow_the_probabilities(void **unused) {
    (void)unused;
    enum { N = 12, DRAWS = 40000 };
    random_seed(11);
    float logits[N];
    for (int i = 0; i < N; i++) logits[i] = (float)(random_bits() * 0x1p-32 * 3);
    static const float temperatures[] = {0.7f, 1, 2.5f};
    for (int t = 0; t < 3; t++) {
        double expected[N], total = 0;
        int counts[N] = {0};
        for (int i = 0; i < N; i++) total += expected[i] = exp((double)logits[i] / temperatures[t]);
        for (int i = 0; i < N; i++) expected[i] *= DRAWS / total;
        sample_args args = plain;
        args.temperature = temperatures[t];
        for (args.position = 0; args.position < DRAWS; args.position++)
            counts[sample_one(&args, logits, N)]++;
        assert_chi_square(counts, expected, N);
    }
}

// ---- Filters

typedef struct ranked {
    float logit;
    int id;
} ranked;

static int compare_rank(const void *a, const void *b) {
    const ranked *x = (const ranked *)a, *y = (const ranked *)b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

// The definition in words, on a sorted copy: which token the draw u must give. *margin is how close the
// decisions came to falling otherwise, as a share of the total, for the rounding of sums.
static int brute_force(const sample_args *args, const float *logits, int n_vocab, double *margin) {
    ranked *sorted = calloc((size_t)n_vocab, sizeof *sorted);
    double *kept = calloc((size_t)n_vocab, sizeof *kept); // by id
    assert_non_null(sorted);
    assert_non_null(kept);
    for (int id = 0; id < n_vocab; id++) sorted[id] = (ranked){logits[id], id};
    qsort(sorted, (size_t)n_vocab, sizeof *sorted, compare_rank);

    int n = args->top_k > 0 && args->top_k < n_vocab ? args->top_k : n_vocab;
    double total = 0, held = 0, sum = 0;
    *margin = 1;
    for (int i = 0; i < n; i++) total += expf((sorted[i].logit - sorted[0].logit) / args->temperature);
    for (int i = 0; i < n; i++) {
        float share = expf((sorted[i].logit - sorted[0].logit) / args->temperature);
        if (i > 0 && args->top_p < 1) {
            *margin = fmin(*margin, fabs(held / total - args->top_p));
            if (held >= args->top_p * total) break;
        }
        held += share;
        if (share >= fminf(args->min_p, 1)) kept[sorted[i].id] = share;
    }
    total = 0;
    for (int id = 0; id < n_vocab; id++) total += kept[id];
    const double target = sample_uniform(args->seed, args->position) * total;
    int chosen = -1;
    for (int id = 0; id < n_vocab && chosen < 0; id++) {
        sum += kept[id];
        if (kept[id] > 0) *margin = fmin(*margin, fabs(sum - target) / total);
        if (sum > target) chosen = id;
    }
    free(kept);
    free(sorted);
    return chosen;
}

// Thousands of random vocabularies, half of them full of ties, under every mixture of filters.
static void test_filters_equal_brute_force(void **unused) {
    (void)unused;
    enum { ROUNDS = 6000, MOST = 700 };
    random_seed(12);
    static const int top_ks[] = {0, 0, 1, 2, 5, 40, 699, 5000};
    static const float top_ps[] = {1, 1, 0.99f, 0.9f, 0.5f, 0.05f, 0, 2, -1};
    static const float min_ps[] = {0, 0, 0.01f, 0.1f, 0.5f, 1, 3};
    static const float temperatures[] = {1, 0.3f, 2, 0.01f, 50};
    float logits[MOST];
    int n_close = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const int n_vocab = 1 + random_below(round % 10 ? 60 : MOST), ties = random_below(2);
        for (int i = 0; i < n_vocab; i++) {
            logits[i] = ties ? (float)random_below(4) : random_logit();
            if (random_below(20) == 0 && i > 0) logits[i] = -INFINITY;
        }
        sample_args args = plain;
        args.top_k = top_ks[random_below(8)];
        args.top_p = top_ps[random_below(9)];
        args.min_p = min_ps[random_below(7)];
        args.temperature = temperatures[random_below(5)];
        args.position = (uint64_t)round;
        double margin;
        const int expected = brute_force(&args, logits, n_vocab, &margin);
        const int got = sample_one(&args, logits, n_vocab);
        if (margin < 1e-12)
            n_close++;
        else if (got != expected)
            fail_msg("round %d: token %d instead of %d (%d tokens, top-k %d, top-p %g, min-p %g, T %g)",
                     round, got, expected, n_vocab, args.top_k, (double)args.top_p, (double)args.min_p,
                     (double)args.temperature);
    }
    assert_true(n_close < ROUNDS / 50); // the comparison above did happen
}

static void test_large_vocabularies_work(void **unused) {
    (void)unused;
    enum { N = 256000 };
    random_seed(13);
    float *logits = malloc(N * sizeof *logits);
    assert_non_null(logits);
    for (int shape = 0; shape < 4; shape++) { // random, rising, falling, all equal
        for (int i = 0; i < N; i++)
            logits[i] = shape == 0 ? random_logit() : shape == 3 ? 0 : (float)(shape == 1 ? i : -i) * 1e-4f;
        for (int i = 0; i < 3; i++) {
            sample_args args = plain;
            args.position = (uint64_t)i;
            args.top_k = i == 1 ? 0 : 50;
            args.top_p = i == 0 ? 1 : 0.9f;
            double margin;
            const int expected = brute_force(&args, logits, N, &margin);
            if (margin > 1e-12) assert_int_equal(sample_one(&args, logits, N), expected);
        }
    }
    free(logits);
}

// ---- Penalties

static void test_penalties_change_logits_as_documented(void **unused) {
    (void)unused;
    // Greedy shows which logit is the largest after penalties.
    sample_args args = plain;
    args.temperature = 0;
    static const int32_t history[] = {0, 1, 0, 0, 99, -3}; // ids outside the vocabulary do nothing
    args.history = history;
    args.n_history = 6;
    const float positive[] = {4.0f, 3.0f, 2.9f}, negative[] = {-1.0f, -5.0f, -1.5f};

    assert_int_equal(sample_one(&args, positive, 3), 0);
    args.repeat_penalty = 1.3f; // 3.08, 2.31, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 0);
    args.repeat_penalty = 1.4f; // 2.86, 2.14, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 2);
    args.repeat_penalty = 1.6f; // −1.6, −8, −1.5
    assert_int_equal(sample_one(&args, negative, 3), 2);
    args.repeat_penalty = 0; // counts as none
    assert_int_equal(sample_one(&args, positive, 3), 0);

    args.repeat_penalty = 1;
    args.presence_penalty = 1.05f; // once, however often it occurs: 2.95, 1.95, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 0);
    args.presence_penalty = 1.15f; // 2.85, 1.85, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 2);

    args.presence_penalty = 0;
    args.frequency_penalty = 0.35f; // three times: 2.95, 2.65, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 0);
    args.frequency_penalty = 0.5f; // 2.5, 2.5, 2.9
    assert_int_equal(sample_one(&args, positive, 3), 2);
    args.frequency_penalty = -1; // a reward
    assert_int_equal(sample_one(&args, (const float[]){0, 0, 1.5f}, 3), 0);

    // The repetition penalty comes before the subtractions: 4 / 2 − 0.5 = 1.5, and not (4 − 0.5) / 2 = 1.75.
    args.frequency_penalty = 0;
    args.repeat_penalty = 2;
    args.presence_penalty = 0.5f;
    assert_int_equal(sample_one(&args, (const float[]){4, 0, 1.6f}, 3), 2);
}

// ---- Edges

static void test_greedy_takes_the_first_of_the_largest(void **unused) {
    (void)unused;
    sample_args args = plain;
    args.temperature = 0;
    assert_int_equal(sample_one(&args, (const float[]){1, 3, 2, 3, 3}, 5), 1);
    assert_int_equal(sample_one(&args, (const float[]){-INFINITY, -INFINITY, -4}, 3), 2);
    assert_int_equal(sample_one(&args, (const float[]){7}, 1), 0);
}

static void test_edges_of_temperature_and_filters(void **unused) {
    (void)unused;
    const float logits[] = {0.5f, 2, 1.999f, 2, -INFINITY};
    sample_args args = plain;
    int seen[5] = {0};
    args.temperature = 1e-30f; // only the two largest, which are equal, are left
    for (args.position = 0; args.position < 100; args.position++) seen[sample_one(&args, logits, 5)]++;
    assert_int_equal(seen[1] + seen[3], 100);
    assert_true(seen[1] > 20 && seen[3] > 20);
    args.temperature = 1e30f; // nearly uniform, but what was forbidden stays forbidden
    memset(seen, 0, sizeof seen);
    for (args.position = 0; args.position < 400; args.position++) seen[sample_one(&args, logits, 5)]++;
    assert_int_equal(seen[4], 0);
    for (int i = 0; i < 4; i++) assert_true(seen[i] > 50);
    args.temperature = 1;
    args.top_k = 1; // the lower id of the two
    for (args.position = 0; args.position < 50; args.position++)
        assert_int_equal(sample_one(&args, logits, 5), 1);
    args = plain;
    args.top_p = 0; // never fewer than one
    assert_int_equal(sample_one(&args, logits, 5), 1);
    args = plain;
    for (args.position = 0; args.position < 50; args.position++) // one possible token
        assert_int_equal(sample_one(&args, (const float[]){-INFINITY, -INFINITY, -90, -INFINITY}, 4), 2);
}

static void test_the_draw_depends_on_seed_and_position_alone(void **unused) {
    (void)unused;
    enum { N = 100 };
    random_seed(14);
    float logits[N];
    for (int i = 0; i < N; i++) logits[i] = random_logit() / 3;
    sample_args args = plain;
    int n_same_position = 0, n_same_seed = 0;
    for (int i = 0; i < 200; i++) {
        args.seed = (uint64_t)i << 32; // its upper half counts
        args.position = 3;
        const int32_t token = sample_one(&args, logits, N);
        assert_int_equal(sample_one(&args, logits, N), token);
        args.position = (uint64_t)1 << 32 | 3; // the position's, too
        n_same_seed += sample_one(&args, logits, N) == token;
        args.position = 3;
        args.seed++;
        n_same_position += sample_one(&args, logits, N) == token;
    }
    assert_true(n_same_seed < 40 && n_same_position < 40);
}

static void test_logits_that_are_no_numbers_are_refused(void **unused) {
    (void)unused;
    static const float cases[][3] = {
        {1, NAN, 2}, {NAN, 1, 2}, {1, 2, NAN}, {1, INFINITY, 2}, {-INFINITY, -INFINITY, -INFINITY}};
    float scratch[16];
    assert_true(sample_scratch_bytes(3) <= sizeof scratch);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int greedy = 0; greedy < 2; greedy++) {
            flute_error err = {0};
            int32_t token = -7;
            sample_args args = plain;
            args.temperature = greedy ? 0 : 1;
            assert_int_equal(sample_token(&args, cases[i], 3, scratch, &token, &err), FLUTE_ERANGE);
            assert_int_equal(err.code, FLUTE_ERANGE);
            assert_non_null(strstr(err.message, "not finite"));
            assert_int_equal(token, -7);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_known_answers),
        cmocka_unit_test(test_uniform_is_uniform),
        cmocka_unit_test(test_draws_follow_the_probabilities),
        cmocka_unit_test(test_filters_equal_brute_force),
        cmocka_unit_test(test_large_vocabularies_work),
        cmocka_unit_test(test_penalties_change_logits_as_documented),
        cmocka_unit_test(test_greedy_takes_the_first_of_the_largest),
        cmocka_unit_test(test_edges_of_temperature_and_filters),
        cmocka_unit_test(test_the_draw_depends_on_seed_and_position_alone),
        cmocka_unit_test(test_logits_that_are_no_numbers_are_refused),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
