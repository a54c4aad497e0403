// The .flt container: what is written is read back, version 1 stays what it is, and no byte can change
// unnoticed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include "engine/base/json.h"
#include "engine/flt.h"
#include "kernels/layout.h"

// XXH3-64 of the file that write_model() makes. It may never change: format version 1 is frozen.
#define GOLDEN_FILE 0x4c41d4d40b6d0cafu

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":128,\"intermediate_size\":192,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":500,"
    "\"max_position_embeddings\":256,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,\"bos_token_id\":1,"
    "\"eos_token_id\":2}";

static void get_arch(arch *out) {
    flute_error err;
    yyjson_doc *doc = json_parse(config, sizeof config - 1, "config", &err);
    assert_non_null(doc);
    assert_int_equal(arch_from_config(out, yyjson_doc_get_root(doc), NULL, "config", &err), FLUTE_OK);
    yyjson_doc_free(doc);
}

// A type for every kind of tensor, so that each appears.
static weight plan(const arch_tensor *tensor, int index) {
    weight w = {.type = WEIGHT_F32, .n_rows = tensor->n_rows, .n_cols = tensor->n_cols};
    static const weight projections[N_LAYER_SLOTS] = {
        [SLOT_QKV] = {.type = WEIGHT_LUT3, .group_size = 64},
        [SLOT_O_PROJ] = {.type = WEIGHT_INT8, .group_size = 32},
        [SLOT_GATE_UP] = {.type = WEIGHT_LUT4, .group_size = 128},
        [SLOT_DOWN_PROJ] = {.type = WEIGHT_LUT2, .group_size = 64}};
    if (tensor->role == ROLE_PROJECTION) {
        const weight *p = &projections[(index - N_MODEL_TENSORS) % N_LAYER_SLOTS];
        w.type = p->type;
        w.group_size = p->group_size;
    }
    if (tensor->role == ROLE_EMBEDDING) w.type = WEIGHT_BF16;
    if (tensor->role == ROLE_HEAD) w.type = WEIGHT_F16;
    if (weight_is_quantized(w.type) && w.type != WEIGHT_INT8)
        for (int i = 0; i < 1 << weight_type_bits(w.type); i++)
            w.table[i] = bf16_from_float((float)(i + index) / 16 - 0.7f);
    w.size = weight_is_quantized(w.type) ? layout_matrix_bytes(w.type, w.n_rows, w.n_cols, w.group_size)
                                         : (size_t)(w.n_rows * w.n_cols * weight_type_bits(w.type) / 8);
    return w;
}

static uint8_t *contents(const weight *w, int index) {
    uint8_t *bytes = malloc(w->size);
    if (weight_is_quantized(w->type))
        layout_random_panels(w->type, w->n_cols, w->group_size, 0, layout_padded_rows(w->n_rows) / PANEL_ROWS,
                             (uint64_t)index, 0.1f, bytes);
    else
        for (size_t i = 0; i < w->size; i++) bytes[i] = (uint8_t)(i * 31 + (size_t)index);
    return bytes;
}

static uint8_t words[5000]; // stands for a tokenizer

static void write_model(const char *path) {
    arch a;
    get_arch(&a);
    for (size_t i = 0; i < sizeof words; i++) words[i] = (uint8_t)(i * i);
    const flt_writer_options options = {.arch = &a,
                                        .name = "a \"model\"",
                                        .generator = "test_flt",
                                        .tokenizer = TOKENIZER_BPE,
                                        .tokenizer_blob = words,
                                        .tokenizer_size = sizeof words};
    flt_writer *writer;
    flute_error err = {0};
    if (flt_writer_create(&writer, path, &options, &err)) fail_msg("%s", err.message);
    for (int i = arch_n_tensors(&a) - 1; i >= 0; i--) { // any order will do
        arch_tensor tensor;
        arch_tensor_at(&a, i, &tensor);
        if (tensor.role == ROLE_ABSENT) continue;
        const weight w = plan(&tensor, i);
        uint8_t *bytes = contents(&w, i);
        const size_t half = w.size / 3;
        assert_int_equal(flt_writer_begin(writer, i, &w, &err), FLUTE_OK);
        assert_int_equal(flt_writer_append(writer, bytes, half, &err), FLUTE_OK);
        assert_int_equal(flt_writer_append(writer, bytes + half, w.size - half, &err), FLUTE_OK);
        assert_int_equal(flt_writer_end(writer, &err), FLUTE_OK);
        free(bytes);
    }
    if (flt_writer_commit(writer, &err)) fail_msg("%s", err.message);
}

