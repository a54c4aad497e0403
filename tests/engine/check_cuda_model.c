// Whole models on the GPU against the scalar reference: every .flt given, prefill at once and in pieces,
// decode one and several sequences at a time, the same bits twice. With a text, the sequences are parts of
// it, the perplexity of its first pieces is compared as well, and so is what greedy decoding makes of its
// beginning. Prints TAP; the plan says SKIP where there is no device.
//
//     check_cuda_model [--text FILE [--pieces N]] MODEL.flt...      (16 pieces)
#include "tests/engine/placed_model.h"

#include <math.h>

#include "tests/models/checkpoint.h"
#include "tokenizer/tokenizer.h"

enum { N_IDS = 48, N_DECODED = 24, BLOCK_TOKENS = 32, N_SEQUENCES = 3 };
enum { PIECE = 256 };                          // tokens that are scored together, the first of them BOS
static const double ALLOWED_PERPLEXITY = 2e-3; // relative
static const double ALLOWED = 2e-2; // of the norm of a row of logits: bf16 activations against float32

static int n_paths, n_text_pieces = 16;
static char **paths, *text; // NULL: random ids
static size_t text_size;
static thread_pool *pool;
static backend *ref, *gpu;

typedef struct opened {
    placed_model on_gpu;
    checkpoint host, placed; // views of it
    int32_t ids[N_SEQUENCES][N_IDS + N_DECODED];
    int32_t *text_ids; // (n_text) BOS and the text; NULL: none
    int64_t n_text;
} opened;

static void tokenize_text(opened *m, const char *path) {
    flute_error err = {0};
    tokenizer *tok;
    const flt *file = &m->on_gpu.file;
    check(tokenizer_create(&tok, file->tokenizer, file->tokenizer_blob, file->tokenizer_size, path, &err),
          &err);
    // A token for every byte, at most, and BOS.
    m->text_ids = (int32_t *)allocate(text_size + 1, sizeof *m->text_ids);
    m->text_ids[0] = tokenizer_bos(tok);
    const int64_t n =
        tokenizer_encode(tok, text, text_size, SPECIAL_AS_TEXT, m->text_ids + 1, text_size, &err);
    if (n < 0) check((int)n, &err);
    m->n_text = n + 1;
    tokenizer_free(tok);
    if (m->n_text < N_SEQUENCES * (N_IDS + N_DECODED) || m->n_text <= PIECE || m->text_ids[0] < 0)
        fail_msg("%s: no BOS, or a text of %lld tokens only", path, (long long)m->n_text);
    for (int s = 0; s < N_SEQUENCES; s++)
        memcpy(m->ids[s], m->text_ids + s * (N_IDS + N_DECODED), sizeof m->ids[s]);
}

static void open_model(opened *m, const char *path) {
    flute_error err = {0};
    check(placed_model_open(&m->on_gpu, path, gpu, &err), &err);
    m->host = (checkpoint){.arch = m->on_gpu.file.arch, .tensors = m->on_gpu.file.tensors};
    m->placed = (checkpoint){.arch = m->on_gpu.file.arch, .tensors = m->on_gpu.tensors};
    m->host.weights.tensors = m->host.tensors, m->placed.weights.tensors = m->placed.tensors;
    for (int i = 0; i < 2; i++)
        m->host.weights.inv_freq[i] = m->placed.weights.inv_freq[i] = m->on_gpu.inv_freq[i];
    uint32_t random = 12345;
    for (int s = 0; s < N_SEQUENCES; s++)
        for (int i = 0; i < N_IDS + N_DECODED; i++) {
            random = random * 1664525u + 1013904223u;
            m->ids[s][i] = (int32_t)((random >> 8) % (uint32_t)m->host.arch.n_vocab);
        }
    m->text_ids = NULL;
    if (text) tokenize_text(m, path);
}

static void close_model(opened *m) {
    free(m->text_ids);
    placed_model_close(&m->on_gpu);
}

static void *logits_for(const opened *m, int n) {
    return allocate((size_t)n * (size_t)m->host.arch.n_vocab, sizeof(float));
}

// Logits (n_rows, n_vocab) are near enough, and so is the token that greedy decoding takes.
static void compare(const char *path, const char *what, const float *got, const float *expected, int n_rows,
                    int n_vocab) {
    double worst = 0;
    for (int row = 0; row < n_rows; row++, got += n_vocab, expected += n_vocab) {
        double off = 0, size = 0;
        int best = 0, best_expected = 0;
        for (int i = 0; i < n_vocab; i++) {
            off += pow((double)got[i] - expected[i], 2), size += pow(expected[i], 2);
            if (got[i] > got[best]) best = i;
            if (expected[i] > expected[best_expected]) best_expected = i;
        }
        const double error = sqrt(off / size), std = sqrt(size / n_vocab);
        if (!(error <= ALLOWED)) fail_msg("%s, %s: row %d is off by %.3g", path, what, row, error);
        if ((double)expected[best_expected] - expected[best] > 4 * ALLOWED * std)
            fail_msg("%s, %s: row %d takes token %d instead of %d", path, what, row, best, best_expected);
        worst = fmax(worst, error);
    }
    print_message("# %s, %s: off by at most %.2g\n", path, what, worst);
}

