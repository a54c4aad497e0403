// Gemma 1, 2 and 3 (text). Norm weights are stored minus one, embeddings are scaled, heads are tied; Gemma 2
// adds soft-caps, post-norms and sliding windows, Gemma 3 trades the soft-caps for q/k norms and gives
// sliding layers a RoPE of their own.
#include <math.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "models/arch_internal.h"

// Files carry "hidden_activation", or "hidden_act", or both, and then the former counts. Gemma 1 was released
// with a hidden_act of "gelu" and means the tanh form.
static int read_activation(const config *c) {
    const char *act = NULL, *name = NULL;
    int code = json_get_string(c->text, "hidden_act", JSON_OPTIONAL, &act, c->origin, c->err);
    if (code) return code;
    code = json_get_string(c->text, "hidden_activation", JSON_OPTIONAL, &name, c->origin, c->err);
    if (code) return code;
    if (!name && act && strcmp(act, "gelu") != 0) name = act;
    if (!name || strcmp(name, "gelu_pytorch_tanh") == 0) return FLUTE_OK;
    return fail(c->err, FLUTE_EUNSUPPORTED,
                "%s: the activation is \"%.40s\"; Gemma models with gelu_pytorch_tanh are supported",
                c->origin, name);
}

// What the three generations read alike, over the defaults in *a.
static int read_gemma(arch *a, const config *c) {
    a->tied = true;
    a->norm_eps = 1e-6f;
    a->norm_offset = 1;
    a->act = ACT_GELU_TANH;
    a->chat = CHAT_GEMMA;
    a->bos = 2;
    a->n_eos = 1;
    a->eos[0] = 1;
    int code = config_refuse_true(c, "attention_bias");
    if (code) return code;
    if ((code = config_refuse_true(c, "use_bidirectional_attention"))) return code;
    if ((code = read_activation(c))) return code;
    if ((code = config_read_common(a, c))) return code;
    // transformers rounds the factor to the type it computes in. The residual stream is float here, as in the
    // float32 reference figures; bf16 rounding (19.625 for 19.596 at 384) moves those logits by 0.35 % of
    // their standard deviation.
    a->embed_scale = (float)sqrt(a->hidden);
    a->q_scale = (float)(1 / sqrt(a->head_dim));
    return FLUTE_OK;
}

static int read_q_scale(arch *a, const config *c, float default_scalar) {
    float scalar = default_scalar;
    int code = config_read_scalar(c, "query_pre_attn_scalar", &scalar);
    if (code) return code;
    if (scalar == 0) {
        return fail(c->err, FLUTE_EFORMAT, "%s: \"query_pre_attn_scalar\" is null; it must be a number",
                    c->origin);
    }
    a->q_scale = (float)(1 / sqrt(scalar));
    return FLUTE_OK;
}

// Which layers slide: as layer_types says, else all but every pattern-th.
static int read_layer_types(arch *a, const config *c, int window, int64_t pattern) {
    yyjson_val *types = yyjson_obj_get(c->text, "layer_types");
    if (!types || yyjson_is_null(types)) {
        for (int i = 0; i < a->n_layers; i++) a->layers[i].window = (i + 1) % pattern ? window : 0;
        return FLUTE_OK;
    }
    if (yyjson_arr_size(types) != (size_t)a->n_layers) {
        return fail(c->err, FLUTE_EFORMAT, "%s: \"layer_types\" must list one type for each of %d layers",
                    c->origin, a->n_layers);
    }
    for (int i = 0; i < a->n_layers; i++) {
        const char *type = yyjson_get_str(yyjson_arr_get(types, (size_t)i));
        if (type && strcmp(type, "sliding_attention") == 0) {
            a->layers[i].window = window;
        } else if (!type || strcmp(type, "full_attention") != 0) {
            return fail(
                c->err, FLUTE_EUNSUPPORTED,
                "%s: \"layer_types\"[%d] is \"%.40s\"; sliding_attention and full_attention are supported",
                c->origin, i, type ? type : "no string");
        }
    }
    return FLUTE_OK;
}

static int read_windows(arch *a, const config *c, int default_window, int64_t pattern) {
    int64_t window = default_window;
    if (yyjson_is_null(yyjson_obj_get(c->text, "sliding_window"))) {
        return fail(c->err, FLUTE_EFORMAT, "%s: \"sliding_window\" is null; it must be a number of tokens",
                    c->origin);
    }
    int code = json_get_int(c->text, "sliding_window", JSON_OPTIONAL, 1, 1 << 24, &window, c->origin, c->err);
    if (code) return code;
    return read_layer_types(a, c, (int)window, pattern);
}

