// How functions fail; internal, while error.h is installed with flute.h.
#ifndef FLUTE_FAIL_H
#define FLUTE_FAIL_H

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

// Fills *err (unless NULL) with the code and the formatted message, and returns the code.
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
int fail(flute_error *err, int code, const char *format, ...);

// The usual out-of-memory failure: "out of memory (N bytes for WHAT)".
int fail_memory(flute_error *err, unsigned long long bytes, const char *what);

#ifdef __cplusplus
}
#endif
#endif
