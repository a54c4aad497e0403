// The shapes that --random knows, as their published config.json files give them. They go through
// arch_from_config, so that a random model is described exactly as the real one would be.
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "models/arch.h"

static const struct {
    const char *name, *config;
} shapes[] = {
    {"llama-3-8b",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4096,\"intermediate_size\":14336,"
     "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
     "\"vocab_size\":128256,\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":500000.0,\"bos_token_id\":128000,\"eos_token_id\":128001}"},
    {"llama-3.2-1b",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":2048,\"intermediate_size\":8192,"
     "\"num_hidden_layers\":16,\"num_attention_heads\":32,\"num_key_value_heads\":8,\"head_dim\":64,"
     "\"vocab_size\":128256,\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0,"
     "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192},"
     "\"tie_word_embeddings\":true,\"bos_token_id\":128000,\"eos_token_id\":128001}"},
    {"llama-3-70b",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8192,\"intermediate_size\":28672,"
     "\"num_hidden_layers\":80,\"num_attention_heads\":64,\"num_key_value_heads\":8,"
     "\"vocab_size\":128256,\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":500000.0,\"bos_token_id\":128000,\"eos_token_id\":128001}"},
    {"gemma-2-9b",
     "{\"architectures\":[\"Gemma2ForCausalLM\"],\"hidden_size\":3584,\"intermediate_size\":14336,"
     "\"num_hidden_layers\":42,\"num_attention_heads\":16,\"num_key_value_heads\":8,"
     "\"head_dim\":256,\"query_pre_attn_scalar\":256,\"vocab_size\":256000,"
     "\"max_position_embeddings\":8192,\"sliding_window\":4096}"},
    {"gemma-2-27b",
     "{\"architectures\":[\"Gemma2ForCausalLM\"],\"hidden_size\":4608,\"intermediate_size\":36864,"
     "\"num_hidden_layers\":46,\"num_attention_heads\":32,\"num_key_value_heads\":16,"
     "\"head_dim\":128,\"query_pre_attn_scalar\":144,\"vocab_size\":256000,"
     "\"max_position_embeddings\":8192,\"sliding_window\":4096}"},
};

int arch_from_name(arch *out, const char *name, flute_error *err) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name) != 0) continue;
        yyjson_doc *doc = json_parse(shapes[i].config, strlen(shapes[i].config), name, err);
        if (!doc) return FLUTE_ENOMEM; // the text is valid
        int code = arch_from_config(out, yyjson_doc_get_root(doc), NULL, name, err);
        yyjson_doc_free(doc);
        return code;
    }
    return fail(err, FLUTE_EINVAL,
                "no shape is called \"%.40s\"; these are known: llama-3-8b, llama-3.2-1b, llama-3-70b, "
                "gemma-2-9b, gemma-2-27b",
                name);
}
