// The "arch" object of a .flt header.
//
//   "name"                 string, for people
//   "n_layers" "hidden" "n_heads" "n_kv_heads" "head_dim" "n_ff" "n_vocab" "max_context"   integers
//   "tied" "qk_norm" "post_norms"                                                          booleans
//   "norm_eps" "norm_offset" "embed_scale" "q_scale" "attn_softcap" "final_softcap"        numbers
//   "activation"           "silu" or "gelu_tanh"
//   "chat"                 "plain", "llama3" or "gemma"
//   "ropes"                array of one or two {"type": "default" | "linear" | "llama3", "theta"}; with
//                          "factor" for linear and llama3; with "low_freq_factor", "high_freq_factor" and
//                          "original_context" for llama3
//   "windows"              array of n_layers integers, 0 for global; absent when all are 0
//   "rope_index"           array of n_layers indices into "ropes"; absent when all are 0
//   "bos"                  integer; absent when there is none
//   "eos"                  array of up to 16 integers
//
// Numbers are written as the double that equals the float, so they survive exactly. Unknown members are
// ignored.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "models/arch_internal.h"

static const char *const activation_names[] = {[ACT_SILU] = "silu", [ACT_GELU_TANH] = "gelu_tanh"};
static const char *const chat_names[] = {
    [CHAT_PLAIN] = "plain", [CHAT_LLAMA3] = "llama3", [CHAT_GEMMA] = "gemma"};
