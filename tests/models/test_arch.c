// The descriptor: to JSON and back, its tensors, the known shapes, rotary frequencies.
#include "tests/models/helper.h"

#include <math.h>

static const char *const files[] = {
    "docs-llama2/config.json",   "docs-llama3/config.json",    "docs-gemma2/config.json",
    "tiny/llama31/config.json",  "tiny/gemma1/config.json",    "tiny/gemma3/config.json",
    "configs/llama-3.2-1b.json", "configs/gemma-3-4b-it.json",
};

static int parse_text(arch *a, const char *text, flute_error *err) {
    yyjson_doc *doc = json_parse(text, strlen(text), "model.flt", err);
    if (!doc) fail_msg("%s", err->message);
    int code = arch_from_json(a, yyjson_doc_get_root(doc), "model.flt", err);
    yyjson_doc_free(doc);
    return code;
}

static void test_round_trip(void **state) {
    (void)state;
    for (size_t i = 0; i < N_ITEMS(files); i++) {
        arch a = arch_of_file(files[i]), b;
        flute_error err;
        char *text = arch_text(&a);
        if (parse_text(&b, text, &err)) fail_msg("%s", err.message);
        assert_same_arch(&a, &b);
        assert_true(a.norm_eps == b.norm_eps && a.q_scale == b.q_scale && a.embed_scale == b.embed_scale);
        for (int layer = 0; layer < a.n_layers; layer++) {
            assert_int_equal(a.layers[layer].window, b.layers[layer].window);
            assert_int_equal(a.layers[layer].rope, b.layers[layer].rope);
        }
        free(text);
    }
}

// Floats whose decimal forms are long, and ids at the edges.
static void test_round_trip_is_exact(void **state) {
    (void)state;
    arch a = arch_of_file("tiny/gemma3/config.json"), b;
    flute_error err;
    a.norm_eps = nextafterf(1e-6f, 1);
    a.q_scale = nextafterf(0.1f, 1);
    a.embed_scale = nextafterf(11.25f, 0);
    a.final_softcap = nextafterf(30, 31);
    a.rope[0].theta = nextafter(1e6, 1e7);
    a.bos = -1;
    a.n_eos = ARCH_MAX_EOS;
    for (int i = 0; i < a.n_eos; i++) a.eos[i] = a.n_vocab - 1 - i;
    char *text = arch_text(&a);
    if (parse_text(&b, text, &err)) fail_msg("%s", err.message);
    free(text);
    assert_true(b.norm_eps == a.norm_eps && b.q_scale == a.q_scale && b.embed_scale == a.embed_scale);
    assert_true(b.final_softcap == a.final_softcap && b.rope[0].theta == a.rope[0].theta);
    assert_int_equal(b.bos, -1);
    assert_int_equal(b.n_eos, ARCH_MAX_EOS);
    assert_memory_equal(b.eos, a.eos, sizeof a.eos);
}

