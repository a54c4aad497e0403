// Sessions on tiny models, with the reference kernels: their sums do not depend on how rows are batched, so
// everything that should be equal is equal to the bit.
//   test_session MODEL.flt
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/flute.h"

enum { N = 90, CONTEXT = 100 }; // tokens of the test sequence: three blocks, and more than every window

static flute_model *model;
static flute_model_info info;
static int32_t ids[N];

static void check(int code, const flute_error *err) {
    if (code < 0) fail_msg("%s", err->message);
}

static flute_session *create(int context, int batch_rows) {
    flute_session *session;
    flute_error err = {0};
    check(flute_session_create(&session, model,
                               &(flute_session_options){.context = context, .batch_rows = batch_rows}, &err),
          &err);
    return session;
}

static void prefill(flute_session *session, const int32_t *tokens, size_t n) {
    flute_error err = {0};
    check(flute_session_prefill(session, tokens, n, &err), &err);
    assert_int_equal(flute_session_length(session), n);
    assert_memory_equal(flute_session_tokens(session), tokens, n * sizeof *tokens);
}

static void decode(flute_session *session, int32_t id) {
    flute_error err = {0};
    check(flute_session_decode(session, id, &err), &err);
}

static void assert_same_logits(const float *a, const float *b) {
    assert_non_null(a);
    assert_non_null(b);
    assert_memory_equal(a, b, (size_t)info.n_vocab * sizeof *a);
}

// The logits after the first n ids, computed on their own.
static float *fresh_logits(const int32_t *tokens, size_t n) {
    const size_t bytes = (size_t)info.n_vocab * sizeof(float);
    flute_session *session = create(CONTEXT, 0);
    prefill(session, tokens, n);
    float *logits = malloc(bytes);
    assert_non_null(logits);
    memcpy(logits, flute_session_logits(session), bytes);
    flute_session_free(session);
    return logits;
}

static void assert_logits_after(const flute_session *session, const int32_t *tokens, size_t n) {
    float *expected = fresh_logits(tokens, n);
    assert_same_logits(flute_session_logits(session), expected);
    free(expected);
}

static void test_batches_do_not_matter(void **state) {
    (void)state;
    static const int rows[] = {1, 7, 32, 33, 64, N};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        flute_session *session = create(CONTEXT, rows[i]);
        prefill(session, ids, N);
        assert_logits_after(session, ids, N);
        flute_session_free(session);
    }
}

static void test_decode_equals_prefill(void **state) {
    (void)state;
    flute_session *session = create(CONTEXT, 0);
    prefill(session, ids, 20);
    for (int i = 20; i < 70; i++) decode(session, ids[i]);
    assert_int_equal(flute_session_length(session), 70);
    assert_logits_after(session, ids, 70);
    flute_session_free(session);
}

static void test_prefixes_are_reused(void **state) {
    (void)state;
    flute_session *session = create(CONTEXT, 16);
    int32_t other[N];
    memcpy(other, ids, sizeof other);
    for (int i = 40; i < N; i++) other[i] = (ids[i] + 1) % info.n_vocab;
    prefill(session, ids, N);
    prefill(session, other, 60); // leaves the old sequence in the middle of a block
    assert_logits_after(session, other, 60);
    prefill(session, other, 60); // nothing new
    assert_logits_after(session, other, 60);
    prefill(session, other, 31); // shorter
    assert_logits_after(session, other, 31);
    prefill(session, ids, N);
    assert_logits_after(session, ids, N);
    // A prompt that is the session's own array.
    flute_error err = {0};
    check(flute_session_prefill(session, flute_session_tokens(session) + 5, 30, &err), &err);
    assert_logits_after(session, ids + 5, 30);
    flute_session_free(session);
}

static void test_rewind(void **state) {
    (void)state;
    flute_session *session = create(CONTEXT, 0);
    flute_error err = {0};
    prefill(session, ids, N);
    assert_int_equal(flute_session_rewind(session, N + 1, &err), FLUTE_ERANGE);
    assert_int_equal(flute_session_rewind(session, -1, &err), FLUTE_ERANGE);
    check(flute_session_rewind(session, 33, &err), &err);
    assert_null(flute_session_logits(session));
    decode(session, ids[33]);
    assert_logits_after(session, ids, 34);
    check(flute_session_rewind(session, 0, &err), &err);
    decode(session, ids[0]); // a first token may come by decode
    assert_logits_after(session, ids, 1);
    flute_session_free(session);
}

