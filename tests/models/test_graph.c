// Whole models through the reference kernels: the tiny checkpoints against PyTorch's figures, and the ways to
// cut and mix batches against each other, to the bit.
#include "tests/models/checkpoint.h"

#include <math.h>

static const char *const names[] = {"llama2", "llama31", "llama32-tied", "gemma1", "gemma2", "gemma3"};
enum { N_MODELS = sizeof names / sizeof *names, N_IDS = 48, BLOCK_TOKENS = 8 };

typedef struct golden {
    char name[64];
    checkpoint *model;
    int n_ids, n_greedy, n_rows;
    int32_t *ids, *greedy, *rows;
    float *logits; // (n_rows, n_vocab)
    double std;    // of the logits
} golden;

static golden goldens[N_MODELS];
static thread_pool *pool;
static backend *be;

static void golden_open(golden *g, const char *name) {
    char folder[2048], path[2200];
    flute_error err = {0};
    const char *root = getenv("FLUTE_TEST_DATA");
    if (!root) fail_msg("FLUTE_TEST_DATA is not set; run through meson test");
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(folder, sizeof folder, "%s/tiny/%s", root, name);
    g->model = checkpoint_open(folder);

    snprintf(path, sizeof path, "%s/golden.json", folder);
    yyjson_doc *doc = json_parse_file(path, &err);
    if (!doc) fail_msg("%s", err.message);
    yyjson_val *root_value = yyjson_doc_get_root(doc);
    g->ids = json_ids(root_value, "ids", &g->n_ids);
    g->greedy = json_ids(root_value, "greedy_ids", &g->n_greedy);
    g->rows = json_ids(root_value, "logits_rows", &g->n_rows);
    g->std = yyjson_get_num(yyjson_obj_get(root_value, "logit_std"));
    yyjson_doc_free(doc);
    assert_int_equal(g->n_ids, N_IDS);
    assert_true(g->std > 0);

    size_t size = 0;
    char *data = NULL;
    snprintf(path, sizeof path, "%s/logits.f32", folder);
    check(file_read(path, &data, &size, &err), &err);
    assert_int_equal(size, (size_t)g->n_rows * (size_t)g->model->arch.n_vocab * sizeof(float));
    g->logits = (float *)data;
}

static void golden_close(golden *g) {
    checkpoint_free(g->model);
    free(g->ids);
    free(g->greedy);
    free(g->rows);
    free(g->logits);
}

static int open_all(void **unused) {
    (void)unused;
    flute_error err = {0};
    pool = threads_create(2, &err);
    if (!pool) fail_msg("%s", err.message);
    check(backend_create_ref(pool, &be, &err), &err);
    for (int i = 0; i < N_MODELS; i++) golden_open(&goldens[i], names[i]);
    return 0;
}

static int close_all(void **unused) {
    (void)unused;
    for (int i = 0; i < N_MODELS; i++) golden_close(&goldens[i]);
    be->ops->free(be);
    threads_free(pool);
    return 0;
}

// Logits of all ids of g, computed in pieces of the given lengths (the last repeats) of sequence `sequence`.
static float *logits_in_pieces(const golden *g, runner *run, int sequence, const int *lengths,
                               int n_lengths) {
    flute_error err = {0};
    const size_t n_vocab = (size_t)run->dims.n_vocab;
    float *logits = (float *)allocate(N_IDS * n_vocab, sizeof *logits);
    for (int at = 0, i = 0, n; at < N_IDS; at += n, i++) {
        n = lengths[i < n_lengths ? i : n_lengths - 1];
        if (n > N_IDS - at) n = N_IDS - at;
        piece one = {sequence, at, n, g->ids + at};
        check(runner_step(run, &one, 1, logits + (size_t)at * n_vocab, NULL, &err), &err);
    }
    return logits;
}

static float *logits_at_once(const golden *g, backend *with) {
    runner run;
    runner_open(&run, g->model, with, 1, N_IDS, BLOCK_TOKENS, N_IDS);
    float *logits = logits_in_pieces(g, &run, 0, (const int[]){N_IDS}, 1);
    runner_close(&run);
    return logits;
}

static void assert_same_bits(const golden *g, const char *what, const float *got, const float *expected) {
    const int n_vocab = g->model->arch.n_vocab;
    for (int i = 0; i < N_IDS * n_vocab; i++)
        if (float_to_bits(got[i]) != float_to_bits(expected[i]))
            fail_msg("%s, %s: row %d, token %d: %.9g instead of %.9g", g->name, what, i / n_vocab,
                     i % n_vocab, (double)got[i], (double)expected[i]);
}