static int read_single_rope(arch *a, const config *c) {
    double theta = 10000;
    int code = json_get_double(c->text, "rope_theta", JSON_OPTIONAL, &theta, c->origin, c->err);
    if (code) return code;
    a->n_ropes = 1;
    return config_read_rope(c, config_rope_params(c), theta, &a->rope[0]);
}

int gemma_from_config(arch *a, const config *c) {
    *a = (arch){.name = "gemma",
                .n_layers = 28,
                .hidden = 3072,
                .n_heads = 16,
                .n_kv_heads = 16,
                .head_dim = 256,
                .n_ff = 24576,
                .n_vocab = 256000,
                .max_context = 8192};
    int code = read_gemma(a, c);
    if (code) return code;
    return read_single_rope(a, c);
}

int gemma2_from_config(arch *a, const config *c) {
    *a = (arch){.name = "gemma2",
                .n_layers = 26,
                .hidden = 2304,
                .n_heads = 8,
                .n_kv_heads = 4,
                .head_dim = 256,
                .n_ff = 9216,
                .n_vocab = 256000,
                .max_context = 8192,
                .post_norms = true,
                .attn_softcap = 50,
                .final_softcap = 30};
    int code = read_gemma(a, c);
    if (code) return code;
    if ((code = read_q_scale(a, c, 256))) return code;
    if ((code = config_read_scalar(c, "attn_logit_softcapping", &a->attn_softcap))) return code;
    if ((code = config_read_scalar(c, "final_logit_softcapping", &a->final_softcap))) return code;
    if ((code = read_windows(a, c, 4096, 2))) return code;
    return read_single_rope(a, c);
}

// transformers 5 nests one set of parameters for each type of layer into rope_parameters; transformers 4 has
// rope_theta and rope_scaling for the global layers and rope_local_base_freq for the others.
static int read_two_ropes(arch *a, const config *c) {
    double global = 1e6, local = 1e4;
    int code = json_get_double(c->text, "rope_theta", JSON_OPTIONAL, &global, c->origin, c->err);
    if (code) return code;
    code = json_get_double(c->text, "rope_local_base_freq", JSON_OPTIONAL, &local, c->origin, c->err);
    if (code) return code;
    yyjson_val *nested = yyjson_obj_get(c->text, "rope_parameters");
    yyjson_val *global_params = yyjson_obj_get(c->text, "rope_scaling");
    if (yyjson_obj_size(global_params) == 0) global_params = yyjson_obj_get(nested, "full_attention");
    a->n_ropes = 2;
    if ((code = config_read_rope(c, global_params, global, &a->rope[0]))) return code;
    code = config_read_rope(c, yyjson_obj_get(nested, "sliding_attention"), local, &a->rope[1]);
    if (code) return code;
    for (int i = 0; i < a->n_layers; i++) a->layers[i].rope = a->layers[i].window > 0;
    return FLUTE_OK;
}

int gemma3_from_config(arch *a, const config *c) {
    *a = (arch){.name = "gemma3",
                .n_layers = 26,
                .hidden = 2304,
                .n_heads = 8,
                .n_kv_heads = 4,
                .head_dim = 256,
                .n_ff = 9216,
                .n_vocab = 262208,
                .max_context = 131072,
                .qk_norm = true,
                .post_norms = true};
    int code = read_gemma(a, c);
    if (code) return code;
    if ((code = read_q_scale(a, c, 256))) return code;
    if ((code = config_read_scalar(c, "attn_logit_softcapping", &a->attn_softcap))) return code;
    if ((code = config_read_scalar(c, "final_logit_softcapping", &a->final_softcap))) return code;
    int64_t pattern = 6;
    const char *keys[] = {"_sliding_window_pattern", "sliding_window_pattern"};
    for (int i = 0; i < 2; i++) {
        code = json_get_int(c->text, keys[i], JSON_OPTIONAL, 1, ARCH_MAX_LAYERS, &pattern, c->origin, c->err);
        if (code) return code;
    }
    if ((code = read_windows(a, c, 4096, pattern))) return code;
    return read_two_ropes(a, c);
}
