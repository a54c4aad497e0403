// The regular expressions that cut a text into pieces before byte-level BPE merges within each.
#ifndef FLUTE_TOKENIZER_PRETOKENIZER_H
#define FLUTE_TOKENIZER_PRETOKENIZER_H

#include <stddef.h>

#include <yyjson.h>

#include "engine/base/error.h"

typedef struct pretokenizer pretokenizer;

// Builds one from the "pre_tokenizer" of a tokenizer.json: ByteLevel, or a Sequence of Split (a Regex,
// behavior Isolated) that ends in ByteLevel. Anything else is FLUTE_EUNSUPPORTED.
int pretokenizer_create(pretokenizer **out, yyjson_val *spec, const char *origin, flute_error *err);
void pretokenizer_free(pretokenizer *pre); // accepts NULL

// Called for each piece, in order; never with size 0. A code other than FLUTE_OK ends the run.
typedef int pretokenizer_piece(void *context, const char *piece, size_t size, flute_error *err);

// Cuts size bytes of valid UTF-8. Safe to call from several threads. Time is that of the expressions: linear
// in size for those of GPT-2 and Llama 3. A single match may take PRETOKENIZER_MATCH_LIMIT steps, after which
// the text is refused with FLUTE_ERANGE, so that a malicious expression ends too.
int pretokenizer_run(const pretokenizer *pre, const char *text, size_t size, pretokenizer_piece *piece,
                     void *context, flute_error *err);

#define PRETOKENIZER_MATCH_LIMIT 10000000u

#endif