static void test_logits_are_those_of_pytorch(void **unused) {
    (void)unused;
    for (int i = 0; i < N_MODELS; i++) {
        const golden *g = &goldens[i];
        const int n_vocab = g->model->arch.n_vocab;
        float *logits = logits_at_once(g, be);
        double worst = 0;
        for (int row = 0; row < g->n_rows; row++)
            for (int id = 0; id < n_vocab; id++) {
                double off =
                    fabs((double)logits[g->rows[row] * n_vocab + id] - g->logits[row * n_vocab + id]);
                worst = off > worst || isnan(off) ? off : worst;
            }
        print_message("# %s: largest difference %.2g of the standard deviation\n", g->name, worst / g->std);
        assert_true(worst / g->std < 3e-5);
        free(logits);
    }
}

static void test_greedy_tokens_are_those_of_pytorch(void **unused) {
    (void)unused;
    flute_error err = {0};
    for (int i = 0; i < N_MODELS; i++) {
        const golden *g = &goldens[i];
        runner run;
        runner_open(&run, g->model, be, 1, N_IDS + g->n_greedy, BLOCK_TOKENS, N_IDS);
        piece next = {0, 0, N_IDS, g->ids};
        for (int n = 0; n < g->n_greedy; n++) {
            int32_t token;
            check(runner_step(&run, &next, 1, NULL, &token, &err), &err);
            if (token != g->greedy[n])
                fail_msg("%s: greedy token %d is %d instead of %d", g->name, n, token, g->greedy[n]);
            next = (piece){0, N_IDS + n, 1, &g->greedy[n]};
        }
        runner_close(&run);
    }
}

static void test_pieces_give_the_same_bits(void **unused) {
    (void)unused;
    for (int i = 0; i < N_MODELS; i++) {
        const golden *g = &goldens[i];
        float *whole = logits_at_once(g, be);
        runner run;
        runner_open(&run, g->model, be, 2, N_IDS, 5, N_IDS);
        float *ragged = logits_in_pieces(g, &run, 0, (const int[]){1, 7, 2, 17, 3, 9}, 6);
        float *single = logits_in_pieces(g, &run, 1, (const int[]){1}, 1);
        assert_same_bits(g, "ragged pieces", ragged, whole);
        assert_same_bits(g, "token by token", single, whole);
        runner_close(&run);
        free(single);
        free(ragged);
        free(whole);
    }
}

// Two sequences, the second one the first's ids backwards, in steps that hold rows of both.
static void test_mixed_sequences_give_the_same_bits(void **unused) {
    (void)unused;
    flute_error err = {0};
    for (int i = 0; i < N_MODELS; i++) {
        golden backwards = goldens[i];
        const golden *g = &goldens[i];
        int32_t reversed[N_IDS];
        for (int k = 0; k < N_IDS; k++) reversed[k] = g->ids[N_IDS - 1 - k];
        backwards.ids = reversed;
        float *alone[2] = {logits_at_once(g, be), logits_at_once(&backwards, be)};

        const size_t n_vocab = (size_t)g->model->arch.n_vocab;
        float *mixed[2] = {allocate(N_IDS * n_vocab, sizeof(float)),
                           allocate(N_IDS * n_vocab, sizeof(float))};
        float *step = (float *)allocate(2 * N_IDS * n_vocab, sizeof *step);
        runner run;
        runner_open(&run, g->model, be, 2, N_IDS, BLOCK_TOKENS, N_IDS);
        static const int lengths[][2] = {{10, 0}, {1, 20}, {1, 1}, {17, 3}, {0, 5}, {1, 1}, {18, 18}};
        int at[2] = {0, 0};
        for (size_t s = 0; s < sizeof lengths / sizeof *lengths; s++) {
            const int *n = lengths[s];
            // Alternately one and the other sequence comes first.
            const int a = (int)(s % 2), b = 1 - a;
            const piece both[2] = {{a, at[a], n[a], (a ? reversed : g->ids) + at[a]},
                                   {b, at[b], n[b], (b ? reversed : g->ids) + at[b]}};
            check(runner_step(&run, both, 2, step, NULL, &err), &err);
            memcpy(mixed[a] + (size_t)at[a] * n_vocab, step, (size_t)n[a] * n_vocab * sizeof *step);
            memcpy(mixed[b] + (size_t)at[b] * n_vocab, step + (size_t)n[a] * n_vocab,
                   (size_t)n[b] * n_vocab * sizeof *step);
            at[0] += n[0];
            at[1] += n[1];
        }
        assert_int_equal(at[0], N_IDS);
        assert_int_equal(at[1], N_IDS);
        assert_same_bits(g, "first of two sequences", mixed[0], alone[0]);
        assert_same_bits(g, "second of two sequences", mixed[1], alone[1]);
        runner_close(&run);
        for (int k = 0; k < 2; k++) {
            free(mixed[k]);
            free(alone[k]);
        }
        free(step);
    }
}

