// Error codes and messages, shared by every layer.
//
// Functions that can fail return FLUTE_OK (0) or a negative code, and put a sentence for the user into
// *err: it names the file or option, the thing in it, and the remedy. err may be NULL. On success *err is
// left as it was.
#ifndef FLUTE_ERROR_H
#define FLUTE_ERROR_H

// What the library exports; everything else is hidden.
#if defined(__GNUC__)
#define FLUTE_API __attribute__((visibility("default")))
#else
#define FLUTE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// X(name, value, what it means)
#define FLUTE_ERRORS(X)                                                                                      \
    X(FLUTE_OK, 0, "success")                                                                                \
    X(FLUTE_EINVAL, -1, "invalid argument")                                                                  \
    X(FLUTE_EIO, -2, "input/output error")                                                                   \
    X(FLUTE_ENOMEM, -3, "out of memory")                                                                     \
    X(FLUTE_EFORMAT, -4, "malformed file")                                                                   \
    X(FLUTE_EVERSION, -5, "unsupported version")                                                             \
    X(FLUTE_ECHECKSUM, -6, "checksum mismatch")                                                              \
    X(FLUTE_EUNSUPPORTED, -7, "unsupported feature")                                                         \
    X(FLUTE_ESHAPE, -8, "shape mismatch")                                                                    \
    X(FLUTE_ERANGE, -9, "value out of range")                                                                \
    X(FLUTE_ECONTEXT, -10, "context too small")                                                              \
    X(FLUTE_EDEVICE, -11, "device error")                                                                    \
    X(FLUTE_ECANCELED, -12, "canceled")

typedef enum flute_code {
#define FLUTE_ERROR_ENUM(name, value, text) name = value,
    FLUTE_ERRORS(FLUTE_ERROR_ENUM)
#undef FLUTE_ERROR_ENUM
} flute_code;

typedef struct flute_error {
    int code;          // a flute_code
    char message[512]; // NUL-terminated UTF-8, one line, no trailing newline
} flute_error;

// What a code means, in words ("malformed file"); a static string. Unknown codes give "unknown error".
FLUTE_API const char *flute_code_text(int code);

#ifdef __cplusplus
}
#endif
#endif
