// Text to tokens and back, for callers of flute.h.
#include <stdlib.h>

#include "engine/base/fail.h"
#include "engine/model.h"

int model_need_tokenizer(const flute_model *model, flute_error *err) {
    if (model->tok) return FLUTE_OK;
    return fail(
        err, FLUTE_EUNSUPPORTED,
        "%s: the file has no tokenizer, only token ids work; convert again with the tokenizer's files "
        "in the checkpoint's folder",
        model->path);
}

int32_t flute_token_bos(const flute_model *model) {
    const int32_t bos = model->file.arch.bos;
    return bos < 0 && model->tok ? tokenizer_bos(model->tok) : bos;
}

bool flute_token_is_eos(const flute_model *model, int32_t id) {
    const arch *a = &model->file.arch;
    for (int i = 0; i < a->n_eos; i++)
        if (id == a->eos[i]) return true;
    return id >= 0 && id == model->end_of_turn;
}

int64_t flute_tokenize(const flute_model *model, const char *text, size_t size, int flags, int32_t *ids,
                       size_t capacity, flute_error *err) {
    int code = model_need_tokenizer(model, err);
    if (code) return code;
    const int32_t bos = flute_token_bos(model);
    const size_t n_bos = (flags & FLUTE_ADD_BOS) && bos >= 0;
    if (n_bos && capacity > 0) {
        *ids++ = bos;
        capacity--;
    }
    const tokenizer_special special = flags & FLUTE_PARSE_SPECIAL ? SPECIAL_AS_TOKEN : SPECIAL_AS_TEXT;
    const int64_t n = tokenizer_encode(model->tok, text, size, special, ids, capacity, err);
    return n < 0 ? n : n + (int64_t)n_bos;
}

struct flute_detokenizer {
    detokenizer *detok;
};

int flute_detokenizer_create(flute_detokenizer **out, const flute_model *model, flute_error *err) {
    *out = NULL;
    int code = model_need_tokenizer(model, err);
    if (code) return code;
    flute_detokenizer *detok = malloc(sizeof *detok);
    if (!detok) return fail_memory(err, sizeof *detok, "a detokenizer");
    detok->detok = detokenizer_create(model->tok, false, err);
    if (!detok->detok) {
        free(detok);
        return FLUTE_ENOMEM;
    }
    *out = detok;
    return FLUTE_OK;
}

void flute_detokenizer_free(flute_detokenizer *detok) {
    if (!detok) return;
    detokenizer_free(detok->detok);
    free(detok);
}

const char *flute_detokenizer_push(flute_detokenizer *detok, int32_t id, size_t *size) {
    return detokenizer_push(detok->detok, id, size);
}

const char *flute_detokenizer_flush(flute_detokenizer *detok, size_t *size) {
    return detokenizer_flush(detok->detok, size);
}
