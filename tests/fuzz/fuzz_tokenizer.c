// The first byte of the input chooses what the rest is: 'j' a tokenizer.json, 's' a sentencepiece model, 't'
// a tiktoken file, which is converted first. What loads has to encode and decode a fixed text with ids inside
// the vocabulary, and valid UTF-8 has to come out.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tiktoken.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int condition) {
    if (!condition) abort();
}

static void use(const tokenizer *tok) {
    static const char text[] =
        "  Hello, <s>[B]ab abc's 1234\r\n\t\xC3\xA9\xE2\x96\x81\xE6\x97\xA5 <start_of_turn>aaaa";
    enum { CAPACITY = 256 };
    int32_t ids[CAPACITY];
    for (int special = SPECIAL_AS_TEXT; special <= SPECIAL_AS_TOKEN; special++) {
        int64_t n =
            tokenizer_encode(tok, text, sizeof text - 1, (tokenizer_special)special, ids, CAPACITY, NULL);
        if (n > CAPACITY) n = CAPACITY;
        detokenizer *detok = detokenizer_create(tok, true, NULL);
        check(detok != NULL);
        for (int64_t i = 0; i < n; i++) {
            check(ids[i] >= 0 && ids[i] < tokenizer_vocab_size(tok));
            check(special == SPECIAL_AS_TOKEN || !tokenizer_is_control(tok, ids[i]));
            size_t length;
            const char *out = detokenizer_push(detok, ids[i], &length);
            check(utf8_find_invalid(out, length) == length);
        }
        // Every token, in the order of the vocabulary
        for (int32_t id = -1; id <= tokenizer_vocab_size(tok); id++) {
            size_t length;
            const char *out = detokenizer_push(detok, id, &length);
            check(utf8_find_invalid(out, length) == length);
        }
        (void)detokenizer_flush(detok, NULL);
        detokenizer_free(detok);
    }
    check(tokenizer_bos(tok) < tokenizer_vocab_size(tok) && tokenizer_eos(tok) < tokenizer_vocab_size(tok));
    check(tokenizer_find_token(tok, "<s>") < tokenizer_vocab_size(tok));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const char *blob = (const char *)data + 1;
    char *converted = NULL;
    size_t blob_size = size - 1;
    if (data[0] == 't') {
        if (!tiktoken_probe(blob, blob_size)) return 0;
        if (tiktoken_convert(blob, blob_size, &converted, &blob_size, "fuzz", NULL)) return 0;
        blob = converted;
    }
    tokenizer *tok = NULL;
    flute_error err;
    tokenizer_kind kind = data[0] == 's' ? TOKENIZER_SENTENCEPIECE : TOKENIZER_BPE;
    if (tokenizer_create(&tok, kind, blob, blob_size, "fuzz", &err) == FLUTE_OK) use(tok);
    tokenizer_free(tok);
    free(converted);
    return 0;
}