typedef struct image {
    uint8_t *data; // aligned to 4096, with room for a byte more
    size_t size, header_size;
} image;

static image load_image(void) {
    char path[64];
    snprintf(path, sizeof path, "test_flt.%d.flt", (int)getpid());
    write_model(path);
    file_map map;
    flute_error err;
    assert_int_equal(file_map_open(&map, path, &err), FLUTE_OK);
    image m = {.size = map.size};
    m.data = aligned_alloc(4096, (map.size / 4096 + 1) * 4096);
    memcpy(m.data, map.data, map.size);
    uint64_t header_size;
    memcpy(&header_size, m.data + 16, sizeof header_size);
    m.header_size = (size_t)header_size;
    file_map_close(&map);
    assert_int_equal(unlink(path), 0);
    return m;
}

// What opening the first `size` bytes gives: parse, then verify.
static int check(const uint8_t *data, size_t size, flute_error *err) {
    flt file;
    *err = (flute_error){0};
    int code = flt_parse(&file, data, size, "m.flt", err);
    if (!code) {
        code = flt_verify(&file, NULL, "m.flt", NULL, err);
        flt_free(&file);
    }
    if (code) assert_memory_equal(err->message, "m.flt: ", 7);
    assert_int_equal(code, err->code);
    return code;
}

static void test_round_trip(void **state) {
    const image *m = *state;
    arch a;
    get_arch(&a);
    flt file;
    flute_error err;
    assert_int_equal(flt_parse(&file, m->data, m->size, "m.flt", &err), FLUTE_OK);
    assert_string_equal(file.name, "a \"model\"");
    assert_int_equal(file.tokenizer, TOKENIZER_BPE);
    assert_int_equal(file.tokenizer_size, sizeof words);
    assert_memory_equal(file.tokenizer_blob, words, sizeof words);
    assert_int_equal((const uint8_t *)file.tokenizer_blob - m->data, FLT_PREFIX_BYTES + m->header_size);

    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    char *before = yyjson_mut_val_write(arch_to_json(&a, doc), 0, NULL);
    char *after = yyjson_mut_val_write(arch_to_json(&file.arch, doc), 0, NULL);
    assert_string_equal(before, after);
    free(before);
    free(after);
    yyjson_mut_doc_free(doc);

    for (int i = 0; i < arch_n_tensors(&a); i++) {
        arch_tensor tensor;
        arch_tensor_at(&a, i, &tensor);
        const weight *w = &file.tensors[i];
        if (tensor.role == ROLE_ABSENT) {
            assert_null(w->data);
            continue;
        }
        const weight expected = plan(&tensor, i);
        uint8_t *bytes = contents(&expected, i);
        assert_int_equal(w->type, expected.type);
        assert_int_equal(w->group_size, expected.group_size);
        assert_int_equal(w->n_rows, expected.n_rows);
        assert_int_equal(w->n_cols, expected.n_cols);
        assert_int_equal(w->size, expected.size);
        assert_memory_equal(w->table, expected.table, sizeof w->table);
        assert_memory_equal(w->data, bytes, w->size);
        assert_int_equal(((const uint8_t *)w->data - m->data) % FLT_ALIGNMENT, 0);
        free(bytes);
    }
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        thread_pool *pool = threads_create(n_threads, &err);
        assert_non_null(pool);
        assert_int_equal(flt_verify(&file, pool, "m.flt", NULL, &err), FLUTE_OK);
        threads_free(pool);
    }
    flt_free(&file);
    flt_free(&file); // a zeroed one
}

static void test_frozen(void **state) {
    const image *m = *state;
    const uint64_t hash = XXH3_64bits(m->data, m->size);
    if (hash != GOLDEN_FILE)
        fail_msg("the file's hash is 0x%016llx: format version 1 has changed", (unsigned long long)hash);
}

