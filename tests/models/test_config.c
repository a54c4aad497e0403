// config.json of both dialects, of published models, and refused ones.
#include "tests/models/helper.h"

#include <math.h>

// Every checkpoint under tests/data was written by transformers 5; configs/v4-* are the same models as
// transformers 4 would have written them.
static void test_dialects_agree(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"docs-llama2", "docs-llama2"},   {"docs-llama3", "docs-llama3"},
        {"docs-gemma2", "docs-gemma2"},   {"tiny/llama2", "tiny-llama2"},
        {"tiny/llama31", "tiny-llama31"}, {"tiny/llama32-tied", "tiny-llama32-tied"},
        {"tiny/gemma1", "tiny-gemma1"},   {"tiny/gemma2", "tiny-gemma2"},
        {"tiny/gemma3", "tiny-gemma3"},
    };
    for (size_t i = 0; i < N_ITEMS(pairs); i++) {
        char five[256], four[256];
        snprintf(five, sizeof five, "%s/config.json", pairs[i][0]);
        snprintf(four, sizeof four, "configs/v4-%s.json", pairs[i][1]);
        arch new = arch_of_file(five), old = arch_of_file(four);
        assert_same_arch(&new, &old);
    }
}

static void test_tiny_models(void **state) {
    (void)state;
    arch a = arch_of_file("tiny/llama31/config.json");
    assert_string_equal(a.name, "llama");
    assert_int_equal(a.head_dim, 32);
    assert_int_equal(a.n_kv_heads, 2);
    assert_false(a.tied);
    assert_int_equal(a.rope[0].type, ROPE_LLAMA3);
    assert_int_equal(a.rope[0].original_context, 64);
    assert_true(a.rope[0].theta == 500000 && a.rope[0].factor == 8);
    assert_true(a.norm_eps == 1e-5f && a.norm_offset == 0 && a.embed_scale == 1);
    assert_true(a.q_scale == (float)(1 / sqrt(32)));

    a = arch_of_file("tiny/gemma2/config.json");
    assert_true(a.tied && a.post_norms && !a.qk_norm);
    assert_true(a.attn_softcap == 50 && a.final_softcap == 30 && a.norm_offset == 1);
    assert_true(a.q_scale == (float)(1 / sqrt(96)));
    assert_true(a.embed_scale == (float)sqrt(128));
    assert_int_equal(a.act, ACT_GELU_TANH);
    for (int i = 0; i < a.n_layers; i++) assert_int_equal(a.layers[i].window, i % 2 ? 0 : 16);

    a = arch_of_file("tiny/gemma3/config.json");
    assert_true(a.qk_norm && a.post_norms && a.attn_softcap == 0 && a.final_softcap == 0);
    assert_int_equal(a.n_ropes, 2);
    assert_true(a.rope[0].theta == 1e6 && a.rope[1].theta == 1e4);
    for (int i = 0; i < a.n_layers; i++) {
        assert_int_equal(a.layers[i].window, i == 5 ? 0 : 16);
        assert_int_equal(a.layers[i].rope, i == 5 ? 0 : 1);
    }
}

