// Reference checkpoints end to end: flute-quantize makes a dense .flt, and what the engine computes from it
// is compared with figures that transformers computed (float32): logits, greedy continuations, perplexity.
//
//   test_reference FLUTE_QUANTIZE DATA_DIR [CHECKPOINTS_DIR [full]]
//
// The tiny checkpoints lie in DATA_DIR/tiny. The trained ones (docs-*) are too large for the repository: with
// CHECKPOINTS_DIR they are tested instead, against the figures in DATA_DIR/docs-*, and skipped where that
// folder is missing; "full" scores the whole of eval.txt with both kernels (minutes) rather than its first
// pieces.
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/flute.h"

static const char *quantize_path, *data_dir, *checkpoints_dir;
static bool full;
static char model_path[PATH_MAX]; // the dense .flt of the test at work

static void check(int code, const flute_error *err) {
    if (code < 0) fail_msg("%s", err->message);
}

static yyjson_doc *read_golden(const char *folder) {
    char path[2 * PATH_MAX];
    flute_error err;
    snprintf(path, sizeof path, "%s/golden.json", folder);
    yyjson_doc *doc = json_parse_file(path, &err);
    if (!doc) fail_msg("%s", err.message);
    return doc;
}

// The array of integers behind a key; *n receives its length. malloc'd.
static int32_t *read_ids(yyjson_val *object, const char *key, size_t *n) {
    yyjson_val *array = yyjson_obj_get(object, key), *item;
    assert_true(yyjson_is_arr(array));
    size_t i, max;
    *n = yyjson_arr_size(array);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    assert_non_null(ids);
    yyjson_arr_foreach(array, i, max, item) ids[i] = (int32_t)yyjson_get_sint(item);
    return ids;
}

static flute_model *open_model(flute_kernels kernels) {
    flute_model *model = NULL;
    flute_error err;
    check(flute_model_open(&model, model_path,
                           &(flute_model_options){.device = FLUTE_DEVICE_CPU, .kernels = kernels}, &err),
          &err);
    return model;
}

static flute_session *open_session(flute_model *model, int context) {
    flute_session *session = NULL;
    flute_error err;
    check(flute_session_create(&session, model, &(flute_session_options){.context = context}, &err), &err);
    return session;
}

// Dense conversion of a checkpoint into model_path, which the teardown removes.
static void convert(const char *folder) {
    char command[3 * PATH_MAX];
    snprintf(command, sizeof command, "'%s' --quiet --bits 16 -o '%s' '%s'", quantize_path, model_path,
             folder);
    assert_int_equal(system(command), 0);
}

static int remove_model(void **state) {
    (void)state;
    unlink(model_path);
    return 0;
}

typedef struct compared_rows {
    const int32_t *rows; // positions that have golden logits, increasing
    const float *golden; // (n_rows, n_vocab)
    size_t n_rows, next; // next: rows met so far
    int n_vocab;
    double max_error, sum_square_error; // of all rows
} compared_rows;

static int compare_row(void *user, size_t position, const float *logits) {
    compared_rows *c = user;
    if (c->next == c->n_rows || (size_t)c->rows[c->next] != position) return 0;
    const float *golden = c->golden + c->next++ * (size_t)c->n_vocab;
    for (int i = 0; i < c->n_vocab; i++) {
        double error = fabs((double)logits[i] - golden[i]);
        c->sum_square_error += error * error;
        // Written so that a NaN counts.
        if (!(error <= c->max_error)) c->max_error = error;
    }
    return 0;
}

static double standard_deviation(const float *values, size_t n) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += values[i];
    for (size_t i = 0; i < n; i++) squares += (values[i] - sum / (double)n) * (values[i] - sum / (double)n);
    return sqrt(squares / (double)n);
}

static void check_logits(flute_model *model, const char *logits_path, const int32_t *ids, size_t n_ids,
                         const int32_t *rows, size_t n_rows, bool reference) {
    flute_error err;
    flute_model_info info;
    char *bytes;
    size_t size;
    flute_model_get_info(model, &info);
    check(file_read(logits_path, &bytes, &size, &err), &err);
    assert_int_equal(size, n_rows * (size_t)info.n_vocab * sizeof(float));
    compared_rows compared = {
        .rows = rows, .golden = (const float *)bytes, .n_rows = n_rows, .n_vocab = info.n_vocab};
    flute_session *session = open_session(model, (int)n_ids);
    check(flute_session_score(session, ids, n_ids, compare_row, &compared, &err), &err);
    assert_int_equal(compared.next, n_rows);

    const size_t n = n_rows * (size_t)info.n_vocab;
    const double deviation = standard_deviation(compared.golden, n);
    const double rms = sqrt(compared.sum_square_error / (double)n);
    printf("# %s %s: max error %.2e, rms error %.2e of the standard deviation\n", info.name,
           reference ? "ref" : "fast", compared.max_error / deviation, rms / deviation);
    if (reference)
        assert_true(compared.max_error <= 1e-3 * deviation);
    else
        assert_true(rms <= 2e-2 * deviation);
    flute_session_free(session);
    free(bytes);
}

