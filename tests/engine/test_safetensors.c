// Reading checkpoints: values of the tiny ones, every kind of broken file, folders.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/safetensors.h"

#define N_ITEMS(array) (sizeof(array) / sizeof *(array))

static void data_path(char *out, size_t size, const char *name) {
    const char *data = getenv("FLUTE_TEST_DATA");
    if (!data) fail_msg("FLUTE_TEST_DATA is not set: run this through `meson test`");
    snprintf(out, size, "%s/%s", data, name);
}

static safetensors *open_data(const char *name) {
    char path[1024];
    safetensors *st = NULL;
    flute_error err;
    data_path(path, sizeof path, name);
    if (safetensors_open(&st, path, &err)) fail_msg("%s", err.message);
    return st;
}

static void assert_failure(int code, int expected, const flute_error *err, const char *needle) {
    if (code != expected || err->code != expected || !strstr(err->message, needle)) {
        fail_msg("wanted code %d and \"%s\"; got %d: %s", expected, needle, code,
                 code ? err->message : "success");
    }
}

// ---- Values

typedef struct value {
    int64_t row, col;
    float expected;
} value;

static safetensors_tensor find(const safetensors *st, const char *name, int64_t n_rows, int64_t n_cols) {
    safetensors_tensor t;
    flute_error err;
    if (safetensors_find(st, name, n_rows, n_cols, &t, &err)) fail_msg("%s", err.message);
    return t;
}

static void assert_values(const safetensors_tensor *t, const value *values, size_t n, double sum) {
    float *all = malloc((size_t)(t->n_rows * t->n_cols) * sizeof *all);
    float *row = malloc((size_t)t->n_cols * sizeof *row);
    assert_true(all && row);
    safetensors_read_rows(t, 0, t->n_rows, all);
    for (size_t i = 0; i < n; i++) {
        assert_true(all[values[i].row * t->n_cols + values[i].col] == values[i].expected);
        safetensors_read_rows(t, values[i].row, 1, row);
        assert_memory_equal(row, all + values[i].row * t->n_cols, (size_t)t->n_cols * sizeof *row);
    }
    double total = 0;
    for (int64_t i = 0; i < t->n_rows * t->n_cols; i++) total += all[i];
    assert_true(total - sum < 1e-9 && sum - total < 1e-9);
    free(all);
    free(row);
}

// Values as the safetensors package of Python reads them.
static void test_values(void **state) {
    (void)state;
    safetensors *st = open_data("tiny/llama2"); // f16, one file
    assert_int_equal(safetensors_count(st), 21);
    safetensors_tensor t = find(st, "model.layers.1.self_attn.k_proj.weight", 128, 128);
    assert_int_equal(t.type, WEIGHT_F16);
    assert_int_equal(t.size, 128 * 128 * 2);
    static const value k_proj[] = {
        {0, 0, -0.0273284912f}, {0, 1, -0.0979003906f}, {64, 3, -0.0663452148f}, {127, 127, -0.0664672852f}};
    assert_values(&t, k_proj, N_ITEMS(k_proj), 11.612977802753448);
    safetensors_free(st);

    st = open_data("tiny/llama31"); // bf16, five shards
    assert_int_equal(safetensors_count(st), 21);
    t = find(st, "model.embed_tokens.weight", 512, 128);
    assert_int_equal(t.type, WEIGHT_BF16);
    static const value embedding[] = {
        {0, 0, -0.287109375f}, {0, 1, -1.1328125f}, {256, 3, 0.275390625f}, {511, 127, 0.431640625f}};
    assert_values(&t, embedding, N_ITEMS(embedding), 241.11796963214874);
    safetensors_free(st);

    st = open_data("tiny/gemma1/model.safetensors"); // a file, not its folder
    t = find(st, "model.norm.weight", 1, 128);
    static const value norm[] = {{0, 0, 0.15234375f}, {0, 3, 0.1640625f}, {0, 127, 0.025390625f}};
    assert_values(&t, norm, N_ITEMS(norm), 0.060546875);
    assert_false(safetensors_has(st, "lm_head.weight"));
    assert_true(safetensors_has(st, "model.norm.weight"));
    safetensors_free(st);
}

// Releasing pages loses nothing.
static void test_release(void **state) {
    (void)state;
    safetensors *st = open_data("tiny/llama31");
    safetensors_tensor t = find(st, "model.embed_tokens.weight", 512, 128);
    float *before = malloc(512 * 128 * sizeof *before), *after = malloc(512 * 128 * sizeof *after);
    assert_true(before && after);
    safetensors_read_rows(&t, 0, 512, before);
    for (int64_t row = 0; row < 512; row += 64) safetensors_release_rows(st, &t, row, 64);
    safetensors_read_rows(&t, 0, 512, after);
    assert_memory_equal(before, after, 512 * 128 * sizeof *before);
    free(before);
    free(after);
    safetensors_free(st);
}

