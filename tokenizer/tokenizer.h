// Text to token ids and back. Two kinds: sentencepiece models (Llama 1 and 2, Gemma) and byte-level BPE
// (Llama 3). Everything a tokenizer needs is one blob of bytes, which lives inside the .flt file.
#ifndef FLUTE_TOKENIZER_H
#define FLUTE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tokenizer_kind {
    TOKENIZER_NONE,          // ids only: --prompt-ids works, text does not
    TOKENIZER_SENTENCEPIECE, // blob: a sentencepiece ModelProto (tokenizer.model)
    TOKENIZER_BPE,           // blob: a Hugging Face tokenizer.json with a byte-level BPE model
} tokenizer_kind;

// "none", "sentencepiece", "bpe"; NULL for an unknown kind.
const char *tokenizer_kind_name(tokenizer_kind kind);
// The inverse; -1 for an unknown name.
int tokenizer_kind_parse(const char *name);

typedef struct tokenizer tokenizer;

// Builds a tokenizer from its blob, which is only read during the call. origin names the file in messages.
// TOKENIZER_NONE needs no blob and gives a tokenizer with an empty vocabulary, which encodes nothing.
// Thread-safe afterwards: one tokenizer serves any number of threads.
int tokenizer_create(tokenizer **out, tokenizer_kind kind, const void *blob, size_t size, const char *origin,
                     flute_error *err);
void tokenizer_free(tokenizer *tok); // accepts NULL

// Finds the tokenizer of a Hugging Face folder: tokenizer.model (sentencepiece) first, then tokenizer.json
// (byte-level BPE), then a tiktoken file (Llama 3's original tokenizer.model is a text file of base64 tokens
// and ranks: it is recognised and turned into the same blob as tokenizer.json). A folder without any gives
// TOKENIZER_NONE and an empty blob. *blob is malloc'd.
int tokenizer_find(const char *folder, tokenizer_kind *kind, char **blob, size_t *size, flute_error *err);

int tokenizer_vocab_size(const tokenizer *tok);
// Ids of the model's own special tokens, -1 where it has none.
int32_t tokenizer_bos(const tokenizer *tok);
int32_t tokenizer_eos(const tokenizer *tok);
// Whether the tokenizer's own rules put BOS first (true for all Llama and Gemma tokenizers known).
bool tokenizer_adds_bos(const tokenizer *tok);
// The id of a token by its exact spelling ("<|eot_id|>", "<end_of_turn>"), or -1.
int32_t tokenizer_find_token(const tokenizer *tok, const char *spelling);
// True for control tokens (BOS, EOS, <|eot_id|>, …), which never appear in decoded text.
bool tokenizer_is_control(const tokenizer *tok, int32_t id);

typedef enum tokenizer_special {
    SPECIAL_AS_TEXT,  // "<|eot_id|>" in the text is plain characters: for text from outside
    SPECIAL_AS_TOKEN, // spellings of special tokens become those tokens: for chat templates
} tokenizer_special;

// Encodes size bytes of UTF-8 without adding BOS or EOS. Returns the number of ids (≥ 0) and writes the first
// capacity of them; call with capacity 0 to learn the number. Invalid UTF-8 is FLUTE_EFORMAT and names the
// byte offset. User-defined symbols of a sentencepiece model and added tokens that are not special are always
// matched; Gemma's <start_of_turn> and <end_of_turn> count as control tokens, though its model says
// user-defined. A dummy prefix goes to the start of the text only, not behind a special token ("<s>Hello" is
// <s>, "Hello"). Time is O(size log size) at worst; text that drives the pre-tokenizer's expression too far
// is FLUTE_ERANGE.
int64_t tokenizer_encode(const tokenizer *tok, const char *text, size_t size, tokenizer_special special,
                         int32_t *ids, size_t capacity, flute_error *err);

// Streaming decoder: ids in, text out as soon as it is valid UTF-8. One per stream of tokens.
typedef struct detokenizer detokenizer;

// at_start: the stream begins at the start of a text, so that the space of a dummy prefix is dropped.
detokenizer *detokenizer_create(const tokenizer *tok, bool at_start, flute_error *err);
void detokenizer_free(detokenizer *detok); // accepts NULL
// Text that id completes: NUL-terminated UTF-8, owned by the detokenizer, valid until the next call; "" while
// bytes are missing or when id is a control token. *size, unless NULL, receives its length (the text may
// contain NUL bytes). Bytes that can no longer become valid UTF-8 come out as U+FFFD. Ids outside the
// vocabulary give "".
const char *detokenizer_push(detokenizer *detok, int32_t id, size_t *size);
// What is still held back, with U+FFFD for an incomplete sequence; the detokenizer is then as at its start,
// but not at_start.
const char *detokenizer_flush(detokenizer *detok, size_t *size);

#ifdef __cplusplus
}
#endif
#endif