static const char *const rope_names[] = {
    [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3"};

#define N_NAMES(names) ((int)(sizeof(names) / sizeof *(names)))

// ---- Writing

static yyjson_mut_val *rope_to_json(const rope *r, yyjson_mut_doc *doc) {
    yyjson_mut_val *object = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_str(doc, object, "type", rope_names[r->type]);
    yyjson_mut_obj_add_real(doc, object, "theta", r->theta);
    if (r->type != ROPE_DEFAULT) yyjson_mut_obj_add_real(doc, object, "factor", r->factor);
    if (r->type == ROPE_LLAMA3) {
        yyjson_mut_obj_add_real(doc, object, "low_freq_factor", r->low_freq_factor);
        yyjson_mut_obj_add_real(doc, object, "high_freq_factor", r->high_freq_factor);
        yyjson_mut_obj_add_int(doc, object, "original_context", r->original_context);
    }
    return object;
}

static void layers_to_json(const arch *a, yyjson_mut_doc *doc, yyjson_mut_val *object) {
    bool any_window = false, any_rope = false;
    for (int i = 0; i < a->n_layers; i++) {
        any_window |= a->layers[i].window != 0;
        any_rope |= a->layers[i].rope != 0;
    }
    if (any_window) {
        yyjson_mut_val *windows = yyjson_mut_obj_add_arr(doc, object, "windows");
        for (int i = 0; i < a->n_layers; i++) yyjson_mut_arr_add_int(doc, windows, a->layers[i].window);
    }
    if (any_rope) {
        yyjson_mut_val *indices = yyjson_mut_obj_add_arr(doc, object, "rope_index");
        for (int i = 0; i < a->n_layers; i++) yyjson_mut_arr_add_int(doc, indices, a->layers[i].rope);
    }
}

yyjson_mut_val *arch_to_json(const arch *a, yyjson_mut_doc *doc) {
    arch copy = *a; // the accessors want it writable
    yyjson_mut_val *object = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_strcpy(doc, object, "name", a->name);
    for (int i = 0; i < ARCH_N_SIZES; i++) {
        yyjson_mut_obj_add_int(doc, object, arch_sizes[i].name, *arch_size_of(&copy, &arch_sizes[i]));
    }
    yyjson_mut_obj_add_bool(doc, object, "tied", a->tied);
    yyjson_mut_obj_add_bool(doc, object, "qk_norm", a->qk_norm);
    yyjson_mut_obj_add_bool(doc, object, "post_norms", a->post_norms);
    for (int i = 0; i < ARCH_N_SCALARS; i++) {
        yyjson_mut_obj_add_real(doc, object, arch_scalars[i].name, *arch_scalar_of(&copy, &arch_scalars[i]));
    }
    yyjson_mut_obj_add_str(doc, object, "activation", activation_names[a->act]);
    yyjson_mut_obj_add_str(doc, object, "chat", chat_names[a->chat]);
    yyjson_mut_val *ropes = yyjson_mut_obj_add_arr(doc, object, "ropes");
    for (int i = 0; i < a->n_ropes; i++) yyjson_mut_arr_add_val(ropes, rope_to_json(&a->rope[i], doc));
    layers_to_json(a, doc, object);
    if (a->bos >= 0) yyjson_mut_obj_add_int(doc, object, "bos", a->bos);
    yyjson_mut_val *eos = yyjson_mut_obj_add_arr(doc, object, "eos");
    for (int i = 0; i < a->n_eos; i++) yyjson_mut_arr_add_int(doc, eos, a->eos[i]);
    return object;
}

// ---- Reading

static int read_name(yyjson_val *object, const char *key, const char *const *names, int n_names, int *out,
                     const char *origin, flute_error *err) {
    const char *name = NULL;
    int code = json_get_string(object, key, JSON_REQUIRED, &name, origin, err);
    if (code) return code;
    for (int i = 0; i < n_names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = i;
            return FLUTE_OK;
        }
    }
    return fail(err, FLUTE_EUNSUPPORTED,
                "%s: \"%s\" is \"%.40s\", which this version does not know; use a newer flute", origin, key,
                name);
}

static int read_rope(yyjson_val *object, rope *r, const char *origin, flute_error *err) {
    int type = 0;
    int code = read_name(object, "type", rope_names, N_NAMES(rope_names), &type, origin, err);
    if (code) return code;
    *r = (rope){.type = (rope_type)type};
    if ((code = json_get_double(object, "theta", JSON_REQUIRED, &r->theta, origin, err))) return code;
    if (r->type == ROPE_DEFAULT) return FLUTE_OK;
    if ((code = json_get_double(object, "factor", JSON_REQUIRED, &r->factor, origin, err))) return code;
    if (r->type == ROPE_LINEAR) return FLUTE_OK;
    code = json_get_double(object, "low_freq_factor", JSON_REQUIRED, &r->low_freq_factor, origin, err);
    if (code) return code;
    code = json_get_double(object, "high_freq_factor", JSON_REQUIRED, &r->high_freq_factor, origin, err);
    if (code) return code;
    return json_get_int(object, "original_context", JSON_REQUIRED, 1, 1 << 24, &r->original_context, origin,
                        err);
}

static int read_ropes(yyjson_val *object, arch *out, const char *origin, flute_error *err) {
    yyjson_val *ropes = yyjson_obj_get(object, "ropes");
    size_t n = yyjson_arr_size(ropes); // 0 for what is no array
    if (n < 1 || n > 2) {
        return fail(err, FLUTE_EFORMAT, "%s: \"ropes\" must be an array of one or two objects", origin);
    }
    out->n_ropes = (int)n;
    for (size_t i = 0; i < n; i++) {
        int code = read_rope(yyjson_arr_get(ropes, i), &out->rope[i], origin, err);
        if (code) return code;
    }
    return FLUTE_OK;
}

// Reads an array of at most capacity integers in [0, max]; *n stays when it is absent.
static int read_ints(yyjson_val *object, const char *key, int max, int capacity, int32_t *out, int *n,
                     const char *origin, flute_error *err) {
    yyjson_val *array = yyjson_obj_get(object, key), *item;
    if (!array) return FLUTE_OK;
    if (!yyjson_is_arr(array) || yyjson_arr_size(array) > (size_t)capacity) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" must be an array of at most %d integers", origin, key,
                    capacity);
    }
    size_t i, size;
    yyjson_arr_foreach(array, i, size, item) {
        if (!yyjson_is_uint(item) || yyjson_get_uint(item) > (uint64_t)max) {
            return fail(err, FLUTE_EFORMAT, "%s: \"%s\"[%zu] must be an integer from 0 to %d", origin, key, i,
                        max);
        }
        out[i] = (int32_t)yyjson_get_uint(item);
    }
    *n = (int)size;
    return FLUTE_OK;
}

// An array with one entry a layer, or absent: then all are 0.
static int read_layer_ints(yyjson_val *object, const char *key, int max, int n_layers, int32_t *out,
                           const char *origin, flute_error *err) {
    int n = n_layers;
    memset(out, 0, sizeof *out * ARCH_MAX_LAYERS);
    int code = read_ints(object, key, max, ARCH_MAX_LAYERS, out, &n, origin, err);
    if (code) return code;
    if (n != n_layers) {
        return fail(err, FLUTE_EFORMAT, "%s: \"%s\" has %d entries for %d layers", origin, key, n, n_layers);
    }
    return FLUTE_OK;
}

