// What both kinds of tokenizer share: the bytes that each id stands for, the search for spellings of special
// tokens in a text, and the list that ids are written to.
#ifndef FLUTE_TOKENIZER_TOKENS_H
#define FLUTE_TOKENIZER_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

// A tokenizer blob of more bytes is refused, so that 32-bit offsets and doubled sizes are safe everywhere.
#define TOKENIZER_BLOB_MAX ((size_t)1 << 30)

// The text of every id, in one run of bytes.
typedef struct token_table {
    int32_t n;       // ids 0 to n - 1
    uint32_t *start; // (n + 1) offsets into bytes
    char *bytes; // decoded text of ordinary tokens, spelling of control tokens; any bytes, no NULs between
    uint8_t *control; // (n) 1 for control tokens
    size_t longest;   // bytes of the longest text
} token_table;

// Makes room for n tokens of n_bytes in all; token_table_append then adds them in the order of their ids.
int token_table_reserve(token_table *table, size_t n, size_t n_bytes, flute_error *err);
void token_table_append(token_table *table, const char *text, size_t size, bool control);
void token_table_clear(token_table *table); // frees what it holds; accepts a zeroed table

static inline const char *token_text(const token_table *table, int32_t id, size_t *size) {
    *size = table->start[id + 1] - table->start[id];
    return table->bytes + table->start[id];
}

// A token that is matched in the text before the model sees it.
typedef struct spelled_token {
    const char *text; // borrowed from the token table; not NUL-terminated
    size_t size;
    int32_t id;
    bool special; // matched only when the caller asks for special tokens
} spelled_token;

typedef struct spelling_set {
    spelled_token *items; // (n) sorted by bytes
    size_t n;
    bool starts[256]; // which bytes begin a spelling
} spelling_set;

// Takes ownership of items (malloc'd, n of them) and sorts them.
void spelling_set_init(spelling_set *set, spelled_token *items, size_t n);
void spelling_set_clear(spelling_set *set); // accepts a zeroed set

// The leftmost spelling at or after *at, the longest one there; *at becomes its offset. NULL when there is
// none; *at is then size. Special spellings count only with_special. O(size × length of a match × log n).
const spelled_token *spelling_set_find(const spelling_set *set, const char *text, size_t size,
                                       bool with_special, size_t *at);
// The spelling that is exactly text, or NULL.
const spelled_token *spelling_set_get(const spelling_set *set, const char *text, size_t size);

// Where ids go: the first capacity of them are kept, all are counted.
typedef struct id_sink {
    int32_t *ids;
    size_t capacity;
    size_t n;
} id_sink;

static inline void id_sink_push(id_sink *sink, int32_t id) {
    if (sink->n < sink->capacity) sink->ids[sink->n] = id;
    sink->n++;
}

// For messages: a token as printable ASCII, cut to what fits, other bytes as \xNN. A vocabulary comes from
// outside and must not send escape sequences to the terminal.
typedef struct quoted {
    char text[64];
} quoted;
quoted token_quote(const char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
