// Llama 1, 2, 3, 3.1 and 3.2 (text). Later ones differ from the first only in sizes, grouped key/value heads,
// the RoPE's base and scaling, and whether the head is tied.
#include <math.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "models/arch_internal.h"

static int read_activation(const config *c) {
    const char *name = "silu";
    int code = json_get_string(c->text, "hidden_act", JSON_OPTIONAL, &name, c->origin, c->err);
    if (code || strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) return code;
    return fail(c->err, FLUTE_EUNSUPPORTED,
                "%s: \"hidden_act\" is \"%.40s\"; Llama models with silu are supported", c->origin, name);
}

int llama_from_config(arch *a, const config *c) {
    // The defaults of transformers' LlamaConfig: files of Llama 1 and 2 rely on them.
    *a = (arch){.name = "llama",
                .n_layers = 32,
                .hidden = 4096,
                .n_heads = 32,
                .n_ff = 11008,
                .n_vocab = 32000,
                .max_context = 2048,
                .norm_eps = 1e-6f,
                .embed_scale = 1,
                .act = ACT_SILU,
                .chat = CHAT_PLAIN,
                .n_ropes = 1,
                .bos = 1,
                .n_eos = 1,
                .eos = {2}};
    int code = config_refuse_true(c, "attention_bias");
    if (code) return code;
    if ((code = config_refuse_true(c, "mlp_bias"))) return code;
    if ((code = read_activation(c))) return code;
    if ((code = config_read_common(a, c))) return code;
    a->q_scale = (float)(1 / sqrt(a->head_dim));
    double theta = 10000;
    if ((code = json_get_double(c->text, "rope_theta", JSON_OPTIONAL, &theta, c->origin, c->err)))
        return code;
    return config_read_rope(c, config_rope_params(c), theta, &a->rope[0]);
}