static void test_threads_do_not_change_bits(void **unused) {
    (void)unused;
    flute_error err = {0};
    const golden *g = &goldens[N_MODELS - 1];
    float *two = logits_at_once(g, be);
    for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
        thread_pool *other_pool = n_threads == 1 ? NULL : threads_create(n_threads, &err);
        backend *other = NULL;
        check(backend_create_ref(other_pool, &other, &err), &err);
        float *logits = logits_at_once(g, other);
        assert_same_bits(g, "other number of threads", logits, two);
        free(logits);
        other->ops->free(other);
        threads_free(other_pool);
    }
    free(two);
}

// A sequence that copies the blocks of another one's prefix, inside the pool and into a new one, goes on as
// if it had computed them.
static void test_copied_blocks_carry_on(void **unused) {
    (void)unused;
    flute_error err = {0};
    const golden *g = &goldens[4]; // gemma2: with a window
    const int prefix = 19, n_vocab = g->model->arch.n_vocab;
    float *whole = logits_at_once(g, be);
    float *rest = (float *)allocate((size_t)(N_IDS - prefix) * (size_t)n_vocab, sizeof *rest);
    runner run, grown;
    runner_open(&run, g->model, be, 2, N_IDS, BLOCK_TOKENS, N_IDS);
    runner_open(&grown, g->model, be, 3, N_IDS, BLOCK_TOKENS, N_IDS);
    piece start = {0, 0, prefix, g->ids};
    check(runner_step(&run, &start, 1, NULL, NULL, &err), &err);
    for (int block = 0; block * BLOCK_TOKENS < prefix; block++) {
        const int from = run.tables[block], copy = run.tables[run.max_blocks + block];
        be->ops->kv_copy_block(be, &run.dims, &run.cache, from, &run.cache, copy);
        be->ops->kv_copy_block(be, &run.dims, &run.cache, copy, &grown.cache,
                               grown.tables[2 * grown.max_blocks + block]);
    }
    const piece second = {1, prefix, N_IDS - prefix, g->ids + prefix};
    check(runner_step(&run, &second, 1, rest, NULL, &err), &err);
    const size_t bytes = (size_t)(N_IDS - prefix) * (size_t)n_vocab * sizeof *rest;
    assert_memory_equal(rest, whole + (size_t)prefix * (size_t)n_vocab, bytes);
    const piece third = {2, prefix, N_IDS - prefix, g->ids + prefix};
    check(runner_step(&grown, &third, 1, rest, NULL, &err), &err);
    assert_memory_equal(rest, whole + (size_t)prefix * (size_t)n_vocab, bytes);
    runner_close(&grown);
    runner_close(&run);
    free(rest);
    free(whole);
}

static void test_bad_rows_are_refused_and_the_state_lives_on(void **unused) {
    (void)unused;
    const golden *g = &goldens[0];
    runner run;
    runner_open(&run, g->model, be, 1, N_IDS, BLOCK_TOKENS, N_IDS);
    const int32_t beyond = g->model->arch.n_vocab, negative = -1, good = 5;
    const struct {
        piece piece;
        int code;
        const char *says;
    } cases[] = {
        {{0, 0, 1, &beyond}, FLUTE_ERANGE, "token id 512 is outside the vocabulary"},
        {{0, 0, 1, &negative}, FLUTE_ERANGE, "token id -1 is outside the vocabulary"},
        {{0, N_IDS, 1, &good}, FLUTE_ECONTEXT, "position 48"},
        {{0, -1, 1, &good}, FLUTE_ECONTEXT, "position -1"},
        {{1, 0, 1, &good}, FLUTE_ERANGE, "sequence 1 of 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flute_error err = {0};
        int32_t token = -7;
        assert_int_equal(runner_step(&run, &cases[i].piece, 1, NULL, &token, &err), cases[i].code);
        assert_int_equal(err.code, cases[i].code);
        if (!strstr(err.message, cases[i].says)) fail_msg("'%s' lacks '%s'", err.message, cases[i].says);
        assert_int_equal(token, -7);
    }
    float *expected = logits_at_once(g, be);
    float *logits = logits_in_pieces(g, &run, 0, (const int[]){N_IDS}, 1);
    assert_same_bits(g, "after errors", logits, expected);
    free(logits);
    free(expected);
    runner_close(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_are_those_of_pytorch),
        cmocka_unit_test(test_greedy_tokens_are_those_of_pytorch),
        cmocka_unit_test(test_pieces_give_the_same_bits),
        cmocka_unit_test(test_mixed_sequences_give_the_same_bits),
        cmocka_unit_test(test_threads_do_not_change_bits),
        cmocka_unit_test(test_copied_blocks_carry_on),
        cmocka_unit_test(test_bad_rows_are_refused_and_the_state_lives_on),
    };
    return cmocka_run_group_tests_name("graph", tests, open_all, close_all);
}
