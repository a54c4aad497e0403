#include "tokenizer/bpe_internal.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "engine/base/fail.h"
#include "tokenizer/bytelevel.h"

// ---- hash tables

size_t bpe_table_size(size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

static int32_t *bytes_slot(const bpe *b, const char *bytes, size_t size) {
    for (size_t i = XXH3_64bits(bytes, size);; i++) {
        int32_t *slot = &b->by_bytes[i & b->by_bytes_mask];
        if (*slot < 0) return slot;
        size_t token_size;
        const char *token = token_text(b->tokens, *slot, &token_size);
        if (token_size == size && memcmp(token, bytes, size) == 0) return slot;
    }
}

int32_t bpe_find_bytes(const bpe *b, const char *bytes, size_t size) {
    return *bytes_slot(b, bytes, size);
}

void bpe_add_bytes(bpe *b, int32_t id) {
    size_t size;
    const char *bytes = token_text(b->tokens, id, &size);
    *bytes_slot(b, bytes, size) = id;
}

static merge *merge_slot(const bpe *b, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9E3779B97F4A7C15u; // Fibonacci hashing: the upper bits are mixed best
    for (size_t i = (size_t)(key >> 32);; i++) {
        merge *slot = &b->merges[i & b->merges_mask];
        if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
    }
}

const merge *bpe_find_merge(const bpe *b, int32_t left, int32_t right) {
    const merge *slot = merge_slot(b, left, right);
    return slot->left < 0 ? NULL : slot;
}

void bpe_add_merge(bpe *b, const merge *m) {
    *merge_slot(b, m->left, m->right) = *m;
}

// ---- merging

// A run of bytes that are one token so far, in a list linked by index.
typedef struct symbol {
    int32_t id;
    int32_t merged;          // what it and its right neighbour become
    uint32_t rank;           // of that merge; BPE_NO_RANK without one
    uint32_t previous, next; // NO_SYMBOL at the ends
} symbol;

#define NO_SYMBOL UINT32_MAX

typedef struct encoder {
    const bpe *b;
    id_sink *sink;
    bool with_special;
    symbol *symbols; // (capacity)
    uint64_t *heap;  // (2 × capacity) rank << 32 | index: the lowest rank first, then the leftmost
    size_t n_heap;
    size_t capacity;
} encoder;

static void heap_push(encoder *e, uint64_t key) {
    size_t i = e->n_heap++;
    for (; i > 0 && e->heap[(i - 1) / 2] > key; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = key;
}

static uint64_t heap_pop(encoder *e) {
    uint64_t top = e->heap[0], key = e->heap[--e->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < e->n_heap; i = child) {
        if (child + 1 < e->n_heap && e->heap[child + 1] < e->heap[child]) child++;
        if (e->heap[child] >= key) break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = key;
    return top;
}

// Looks up the merge of symbol i with its right neighbour and queues it.
static void consider(encoder *e, uint32_t i) {
    symbol *s = &e->symbols[i];
    s->rank = BPE_NO_RANK;
    if (s->next == NO_SYMBOL) return;
    const merge *m = bpe_find_merge(e->b, s->id, e->symbols[s->next].id);
    if (!m) return;
    s->rank = m->rank;
    s->merged = m->result;
    heap_push(e, (uint64_t)m->rank << 32 | i);
}

static int reserve(encoder *e, size_t size, flute_error *err) {
    if (size <= e->capacity) return FLUTE_OK;
    if (size >= NO_SYMBOL / 2)
        return fail(err, FLUTE_ERANGE, "a piece of %zu bytes without a break is too long for the tokenizer",
                    size);
    size_t capacity = e->capacity ? e->capacity : 64;
    while (capacity < size) capacity *= 2;
    free(e->symbols);
    free(e->heap);
    e->capacity = 0;
    e->symbols = malloc(capacity * sizeof *e->symbols);
    e->heap = malloc(2 * capacity * sizeof *e->heap);
    if (!e->symbols || !e->heap)
        return fail_memory(err, capacity * (sizeof *e->symbols + 2 * sizeof *e->heap),
                           "encoding a piece of text");
    e->capacity = capacity;
    return FLUTE_OK;
}

// Encodes one piece. Each merge takes one entry off the heap and puts at most two on it, so that size bytes
// never need more than 2 × size entries. An entry whose rank is no longer that of its symbol is stale: the
// symbol or its neighbour has become part of another merge since.
static int encode_piece(void *context, const char *piece, size_t size, flute_error *err) {
    encoder *e = context;
    const bpe *b = e->b;
    int32_t whole = b->ignore_merges || size == 1 ? bpe_find_bytes(b, piece, size) : -1;
    if (whole >= 0) {
        id_sink_push(e->sink, whole);
        return FLUTE_OK;
    }
    int code = reserve(e, size, err);
    if (code) return code;
    uint32_t n = (uint32_t)size;
    for (uint32_t i = 0; i < n; i++)
        e->symbols[i] = (symbol){.id = b->byte_id[(uint8_t)piece[i]],
                                 .previous = i > 0 ? i - 1 : NO_SYMBOL,
                                 .next = i + 1 < n ? i + 1 : NO_SYMBOL};
    e->n_heap = 0;
    for (uint32_t i = 0; i < n; i++) consider(e, i);
    while (e->n_heap > 0) {
        uint64_t key = heap_pop(e);
        uint32_t i = (uint32_t)key;
        symbol *s = &e->symbols[i];
        if (s->rank != key >> 32) continue;
        symbol *right = &e->symbols[s->next];
        s->id = s->merged;
        s->next = right->next;
        right->rank = BPE_NO_RANK;
        if (s->next != NO_SYMBOL) e->symbols[s->next].previous = i;
        consider(e, i);
        if (s->previous != NO_SYMBOL) consider(e, s->previous);
    }
    for (uint32_t i = 0; i != NO_SYMBOL; i = e->symbols[i].next) id_sink_push(e->sink, e->symbols[i].id);
    return FLUTE_OK;
}

// ---- added tokens, then pieces

static int encode_normalized(encoder *e, const char *text, size_t size, flute_error *err) {
    for (size_t done = 0; done < size;) {
        size_t at = done;
        const spelled_token *token = spelling_set_find(&e->b->normalized, text, size, e->with_special, &at);
        int code = pretokenizer_run(e->b->pre, text + done, at - done, encode_piece, e, err);
        if (code) return code;
        if (token) id_sink_push(e->sink, token->id);
        done = at + (token ? token->size : 0);
    }
    return FLUTE_OK;
}

int bpe_encode(const bpe *b, const char *text, size_t size, bool with_special, id_sink *sink,
               flute_error *err) {
    encoder e = {.b = b, .sink = sink, .with_special = with_special};
    int code = FLUTE_OK;
    for (size_t done = 0; done < size && code == FLUTE_OK;) {
        size_t at = done;
        const spelled_token *token = spelling_set_find(&b->raw, text, size, with_special, &at);
        code = encode_normalized(&e, text + done, at - done, err);
        if (code == FLUTE_OK && token) id_sink_push(sink, token->id);
        done = at + (token ? token->size : 0);
    }
    free(e.symbols);
    free(e.heap);
    return code;
}

// ---- the rest

int bpe_create(bpe **out, token_table *tokens, const char *json, size_t size, const char *origin,
               flute_error *err) {
    *out = NULL;
    bpe *b = calloc(1, sizeof *b);
    if (!b) return fail_memory(err, sizeof *b, "the tokenizer");
    int code = bpe_load(b, tokens, json, size, origin, err);
    if (code)
        bpe_free(b);
    else
        *out = b;
    return code;
}

void bpe_free(bpe *b) {
    if (!b) return;
    free(b->by_bytes);
    free(b->merges);
    spelling_set_clear(&b->raw);
    spelling_set_clear(&b->normalized);
    pretokenizer_free(b->pre);
    free(b);
}

int32_t bpe_bos(const bpe *b) {
    return b->bos;
}

int32_t bpe_eos(const bpe *b) {
    return b->eos;
}

bool bpe_adds_bos(const bpe *b) {
    return b->adds_bos;
}

int32_t bpe_find(const bpe *b, const char *text) {
    size_t size = strlen(text);
    const spelled_token *added = spelling_set_get(&b->raw, text, size);
    if (!added) added = spelling_set_get(&b->normalized, text, size);
    if (added) return added->id;
    char *bytes = malloc(size + 1);
    int64_t n = bytes ? bytelevel_decode(text, size, bytes) : -1;
    int32_t id = n > 0 ? bpe_find_bytes(b, bytes, (size_t)n) : -1;
    free(bytes);
    return id;
}
