// What the tests of base share: cmocka with the headers it wants first, a scratch folder, a seeded generator.
#ifndef TESTS_BASE_HELPER_H
#define TESTS_BASE_HELPER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// xorshift64*: the same numbers everywhere.
static inline uint64_t random_next(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

// A new empty folder under TMPDIR or /tmp; free() it after folder_remove.
static inline char *folder_create(void) {
    const char *base = getenv("TMPDIR");
    char *path = NULL;
    assert_true(asprintf(&path, "%s/flute-test-XXXXXX", base ? base : "/tmp") > 0);
    assert_non_null(mkdtemp(path));
    return path;
}

// "FOLDER/NAME", malloc'd.
static inline char *path_join(const char *folder, const char *name) {
    char *path = NULL;
    assert_true(asprintf(&path, "%s/%s", folder, name) > 0);
    return path;
}

static inline void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

// message must hold each of the words: a name and a remedy.
static inline void assert_says(const char *message, const char *first, const char *second) {
    if (!strstr(message, first) || !strstr(message, second)) {
        fail_msg("\"%s\" lacks \"%s\" or \"%s\"", message, first, second);
    }
    assert_null(strchr(message, '\n'));
}

#endif
