// Chat templates of the families.
#ifndef FLUTE_CHAT_H
#define FLUTE_CHAT_H

#include "models/arch.h"
#include "tokenizer/tokenizer.h"

// The token that ends a turn in this style, or -1: the style has none or the tokenizer lacks it.
int32_t chat_end_of_turn(chat_style style, const tokenizer *tok);

#endif