// ---- Buffers

// Prefix, header and n_data bytes 0, 1, 2, …; malloc'd.
static uint8_t *make_file(const char *header, size_t n_data, size_t *size) {
    size_t length = strlen(header);
    uint8_t *file = malloc(8 + length + n_data);
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)length >> 8 * i);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < n_data; i++) file[8 + length + i] = (uint8_t)i;
    *size = 8 + length + n_data;
    return file;
}

static int open_made(safetensors **st, uint8_t **file, const char *header, size_t n_data, flute_error *err) {
    size_t size;
    *file = make_file(header, n_data, &size);
    return safetensors_open_buffer(st, *file, size, "made.safetensors", err);
}

#define ENTRY(name, dtype, shape, offsets)                                                                   \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_header_refusals(void **state) {
    (void)state;
    static const struct {
        const char *header;
        const char *needle;
    } cases[] = {
        {"", "empty"},
        {"{", "JSON"},
        {"[]", "object"},
        {"{}", "no tensors"},
        {"{\"__metadata__\":{\"format\":\"pt\"}}", "no tensors"},
        {"{\"a\":7}", "a needs dtype"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "4", "[0,16]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[-4]", "[0,16]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[4]", "[0,8,16]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[4]", "[16,0]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[4]", "[0,16.0]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[4]", "[60,76]") "}", "truncated"},
        {"{" ENTRY("a", "F32", "[4]", "[18446744073709551600,18446744073709551615]") "}", "a needs dtype"},
        {"{" ENTRY("a", "F32", "[4]", "[0,15]") "}", "does not fit"},
        {"{" ENTRY("a", "BF16", "[4,2]", "[0,64]") "}", "does not fit"},
        {"{" ENTRY("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", "does not fit"},
        {"{" ENTRY("a", "F32", "[4]", "[0,16]") "," ENTRY("b", "F32", "[4]", "[12,28]") "}", "overlap"},
        {"{" ENTRY("a", "F32", "[4]", "[0,16]") "," ENTRY("a", "F32", "[4]", "[16,32]") "}", "twice"},
        {"{" ENTRY("a\\u0000b", "F32", "[4]", "[0,16]") "}", "NUL"},
    };
    for (size_t i = 0; i < N_ITEMS(cases); i++) {
        safetensors *st;
        uint8_t *file;
        flute_error err = {.code = 0};
        assert_failure(open_made(&st, &file, cases[i].header, 64, &err), FLUTE_EFORMAT, &err,
                       cases[i].needle);
        assert_non_null(strstr(err.message, "made.safetensors"));
        assert_null(st);
        free(file);
    }
}

static void test_prefix_refusals(void **state) {
    (void)state;
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    safetensors *st;
    flute_error err = {.code = 0};
    assert_failure(safetensors_open_buffer(&st, lfs, strlen(lfs), "x", &err), FLUTE_EFORMAT, &err,
                   "git lfs pull");
    size_t size;
    uint8_t *file = make_file("{" ENTRY("a", "F32", "[4]", "[0,16]") "}", 16, &size);
    // Every length but the whole is refused.
    for (size_t n = 0; n < size; n++) {
        assert_failure(safetensors_open_buffer(&st, file, n, "cut", &err), FLUTE_EFORMAT, &err, "cut");
    }
    memset(file, 0xff, 8);
    assert_failure(safetensors_open_buffer(&st, file, size, "x", &err), FLUTE_EFORMAT, &err,
                   "not a safetensors");
    free(file);
}