// What transformers 5.23 makes of the same files (AutoConfig.from_pretrained).
static void test_published_models(void **state) {
    (void)state;
    static const struct {
        const char *file, *name;
        int sizes[8]; // layers, hidden, heads, kv heads, head_dim, ff, vocab, context
        bool tied;
        float norm_eps;
        int window, n_global; // of the sliding layers; how many layers are global
        int bos, n_eos, eos[3];
    } models[] = {
        {"llama-7b", "llama", {32, 4096, 32, 32, 128, 11008, 32000, 2048}, false, 1e-6f, 0, 32, 1, 1, {2}},
        {"llama-2-7b", "llama", {32, 4096, 32, 32, 128, 11008, 32000, 4096}, false, 1e-5f, 0, 32, 1, 1, {2}},
        {"llama-3-8b",
         "llama",
         {32, 4096, 32, 8, 128, 14336, 128256, 8192},
         false,
         1e-5f,
         0,
         32,
         128000,
         1,
         {128001}},
        {"llama-3.1-8b-instruct",
         "llama",
         {32, 4096, 32, 8, 128, 14336, 128256, 131072},
         false,
         1e-5f,
         0,
         32,
         128000,
         3,
         {128001, 128008, 128009}},
        {"llama-3.2-1b",
         "llama",
         {16, 2048, 32, 8, 64, 8192, 128256, 131072},
         true,
         1e-5f,
         0,
         16,
         128000,
         1,
         {128001}},
        {"gemma-2b", "gemma", {18, 2048, 8, 1, 256, 16384, 256000, 8192}, true, 1e-6f, 0, 18, 2, 1, {1}},
        {"gemma-2-9b",
         "gemma2",
         {42, 3584, 16, 8, 256, 14336, 256000, 8192},
         true,
         1e-6f,
         4096,
         21,
         2,
         1,
         {1}},
        {"gemma-3-1b-it",
         "gemma3",
         {26, 1152, 4, 1, 256, 6912, 262144, 32768},
         true,
         1e-6f,
         512,
         4,
         2,
         2,
         {1, 106}},
        {"gemma-3-4b-it",
         "gemma3",
         {34, 2560, 8, 4, 256, 10240, 262208, 131072},
         true,
         1e-6f,
         1024,
         5,
         2,
         2,
         {1, 106}},
    };
    for (size_t i = 0; i < N_ITEMS(models); i++) {
        char file[256];
        snprintf(file, sizeof file, "configs/%s.json", models[i].file);
        arch a = arch_of_file(file);
        int sizes[8] = {a.n_layers, a.hidden, a.n_heads, a.n_kv_heads,
                        a.head_dim, a.n_ff,   a.n_vocab, a.max_context};
        assert_string_equal(a.name, models[i].name);
        assert_memory_equal(sizes, models[i].sizes, sizeof sizes);
        assert_int_equal(a.tied, models[i].tied);
        assert_true(a.norm_eps == models[i].norm_eps);
        int n_global = 0;
        for (int layer = 0; layer < a.n_layers; layer++) {
            if (a.layers[layer].window == 0)
                n_global++;
            else
                assert_int_equal(a.layers[layer].window, models[i].window);
        }
        assert_int_equal(n_global, models[i].n_global);
        assert_int_equal(a.bos, models[i].bos);
        assert_int_equal(a.n_eos, models[i].n_eos);
        for (int k = 0; k < a.n_eos; k++) assert_int_equal(a.eos[k], models[i].eos[k]);
    }
}

static void test_published_ropes(void **state) {
    (void)state;
    arch a = arch_of_file("configs/gemma-3-4b-it.json");
    assert_int_equal(a.rope[0].type, ROPE_LINEAR);
    assert_true(a.rope[0].factor == 8 && a.rope[0].theta == 1e6);
    assert_int_equal(a.rope[1].type, ROPE_DEFAULT);
    assert_true(a.rope[1].theta == 1e4);
    a = arch_of_file("configs/llama-3.2-1b.json");
    assert_int_equal(a.rope[0].type, ROPE_LLAMA3);
    assert_true(a.rope[0].factor == 32 && a.rope[0].low_freq_factor == 1 && a.rope[0].high_freq_factor == 4);
    assert_int_equal(a.rope[0].original_context, 8192);
    a = arch_of_file("configs/llama-7b.json");
    assert_true(a.rope[0].type == ROPE_DEFAULT && a.rope[0].theta == 10000);
}

// ---- Variations of a small file

#define LLAMA                                                                                                \
    "\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":128,\"num_attention_heads\":4,\"vocab_size\":" \
    "512"
#define GEMMA2                                                                                               \
    "\"architectures\":[\"Gemma2ForCausalLM\"],\"hidden_size\":128,\"num_hidden_layers\":4,\"vocab_size\":"  \
    "512"
#define GEMMA3                                                                                               \
    "\"architectures\":[\"Gemma3ForCausalLM\"],\"hidden_size\":128,\"num_hidden_layers\":4,\"vocab_size\":"  \
    "512"

static int parse_text(arch *a, const char *config, const char *generation, flute_error *err) {
    yyjson_doc *doc = json_parse(config, strlen(config), "config.json", err);
    yyjson_doc *generation_doc =
        generation ? json_parse(generation, strlen(generation), "generation", err) : NULL;
    if (!doc || (generation && !generation_doc)) fail_msg("%s", err->message);
    int code = arch_from_config(a, yyjson_doc_get_root(doc), yyjson_doc_get_root(generation_doc),
                                "config.json", err);
    yyjson_doc_free(doc);
    yyjson_doc_free(generation_doc);
    return code;
}

