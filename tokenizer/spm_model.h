// Reads a sentencepiece ModelProto (protobuf) without the library: what it stands for, and a copy that the
// library can be given.
#ifndef FLUTE_TOKENIZER_SPM_MODEL_H
#define FLUTE_TOKENIZER_SPM_MODEL_H

#include "tokenizer/tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spm_model {
    char *proto;       // malloc'd; see spm_model_parse
    size_t proto_size; // of the model; SPM_NO_PREFIX_SIZE more bytes follow it
    bool add_dummy_prefix;
} spm_model;

// These bytes behind the model switch its dummy prefix off: protobuf merges a repeated message into the one
// before, and the last value of a field wins.
#define SPM_NO_PREFIX_SIZE 4

// Parses size bytes of blob, fills the empty tokens with the text of every piece (▁ as a space, <0xNN> as
// its byte, the unknown piece as " ⁇ "), and copies the model into model->proto with two changes: its
// self-test is left out (it would run at each load), and Gemma's turn markers, which are user-defined there,
// become control tokens, so that a text from outside cannot forge a turn.
// FLUTE_EFORMAT for what is damaged, FLUTE_EUNSUPPORTED for what is not a BPE model as Llama and Gemma use.
int spm_model_parse(spm_model *model, token_table *tokens, const void *blob, size_t size, const char *origin,
                    flute_error *err);
void spm_model_clear(spm_model *model); // accepts a zeroed model

// Whether the bytes begin as a ModelProto does: a first piece, then another field.
bool spm_model_probe(const void *blob, size_t size);

#ifdef __cplusplus
}
#endif
#endif
