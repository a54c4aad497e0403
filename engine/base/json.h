// Helpers over yyjson: typed reads of object members with messages that name the file and the key.
#ifndef FLUTE_JSON_H
#define FLUTE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <yyjson.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

// Parses size bytes of text; the result is owned by the caller (yyjson_doc_free). NULL on a syntax error,
// with the byte offset in the message. origin is the name that messages carry, usually a path.
yyjson_doc *json_parse(const char *text, size_t size, const char *origin, flute_error *err);

// Reads and parses a whole file.
yyjson_doc *json_parse_file(const char *path, flute_error *err);

// json_get_*: read member key of object into *out. An absent or null member leaves *out as it was and
// returns FLUTE_OK when it is optional; a member of another type, or a value outside [min, max], is
// FLUTE_EFORMAT. With required set, absence is FLUTE_EFORMAT too.
typedef enum json_need { JSON_OPTIONAL, JSON_REQUIRED } json_need;

int json_get_int(yyjson_val *object, const char *key, json_need need, int64_t min, int64_t max, int64_t *out,
                 const char *origin, flute_error *err);
int json_get_double(yyjson_val *object, const char *key, json_need need, double *out, const char *origin,
                    flute_error *err);
int json_get_bool(yyjson_val *object, const char *key, json_need need, bool *out, const char *origin,
                  flute_error *err);
// *out points into the document; strings with an embedded NUL are refused.
int json_get_string(yyjson_val *object, const char *key, json_need need, const char **out, const char *origin,
                    flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