// The checksum of a region by the words of weights.md, for one longer than a chunk.
static void test_chunks(void **state) {
    (void)state;
    char path[64];
    arch a;
    flute_error err;
    flt_writer *writer;
    file_map map;
    flt file;
    get_arch(&a);
    snprintf(path, sizeof path, "test_flt.%d.flt", (int)getpid());
    const size_t size = 2 * FLT_CHUNK_BYTES + FLT_CHUNK_BYTES / 2 + 1;
    uint8_t *blob = calloc(1, size + FLT_ALIGNMENT);
    for (size_t i = 0; i < size; i++) blob[i] = (uint8_t)(i * i >> 5);
    const flt_writer_options options = {.arch = &a,
                                        .name = "",
                                        .generator = "",
                                        .tokenizer = TOKENIZER_SENTENCEPIECE,
                                        .tokenizer_blob = blob,
                                        .tokenizer_size = size};
    assert_int_equal(flt_writer_create(&writer, path, &options, &err), FLUTE_OK);
    for (int i = 0; i < arch_n_tensors(&a); i++) {
        arch_tensor tensor;
        arch_tensor_at(&a, i, &tensor);
        if (tensor.role == ROLE_ABSENT) continue;
        const weight w = plan(&tensor, i);
        uint8_t *bytes = contents(&w, i);
        assert_int_equal(flt_writer_begin(writer, i, &w, &err), FLUTE_OK);
        assert_int_equal(flt_writer_append(writer, bytes, w.size, &err), FLUTE_OK);
        assert_int_equal(flt_writer_end(writer, &err), FLUTE_OK);
        free(bytes);
    }
    assert_int_equal(flt_writer_commit(writer, &err), FLUTE_OK);
    assert_int_equal(file_map_open(&map, path, &err), FLUTE_OK);
    assert_int_equal(flt_parse(&file, map.data, map.size, path, &err), FLUTE_OK);
    assert_int_equal(flt_verify(&file, NULL, path, NULL, &err), FLUTE_OK);

    uint64_t digests[3];
    const size_t extent = (size + 4095) / 4096 * 4096;
    for (size_t i = 0; i < 3; i++) {
        const size_t at = i << 20, n = extent - at < 1 << 20 ? extent - at : 1 << 20;
        digests[i] = XXH3_64bits(blob + at, n);
    }
    char expected[64];
    snprintf(expected, sizeof expected, "\"checksum\":\"%016llx\"",
             (unsigned long long)XXH3_64bits(digests, sizeof digests));
    char *header = strndup((const char *)map.data + FLT_PREFIX_BYTES, 4000);
    assert_non_null(strstr(header, expected));
    free(header);
    flt_free(&file);
    file_map_close(&map);
    free(blob);
    unlink(path);
}

// Every byte of the prefix, many of the header and of every region, and the first and last of every page.
static void test_every_byte(void **state) {
    const image *m = *state;
    flute_error err;
    assert_int_equal(check(m->data, m->size, &err), FLUTE_OK);
    size_t n_flips = 0;
    for (size_t at = 0; at < m->size; n_flips++) {
        const uint8_t bit = (uint8_t)(1u << (at % 8));
        m->data[at] ^= bit;
        const int code = check(m->data, m->size, &err);
        m->data[at] ^= bit;
        if (code == FLUTE_OK) fail_msg("bit %zu of byte %zu may change unnoticed", at % 8, at);
        if (at >= FLT_PREFIX_BYTES) {
            assert_int_equal(code, FLUTE_ECHECKSUM);
            const bool header = at < FLT_PREFIX_BYTES + m->header_size;
            assert_true(header == (strstr(err.message, "the header") != NULL));
        }
        at += at < FLT_PREFIX_BYTES + 300 ? 1 : at % 4096 >= 4090 || at % 4096 < 8 ? 1 : 131;
    }
    printf("# %zu of %zu bytes flipped\n", n_flips, m->size);
    assert_int_equal(check(m->data, m->size, &err), FLUTE_OK);
}