static void test_sessions_decode_together(void **state) {
    (void)state;
    enum { SESSIONS = 4 };
    static const int lengths[SESSIONS] = {1, 31, 64, 80};
    flute_session *sessions[SESSIONS];
    int32_t next[SESSIONS];
    flute_error err = {0};
    for (int i = 0; i < SESSIONS; i++) { // each new one grows the cache under the others
        sessions[i] = create(CONTEXT, 0);
        prefill(sessions[i], ids, (size_t)lengths[i]);
    }
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < SESSIONS; i++) next[i] = ids[lengths[i] + step];
        check(flute_sessions_decode(sessions, next, SESSIONS, &err), &err);
    }
    for (int i = 0; i < SESSIONS; i++) assert_logits_after(sessions[i], ids, (size_t)lengths[i] + 3);

    // All or none: one bad id, the same session twice, one full context.
    next[2] = info.n_vocab;
    assert_int_equal(flute_sessions_decode(sessions, next, SESSIONS, &err), FLUTE_ERANGE);
    next[2] = 0;
    flute_session *twice[] = {sessions[0], sessions[1], sessions[0]};
    assert_int_equal(flute_sessions_decode(twice, next, 3, &err), FLUTE_EINVAL);
    for (int i = 0; i < SESSIONS; i++) assert_int_equal(flute_session_length(sessions[i]), lengths[i] + 3);
    for (int i = 0; i < SESSIONS; i++) flute_session_free(sessions[i]);
}

static void test_fork(void **state) {
    (void)state;
    flute_session *session = create(CONTEXT, 0), *fork;
    flute_error err = {0};
    prefill(session, ids, 40);
    check(flute_session_fork(&fork, session, &err), &err);
    assert_int_equal(flute_session_length(fork), 40);
    assert_same_logits(flute_session_logits(fork), flute_session_logits(session));
    int32_t other[45];
    memcpy(other, ids, sizeof other);
    for (int i = 40; i < 45; i++) {
        other[i] = (ids[i] + 3) % info.n_vocab;
        decode(session, ids[i]);
        decode(fork, other[i]);
    }
    assert_logits_after(session, ids, 45);
    assert_logits_after(fork, other, 45);
    flute_session_free(session); // the fork lives on
    decode(fork, 1);
    flute_session_free(fork);
}

typedef struct scored {
    flute_session *session;
    float *kept; // row 50
    size_t n, stop_at, cancel_at;
} scored;

static int score_row(void *user, size_t i, const float *logits) {
    scored *s = user;
    assert_int_equal(i, s->n);
    s->n++;
    if (i == 50) memcpy(s->kept, logits, (size_t)info.n_vocab * sizeof *logits);
    if (i == s->cancel_at) flute_session_cancel(s->session);
    return i == s->stop_at;
}

static void test_score(void **state) {
    (void)state;
    flute_error err = {0};
    scored s = {.session = create(CONTEXT, 16), .stop_at = N, .cancel_at = N};
    s.kept = malloc((size_t)info.n_vocab * sizeof *s.kept);
    check(flute_session_score(s.session, ids, N, score_row, &s, &err), &err);
    assert_int_equal(s.n, N);
    float *expected = fresh_logits(ids, 51);
    assert_same_logits(s.kept, expected);
    free(expected);
    assert_logits_after(s.session, ids, N); // the last row stays

    s.n = 0;
    s.stop_at = 20;
    assert_int_equal(flute_session_score(s.session, ids, N, score_row, &s, &err), FLUTE_ECANCELED);
    assert_int_equal(s.n, 21);

    // A cancel takes effect after the batch, and the sequence is what was completed.
    s.n = 0;
    s.stop_at = N;
    s.cancel_at = 20;
    assert_int_equal(flute_session_score(s.session, ids, N, score_row, &s, &err), FLUTE_ECANCELED);
    assert_int_equal(s.n, 32);
    assert_int_equal(flute_session_length(s.session), 32);
    // When nothing runs it does nothing.
    flute_session_cancel(s.session);
    prefill(s.session, ids, N);
    assert_logits_after(s.session, ids, N);
    flute_session_free(s.session);
    free(s.kept);
}

