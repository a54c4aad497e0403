// What the tokenizer tests share: files of the test data, tokenizers made from them, encoding into a buffer.
#ifndef FLUTE_TESTS_TOKENIZER_HELPER_H
#define FLUTE_TESTS_TOKENIZER_HELPER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <yyjson.h>

#include "tokenizer/tokenizer.h"

typedef struct bytes {
    char *data; // NUL-terminated
    size_t size;
} bytes;

static inline bytes read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    bytes out = {.size = (size_t)ftell(file)};
    rewind(file);
    out.data = malloc(out.size + 1);
    assert_non_null(out.data);
    assert_int_equal(fread(out.data, 1, out.size, file), out.size);
    out.data[out.size] = '\0';
    fclose(file);
    return out;
}

static inline const char *data_path(const char *name) {
    static char path[4096];
    const char *root = getenv("FLUTE_TEST_DATA");
    if (!root) fail_msg("FLUTE_TEST_DATA is not set; run through meson test");
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

static inline tokenizer *create(tokenizer_kind kind, const char *blob, size_t size) {
    flute_error err = {0};
    tokenizer *tok = NULL;
    if (tokenizer_create(&tok, kind, blob, size, "test", &err)) fail_msg("%s", err.message);
    return tok;
}

static inline tokenizer *create_from(tokenizer_kind kind, const char *name) {
    bytes file = read_file(data_path(name));
    tokenizer *tok = create(kind, file.data, file.size);
    free(file.data);
    return tok;
}

typedef struct id_list {
    int32_t *ids;
    size_t n;
} id_list;

static inline id_list encode(const tokenizer *tok, const char *text, size_t size, tokenizer_special special) {
    flute_error err = {0};
    int64_t n = tokenizer_encode(tok, text, size, special, NULL, 0, &err);
    if (n < 0) {
        fail_msg("%s", err.message);
        n = 0; // not reached, which the compiler does not know
    }
    id_list out = {.ids = calloc((size_t)n + 1, sizeof(int32_t)), .n = (size_t)n};
    assert_non_null(out.ids);
    assert_int_equal(tokenizer_encode(tok, text, size, special, out.ids, out.n, &err), n);
    return out;
}

// Encodes the string and compares with the n ids.
static inline void assert_ids(const tokenizer *tok, const char *text, tokenizer_special special,
                              const int32_t *ids, size_t n) {
    id_list got = encode(tok, text, strlen(text), special);
    if (got.n != n || (n > 0 && memcmp(got.ids, ids, n * sizeof *ids) != 0)) {
        for (size_t i = 0; i < got.n; i++) print_message("# id %d\n", (int)got.ids[i]);
        fail_msg("'%s' gave %zu other ids than the %zu expected", text, got.n, n);
    }
    free(got.ids);
}

// Decodes all ids through one detokenizer; the caller frees.
static inline bytes decode(const tokenizer *tok, const int32_t *ids, size_t n, bool at_start) {
    bytes out = {.data = calloc(1, 1)};
    size_t capacity = 1;
    detokenizer *detok = detokenizer_create(tok, at_start, NULL);
    assert_non_null(detok);
    for (size_t i = 0; i <= n; i++) {
        size_t size;
        const char *text = i < n ? detokenizer_push(detok, ids[i], &size) : detokenizer_flush(detok, &size);
        assert_int_equal(text[size], '\0');
        if (out.size + size >= capacity) { // not at each token: a sanitizer's realloc always copies
            capacity = 2 * (out.size + size) + 1;
            out.data = realloc(out.data, capacity);
            assert_non_null(out.data);
        }
        memcpy(out.data + out.size, text, size + 1);
        out.size += size;
    }
    detokenizer_free(detok);
    return out;
}

#endif