static void step(runner *run, const piece *pieces, int n_pieces, float *logits) {
    flute_error err = {0};
    check(runner_step(run, pieces, n_pieces, logits, NULL, &err), &err);
}

// One sequence: prefill in pieces of the given lengths (the last repeats), then token by token.
static void run_sequence(runner *run, const opened *m, int sequence, const int *lengths, int n_lengths,
                         float *logits) {
    const size_t n_vocab = (size_t)m->host.arch.n_vocab;
    for (int at = 0, i = 0, n; at < N_IDS + N_DECODED; at += n, i++) {
        n = lengths[i < n_lengths ? i : n_lengths - 1];
        if (n > N_IDS + N_DECODED - at) n = N_IDS + N_DECODED - at;
        step(run, &(piece){sequence, at, n, m->ids[sequence] + at}, 1, logits + (size_t)at * n_vocab);
    }
}

static void open_runner(runner *run, const checkpoint *model, backend *be) {
    runner_open(run, model, be, N_SEQUENCES, N_IDS + N_DECODED, BLOCK_TOKENS, 2 * (N_IDS + N_DECODED));
}

// The mean negative log likelihood of the text's first pieces, each after BOS.
static double text_loss(const opened *m, runner *run, float *logits) {
    const int n_vocab = m->host.arch.n_vocab;
    double loss = 0;
    int64_t n = 0;
    int32_t ids[PIECE] = {m->text_ids[0]};
    for (int p = 0; p < n_text_pieces && (p + 1) * (PIECE - 1) < m->n_text; p++) {
        memcpy(ids + 1, m->text_ids + 1 + p * (PIECE - 1), (PIECE - 1) * sizeof *ids);
        step(run, &(piece){0, 0, PIECE, ids}, 1, logits);
        for (int i = 0; i + 1 < PIECE; i++, n++) {
            const float *row = logits + (size_t)i * (size_t)n_vocab;
            double sum = 0;
            for (int v = 0; v < n_vocab; v++) sum += exp((double)row[v] - row[ids[i + 1]]);
            loss += log(sum);
        }
    }
    return loss / (double)n;
}

// What the GPU makes of the text's beginning, token by token, the reference would, but for near-ties.
static void check_greedy_text(const char *path, const opened *m, runner *run, runner *expected_run,
                              float *logits) {
    enum { PROMPT = 16, N = 96 };
    flute_error err = {0};
    const int n_vocab = m->host.arch.n_vocab;
    int32_t ids[N];
    memcpy(ids, m->text_ids, PROMPT * sizeof *ids);
    check(runner_step(run, &(piece){0, 0, PROMPT, ids}, 1, NULL, &ids[PROMPT], &err), &err);
    for (int at = PROMPT; at + 1 < N; at++)
        check(runner_step(run, &(piece){0, at, 1, ids + at}, 1, NULL, &ids[at + 1], &err), &err);
    step(expected_run, &(piece){0, 0, N, ids}, 1, logits);
    int n_ties = 0;
    for (int at = PROMPT - 1; at + 1 < N; at++) {
        const float *row = logits + (size_t)at * (size_t)n_vocab;
        double size = 0;
        int best = 0;
        for (int i = 0; i < n_vocab; i++) {
            size += pow(row[i], 2);
            if (row[i] > row[best]) best = i;
        }
        n_ties += ids[at + 1] != best;
        if ((double)row[best] - row[ids[at + 1]] > 4 * ALLOWED * sqrt(size / n_vocab))
            fail_msg("%s: greedy text takes token %d instead of %d at %d", path, ids[at + 1], best, at + 1);
    }
    print_message("# %s, greedy text: %d of %d tokens are near-ties\n", path, n_ties, N - PROMPT);
}

static void check_text(const char *path, const opened *m) {
    runner run, expected_run;
    float *logits = logits_for(m, PIECE);
    runner_open(&expected_run, &m->host, ref, 1, PIECE, BLOCK_TOKENS, PIECE);
    runner_open(&run, &m->placed, gpu, 1, PIECE, BLOCK_TOKENS, PIECE);
    const double expected = exp(text_loss(m, &expected_run, logits)), got = exp(text_loss(m, &run, logits));
    print_message("# %s, perplexity: %.6g, reference %.6g: %+.4f %%\n", path, got, expected,
                  100 * (got / expected - 1));
    if (!(fabs(got / expected - 1) <= ALLOWED_PERPLEXITY))
        fail_msg("%s: perplexity %.6g instead of %.6g", path, got, expected);
    check_greedy_text(path, m, &run, &expected_run, logits);
    free(logits);
    runner_close(&run);
    runner_close(&expected_run);
}

