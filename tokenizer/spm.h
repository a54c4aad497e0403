// libsentencepiece behind C functions that let no exception through.
#ifndef FLUTE_TOKENIZER_SPM_H
#define FLUTE_TOKENIZER_SPM_H

#include "tokenizer/spm_model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spm spm;

int spm_create(spm **out, const spm_model *model, const char *origin, flute_error *err);
void spm_free(spm *sp); // accepts NULL

int32_t spm_bos(const spm *sp); // -1 without one
int32_t spm_eos(const spm *sp);
// The id of the piece with exactly this spelling, or -1.
int32_t spm_find(const spm *sp, const char *spelling);

// Encodes valid UTF-8 and appends the ids; control tokens never come out. at_start: the text begins here, so
// that a model with a dummy prefix adds it. O(size log size).
int spm_encode(const spm *sp, const char *text, size_t size, bool at_start, id_sink *sink, flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
