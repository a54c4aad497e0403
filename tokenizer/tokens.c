#include "tokenizer/tokens.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"

int token_table_reserve(token_table *table, size_t n, size_t n_bytes, flute_error *err) {
    assert(n <= INT32_MAX && n_bytes <= UINT32_MAX);
    table->start = calloc(n + 1, sizeof *table->start);
    table->bytes = malloc(n_bytes + 1);
    table->control = calloc(n + 1, 1);
    if (!table->start || !table->bytes || !table->control) {
        token_table_clear(table);
        return fail_memory(err, n * 5 + n_bytes, "the vocabulary");
    }
    return FLUTE_OK;
}

void token_table_append(token_table *table, const char *text, size_t size, bool control) {
    uint32_t start = table->start[table->n];
    memmove(table->bytes + start, text, size); // text may be there already
    table->start[table->n + 1] = start + (uint32_t)size;
    table->control[table->n] = control;
    table->n++;
    if (size > table->longest) table->longest = size;
}

void token_table_clear(token_table *table) {
    free(table->start);
    free(table->bytes);
    free(table->control);
    *table = (token_table){0};
}

static int spelling_compare(const void *left, const void *right) {
    const spelled_token *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->size < b->size ? a->size : b->size);
    if (order) return order;
    return (a->size > b->size) - (a->size < b->size);
}

void spelling_set_init(spelling_set *set, spelled_token *items, size_t n) {
    *set = (spelling_set){.items = items, .n = n};
    if (n > 1) qsort(items, n, sizeof *items, spelling_compare);
    for (size_t i = 0; i < n; i++) set->starts[(uint8_t)items[i].text[0]] = true;
}

void spelling_set_clear(spelling_set *set) {
    free(set->items);
    *set = (spelling_set){0};
}

// The first item of [begin, end), all equal in their first depth bytes, whose byte at depth is not below
// byte.
static size_t narrow(const spelling_set *set, size_t begin, size_t end, size_t depth, int byte) {
    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        const spelled_token *item = &set->items[middle];
        int value = depth < item->size ? (uint8_t)item->text[depth] : -1;
        if (value < byte)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// The longest spelling that text begins with: the sorted items that agree with the text so far are a range,
// which every further byte narrows.
static const spelled_token *longest_prefix(const spelling_set *set, const char *text, size_t size,
                                           bool with_special) {
    const spelled_token *found = NULL;
    size_t begin = 0, end = set->n;
    for (size_t depth = 0; depth < size && begin < end; depth++) {
        int byte = (uint8_t)text[depth];
        begin = narrow(set, begin, end, depth, byte);
        end = narrow(set, begin, end, depth, byte + 1);
        if (begin == end) break;
        const spelled_token *item = &set->items[begin]; // the shortest of the range comes first
        if (item->size == depth + 1 && (with_special || !item->special)) found = item;
    }
    return found;
}

const spelled_token *spelling_set_find(const spelling_set *set, const char *text, size_t size,
                                       bool with_special, size_t *at) {
    if (set->n == 0) *at = size;
    for (; *at < size; (*at)++) {
        if (!set->starts[(uint8_t)text[*at]]) continue;
        const spelled_token *found = longest_prefix(set, text + *at, size - *at, with_special);
        if (found) return found;
    }
    return NULL;
}

const spelled_token *spelling_set_get(const spelling_set *set, const char *text, size_t size) {
    const spelled_token *found = longest_prefix(set, text, size, true);
    return found && found->size == size ? found : NULL;
}

quoted token_quote(const char *text, size_t size) {
    quoted out;
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        bool plain = text[i] >= 0x20 && text[i] < 0x7F;
        if (n + 4 + 4 > sizeof out.text) { // room for this byte, "..." and the NUL
            memcpy(out.text + n, "...", 3);
            n += 3;
            break;
        }
        if (plain)
            out.text[n++] = text[i];
        else
            n += (size_t)snprintf(out.text + n, 5, "\\x%02x", (uint8_t)text[i]);
    }
    out.text[n] = '\0';
    return out;
}