// A copy of text with the first `from` replaced; malloc'd.
static char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) fail_msg("%s is not in %s", from, text);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void test_json_refusals(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
        int code;
        const char *needle;
    } cases[] = {
        {"\"name\":\"gemma3\"", "\"name\":null", FLUTE_EFORMAT, "name"},
        {"\"gemma3\"", "\"a name of more than thirty-one bytes\"", FLUTE_EFORMAT, "name"},
        {"\"n_layers\":7", "\"n_layers\":-7", FLUTE_EFORMAT, "n_layers"},
        {"\"n_layers\":7", "\"n_layers\":2147483648", FLUTE_EFORMAT, "n_layers"},
        {"\"n_layers\":7", "\"n_layers\":6", FLUTE_EFORMAT, "windows"},
        {"\"n_heads\":4", "\"n_heads\":5", FLUTE_ESHAPE, "heads"},
        {"\"n_heads\":4", "\"n_head\":4", FLUTE_EFORMAT, "n_heads"},
        {"\"head_dim\":64", "\"head_dim\":72", FLUTE_EUNSUPPORTED, "head_dim"},
        {"\"n_vocab\":512", "\"n_vocab\":2", FLUTE_EFORMAT, "bos"},
        {"\"tied\":true", "\"tied\":1", FLUTE_EFORMAT, "tied"},
        {"\"norm_offset\":1.0", "\"norm_offset\":1e300", FLUTE_ERANGE, "norm_offset"},
        {"\"norm_offset\":1.0", "\"norm_offset\":-1e300", FLUTE_ERANGE, "norm_offset"},
        {"\"q_scale\":0.125", "\"q_scale\":0", FLUTE_ERANGE, "q_scale"},
        {"\"gelu_tanh\"", "\"relu\"", FLUTE_EUNSUPPORTED, "relu"},
        {"\"chat\":\"gemma\"", "\"chat\":\"\"", FLUTE_EUNSUPPORTED, "chat"},
        {"\"type\":\"default\"", "\"type\":\"yarn\"", FLUTE_EUNSUPPORTED, "yarn"},
        {"\"type\":\"default\"", "\"type\":\"linear\"", FLUTE_EFORMAT, "factor"},
        {"\"theta\":1000000.0", "\"theta\":0.5", FLUTE_ERANGE, "RoPE base"},
        {"\"ropes\":[", "\"ropes\":[3,", FLUTE_EFORMAT, "ropes"},
        {"\"ropes\":[", "\"ropes\":[],\"was\":[", FLUTE_EFORMAT, "ropes"},
        {"\"windows\":[16", "\"windows\":[-16", FLUTE_EFORMAT, "windows"},
        {"\"windows\":[16,", "\"windows\":[", FLUTE_EFORMAT, "windows"},
        {"\"rope_index\":[1", "\"rope_index\":[2", FLUTE_EFORMAT, "rope_index"},
        {"\"bos\":2", "\"bos\":512", FLUTE_EFORMAT, "bos"},
        {"\"eos\":[1]", "\"eos\":[512]", FLUTE_EFORMAT, "eos"},
        {"\"eos\":[1]", "\"eos\":1", FLUTE_EFORMAT, "eos"},
        {"\"eos\":[1]", "\"e\":[1]", FLUTE_EFORMAT, "eos"},
    };
    arch a = arch_of_file("tiny/gemma3/config.json"), b;
    char *text = arch_text(&a);
    for (size_t i = 0; i < N_ITEMS(cases); i++) {
        flute_error err = {.code = 0};
        char *changed = replaced(text, cases[i].from, cases[i].to);
        assert_failure(parse_text(&b, changed, &err), cases[i].code, &err, "model.flt", cases[i].needle);
        free(changed);
    }
    flute_error err = {.code = 0};
    assert_failure(parse_text(&b, "[]", &err), FLUTE_EFORMAT, &err, "model.flt", "arch");
    // What a later version may add is ignored.
    char *longer = replaced(text, "{", "{\"novelty\":[{}],");
    assert_int_equal(parse_text(&b, longer, &err), FLUTE_OK);
    assert_same_arch(&a, &b);
    free(longer);
    free(text);
}

// ---- Tensors

static arch_tensor tensor_of(const arch *a, int index) {
    arch_tensor t;
    arch_tensor_at(a, index, &t);
    return t;
}

static void assert_tensor(const arch_tensor *t, tensor_role role, const char *name, int64_t n_rows,
                          int64_t n_cols, int n_sources, const char *first_source) {
    assert_string_equal(t->name, name);
    assert_int_equal(t->role, role);
    assert_int_equal(t->n_rows, n_rows);
    assert_int_equal(t->n_cols, n_cols);
    assert_int_equal(t->n_sources, n_sources);
    assert_string_equal(t->sources[0].name, first_source);
}

