// Llama 3's original tokenizer.model: a text of lines "BASE64 RANK", the bytes of each token and its rank.
#ifndef FLUTE_TOKENIZER_TIKTOKEN_H
#define FLUTE_TOKENIZER_TIKTOKEN_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/error.h"

// Whether the text begins with such a line.
bool tiktoken_probe(const char *text, size_t size);

// Turns the file into a tokenizer.json (*json is malloc'd, not NUL-terminated) with Llama 3's expression and
// the 256 special tokens of Llama 3.1 behind the ranks. FLUTE_EFORMAT names the line that is wrong.
int tiktoken_convert(const char *text, size_t size, char **json, size_t *json_size, const char *origin,
                     flute_error *err);

#endif
