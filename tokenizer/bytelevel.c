#include "tokenizer/bytelevel.h"

// The three runs of bytes that have no character of their own: 0 to 32, 127 to 160, and 173 (soft hyphen).
enum { RUN1_END = 33, RUN2_BEGIN = 127, RUN2_END = 161, RUN3 = 173, SHIFT = 256 };
enum { RUN2_SHIFTED = SHIFT + RUN1_END, RUN3_SHIFTED = RUN2_SHIFTED + RUN2_END - RUN2_BEGIN };

static int char_of_byte(uint8_t byte) {
    if (byte < RUN1_END) return SHIFT + byte;
    if (byte >= RUN2_BEGIN && byte < RUN2_END) return RUN2_SHIFTED + byte - RUN2_BEGIN;
    return byte == RUN3 ? RUN3_SHIFTED : byte;
}

static int byte_of_char(int c) {
    if (c < SHIFT) return char_of_byte((uint8_t)c) == c ? c : -1;
    if (c < RUN2_SHIFTED) return c - SHIFT;
    if (c < RUN3_SHIFTED) return c - RUN2_SHIFTED + RUN2_BEGIN;
    return c == RUN3_SHIFTED ? RUN3 : -1;
}

int64_t bytelevel_decode(const char *text, size_t size, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        int c = (uint8_t)text[i];
        if (c >= 0x80) { // the alphabet ends at U+0143: two bytes
            if (c >= 0xE0 || i + 1 == size) return -1;
            c = (c & 0x1F) << 6 | ((uint8_t)text[++i] & 0x3F);
        }
        int byte = byte_of_char(c);
        if (byte < 0) return -1;
        out[n++] = (char)byte;
    }
    return (int64_t)n;
}

size_t bytelevel_encode(const char *bytes, size_t size, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        int c = char_of_byte((uint8_t)bytes[i]);
        if (c >= 0x80) {
            out[n++] = (char)(0xC0 | c >> 6);
            c = 0x80 | (c & 0x3F);
        }
        out[n++] = (char)c;
    }
    return n;
}