static void check_greedy(flute_model *model, const int32_t *prompt, size_t n_prompt, const int32_t *golden,
                         size_t n) {
    flute_error err;
    flute_sampling greedy = flute_sampling_default();
    greedy.temperature = 0;
    flute_session *session = open_session(model, (int)(n_prompt + n));
    check(flute_session_prefill(session, prompt, n_prompt, &err), &err);
    for (size_t i = 0; i < n; i++) {
        int32_t id;
        check(flute_session_sample(session, &greedy, &id, &err), &err);
        assert_int_equal(id, golden[i]);
        check(flute_session_decode(session, id, &err), &err);
    }
    flute_session_free(session);
}

static void test_tiny(void **state) {
    char folder[PATH_MAX], logits_path[2 * PATH_MAX];
    size_t n_ids, n_rows, n_greedy;
    snprintf(folder, sizeof folder, "%s/tiny/%s", data_dir, (const char *)*state);
    snprintf(logits_path, sizeof logits_path, "%s/logits.f32", folder);
    yyjson_doc *doc = read_golden(folder);
    yyjson_val *root = yyjson_doc_get_root(doc);
    int32_t *ids = read_ids(root, "ids", &n_ids), *rows = read_ids(root, "logits_rows", &n_rows);
    int32_t *greedy = read_ids(root, "greedy_ids", &n_greedy);
    convert(folder);
    for (int reference = 0; reference < 2; reference++) {
        flute_model *model = open_model(reference ? FLUTE_KERNELS_REF : FLUTE_KERNELS_AUTO);
        check_logits(model, logits_path, ids, n_ids, rows, n_rows, reference);
        if (reference) check_greedy(model, ids, n_ids, greedy, n_greedy);
        flute_model_free(model);
    }
    free(ids);
    free(rows);
    free(greedy);
    yyjson_doc_free(doc);
}

static void check_generations(flute_model *model, yyjson_val *root) {
    yyjson_val *generations = yyjson_obj_get(root, "generations"), *generation;
    size_t i, max;
    assert_true(yyjson_arr_size(generations) > 0);
    yyjson_arr_foreach(generations, i, max, generation) {
        if (i > 0 && !full) break; // the others are of the same kind
        flute_error err;
        size_t n_prompt, n_greedy;
        const char *prompt = yyjson_get_str(yyjson_obj_get(generation, "prompt"));
        int32_t *ids = read_ids(generation, "prompt_ids", &n_prompt), *own = malloc(n_prompt * sizeof *own);
        int32_t *greedy = read_ids(generation, "greedy_ids", &n_greedy);
        int64_t n = flute_tokenize(model, prompt, strlen(prompt), FLUTE_ADD_BOS, own, n_prompt, &err);
        check((int)n, &err);
        assert_int_equal(n, n_prompt);
        assert_memory_equal(own, ids, n_prompt * sizeof *ids);
        check_greedy(model, ids, n_prompt, greedy, n_greedy);
        free(ids);
        free(own);
        free(greedy);
    }
}

typedef struct scored_piece {
    const int32_t *ids; // with BOS
    size_t n;
    int n_vocab;
    double sum; // of the negative log likelihoods
} scored_piece;

static int score_row(void *user, size_t i, const float *logits) {
    scored_piece *piece = user;
    if (i + 1 == piece->n) return 0;
    double max = -INFINITY, sum = 0;
    for (int v = 0; v < piece->n_vocab; v++) max = logits[v] > max ? logits[v] : max;
    for (int v = 0; v < piece->n_vocab; v++) sum += exp(logits[v] - max);
    piece->sum += max + log(sum) - logits[piece->ids[i + 1]];
    return 0;
}

// Perplexity of the first pieces of eval.txt as defined for the reference figures: 511 tokens behind a BOS
// each.
static double perplexity(flute_model *model, int n_pieces) {
    enum { PIECE = 511 };
    char path[PATH_MAX], *text;
    size_t size;
    flute_error err;
    flute_model_info info;
    double sum = 0;
    flute_model_get_info(model, &info);
    snprintf(path, sizeof path, "%s/eval.txt", data_dir);
    check(file_read(path, &text, &size, &err), &err);
    int32_t *ids = malloc(size * sizeof *ids);
    int64_t n = flute_tokenize(model, text, size, 0, ids, size, &err);
    check((int)n, &err);
    if (n_pieces == 0) n_pieces = (int)(n / PIECE);
    assert_true(n >= (int64_t)n_pieces * PIECE);
    flute_session *session = open_session(model, PIECE + 1);
    for (int i = 0; i < n_pieces; i++) {
        int32_t piece[PIECE + 1] = {flute_token_bos(model)};
        memcpy(piece + 1, ids + (size_t)i * PIECE, PIECE * sizeof *ids);
        scored_piece scored = {.ids = piece, .n = PIECE + 1, .n_vocab = info.n_vocab};
        check(flute_session_score(session, piece, PIECE + 1, score_row, &scored, &err), &err);
        sum += scored.sum;
    }
    flute_session_free(session);
    free(ids);
    free(text);
    return exp(sum / ((double)n_pieces * PIECE));
}