static void test_llama_tensors(void **state) {
    (void)state;
    arch a;
    assert_int_equal(arch_from_name(&a, "llama-3-8b", NULL), FLUTE_OK);
    assert_int_equal(arch_n_tensors(&a), 3 + 32 * 10);
    arch_tensor t = tensor_of(&a, TENSOR_EMBEDDING);
    assert_tensor(&t, ROLE_EMBEDDING, "embedding", 128256, 4096, 1, "model.embed_tokens.weight");
    t = tensor_of(&a, TENSOR_FINAL_NORM);
    assert_tensor(&t, ROLE_NORM, "final_norm", 1, 4096, 1, "model.norm.weight");
    t = tensor_of(&a, TENSOR_HEAD);
    assert_tensor(&t, ROLE_HEAD, "head", 128256, 4096, 1, "lm_head.weight");
    t = tensor_of(&a, arch_layer_tensor(31, SLOT_QKV));
    assert_tensor(&t, ROLE_PROJECTION, "layers.31.qkv", 6144, 4096, 3,
                  "model.layers.31.self_attn.q_proj.weight");
    assert_string_equal(t.sources[1].name, "model.layers.31.self_attn.k_proj.weight");
    assert_string_equal(t.sources[2].name, "model.layers.31.self_attn.v_proj.weight");
    assert_true(t.sources[0].n_rows == 4096 && t.sources[1].n_rows == 1024 && t.sources[2].n_rows == 1024);
    assert_int_equal(t.order, ROWS_QKV);
    t = tensor_of(&a, arch_layer_tensor(0, SLOT_GATE_UP));
    assert_tensor(&t, ROLE_PROJECTION, "layers.0.gate_up", 28672, 4096, 2,
                  "model.layers.0.mlp.gate_proj.weight");
    assert_string_equal(t.sources[1].name, "model.layers.0.mlp.up_proj.weight");
    assert_int_equal(t.order, ROWS_GATE_UP);
    t = tensor_of(&a, arch_layer_tensor(0, SLOT_O_PROJ));
    assert_tensor(&t, ROLE_PROJECTION, "layers.0.o_proj", 4096, 4096, 1,
                  "model.layers.0.self_attn.o_proj.weight");
    t = tensor_of(&a, arch_layer_tensor(0, SLOT_DOWN_PROJ));
    assert_tensor(&t, ROLE_PROJECTION, "layers.0.down_proj", 4096, 14336, 1,
                  "model.layers.0.mlp.down_proj.weight");
    t = tensor_of(&a, arch_layer_tensor(0, SLOT_ATTN_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.0.attn_norm", 1, 4096, 1, "model.layers.0.input_layernorm.weight");
    t = tensor_of(&a, arch_layer_tensor(0, SLOT_FF_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.0.ff_norm", 1, 4096, 1,
                  "model.layers.0.post_attention_layernorm.weight");
    static const layer_slot absent[] = {SLOT_Q_NORM, SLOT_K_NORM, SLOT_POST_ATTN_NORM, SLOT_POST_FF_NORM};
    for (size_t i = 0; i < N_ITEMS(absent); i++) {
        t = tensor_of(&a, arch_layer_tensor(1, absent[i]));
        assert_true(t.role == ROLE_ABSENT && t.n_sources == 0);
    }
}

static void test_gemma_tensors(void **state) {
    (void)state;
    arch a = arch_of_file("tiny/gemma3/config.json");
    arch_tensor t = tensor_of(&a, TENSOR_HEAD);
    assert_int_equal(t.role, ROLE_ABSENT);
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_Q_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.2.q_norm", 1, 64, 1, "model.layers.2.self_attn.q_norm.weight");
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_K_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.2.k_norm", 1, 64, 1, "model.layers.2.self_attn.k_norm.weight");
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_O_PROJ));
    assert_tensor(&t, ROLE_PROJECTION, "layers.2.o_proj", 128, 256, 1,
                  "model.layers.2.self_attn.o_proj.weight");
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_POST_ATTN_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.2.post_attn_norm", 1, 128, 1,
                  "model.layers.2.post_attention_layernorm.weight");
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_FF_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.2.ff_norm", 1, 128, 1,
                  "model.layers.2.pre_feedforward_layernorm.weight");
    t = tensor_of(&a, arch_layer_tensor(2, SLOT_POST_FF_NORM));
    assert_tensor(&t, ROLE_NORM, "layers.2.post_ff_norm", 1, 128, 1,
                  "model.layers.2.post_feedforward_layernorm.weight");
}

// ---- Shapes

static int64_t n_parameters(const arch *a) {
    int64_t n = 0;
    for (int i = 0; i < arch_n_tensors(a); i++) {
        arch_tensor t = tensor_of(a, i);
        for (int k = 0; k < t.n_sources; k++) n += t.sources[k].n_rows * t.n_cols;
    }
    return n;
}