static int read_layers(yyjson_val *object, arch *out, const char *origin, flute_error *err) {
    int32_t windows[ARCH_MAX_LAYERS], ropes[ARCH_MAX_LAYERS];
    int code = read_layer_ints(object, "windows", 1 << 24, out->n_layers, windows, origin, err);
    if (code) return code;
    code = read_layer_ints(object, "rope_index", out->n_ropes - 1, out->n_layers, ropes, origin, err);
    if (code) return code;
    for (int i = 0; i < out->n_layers; i++) {
        out->layers[i] = (arch_layer){.window = windows[i], .rope = ropes[i]};
    }
    return FLUTE_OK;
}

static int read_numbers(yyjson_val *object, arch *out, const char *origin, flute_error *err) {
    for (int i = 0; i < ARCH_N_SIZES; i++) {
        const arch_size *field = &arch_sizes[i];
        int64_t value = 0;
        int code =
            json_get_int(object, field->name, JSON_REQUIRED, field->min, field->max, &value, origin, err);
        if (code) return code;
        *arch_size_of(out, field) = (int)value;
    }
    for (int i = 0; i < ARCH_N_SCALARS; i++) {
        const arch_scalar *field = &arch_scalars[i];
        double value = 0;
        int code = json_get_double(object, field->name, JSON_REQUIRED, &value, origin, err);
        if (code) return code;
        // arch_check looks at the float; this keeps the conversion defined and the message the same.
        *arch_scalar_of(out, field) = fabs(value) > 1e30 ? INFINITY : (float)value;
    }
    return FLUTE_OK;
}

static int read_flags(yyjson_val *object, arch *out, const char *origin, flute_error *err) {
    int code = json_get_bool(object, "tied", JSON_REQUIRED, &out->tied, origin, err);
    if (code) return code;
    if ((code = json_get_bool(object, "qk_norm", JSON_REQUIRED, &out->qk_norm, origin, err))) return code;
    if ((code = json_get_bool(object, "post_norms", JSON_REQUIRED, &out->post_norms, origin, err)))
        return code;
    int act = 0, chat = 0;
    code = read_name(object, "activation", activation_names, N_NAMES(activation_names), &act, origin, err);
    if (code) return code;
    if ((code = read_name(object, "chat", chat_names, N_NAMES(chat_names), &chat, origin, err))) return code;
    out->act = (activation)act;
    out->chat = (chat_style)chat;
    return FLUTE_OK;
}

static int read_tokens(yyjson_val *object, arch *out, const char *origin, flute_error *err) {
    int64_t bos = -1;
    int code = json_get_int(object, "bos", JSON_OPTIONAL, 0, out->n_vocab - 1, &bos, origin, err);
    if (code) return code;
    out->bos = (int32_t)bos;
    if (!yyjson_obj_get(object, "eos")) return fail(err, FLUTE_EFORMAT, "%s: \"eos\" is missing", origin);
    return read_ints(object, "eos", out->n_vocab - 1, ARCH_MAX_EOS, out->eos, &out->n_eos, origin, err);
}

int arch_from_json(arch *out, yyjson_val *object, const char *origin, flute_error *err) {
    *out = (arch){.n_layers = 0};
    if (!yyjson_is_obj(object)) {
        return fail(err, FLUTE_EFORMAT, "%s: the architecture (\"arch\") is missing or no object", origin);
    }
    const char *name = NULL;
    int code = json_get_string(object, "name", JSON_REQUIRED, &name, origin, err);
    if (code) return code;
    if (strlen(name) >= sizeof out->name) {
        return fail(err, FLUTE_EFORMAT, "%s: the architecture's name is longer than %zu bytes", origin,
                    sizeof out->name - 1);
    }
    snprintf(out->name, sizeof out->name, "%s", name);
    if ((code = read_numbers(object, out, origin, err))) return code;
    if ((code = read_flags(object, out, origin, err))) return code;
    if ((code = read_ropes(object, out, origin, err))) return code;
    if ((code = read_layers(object, out, origin, err))) return code;
    if ((code = read_tokens(object, out, origin, err))) return code;
    return arch_check(out, origin, err);
}