static arch arch_of_text(const char *config, const char *generation) {
    arch a;
    flute_error err;
    if (parse_text(&a, config, generation, &err)) fail_msg("%s", err.message);
    return a;
}

static void test_token_ids(void **state) {
    (void)state;
    arch a = arch_of_text("{" LLAMA ",\"eos_token_id\":7,\"bos_token_id\":3}",
                          "{\"eos_token_id\":[8,9],\"bos_token_id\":4}");
    assert_int_equal(a.bos, 4);
    assert_int_equal(a.n_eos, 2);
    assert_int_equal(a.eos[1], 9);
    a = arch_of_text("{" LLAMA ",\"eos_token_id\":7,\"bos_token_id\":3}", "{\"eos_token_id\":null}");
    assert_true(a.bos == 3 && a.n_eos == 1 && a.eos[0] == 7);
    a = arch_of_text("{" LLAMA ",\"eos_token_id\":null,\"bos_token_id\":null}", NULL);
    assert_true(a.bos == -1 && a.n_eos == 0);
    a = arch_of_text("{" LLAMA "}", NULL);
    assert_true(a.bos == 1 && a.n_eos == 1 && a.eos[0] == 2);
}

static void test_variants(void **state) {
    (void)state;
    // model_type stands in where there are no architectures.
    arch a = arch_of_text("{\"model_type\":\"gemma2\",\"attn_logit_softcapping\":null,\"sliding_window\":99}",
                          NULL);
    assert_true(a.attn_softcap == 0 && a.final_softcap == 30 && a.layers[0].window == 99);
    // The key of before transformers 4.43.
    a = arch_of_text("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", NULL);
    assert_true(a.rope[0].type == ROPE_LINEAR && a.rope[0].factor == 2);
    a = arch_of_text("{" GEMMA3 ",\"sliding_window_pattern\":2}", NULL);
    assert_true(a.layers[0].window == 4096 && a.layers[1].window == 0 && a.layers[2].rope == 1);
    a = arch_of_text("{" GEMMA2
                     ",\"layer_types\":[\"full_attention\",\"full_attention\",\"sliding_attention\","
                     "\"full_attention\"]}",
                     NULL);
    assert_true(a.layers[0].window == 0 && a.layers[2].window == 4096);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *config;
        int code;
        const char *needle;
    } cases[] = {
        {"[]", FLUTE_EFORMAT, "object"},
        {"{}", FLUTE_EFORMAT, "architectures"},
        {"{\"architectures\":[\"MambaForCausalLM\"]}", FLUTE_EUNSUPPORTED, "MambaForCausalLM"},
        {"{\"architectures\":[7],\"model_type\":\"t5\"}", FLUTE_EUNSUPPORTED, "t5"},
        {"{\"architectures\":[\"Gemma3ForConditionalGeneration\"]}", FLUTE_EFORMAT, "text_config"},
        {"{" LLAMA ",\"attention_bias\":true}", FLUTE_EUNSUPPORTED, "attention_bias"},
        {"{" LLAMA ",\"mlp_bias\":true}", FLUTE_EUNSUPPORTED, "mlp_bias"},
        {"{" LLAMA ",\"mlp_bias\":1}", FLUTE_EFORMAT, "mlp_bias"},
        {"{" LLAMA ",\"hidden_act\":\"gelu\"}", FLUTE_EUNSUPPORTED, "gelu"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", FLUTE_EUNSUPPORTED, "gptq"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}", FLUTE_EUNSUPPORTED, "yarn"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}", FLUTE_EUNSUPPORTED, "dynamic"},
        {"{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"longrope\"}}", FLUTE_EUNSUPPORTED, "longrope"},
        {"{" LLAMA ",\"rope_parameters\":3}", FLUTE_EFORMAT, "RoPE"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\"}}", FLUTE_EFORMAT, "factor"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", FLUTE_ERANGE, "factor"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
         FLUTE_ERANGE, "low_freq_factor"},
        {"{" LLAMA ",\"rope_theta\":-1}", FLUTE_ERANGE, "RoPE base"},
        {"{" LLAMA ",\"rope_theta\":\"big\"}", FLUTE_EFORMAT, "rope_theta"},
        {"{" LLAMA ",\"partial_rotary_factor\":0.5}", FLUTE_EUNSUPPORTED, "partial_rotary_factor"},
        {"{" LLAMA ",\"num_hidden_layers\":0}", FLUTE_EFORMAT, "num_hidden_layers"},
        {"{" LLAMA ",\"num_hidden_layers\":513}", FLUTE_EFORMAT, "512"},
        {"{" LLAMA ",\"intermediate_size\":-5}", FLUTE_EFORMAT, "-5"},
        {"{" LLAMA ",\"intermediate_size\":18446744073709551615}", FLUTE_EFORMAT, "18446744073709551615"},
        {"{" LLAMA ",\"intermediate_size\":1.5}", FLUTE_EFORMAT, "intermediate_size"},
        {"{" LLAMA ",\"num_key_value_heads\":3}", FLUTE_ESHAPE, "3 key/value heads"},
        {"{" LLAMA ",\"head_dim\":40}", FLUTE_EUNSUPPORTED, "40"},
        {"{" LLAMA ",\"head_dim\":512}", FLUTE_EFORMAT, "head_dim"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":100,\"num_attention_heads\":3}",
         FLUTE_ESHAPE, "num_attention_heads"},
        {"{" LLAMA ",\"rms_norm_eps\":0}", FLUTE_ERANGE, "rms_norm_eps"},
        {"{" LLAMA ",\"rms_norm_eps\":1}", FLUTE_ERANGE, "norm_eps"},
        {"{" LLAMA ",\"eos_token_id\":512}", FLUTE_EFORMAT, "eos_token_id"},
        {"{" LLAMA ",\"eos_token_id\":[1,-1]}", FLUTE_EFORMAT, "eos_token_id"},
        {"{" LLAMA ",\"eos_token_id\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", FLUTE_ERANGE, "17"},
        {"{" LLAMA ",\"bos_token_id\":512}", FLUTE_EFORMAT, "bos_token_id"},
        {"{" GEMMA2 ",\"hidden_activation\":\"gelu\"}", FLUTE_EUNSUPPORTED, "\"gelu\""},
        {"{" GEMMA2 ",\"hidden_act\":\"relu\"}", FLUTE_EUNSUPPORTED, "relu"},
        {"{" GEMMA2 ",\"use_bidirectional_attention\":true}", FLUTE_EUNSUPPORTED,
         "use_bidirectional_attention"},
        {"{" GEMMA2 ",\"sliding_window\":0}", FLUTE_EFORMAT, "sliding_window"},
        {"{" GEMMA2 ",\"sliding_window\":null}", FLUTE_EFORMAT, "sliding_window"},
        {"{" GEMMA2 ",\"query_pre_attn_scalar\":null}", FLUTE_EFORMAT, "query_pre_attn_scalar"},
        {"{" GEMMA2 ",\"query_pre_attn_scalar\":-2}", FLUTE_ERANGE, "query_pre_attn_scalar"},
        {"{" GEMMA2 ",\"final_logit_softcapping\":1e9}", FLUTE_ERANGE, "final_logit_softcapping"},
        {"{" GEMMA2 ",\"layer_types\":[\"full_attention\"]}", FLUTE_EFORMAT, "layer_types"},
        {"{" GEMMA3 ",\"layer_types\":[\"full_attention\",\"chunked_attention\",3,4]}", FLUTE_EUNSUPPORTED,
         "chunked_attention"},
        {"{" GEMMA3 ",\"sliding_window_pattern\":0}", FLUTE_EFORMAT, "sliding_window_pattern"},
    };
    for (size_t i = 0; i < N_ITEMS(cases); i++) {
        arch a;
        flute_error err = {.code = 0};
        int code = parse_text(&a, cases[i].config, NULL, &err);
        assert_failure(code, cases[i].code, &err, "config.json", cases[i].needle);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dialects_agree),   cmocka_unit_test(test_tiny_models),
        cmocka_unit_test(test_published_models), cmocka_unit_test(test_published_ropes),
        cmocka_unit_test(test_token_ids),        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
