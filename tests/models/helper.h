// Shared by the tests of models/.
#ifndef TESTS_MODELS_HELPER_H
#define TESTS_MODELS_HELPER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/json.h"
#include "models/arch.h"

#define N_ITEMS(array) (sizeof(array) / sizeof *(array))

static inline yyjson_doc *parse_data(const char *name) {
    char path[1024];
    flute_error err;
    const char *data = getenv("FLUTE_TEST_DATA");
    if (!data) fail_msg("FLUTE_TEST_DATA is not set: run this through `meson test`");
    snprintf(path, sizeof path, "%s/%s", data, name);
    yyjson_doc *doc = json_parse_file(path, &err);
    if (!doc) fail_msg("%s", err.message);
    return doc;
}

// The descriptor of a config.json below tests/data, which must be valid.
static inline arch arch_of_file(const char *name) {
    arch a;
    flute_error err;
    yyjson_doc *doc = parse_data(name);
    if (arch_from_config(&a, yyjson_doc_get_root(doc), NULL, name, &err)) fail_msg("%s", err.message);
    yyjson_doc_free(doc);
    return a;
}

// The descriptor as JSON text, to compare and to change; malloc'd.
static inline char *arch_text(const arch *a) {
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_doc_set_root(doc, arch_to_json(a, doc));
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_NOFLAG, NULL);
    assert_non_null(text);
    yyjson_mut_doc_free(doc);
    return text;
}

static inline void assert_same_arch(const arch *a, const arch *b) {
    char *left = arch_text(a), *right = arch_text(b);
    assert_string_equal(left, right);
    free(left);
    free(right);
}

// The failure of a call: its code, a message that holds `needle` and names the origin.
static inline void assert_failure(int code, int expected, const flute_error *err, const char *origin,
                                  const char *needle) {
    if (code != expected || err->code != expected || !strstr(err->message, needle) ||
        !strstr(err->message, origin)) {
        fail_msg("wanted code %d, \"%s\" and \"%s\"; got %d: %s", expected, origin, needle, code,
                 code ? err->message : "success");
    }
}

#endif