static void test_truncated(void **state) {
    const image *m = *state;
    flute_error err;
    for (size_t size = 0; size < m->size;) {
        assert_int_equal(check(m->data, size, &err), FLUTE_EFORMAT);
        assert_non_null(strstr(err.message, size < 8 ? "not a .flt file" : "truncated"));
        size += size < 100 || size % 4096 >= 4094 || size % 4096 < 2 || size + 10 > m->size
                    ? 1
                    : 1023 - size % 1023;
    }
    m->data[m->size] = 0;
    assert_int_equal(check(m->data, m->size + 1, &err), FLUTE_EFORMAT);
    assert_non_null(strstr(err.message, "1 bytes follow"));
}

// ---- Headers that are whole but wrong

static void seal(uint8_t *data, size_t size, size_t header_size) {
    uint64_t values[3] = {header_size, XXH3_64bits(data + FLT_PREFIX_BYTES, header_size), size};
    memcpy(data + 16, values, sizeof values);
    uint64_t checksum = XXH3_64bits(data, 56);
    memcpy(data + 56, &checksum, sizeof checksum);
}

// Replaces the first `from` after `anchor` in the header and seals the file again.
static int edited(const image *m, const char *anchor, const char *from, const char *to, flute_error *err) {
    uint8_t *copy = aligned_alloc(4096, m->size);
    memcpy(copy, m->data, m->size);
    char *text = (char *)copy + FLT_PREFIX_BYTES;
    size_t length = m->header_size;
    while (length > 0 && text[length - 1] == ' ') length--;
    char *at = memmem(text, length, anchor, strlen(anchor));
    assert_non_null(at);
    at = memmem(at, length - (size_t)(at - text), from, strlen(from));
    assert_non_null(at);
    const size_t tail = length - (size_t)(at - text) - strlen(from);
    assert_true(length - strlen(from) + strlen(to) <= m->header_size);
    memmove(at + strlen(to), at + strlen(from), tail);
    memcpy(at, to, strlen(to));
    const size_t end = length - strlen(from) + strlen(to);
    memset(text + end, ' ', m->header_size - end);
    seal(copy, m->size, m->header_size);
    const int code = check(copy, m->size, err);
    free(copy);
    return code;
}

