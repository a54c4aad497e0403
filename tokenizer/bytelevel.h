// The alphabet in which byte-level BPE writes its vocabulary: each byte is one printable character. Printable
// Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and up, in order.
#ifndef FLUTE_TOKENIZER_BYTELEVEL_H
#define FLUTE_TOKENIZER_BYTELEVEL_H

#include <stddef.h>
#include <stdint.h>

// The bytes that a spelling stands for, into out (size bytes are enough). Returns their number, or -1 when a
// character is not of the alphabet. text is valid UTF-8.
int64_t bytelevel_decode(const char *text, size_t size, char *out);
// The inverse, for any bytes; out takes up to 2 × size bytes. Returns the number written.
size_t bytelevel_encode(const char *bytes, size_t size, char *out);

#endif