static void check_model(const char *path) {
    static const int whole[] = {N_IDS + N_DECODED}, prompt_then_single[] = {N_IDS, 1},
                     ragged[] = {1, 7, 2, 33, 3, 9};
    opened m;
    runner run, expected_run;
    open_model(&m, path);
    const int n_vocab = m.host.arch.n_vocab, n = N_IDS + N_DECODED;
    const size_t bytes = (size_t)n * (size_t)n_vocab * sizeof(float);
    float *expected = logits_for(&m, n), *got = logits_for(&m, n), *again = logits_for(&m, n);
    open_runner(&expected_run, &m.host, ref);
    open_runner(&run, &m.placed, gpu);
    run_sequence(&expected_run, &m, 0, whole, 1, expected);

    run_sequence(&run, &m, 0, whole, 1, got);
    compare(path, "all at once", got, expected, n, n_vocab);
    run_sequence(&run, &m, 0, whole, 1, again);
    assert_memory_equal(got, again, bytes);

    run_sequence(&run, &m, 0, prompt_then_single, 2, got);
    compare(path, "a prompt, then token by token", got, expected, n, n_vocab);
    run_sequence(&run, &m, 0, prompt_then_single, 2, again);
    assert_memory_equal(got, again, bytes);

    run_sequence(&run, &m, 0, ragged, 6, got);
    compare(path, "ragged pieces", got, expected, n, n_vocab);

    // All sequences, one token of each in a step: a bucket with padding.
    float *rows = logits_for(&m, N_SEQUENCES), *rows_expected = logits_for(&m, N_SEQUENCES);
    for (int at = 0; at < 5; at++) {
        piece pieces[N_SEQUENCES];
        for (int s = 0; s < N_SEQUENCES; s++) pieces[s] = (piece){s, at, 1, m.ids[s] + at};
        step(&expected_run, pieces, N_SEQUENCES, rows_expected);
        step(&run, pieces, N_SEQUENCES, rows);
        compare(path, "three sequences", rows, rows_expected, N_SEQUENCES, n_vocab);
    }
    // A prompt of one and a token of another in one step.
    const piece mixed[2] = {{1, 5, 30, m.ids[1] + 5}, {2, 5, 1, m.ids[2] + 5}};
    step(&expected_run, mixed, 2, expected);
    step(&run, mixed, 2, got);
    compare(path, "a mixed step", got, expected, 31, n_vocab);

    free(rows), free(rows_expected), free(expected), free(got), free(again);
    runner_close(&run);
    runner_close(&expected_run);
    if (text) check_text(path, &m);
    close_model(&m);
}

// The token that the GPU samples is the largest of the logits that it computed.
static void test_models(void **unused) {
    (void)unused;
    for (int i = 0; i < n_paths; i++) check_model(paths[i]);
}

static void test_greedy_takes_the_largest_logit(void **unused) {
    (void)unused;
    flute_error err = {0};
    opened m;
    runner run;
    open_model(&m, paths[0]);
    open_runner(&run, &m.placed, gpu);
    for (int at = 0; at < N_IDS; at++) {
        int32_t token = -1, best = 0;
        check(runner_step(&run, &(piece){0, at, 1, m.ids[0] + at}, 1, NULL, &token, &err), &err);
        const float *logits = gpu->ops->logits(run.state, 0);
        for (int i = 0; i < m.host.arch.n_vocab; i++)
            if (logits[i] > logits[best]) best = i;
        assert_int_equal(token, best);
    }
    runner_close(&run);
    close_model(&m);
}

// 0, or what the program ends with.
static int parse_arguments(int argc, char **argv) {
    flute_error err = {0};
    int at = 1;
    for (; at + 1 < argc && argv[at][0] == '-'; at += 2)
        if (strcmp(argv[at], "--text") == 0) {
            if (file_read(argv[at + 1], &text, &text_size, &err))
                return fprintf(stderr, "%s\n", err.message), 2;
        } else if (strcmp(argv[at], "--pieces") != 0 || (n_text_pieces = atoi(argv[at + 1])) < 1) {
            break;
        }
    n_paths = argc - at, paths = argv + at;
    if (n_paths > 0 && paths[0][0] != '-') return 0;
    return fputs("usage: check_cuda_model [--text FILE [--pieces N]] MODEL.flt...\n", stderr), 2;
}

int main(int argc, char **argv) {
    flute_error err = {0};
    const int usage = parse_arguments(argc, argv);
    if (usage) return usage;
    pool = threads_create(0, &err);
    if (!pool || backend_create_ref(pool, &ref, &err)) return printf("Bail out! %s\n", err.message), 1;
    if (backend_create_cuda(pool, &gpu, &err)) {
        printf("1..0 # SKIP %s\n", err.message);
        return 0;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models),
                                       cmocka_unit_test(test_greedy_takes_the_largest_logit)};
    const int failed = cmocka_run_group_tests_name("models on the GPU", tests, NULL, NULL);
    gpu->ops->free(gpu);
    ref->ops->free(ref);
    threads_free(pool);
    free(text);
    return failed;
}
