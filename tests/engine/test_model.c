// Opening models: what a file says about itself, and what is refused how.
//   test_model MODEL.flt (tiny llama31 at 16 bits, without tokenizer)
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/base/file.h"
#include "engine/flute.h"

static const char *model_path;

static void test_info(void **state) {
    (void)state;
    flute_error err = {0};
    flute_model *model;
    flute_model_info info;
    if (flute_model_open(&model, model_path, NULL, &err)) fail_msg("%s", err.message);
    flute_model_get_info(model, &info);
    assert_string_equal(info.architecture, "llama");
    assert_string_equal(info.weights, "bf16");
    assert_int_equal(info.group_size, 0);
    assert_false(info.has_tokenizer);
    assert_int_equal(info.max_context, 512);
    assert_int_equal(strncmp(info.device, "cpu: ", 5), 0);
    assert_true(info.n_parameters > 0);
    assert_true(info.weight_bytes >= 2 * info.n_parameters); // bf16
    // Everything is read for a token but the embedding, which is not the head here.
    assert_int_equal(info.weight_bytes - info.decode_bytes,
                     2ull * (uint64_t)info.n_vocab * (uint64_t)info.hidden);
    assert_true(info.kv_token_bytes >= 4ull * (uint64_t)(info.n_layers * info.n_kv_heads * info.head_dim));
    assert_true(flute_model_measure_bandwidth(model) > 1e8);

    // Without a tokenizer only ids work, and the message says so.
    flute_detokenizer *detok;
    assert_int_equal(flute_tokenize(model, "a", 1, 0, NULL, 0, &err), FLUTE_EUNSUPPORTED);
    assert_non_null(strstr(err.message, model_path));
    assert_int_equal(flute_detokenizer_create(&detok, model, &err), FLUTE_EUNSUPPORTED);
    assert_null(detok);
    flute_model_free(model);
}

static void assert_refused(const char *path, const flute_model_options *options, int code, const char *says) {
    flute_error err = {0};
    flute_model *model = (flute_model *)&err; // must become NULL
    assert_int_equal(flute_model_open(&model, path, options, &err), code);
    assert_null(model);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, says)) fail_msg("'%s' does not say '%s'", err.message, says);
    assert_int_equal(flute_model_open(&model, path, options, NULL), code); // err is optional
}

static void test_refusals(void **state) {
    (void)state;
    assert_refused("/nonexistent/model.flt", NULL, FLUTE_EIO, "/nonexistent/model.flt");
    assert_refused("/", NULL, FLUTE_EIO, "/");
    assert_refused(model_path, &(flute_model_options){.n_threads = -1}, FLUTE_EINVAL, "threads");
    assert_refused(model_path, &(flute_model_options){.n_threads = 100000}, FLUTE_EINVAL, "threads");
    assert_refused(model_path, &(flute_model_options){.device = (flute_device)9}, FLUTE_EINVAL, "device");
    assert_refused(model_path, &(flute_model_options){.kernels = (flute_kernels)9}, FLUTE_EINVAL, "kernels");
}

// A file that was altered in its tensors is refused, unless it is not checked.
static void test_checksums(void **state) {
    (void)state;
    char path[] = "/tmp/flute-test-model-XXXXXX";
    flute_error err = {0};
    file_map map;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(file_map_open(&map, model_path, &err), 0);
    FILE *file = fdopen(fd, "wb");
    assert_int_equal(fwrite(map.data, 1, map.size, file), map.size);
    fseek(file, (long)map.size / 2, SEEK_SET);
    fputc(map.data[map.size / 2] ^ 1, file);
    fclose(file);
    file_map_close(&map);

    assert_refused(path, NULL, FLUTE_ECHECKSUM, path);
    flute_model *model;
    assert_int_equal(flute_model_open(&model, path, &(flute_model_options){.no_verify = true}, &err), 0);
    flute_model_free(model);
    unlink(path);
}

typedef struct reports {
    uint64_t done, total;
    int n;
} reports;

static void keep_report(void *user, uint64_t done, uint64_t total) {
    reports *r = user;
    assert_int_equal(done == 0, r->n == 0); // first of all
    assert_true(done >= r->done && done <= total);
    if (r->n++ > 0) assert_int_equal(total, r->total);
    r->done = done, r->total = total;
}

// On a CPU, what is read is what is checked: all of the file behind its header.
static void test_progress(void **state) {
    (void)state;
    flute_error err = {0};
    flute_model *model;
    flute_model_info info;
    reports r = {0};
    flute_model_options options = {.progress = keep_report, .progress_user = &r};
    assert_int_equal(flute_model_open(&model, model_path, &options, &err), 0);
    flute_model_get_info(model, &info);
    flute_model_free(model);
    assert_true(r.n >= 2);
    assert_int_equal(r.done, r.total);
    assert_true(r.total >= info.weight_bytes && r.total < 2 * info.weight_bytes);
    r = (reports){0};
    options.no_verify = true;
    assert_int_equal(flute_model_open(&model, model_path, &options, &err), 0);
    flute_model_free(model);
    assert_int_equal(r.n, 0);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: test_model MODEL.flt\n"), 2;
    model_path = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_info), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_checksums), cmocka_unit_test(test_progress)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