static void test_lookup(void **state) {
    (void)state;
    safetensors *st;
    uint8_t *file;
    flute_error err = {.code = 0};
    // The odd header length leaves the data without alignment; "hole" leaves bytes 0 to 2 unused.
    int code = open_made(
        &st, &file,
        "{" ENTRY("language_model.model.norm.weight", "BF16", "[3]", "[3,9]") "," ENTRY(
            "model.language_model.layers.0.x.weight", "F32", "[2,1]",
            "[9,17]") "," ENTRY("language_model.lm_head.weight", "I8", "[2,2]",
                                "[20,24]") "," ENTRY("conv", "F16", "[1,1,2,2]",
                                                     "[24,32]") "," ENTRY("later", "F4", "[3]",
                                                                          "[32,34]") "," ENTRY("none", "F32",
                                                                                               "[0,4]",
                                                                                               "[34,34]") "}",
        64, &err);
    if (code) fail_msg("%s", err.message);
    assert_int_equal(safetensors_count(st), 6);
    safetensors_tensor t = find(st, "model.norm.weight", 1, 3);
    float values[4];
    safetensors_read_rows(&t, 0, 1, values);
    assert_true(values[0] == bf16_to_float(0x0403) && values[2] == bf16_to_float(0x0807));
    t = find(st, "model.layers.0.x.weight", 2, 1);
    safetensors_read_rows(&t, 1, 1, values);
    assert_true(values[0] == float_from_bits(0x100f0e0d));
    safetensors_release_rows(st, &t, 0, 2); // nothing to release in a buffer
    assert_true(safetensors_has(st, "lm_head.weight"));
    assert_failure(safetensors_find(st, "lm_head.weight", 2, 2, &t, &err), FLUTE_EUNSUPPORTED, &err, "I8");
    assert_failure(safetensors_find(st, "later", 1, 3, &t, &err), FLUTE_EUNSUPPORTED, &err, "F4");
    assert_failure(safetensors_find(st, "conv", 2, 2, &t, &err), FLUTE_ESHAPE, &err, "(1, 1, 2, 2)");
    assert_failure(safetensors_find(st, "model.norm.weight", 1, 4, &t, &err), FLUTE_ESHAPE, &err, "(1, 4)");
    assert_failure(safetensors_find(st, "model.layers.0.x.weight", 1, 2, &t, &err), FLUTE_ESHAPE, &err,
                   "(2, 1)");
    assert_failure(safetensors_find(st, "gone.weight", 1, 3, &t, &err), FLUTE_EFORMAT, &err, "gone.weight");
    safetensors_free(st);
    free(file);
}

// ---- Folders

static char folder[256];

static int make_folder(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/flute-safetensors-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static void write_file(const char *name, const void *data, size_t size) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void write_text(const char *name, const char *text) {
    write_file(name, text, strlen(text));
}

static void write_made(const char *name, const char *header, size_t n_data) {
    size_t size;
    uint8_t *file = make_file(header, n_data, &size);
    write_file(name, file, size);
    free(file);
}

static void test_folders(void **state) {
    (void)state;
    static const char index[] = "model.safetensors.index.json";
    static const char map[] = "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
    safetensors *st;
    flute_error err = {.code = 0};
    assert_failure(safetensors_open(&st, "/nowhere/at/all", &err), FLUTE_EIO, &err, "/nowhere/at/all");
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EIO, &err, "neither");
    write_text("pytorch_model.bin", "x");
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EUNSUPPORTED, &err, "PyTorch");

    static const char *const bad[] = {"{}", "[]", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":3}}",
                                      "{\"weight_map\":{\"a\":\"../one.safetensors\"}}"};
    for (size_t i = 0; i < N_ITEMS(bad); i++) {
        write_text(index, bad[i]);
        assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, "weight_map");
    }
    write_text(index, "{\"weight_map\":");
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, index);

    write_text(index, map);
    write_made("one.safetensors", "{" ENTRY("a", "F32", "[2]", "[0,8]") "}", 8);
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EIO, &err, "two.safetensors");
    write_made("two.safetensors", "{" ENTRY("c", "F32", "[2]", "[0,8]") "}", 8);
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, "does not hold b");
    write_made("two.safetensors", "{" ENTRY("a", "F32", "[2]", "[0,8]") "}", 8);
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, "twice");
    write_made("two.safetensors", "{" ENTRY("b", "F32", "[2]", "[0,8]") "}", 7);
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, "two.safetensors: truncated");
    write_text("two.safetensors", "");
    assert_failure(safetensors_open(&st, folder, &err), FLUTE_EFORMAT, &err, "two.safetensors");
    write_made("two.safetensors", "{" ENTRY("b", "F32", "[2]", "[0,8]") "}", 8);
    if (safetensors_open(&st, folder, &err)) fail_msg("%s", err.message);
    assert_true(safetensors_count(st) == 2 && safetensors_has(st, "a") && safetensors_has(st, "b"));
    safetensors_free(st);

    // A single file is preferred to an index, as in transformers.
    write_made("model.safetensors", "{" ENTRY("z", "F32", "[2]", "[0,8]") "}", 8);
    if (safetensors_open(&st, folder, &err)) fail_msg("%s", err.message);
    assert_true(safetensors_count(st) == 1 && safetensors_has(st, "z"));
    safetensors_free(st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_release),
        cmocka_unit_test(test_header_refusals),
        cmocka_unit_test(test_prefix_refusals),
        cmocka_unit_test(test_lookup),
        cmocka_unit_test_setup_teardown(test_folders, make_folder, remove_folder),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
