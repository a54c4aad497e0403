// Byte-level BPE from a Hugging Face tokenizer.json.
#ifndef FLUTE_TOKENIZER_BPE_H
#define FLUTE_TOKENIZER_BPE_H

#include "tokenizer/tokens.h"

typedef struct bpe bpe;

// Builds one from a tokenizer.json, and fills the empty tokens with the bytes of every id. tokens must
// outlive the result. Damaged files are FLUTE_EFORMAT, what byte-level BPE does not cover is
// FLUTE_EUNSUPPORTED.
int bpe_create(bpe **out, token_table *tokens, const char *json, size_t size, const char *origin,
               flute_error *err);
void bpe_free(bpe *b); // accepts NULL

int32_t bpe_bos(const bpe *b); // -1 without one
int32_t bpe_eos(const bpe *b);
bool bpe_adds_bos(const bpe *b);
// The id of the token with exactly this spelling (as it stands in the file), or -1.
int32_t bpe_find(const bpe *b, const char *spelling);

// Encodes valid UTF-8 and appends the ids. with_special: spellings of special tokens become those tokens.
// O(n log n) in the longest piece that the pre-tokenizer leaves, linear in their number.
int bpe_encode(const bpe *b, const char *text, size_t size, bool with_special, id_sink *sink,
               flute_error *err);

#endif