// Perplexity of the first `pieces` of eval.txt (0: of all) by transformers in float32.
static double golden_perplexity(const char *name, yyjson_val *golden, int pieces) {
    char path[PATH_MAX], count[16];
    flute_error err;
    if (pieces == 0) return yyjson_get_real(yyjson_obj_get(golden, "ppl_float32_T512"));
    snprintf(path, sizeof path, "%s/eval-pieces.json", data_dir);
    snprintf(count, sizeof count, "%d", pieces);
    yyjson_doc *doc = json_parse_file(path, &err);
    if (!doc) fail_msg("%s", err.message);
    const double figure =
        yyjson_get_real(yyjson_obj_get(yyjson_obj_get(yyjson_doc_get_root(doc), name), count));
    yyjson_doc_free(doc);
    return figure;
}

static void check_perplexity(flute_model *model, const char *name, yyjson_val *golden, int pieces,
                             double tolerance) {
    const double expected = golden_perplexity(name, golden, pieces), got = perplexity(model, pieces);
    printf("# %s: perplexity %.6f instead of %.6f, off by %.1e\n", name, got, expected, got / expected - 1);
    assert_true(fabs(got / expected - 1) <= tolerance);
}

static void test_trained(void **state) {
    const char *name = *state;
    char folder[PATH_MAX], data[PATH_MAX], logits_path[2 * PATH_MAX];
    size_t n_ids, n_rows;
    snprintf(folder, sizeof folder, "%s/%s", checkpoints_dir, name);
    snprintf(data, sizeof data, "%s/%s", data_dir, name);
    snprintf(logits_path, sizeof logits_path, "%s/golden-logits.f32", data);
    yyjson_doc *doc = read_golden(data);
    yyjson_val *root = yyjson_doc_get_root(doc);
    int32_t *ids = read_ids(root, "logits_ids", &n_ids), *rows = read_ids(root, "logits_rows", &n_rows);
    convert(folder);

    flute_model *model = open_model(FLUTE_KERNELS_REF);
    check_logits(model, logits_path, ids, n_ids, rows, n_rows, true);
    check_generations(model, root);
    check_perplexity(model, name, root, full ? 0 : 4, 5e-5); // equal to four digits
    flute_model_free(model);
    model = open_model(FLUTE_KERNELS_AUTO);
    check_logits(model, logits_path, ids, n_ids, rows, n_rows, false);
    check_perplexity(model, name, root, full ? 0 : 16, 2e-3);
    flute_model_free(model);
    free(ids);
    free(rows);
    yyjson_doc_free(doc);
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: test_reference FLUTE_QUANTIZE DATA_DIR [CHECKPOINTS_DIR [full]]\n");
        return 2;
    }
    quantize_path = argv[1];
    data_dir = argv[2];
    checkpoints_dir = argc > 3 ? argv[3] : NULL;
    full = argc > 4 && strcmp(argv[4], "full") == 0;
    snprintf(model_path, sizeof model_path, "test_reference.%d.flt", (int)getpid());
    if (checkpoints_dir && access(checkpoints_dir, F_OK) != 0) {
        printf("1..0 # SKIP the trained checkpoints are not there: %s\n", checkpoints_dir);
        return 0;
    }
#define REFERENCE_TEST(test, name)                                                                           \
    { name, test, NULL, remove_model, (void *)(uintptr_t)name }
    const struct CMUnitTest tiny[] = {
        REFERENCE_TEST(test_tiny, "llama2"),       REFERENCE_TEST(test_tiny, "llama31"),
        REFERENCE_TEST(test_tiny, "llama32-tied"), REFERENCE_TEST(test_tiny, "gemma1"),
        REFERENCE_TEST(test_tiny, "gemma2"),       REFERENCE_TEST(test_tiny, "gemma3"),
    };
    const struct CMUnitTest trained[] = {
        REFERENCE_TEST(test_trained, "docs-llama2"),
        REFERENCE_TEST(test_trained, "docs-llama3"),
        REFERENCE_TEST(test_trained, "docs-gemma2"),
    };
    return checkpoints_dir ? cmocka_run_group_tests(trained, NULL, NULL)
                           : cmocka_run_group_tests(tiny, NULL, NULL);
}