static void test_sampling_in_the_step(void **state) {
    (void)state;
    flute_sampling sampling = flute_sampling_default();
    sampling.temperature = 100; // flat, so that seeds matter
    sampling.top_k = 0;
    sampling.top_p = 1;
    sampling.min_p = 0;
    sampling.repeat_penalty = 1.3f;
    sampling.frequency_penalty = 0.2f;
    sampling.penalty_window = 8;
    flute_session *a = create(CONTEXT, 0), *b = create(CONTEXT, 0);
    flute_error err = {0};
    int32_t draws[4];
    for (uint64_t seed = 0; seed < 4; seed++) {
        int32_t x, y;
        sampling.seed = seed;
        prefill(a, ids, 10);
        prefill(b, ids, 10);
        check(flute_session_sample(a, &sampling, &x, &err), &err);
        check(flute_session_sample(b, &sampling, &y, &err), &err);
        for (int i = 0; i < 12; i++) {
            assert_int_equal(x, y);
            check(flute_session_step(a, x, &sampling, &x, &err), &err);
            assert_null(flute_session_logits(a));
            decode(b, y);
            check(flute_session_sample(b, &sampling, &y, &err), &err);
        }
        draws[seed] = flute_session_tokens(a)[10];
    }
    // Four seeds do not all draw the same first token.
    assert_false(draws[0] == draws[1] && draws[1] == draws[2] && draws[2] == draws[3]);
    assert_int_equal(flute_session_sample(a, &sampling, ids, &err), FLUTE_EINVAL); // no logits after a step
    assert_non_null(strstr(err.message, "no logits"));
    flute_session_free(a);
    flute_session_free(b);
}

static void test_refusals(void **state) {
    (void)state;
    flute_session *session = create(20, 0);
    flute_error err = {0};
    int32_t bad[] = {1, 2, -1};
    assert_int_equal(flute_session_prefill(session, ids, 0, &err), FLUTE_EINVAL);
    assert_int_equal(flute_session_prefill(session, ids, 21, &err), FLUTE_ECONTEXT);
    assert_non_null(strstr(err.message, "21 tokens"));
    assert_non_null(strstr(err.message, "takes 20"));
    assert_int_equal(flute_session_prefill(session, bad, 3, &err), FLUTE_ERANGE);
    assert_int_equal(flute_session_length(session), 0);
    assert_int_equal(flute_session_decode(session, info.n_vocab, &err), FLUTE_ERANGE);
    prefill(session, ids, 20);
    assert_int_equal(flute_session_decode(session, 1, &err), FLUTE_ECONTEXT);
    assert_int_equal(flute_session_length(session), 20);
    assert_non_null(flute_session_logits(session)); // a refused call changes nothing
    flute_session_free(session);

    flute_session_options options = {.context = info.max_context + 1};
    assert_int_equal(flute_session_create(&session, model, &options, &err), FLUTE_ECONTEXT);
    assert_null(session);
    options = (flute_session_options){.batch_rows = -1};
    assert_int_equal(flute_session_create(&session, model, &options, &err), FLUTE_EINVAL);
    flute_session_free(NULL);
}

static void *run_alone(void *user) {
    flute_session *session = user;
    flute_error err = {0};
    for (int round = 0; round < 3; round++) {
        if (flute_session_prefill(session, ids, 50, &err)) return NULL;
        for (int i = 50; i < 60; i++)
            if (flute_session_decode(session, ids[i], &err)) return NULL;
    }
    return session;
}

static void test_threads_share_a_model(void **state) {
    (void)state;
    enum { THREADS = 3 };
    pthread_t threads[THREADS];
    flute_session *sessions[THREADS];
    for (int i = 0; i < THREADS; i++) sessions[i] = create(CONTEXT, 8);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_alone, sessions[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_ptr_equal(result, sessions[i]);
        assert_logits_after(sessions[i], ids, 60);
        flute_session_free(sessions[i]);
    }
}

static int run_model(const char *path) {
    flute_error err = {0};
    const flute_model_options options = {.device = FLUTE_DEVICE_CPU, .kernels = FLUTE_KERNELS_REF};
    if (flute_model_open(&model, path, &options, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    flute_model_get_info(model, &info);
    uint32_t random = 1;
    for (int i = 0; i < N; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)((random >> 8) % (uint32_t)info.n_vocab);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batches_do_not_matter),
        cmocka_unit_test(test_decode_equals_prefill),
        cmocka_unit_test(test_prefixes_are_reused),
        cmocka_unit_test(test_rewind),
        cmocka_unit_test(test_sessions_decode_together),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_sampling_in_the_step),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_threads_share_a_model),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    flute_model_free(model);
    return failed;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: test_session MODEL.flt\n"), 2;
    return run_model(argv[1]);
}
