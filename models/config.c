// config.json: which family, and what all families share.
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "models/arch_internal.h"

static const struct {
    const char *architecture; // config.json's "architectures"
    const char *model_type;   // its "model_type", asked when there are no "architectures"
    const char *text_key;     // where multimodal checkpoints keep the language model's fields
    int (*build)(arch *a, const config *c);
} families[] = {
    {"LlamaForCausalLM", "llama", NULL, llama_from_config},
    {"GemmaForCausalLM", "gemma", NULL, gemma_from_config},
    {"Gemma2ForCausalLM", "gemma2", NULL, gemma2_from_config},
    {"Gemma3ForCausalLM", "gemma3_text", NULL, gemma3_from_config},
    {"Gemma3ForConditionalGeneration", "gemma3", "text_config", gemma3_from_config},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

static const char supported[] = "LlamaForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, "
                                "Gemma3ForConditionalGeneration";

static int find_family(yyjson_val *root, const char *origin, int *family, flute_error *err) {
    yyjson_val *architectures = yyjson_obj_get(root, "architectures");
    yyjson_val *first = yyjson_arr_get_first(architectures); // NULL for what is no array
    const char *name = yyjson_get_str(first);
    bool by_type = !name;
    if (by_type) name = yyjson_get_str(yyjson_obj_get(root, "model_type"));
    if (!name) {
        return fail(
            err, FLUTE_EFORMAT,
            "%s: neither \"architectures\" nor \"model_type\" says what the model is; is this a model's "
            "config.json?",
            origin);
    }
    for (int i = 0; i < N_FAMILIES; i++) {
        if (strcmp(name, by_type ? families[i].model_type : families[i].architecture) == 0) {
            *family = i;
            return FLUTE_OK;
        }
    }
    return fail(err, FLUTE_EUNSUPPORTED, "%s: the architecture %.60s is not supported; these are: %s", origin,
                name, supported);
}

// ---- Fields

int config_refuse_true(const config *c, const char *key) {
    bool value = false;
    int code = json_get_bool(c->text, key, JSON_OPTIONAL, &value, c->origin, c->err);
    if (code || !value) return code;
    return fail(c->err, FLUTE_EUNSUPPORTED, "%s: models with \"%s\": true are not supported", c->origin, key);
}

int config_read_scalar(const config *c, const char *key, float *out) {
    yyjson_val *member = yyjson_obj_get(c->text, key);
    if (!member) return FLUTE_OK;
    double value = 0;
    int code = json_get_double(c->text, key, JSON_OPTIONAL, &value, c->origin, c->err);
    if (code) return code;
    if (!yyjson_is_null(member) && !(value > 0 && value <= 1e6)) {
        return fail(c->err, FLUTE_ERANGE, "%s: \"%s\" is %g; it must be positive and at most 1e6", c->origin,
                    key, value);
    }
    *out = (float)value;
    return FLUTE_OK;
}

int config_read_common(arch *a, const config *c) {
    for (int i = 0; i < ARCH_N_SIZES; i++) {
        const arch_size *field = &arch_sizes[i];
        int64_t value = *arch_size_of(a, field);
        int code = json_get_int(c->text, field->config_key, JSON_OPTIONAL, field->min, field->max, &value,
                                c->origin, c->err);
        if (code) return code;
        *arch_size_of(a, field) = (int)value;
    }
    if (a->n_kv_heads == 0) a->n_kv_heads = a->n_heads;
    if (a->head_dim == 0) {
        if (a->hidden % a->n_heads != 0) {
            return fail(c->err, FLUTE_ESHAPE,
                        "%s: there is no \"head_dim\", and \"hidden_size\" %d is no multiple of "
                        "\"num_attention_heads\" %d",
                        c->origin, a->hidden, a->n_heads);
        }
        a->head_dim = a->hidden / a->n_heads;
    }
    int code = config_read_scalar(c, "rms_norm_eps", &a->norm_eps);
    if (code) return code;
    code = json_get_bool(c->text, "tie_word_embeddings", JSON_OPTIONAL, &a->tied, c->origin, c->err);
    if (code) return code;
    return json_get_bool(c->outer, "tie_word_embeddings", JSON_OPTIONAL, &a->tied, c->origin, c->err);
}

// ---- RoPE

yyjson_val *config_rope_params(const config *c) {
    // transformers 4 writes rope_scaling beside rope_theta, transformers 5 both into rope_parameters; where a
    // file has both, the former wins there, too.
    yyjson_val *params = yyjson_obj_get(c->text, "rope_scaling");
    if (yyjson_obj_size(params) > 0) return params;
    return yyjson_obj_get(c->text, "rope_parameters");
}

static int read_rope_type(const config *c, yyjson_val *params, rope_type *out) {
    const char *name = "default";
    int code = json_get_string(params, "type", JSON_OPTIONAL, &name, c->origin, c->err); // before 4.43
    if (code) return code;
    if ((code = json_get_string(params, "rope_type", JSON_OPTIONAL, &name, c->origin, c->err))) return code;
    if (strcmp(name, "default") == 0) {
        *out = ROPE_DEFAULT;
    } else if (strcmp(name, "linear") == 0) {
        *out = ROPE_LINEAR;
    } else if (strcmp(name, "llama3") == 0) {
        *out = ROPE_LLAMA3;
    } else {
        return fail(c->err, FLUTE_EUNSUPPORTED,
                    "%s: the RoPE type \"%.40s\" is not supported; default, linear and llama3 are", c->origin,
                    name);
    }
    return FLUTE_OK;
}

static int refuse_partial_rotary(const config *c, yyjson_val *object) {
    double share = 1;
    int code = json_get_double(object, "partial_rotary_factor", JSON_OPTIONAL, &share, c->origin, c->err);
    if (code || share == 1) return code;
    return fail(c->err, FLUTE_EUNSUPPORTED,
                "%s: \"partial_rotary_factor\" is %g; only full rotation (1) is supported", c->origin, share);
}

int config_read_rope(const config *c, yyjson_val *params, double theta, rope *out) {
    if (params && !yyjson_is_null(params) && !yyjson_is_obj(params)) {
        return fail(c->err, FLUTE_EFORMAT, "%s: the RoPE parameters must be an object", c->origin);
    }
    *out = (rope){.type = ROPE_DEFAULT, .theta = theta};
    int code = read_rope_type(c, params, &out->type);
    if (code) return code;
    if ((code = refuse_partial_rotary(c, params))) return code;
    if ((code = refuse_partial_rotary(c, c->text))) return code;
    if ((code = json_get_double(params, "rope_theta", JSON_OPTIONAL, &out->theta, c->origin, c->err)))
        return code;
    if (out->type == ROPE_DEFAULT) return FLUTE_OK;
    if ((code = json_get_double(params, "factor", JSON_REQUIRED, &out->factor, c->origin, c->err)))
        return code;
    if (out->type == ROPE_LINEAR) return FLUTE_OK;
    code =
        json_get_double(params, "low_freq_factor", JSON_REQUIRED, &out->low_freq_factor, c->origin, c->err);
    if (code) return code;
    code =
        json_get_double(params, "high_freq_factor", JSON_REQUIRED, &out->high_freq_factor, c->origin, c->err);
    if (code) return code;
    return json_get_int(params, "original_max_position_embeddings", JSON_REQUIRED, 1, 1 << 24,
                        &out->original_context, c->origin, c->err);
}

// ---- Token ids

static int read_eos(arch *a, yyjson_val *value, const config *c) {
    yyjson_val *item = value;
    bool list = yyjson_is_arr(value);
    size_t n = list ? yyjson_arr_size(value) : 1;
    if (n > ARCH_MAX_EOS) {
        return fail(c->err, FLUTE_ERANGE, "%s: \"eos_token_id\" lists %zu tokens; at most %d are supported",
                    c->origin, n, ARCH_MAX_EOS);
    }
    for (size_t i = 0; i < n; i++) {
        if (list) item = yyjson_arr_get(value, i);
        if (!yyjson_is_uint(item) || yyjson_get_uint(item) >= (uint64_t)a->n_vocab) {
            return fail(c->err, FLUTE_EFORMAT,
                        "%s: \"eos_token_id\" must be a token id, or a list of them, below \"vocab_size\" %d",
                        c->origin, a->n_vocab);
        }
        a->eos[i] = (int32_t)yyjson_get_uint(item);
    }
    a->n_eos = (int)n;
    return FLUTE_OK;
}

static int read_bos(arch *a, yyjson_val *value, const config *c) {
    if (!yyjson_is_uint(value) || yyjson_get_uint(value) >= (uint64_t)a->n_vocab) {
        return fail(c->err, FLUTE_EFORMAT, "%s: \"bos_token_id\" must be a token id below \"vocab_size\" %d",
                    c->origin, a->n_vocab);
    }
    a->bos = (int32_t)yyjson_get_uint(value);
    return FLUTE_OK;
}

// The first of the places that has the key decides; null in config.json means that there is no such token,
// null in generation_config.json that config.json decides.
static yyjson_val *find_ids(const config *c, yyjson_val *generation, const char *key) {
    yyjson_val *value = yyjson_obj_get(generation, key);
    if (value && !yyjson_is_null(value)) return value;
    value = yyjson_obj_get(c->outer, key);
    return value ? value : yyjson_obj_get(c->text, key);
}

static int read_ids(arch *a, const config *c, yyjson_val *generation) {
    yyjson_val *bos = find_ids(c, generation, "bos_token_id");
    yyjson_val *eos = find_ids(c, generation, "eos_token_id");
    int code = FLUTE_OK;
    if (yyjson_is_null(bos)) a->bos = -1;
    if (yyjson_is_null(eos)) a->n_eos = 0;
    if (bos && !yyjson_is_null(bos)) code = read_bos(a, bos, c);
    if (!code && eos && !yyjson_is_null(eos)) code = read_eos(a, eos, c);
    return code;
}

// ---- The whole

static int refuse_quantized(const config *c) {
    yyjson_val *quantization = yyjson_obj_get(c->outer, "quantization_config");
    if (!quantization || yyjson_is_null(quantization)) return FLUTE_OK;
    const char *method = yyjson_get_str(yyjson_obj_get(quantization, "quant_method"));
    return fail(
        c->err, FLUTE_EUNSUPPORTED,
        "%s: the checkpoint is quantized already (%.40s); convert the original one in bf16, f16 or f32",
        c->origin, method ? method : "unnamed method");
}

int arch_from_config(arch *out, yyjson_val *root, yyjson_val *generation, const char *origin,
                     flute_error *err) {
    *out = (arch){.n_layers = 0};
    if (!yyjson_is_obj(root)) return fail(err, FLUTE_EFORMAT, "%s: not a JSON object", origin);
    int family = 0;
    int code = find_family(root, origin, &family, err);
    if (code) return code;
    config c = {.text = root, .outer = root, .origin = origin, .err = err};
    const char *text_key = families[family].text_key;
    if (text_key) {
        c.text = yyjson_obj_get(root, text_key);
        if (!yyjson_is_obj(c.text)) {
            return fail(err, FLUTE_EFORMAT, "%s: \"%s\" is missing or no object", origin, text_key);
        }
    }
    if ((code = refuse_quantized(&c))) return code;
    if ((code = families[family].build(out, &c))) return code;
    if ((code = read_ids(out, &c, generation))) return code;
    return arch_check(out, origin, err);
}