static void test_wrong_headers(void **state) {
    const image *m = *state;
    static const struct {
        const char *anchor, *from, *to;
        int code;
        const char *says;
    } cases[] = {
        {"{", "{", "{\"future\":[1,{\"a\":null}],", FLUTE_OK, ""},
        {"\"layers.0.qkv\"", "\"group\":64", "\"future\":1.5,\"group\":64", FLUTE_OK, ""},
        {"{", "{", "[", FLUTE_EFORMAT, "not valid JSON"},
        {"\"arch\"", "\"arch\"", "\"ark\"", FLUTE_EFORMAT, "architecture"},
        {"\"arch\"", "\"n_layers\":2", "\"n_layers\":3", FLUTE_EFORMAT, "tensor layers.2."},
        {"\"arch\"", "\"n_layers\":2", "\"n_layers\":1", FLUTE_EFORMAT, "not part of this architecture"},
        {"\"arch\"", "\"hidden\":128", "\"hidden\":256", FLUTE_ESHAPE, "x 256"},
        {"\"tokenizer\"", "\"bpe\"", "\"wordy\"", FLUTE_EUNSUPPORTED, "update flute"},
        {"\"tokenizer\"", "\"size\":5000", "\"size\":0", FLUTE_EFORMAT, "\"size\""},
        {"\"tensors\"", "\"tensors\"", "\"tensor\"", FLUTE_EFORMAT, "\"tensors\""},
        {"\"layers.0.qkv\"", "layers.0.qkv", "layers.0.qvk", FLUTE_EFORMAT, "layers.0.qvk"},
        {"\"layers.0.qkv\"", "layers.0.qkv", "layers.1.o_proj", FLUTE_ESHAPE, "layers.1.o_proj"},
        {"\"layers.1.attn_norm\"", "layers.1.attn_norm", "layers.0.attn_norm", FLUTE_EFORMAT, "twice"},
        {"\"layers.0.qkv\"", "\"lut3\"", "\"lut9\"", FLUTE_EUNSUPPORTED, "\"lut9\""},
        {"\"layers.0.qkv\"", "\"lut3\"", "\"lut2\"", FLUTE_EFORMAT, "array of 4"},
        {"\"layers.0.qkv\"", "\"lut3\"", "\"f16\"", FLUTE_EFORMAT, "group size"},
        {"\"layers.0.o_proj\"", "\"int8\"", "\"f32\"", FLUTE_EFORMAT, "group size"},
        {"\"layers.0.attn_norm\"", "\"f32\"", "\"int8\",\"group\":32", FLUTE_EFORMAT, "norms are dense"},
        {"\"layers.0.attn_norm\"", "\"f32\"", "\"f16\"", FLUTE_EFORMAT, "512 bytes"},
        {"\"layers.0.qkv\"", "[256,128]", "[256,128,1]", FLUTE_EFORMAT, "[rows, columns]"},
        {"\"layers.0.qkv\"", "[256,128]", "[256,-128]", FLUTE_EFORMAT, "[rows, columns]"},
        {"\"layers.0.qkv\"", "[256,128]", "[18446744073709551615,128]", FLUTE_ESHAPE, "18446744073709551615"},
        {"\"layers.0.qkv\"", "\"group\":64", "\"group\":48", FLUTE_EFORMAT, "group size is 48"},
        {"\"layers.0.qkv\"", "\"group\":64", "\"group\":0", FLUTE_EFORMAT, "group size is 0"},
        {"\"layers.0.qkv\"", "\"group\":64", "\"group\":-64", FLUTE_EFORMAT, "\"group\""},
        {"\"layers.0.qkv\"", "\"group\":64", "\"group\":256", FLUTE_ESHAPE, "K=128"},
        {"\"layers.0.down_proj\"", "\"group\":64", "\"group\":128", FLUTE_ESHAPE, "K=192"},
        {"\"layers.0.qkv\"", "\"table\":[", "\"table\":[1,", FLUTE_EFORMAT, "array of 8"},
        {"\"layers.0.qkv\"", "\"offset\":", "\"offset\":1", FLUTE_EFORMAT, "layers.0.qkv"},
        {"\"layers.0.qkv\"", "\"offset\":", "\"offset\":-", FLUTE_EFORMAT, "\"offset\""},
        {"\"layers.0.qkv\"", "\"offset\":", "\"offset\":9223372036854775807,\"o\":", FLUTE_EFORMAT,
         "\"offset\""},
        {"\"layers.0.qkv\"", "\"offset\":", "\"offset\":0,\"o\":", FLUTE_EFORMAT, "overlap"},
        {"\"layers.0.qkv\"", "\"offset\":", "\"offset\":4097,\"o\":", FLUTE_EFORMAT, "aligned"},
        {"\"layers.0.qkv\"", "\"size\":", "\"size\":9", FLUTE_EFORMAT, "layers.0.qkv"},
        {"\"layers.0.qkv\"", "\"checksum\":\"", "\"checksum\":\"x", FLUTE_EFORMAT, "16 hexadecimal"},
        {"\"layers.0.qkv\"", "\"checksum\":\"", "\"checksum\":\"0000000000000000\",\"c\":\"", FLUTE_ECHECKSUM,
         "layers.0.qkv"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flute_error err;
        const int code = edited(m, cases[i].anchor, cases[i].from, cases[i].to, &err);
        if (code != cases[i].code || !strstr(err.message, cases[i].says))
            fail_msg("case %zu (%s): code %d, not %d, message '%s'", i, cases[i].to, code, cases[i].code,
                     err.message);
    }
}

// Numbers of a table that a bf16 cannot hold.
static void test_wrong_tables(void **state) {
    const image *m = *state;
    static const char *const numbers[] = {"0.1", "1e39", "-1e999", "3.4028234663852886e38", "\"1\"", "null"};
    char from[64], to[96];
    flute_error err;
    arch_tensor tensor;
    arch a;
    get_arch(&a);
    const int index = arch_layer_tensor(0, SLOT_DOWN_PROJ);
    arch_tensor_at(&a, index, &tensor);
    const weight w = plan(&tensor, index);
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    char *first = yyjson_mut_val_write(yyjson_mut_real(doc, bf16_to_float(w.table[0])), 0, NULL);
    snprintf(from, sizeof from, "\"table\":[%s,", first);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(to, sizeof to, "\"table\":[%s,", numbers[i]);
        assert_int_equal(edited(m, "\"layers.0.down_proj\"", from, to, &err), FLUTE_EFORMAT);
    }
    snprintf(to, sizeof to, "\"table\":[%s,", "-12");
    assert_int_equal(edited(m, "\"layers.0.down_proj\"", from, to, &err), FLUTE_OK);
    free(first);
    yyjson_mut_doc_free(doc);
}

