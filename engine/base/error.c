#include "engine/base/fail.h"

#include <stdarg.h>
#include <stdio.h>

const char *flute_code_text(int code) {
    switch (code) {
#define FLUTE_ERROR_CASE(name, value, text)                                                                  \
    case name:                                                                                               \
        return text;
        FLUTE_ERRORS(FLUTE_ERROR_CASE)
#undef FLUTE_ERROR_CASE
    }
    return "unknown error";
}

int fail(flute_error *err, int code, const char *format, ...) {
    if (err) {
        err->code = code;
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
    }
    return code;
}

int fail_memory(flute_error *err, unsigned long long bytes, const char *what) {
    return fail(err, FLUTE_ENOMEM, "out of memory (%llu bytes for %s)", bytes, what);
}