static void test_shapes(void **state) {
    (void)state;
    // Parameter counts as their model cards or checkpoints' indices give them.
    static const struct {
        const char *name;
        int64_t n_parameters;
    } shapes[] = {
        {"llama-3-8b", 8030261248}, {"llama-3.2-1b", 1235814400}, {"llama-3-70b", 70553706496},
        {"gemma-2-9b", 9241705984}, {"gemma-2-27b", 27227128320},
    };
    arch a;
    for (size_t i = 0; i < N_ITEMS(shapes); i++) {
        assert_int_equal(arch_from_name(&a, shapes[i].name, NULL), FLUTE_OK);
        assert_int_equal(n_parameters(&a), shapes[i].n_parameters);
    }
    assert_true(a.q_scale == (float)(1.0 / 12) && a.head_dim == 128); // gemma-2-27b
    flute_error err = {.code = 0};
    assert_failure(arch_from_name(&a, "llama-9", &err), FLUTE_EINVAL, &err, "llama-9", "gemma-2-27b");

    kernel_dims dims;
    arch_from_name(&a, "llama-3.2-1b", NULL);
    arch_kernel_dims(&a, 128, 4, &dims);
    assert_true(dims.hidden == 2048 && dims.n_heads == 32 && dims.n_kv_heads == 8 && dims.head_dim == 64);
    assert_true(dims.n_ff == 8192 && dims.n_vocab == 128256 && dims.n_layers == 16);
    assert_true(dims.max_rows == 128 && dims.max_logits == 4);
}

// The shapes are the published files, but for what only chat models have.
static void test_shapes_match_files(void **state) {
    (void)state;
    static const char *const names[] = {"llama-3-8b", "llama-3.2-1b", "gemma-2-9b"};
    for (size_t i = 0; i < N_ITEMS(names); i++) {
        char file[256];
        arch a;
        snprintf(file, sizeof file, "configs/%s.json", names[i]);
        assert_int_equal(arch_from_name(&a, names[i], NULL), FLUTE_OK);
        arch b = arch_of_file(file);
        assert_same_arch(&a, &b);
    }
}

// ---- Rotary frequencies

static void assert_inv_freq(const rope *r, int head_dim, size_t n, const int *index, const double *expected) {
    float inv_freq[128];
    rope_inv_freq(r, head_dim, inv_freq);
    for (size_t i = 0; i < n; i++) {
        double error = fabs(inv_freq[index[i]] / expected[i] - 1);
        if (!(error < 1e-6)) {
            fail_msg("inv_freq[%d] is %.9g, not %.9g", index[i], (double)inv_freq[index[i]], expected[i]);
        }
    }
}

// Against ROPE_INIT_FUNCTIONS of transformers 5.23, whose arithmetic is float32.
static void test_inv_freq(void **state) {
    (void)state;
    arch a = arch_of_file("configs/llama-3.1-8b-instruct.json");
    static const int wide[] = {0, 1, 10, 20, 24, 28, 29, 30, 31, 32, 34, 36, 40, 50, 63};
    static const double wide_values[] = {1,
                                         0.814617217,
                                         0.128687382,
                                         0.0165604409,
                                         0.00729266508,
                                         0.00321144611,
                                         0.00216657063,
                                         0.00137189368,
                                         0.00085675146,
                                         0.000524846022,
                                         0.000178507791,
                                         7.78465546e-05,
                                         3.42810235e-05,
                                         4.41153452e-06,
                                         3.06892588e-07};
    assert_inv_freq(&a.rope[0], 128, N_ITEMS(wide), wide, wide_values);
    a = arch_of_file("configs/llama-3.2-1b.json");
    static const int narrow[] = {0, 1, 10, 20, 24, 31};
    static const double narrow_values[] = {
        1, 0.663601279, 0.0165604409, 8.57025589e-06, 1.66196742e-06, 9.41830649e-08};
    assert_inv_freq(&a.rope[0], 64, N_ITEMS(narrow), narrow, narrow_values);
    a = arch_of_file("configs/gemma-3-4b-it.json");
    static const int linear[] = {0, 1, 64, 127};
    static const double linear_values[] = {0.125, 0.112210892, 0.000125000006, 1.39246737e-07};
    assert_inv_freq(&a.rope[0], 256, N_ITEMS(linear), linear, linear_values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_round_trip_is_exact),
        cmocka_unit_test(test_json_refusals),      cmocka_unit_test(test_llama_tensors),
        cmocka_unit_test(test_gemma_tensors),      cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_shapes_match_files), cmocka_unit_test(test_inv_freq),
    };
    return cmocka_run_group_tests_name("arch", tests, NULL, NULL);
}
