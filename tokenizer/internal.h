// struct tokenizer, for tokenizer.c and detokenizer.c.
#ifndef FLUTE_TOKENIZER_INTERNAL_H
#define FLUTE_TOKENIZER_INTERNAL_H

#include "tokenizer/bpe.h"
#include "tokenizer/spm.h"
#include "tokenizer/tokenizer.h"

struct tokenizer {
    tokenizer_kind kind;
    token_table tokens;
    bool dummy_prefix;     // sentencepiece puts a space before a text
    spm *sp;               // TOKENIZER_SENTENCEPIECE
    spelling_set controls; // of sp: its control and unknown tokens
    bpe *b;                // TOKENIZER_BPE
};

#endif
