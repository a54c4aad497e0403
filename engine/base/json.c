#include "engine/base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"

// yyjson reads without recursion, so the nesting of a hostile file costs heap, never stack. Its values take
// 16 bytes each and a value takes at least two bytes of text ("1,"), which bounds memory by the size of the
// file.
yyjson_doc *json_parse(const char *text, size_t size, const char *origin, flute_error *err) {
    yyjson_read_err problem;
    // Without YYJSON_READ_INSITU the text is copied, not written to: the cast drops a const for nothing.
    yyjson_doc *doc = yyjson_read_opts((char *)text, size, YYJSON_READ_NOFLAG, NULL, &problem);
    if (doc) return doc;
    if (problem.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) {
        fail(err, FLUTE_ENOMEM, "%s: out of memory while parsing %zu bytes of JSON", origin, size);
    } else if (size == 0) {
        fail(err, FLUTE_EFORMAT, "%s: empty where JSON is expected; fetch the file again", origin);
    } else {
        fail(err, FLUTE_EFORMAT, "%s: not valid JSON at byte %zu: %s", origin, problem.pos, problem.msg);
    }
    return NULL;
}

yyjson_doc *json_parse_file(const char *path, flute_error *err) {
    char *text = NULL;
    size_t size = 0;
    if (file_read(path, &text, &size, err)) return NULL;
    yyjson_doc *doc = json_parse(text, size, path, err);
    free(text);
    return doc;
}

static const char *type_name(yyjson_val *value) {
    if (yyjson_is_int(value)) return "an integer";
    if (yyjson_is_real(value)) return "a fractional number";
    if (yyjson_is_str(value)) return "a string";
    if (yyjson_is_bool(value)) return "true or false";
    if (yyjson_is_arr(value)) return "an array";
    if (yyjson_is_obj(value)) return "an object";
    return "null";
}

// Sets *value to the member, or to NULL where an optional one is absent or null.
static int member(yyjson_val *object, const char *key, json_need need, yyjson_val **value, const char *origin,
                  flute_error *err) {
    *value = yyjson_obj_get(object, key); // NULL also when object is no object
    if (yyjson_is_null(*value)) *value = NULL;
    if (!*value && need == JSON_REQUIRED) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is missing", origin, key);
    }
    return FLUTE_OK;
}

static int wrong_type(yyjson_val *value, const char *key, const char *wanted, const char *origin,
                      flute_error *err) {
    return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is %s; it must be %s", origin, key, type_name(value), wanted);
}

int json_get_int(yyjson_val *object, const char *key, json_need need, int64_t min, int64_t max, int64_t *out,
                 const char *origin, flute_error *err) {
    yyjson_val *value;
    int code = member(object, key, need, &value, origin, err);
    if (code || !value) return code;
    if (!yyjson_is_int(value)) return wrong_type(value, key, "an integer", origin, err);
    if (yyjson_is_uint(value) && yyjson_get_uint(value) > INT64_MAX) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is %llu; it must be %lld to %lld", origin, key,
                    (unsigned long long)yyjson_get_uint(value), (long long)min, (long long)max);
    }
    int64_t number = yyjson_get_sint(value);
    if (number < min || number > max) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is %lld; it must be %lld to %lld", origin, key,
                    (long long)number, (long long)min, (long long)max);
    }
    *out = number;
    return FLUTE_OK;
}

int json_get_double(yyjson_val *object, const char *key, json_need need, double *out, const char *origin,
                    flute_error *err) {
    yyjson_val *value;
    int code = member(object, key, need, &value, origin, err);
    if (code || !value) return code;
    if (!yyjson_is_num(value)) return wrong_type(value, key, "a number", origin, err);
    double number = yyjson_get_num(value);
    if (!isfinite(number)) return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is not a finite number", origin, key);
    *out = number;
    return FLUTE_OK;
}

int json_get_bool(yyjson_val *object, const char *key, json_need need, bool *out, const char *origin,
                  flute_error *err) {
    yyjson_val *value;
    int code = member(object, key, need, &value, origin, err);
    if (code || !value) return code;
    if (!yyjson_is_bool(value)) return wrong_type(value, key, "true or false", origin, err);
    *out = yyjson_get_bool(value);
    return FLUTE_OK;
}

int json_get_string(yyjson_val *object, const char *key, json_need need, const char **out, const char *origin,
                    flute_error *err) {
    yyjson_val *value;
    int code = member(object, key, need, &value, origin, err);
    if (code || !value) return code;
    if (!yyjson_is_str(value)) return wrong_type(value, key, "a string", origin, err);
    const char *text = yyjson_get_str(value);
    if (strlen(text) != yyjson_get_len(value)) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" holds a NUL character", origin, key);
    }
    *out = text;
    return FLUTE_OK;
}
