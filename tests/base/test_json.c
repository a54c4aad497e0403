// Typed reads of JSON members, and what they say when the member is not as it should be.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/json.h"

static yyjson_doc *parse(const char *text) {
    flute_error err;
    yyjson_doc *doc = json_parse(text, strlen(text), "a.json", &err);
    if (!doc) fail_msg("%s", err.message);
    return doc;
}

static void assert_failure(int code, const flute_error *err, const char *needle) {
    if (code != FLUTE_EFORMAT || err->code != code || !strstr(err->message, "a.json") ||
        !strstr(err->message, needle)) {
        fail_msg("wanted \"%s\"; got %d: %s", needle, code, code ? err->message : "success");
    }
}

static void test_reads(void **state) {
    (void)state;
    yyjson_doc *doc = parse("{\"i\":-3,\"d\":0.5,\"b\":true,\"s\":\"text\",\"n\":null}");
    yyjson_val *root = yyjson_doc_get_root(doc);
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(json_get_int(root, "i", JSON_REQUIRED, -3, 3, &i, "a.json", NULL), FLUTE_OK);
    assert_int_equal(i, -3);
    assert_int_equal(json_get_double(root, "d", JSON_REQUIRED, &d, "a.json", NULL), FLUTE_OK);
    assert_true(d == 0.5);
    assert_int_equal(json_get_double(root, "i", JSON_REQUIRED, &d, "a.json", NULL), FLUTE_OK);
    assert_true(d == -3);
    assert_int_equal(json_get_bool(root, "b", JSON_REQUIRED, &b, "a.json", NULL), FLUTE_OK);
    assert_true(b);
    assert_int_equal(json_get_string(root, "s", JSON_REQUIRED, &s, "a.json", NULL), FLUTE_OK);
    assert_string_equal(s, "text");
    // Absent and null leave the default.
    i = 7;
    assert_int_equal(json_get_int(root, "gone", JSON_OPTIONAL, 0, 9, &i, "a.json", NULL), FLUTE_OK);
    assert_int_equal(json_get_int(root, "n", JSON_OPTIONAL, 0, 9, &i, "a.json", NULL), FLUTE_OK);
    assert_int_equal(i, 7);
    yyjson_doc_free(doc);
}

static void test_refusals(void **state) {
    (void)state;
    yyjson_doc *doc =
        parse("{\"i\":12,\"u\":18446744073709551615,\"f\":1.5,\"s\":\"t\",\"z\":\"a\\u0000b\",\"n\":null}");
    yyjson_val *root = yyjson_doc_get_root(doc);
    flute_error err = {.code = 0};
    int64_t i = 7;
    double d;
    bool b;
    const char *s;
    assert_failure(json_get_int(root, "i", JSON_REQUIRED, 0, 11, &i, "a.json", &err), &err, "\"i\" is 12");
    assert_failure(json_get_int(root, "i", JSON_REQUIRED, 13, 14, &i, "a.json", &err), &err, "13 to 14");
    assert_failure(json_get_int(root, "u", JSON_REQUIRED, 0, INT64_MAX, &i, "a.json", &err), &err,
                   "18446744073709551615");
    assert_failure(json_get_int(root, "f", JSON_OPTIONAL, 0, 9, &i, "a.json", &err), &err, "an integer");
    assert_failure(json_get_int(root, "gone", JSON_REQUIRED, 0, 9, &i, "a.json", &err), &err, "missing");
    assert_failure(json_get_int(root, "n", JSON_REQUIRED, 0, 9, &i, "a.json", &err), &err, "missing");
    assert_failure(json_get_double(root, "s", JSON_OPTIONAL, &d, "a.json", &err), &err, "a number");
    assert_failure(json_get_bool(root, "i", JSON_OPTIONAL, &b, "a.json", &err), &err, "true or false");
    assert_failure(json_get_string(root, "i", JSON_OPTIONAL, &s, "a.json", &err), &err, "a string");
    assert_failure(json_get_string(root, "z", JSON_OPTIONAL, &s, "a.json", &err), &err, "NUL");
    assert_int_equal(i, 7);
    yyjson_doc_free(doc);
}

static void test_syntax(void **state) {
    (void)state;
    static const char *const bad[] = {"", "{\"a\":}", "{} x", "[1,]", "{\"a\":1e999}", "\"\xff\"", "NaN"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        flute_error err = {.code = 0};
        assert_null(json_parse(bad[i], strlen(bad[i]), "a.json", &err));
        assert_failure(err.code, &err, "a.json");
    }
    flute_error err = {.code = 0};
    assert_null(json_parse_file("/nowhere/a.json", &err));
    assert_int_equal(err.code, FLUTE_EIO);
    assert_non_null(strstr(err.message, "/nowhere/a.json"));
}

// A million open brackets must not exhaust the stack.
static void test_depth(void **state) {
    (void)state;
    size_t depth = 1000000;
    char *text = malloc(2 * depth);
    assert_non_null(text);
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    flute_error err;
    yyjson_doc *doc = json_parse(text, 2 * depth, "a.json", &err);
    assert_non_null(doc);
    yyjson_doc_free(doc);
    assert_null(json_parse(text, 2 * depth - 1, "a.json", &err));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_syntax),
        cmocka_unit_test(test_depth),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
