// UTF-8 by the rules of the Unicode standard (table 3-7): no overlong forms, no surrogates, nothing above
// U+10FFFF.
#ifndef FLUTE_TOKENIZER_UTF8_H
#define FLUTE_TOKENIZER_UTF8_H

#include <stddef.h>
#include <stdint.h>

// Looks at the start of size ≥ 1 bytes. Returns the length of the character there (1 to 4); 0 when the bytes
// are the beginning of one and end too early; or -n when the first n bytes are no part of any character (the
// "maximal subpart" that a decoder replaces by one U+FFFD).
static inline int utf8_next(const char *text, size_t size) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4) return -1;
    int length = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    // Only the second byte has a range that depends on the first.
    uint8_t low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    uint8_t high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= size) return 0;
        if (s[i] < low || s[i] > high) return -i;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

// The offset of the first byte that is not valid UTF-8, or size.
static inline size_t utf8_find_invalid(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        int length = utf8_next(text + at, size - at);
        if (length <= 0) break;
        at += (size_t)length;
    }
    return at;
}

#endif