static void test_prefix(void **state) {
    const image *m = *state;
    flute_error err;
    uint8_t saved[FLT_PREFIX_BYTES];
    memcpy(saved, m->data, sizeof saved);

    memcpy(m->data, "GGUF", 4);
    assert_int_equal(check(m->data, m->size, &err), FLUTE_EFORMAT);
    assert_non_null(strstr(err.message, "not a .flt file"));
    memcpy(m->data, saved, sizeof saved);

    for (uint32_t version = 0; version < 4; version += version == 0 ? 2 : 1) {
        memcpy(m->data + 8, &version, sizeof version);
        if (version < 3) seal(m->data, m->size, m->header_size); // 3: only these bytes were touched
        assert_int_equal(check(m->data, m->size, &err), FLUTE_EVERSION);
        if (version > 1) assert_non_null(strstr(err.message, "newer than this program"));
        memcpy(m->data, saved, sizeof saved);
    }

    const uint32_t alignment = 64;
    memcpy(m->data + 12, &alignment, sizeof alignment);
    seal(m->data, m->size, m->header_size);
    assert_int_equal(check(m->data, m->size, &err), FLUTE_EFORMAT);
    memcpy(m->data, saved, sizeof saved);

    const uint64_t sizes[] = {
        0, 1, m->header_size - 1, m->size, m->size - 64 + 4096, UINT64_MAX, UINT64_MAX - 63};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memcpy(m->data + 16, &sizes[i], sizeof sizes[i]);
        const uint64_t checksum = XXH3_64bits(m->data, 56);
        memcpy(m->data + 56, &checksum, sizeof checksum);
        assert_int_equal(check(m->data, m->size, &err), FLUTE_EFORMAT);
        assert_non_null(strstr(err.message, "prefix makes no sense"));
        memcpy(m->data, saved, sizeof saved);
    }
    assert_int_equal(check(m->data, m->size, &err), FLUTE_OK);
}

static void test_writer_errors(void **state) {
    (void)state;
    arch a;
    get_arch(&a);
    flute_error err;
    flt_writer *writer = NULL;
    flt_writer_options options = {.arch = &a, .name = "m", .generator = "g"};
    assert_int_equal(flt_writer_create(&writer, "no/such/folder/m.flt", &options, &err), FLUTE_EIO);
    assert_non_null(strstr(err.message, "no/such/folder/m.flt"));
    assert_null(writer);
    assert_int_equal(flt_writer_create(&writer, "no/such/folder/m.flt", &options, NULL), FLUTE_EIO);
    options.name = "\xff\xfe";
    assert_int_equal(flt_writer_create(&writer, "test_flt_name.flt", &options, &err), FLUTE_EINVAL);
    assert_non_null(strstr(err.message, "UTF-8"));
    options.name = "m";
    assert_int_equal(flt_writer_create(&writer, "test_flt_abort.flt", &options, &err), FLUTE_OK);
    const weight w = {.type = WEIGHT_LUT4, .group_size = 256};
    assert_int_equal(flt_writer_begin(writer, arch_layer_tensor(0, SLOT_QKV), &w, &err), FLUTE_ESHAPE);
    assert_non_null(strstr(err.message, "layers.0.qkv"));
    flt_writer_abort(writer);
    flt_writer_abort(NULL);
    assert_int_not_equal(access("test_flt_abort.flt", F_OK), 0);
    assert_int_not_equal(access("test_flt_name.flt", F_OK), 0);
}

int main(void) {
    image m = load_image();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_round_trip, &m),
        cmocka_unit_test_prestate(test_frozen, &m),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test_prestate(test_every_byte, &m),
        cmocka_unit_test_prestate(test_truncated, &m),
        cmocka_unit_test_prestate(test_wrong_headers, &m),
        cmocka_unit_test_prestate(test_wrong_tables, &m),
        cmocka_unit_test_prestate(test_prefix, &m),
        cmocka_unit_test(test_writer_errors),
    };
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    free(m.data);
    return failures;
}
