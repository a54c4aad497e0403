// Tokens are runs of bytes that may end inside a character (byte pieces, byte-level BPE). The detokenizer
// keeps the bytes of an unfinished character, three at most, and hands out everything before it.
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "tokenizer/internal.h"
#include "tokenizer/utf8.h"

enum { MAX_HELD = 3, REPLACEMENT_SIZE = 3 };

struct detokenizer {
    const tokenizer *tok;
    bool at_start; // nothing has come out yet, and a dummy prefix is to be dropped
    char held[MAX_HELD];
    size_t n_held;
    char *in;  // (MAX_HELD + longest token) held bytes and the new token's
    char *out; // (REPLACEMENT_SIZE × that + 1)
};

detokenizer *detokenizer_create(const tokenizer *tok, bool at_start, flute_error *err) {
    size_t room = MAX_HELD + tok->tokens.longest;
    detokenizer *detok = calloc(1, sizeof *detok);
    if (detok) {
        *detok = (detokenizer){.tok = tok, .at_start = at_start && tok->dummy_prefix};
        // All memory is taken here: pushing a token allocates nothing.
        detok->in = malloc(room);
        detok->out = malloc(REPLACEMENT_SIZE * room + 1);
    }
    if (!detok || !detok->in || !detok->out) {
        detokenizer_free(detok);
        (void)fail_memory(err, sizeof *detok + 4 * room, "the detokenizer");
        return NULL;
    }
    return detok;
}

void detokenizer_free(detokenizer *detok) {
    if (!detok) return;
    free(detok->in);
    free(detok->out);
    free(detok);
}

// Writes n bytes of in to out, U+FFFD for what is not UTF-8, and holds back an unfinished end.
static const char *emit(detokenizer *detok, size_t n, bool last, size_t *size) {
    size_t written = 0;
    detok->n_held = 0;
    for (size_t at = 0; at < n;) {
        int length = utf8_next(detok->in + at, n - at);
        if (length > 0) {
            memcpy(detok->out + written, detok->in + at, (size_t)length);
            written += (size_t)length;
            at += (size_t)length;
            continue;
        }
        if (length == 0 && !last) {
            detok->n_held = n - at;
            memcpy(detok->held, detok->in + at, detok->n_held);
            break;
        }
        memcpy(detok->out + written, "\xEF\xBF\xBD", REPLACEMENT_SIZE);
        written += REPLACEMENT_SIZE;
        at = length == 0 ? n : at + (size_t)-length;
    }
    detok->out[written] = '\0';
    if (size) *size = written;
    return detok->out;
}

const char *detokenizer_push(detokenizer *detok, int32_t id, size_t *size) {
    const token_table *tokens = &detok->tok->tokens;
    if (size) *size = 0;
    if (id < 0 || id >= tokens->n || tokens->control[id]) return "";
    size_t n;
    const char *text = token_text(tokens, id, &n);
    if (detok->at_start && n > 0 && text[0] == ' ') {
        text++;
        n--;
    }
    detok->at_start = false;
    memcpy(detok->in, detok->held, detok->n_held);
    memcpy(detok->in + detok->n_held, text, n);
    return emit(detok, detok->n_held + n, false, size);
}

const char *detokenizer_flush(detokenizer *detok, size_t *size) {
    detok->at_start = false;
    memcpy(detok->in, detok->held, detok->n_held);
    return emit(detok, detok->n_held, true, size);
}
