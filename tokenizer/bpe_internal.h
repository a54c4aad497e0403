// What the loader of a tokenizer.json (bpe_load.c) fills and the encoder (bpe.c) reads.
#ifndef FLUTE_TOKENIZER_BPE_INTERNAL_H
#define FLUTE_TOKENIZER_BPE_INTERNAL_H

#include "tokenizer/bpe.h"
#include "tokenizer/pretokenizer.h"

#define BPE_NO_RANK UINT32_MAX

typedef struct merge {
    int32_t left; // -1 in an empty slot
    int32_t right;
    uint32_t rank; // lower is merged earlier
    int32_t result;
} merge;

struct bpe {
    const token_table *tokens; // borrowed
    int32_t *by_bytes; // (by_bytes_mask + 1) open-addressing table: ids by their bytes, -1 where empty
    size_t by_bytes_mask;
    merge *merges; // (merges_mask + 1) open-addressing table by (left, right)
    size_t merges_mask;
    int32_t byte_id[256];    // the token of each single byte
    bool ignore_merges;      // a piece that is a token as a whole is taken as it is
    spelling_set raw;        // added tokens, matched first
    spelling_set normalized; // those with "normalized": true, matched in what is left
    pretokenizer *pre;
    int32_t bos, eos;
    bool adds_bos;
};

// A power of two, at least twice n: probes stay short.
size_t bpe_table_size(size_t n);
// The id of the ordinary token with these bytes, or -1.
int32_t bpe_find_bytes(const bpe *b, const char *bytes, size_t size);
void bpe_add_bytes(bpe *b, int32_t id);
// The merge of the pair, or NULL; and its slot to fill.
const merge *bpe_find_merge(const bpe *b, int32_t left, int32_t right);
void bpe_add_merge(bpe *b, const merge *m);

// Fills b from the document. On failure bpe_free cleans up.
int bpe_load(bpe *b, token_table *tokens, const char *json, size_t size, const char *origin,
             flute_error *err);

#endif
