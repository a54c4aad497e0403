// Damaged and unsupported sentencepiece models: a message and no crash. The reference model is varied by what
// protobuf allows: a message appended to it is merged into its last one, and the last value of a field wins.
#include "tests/tokenizer/helper.h"

static bytes read_model(void) {
    return read_file(data_path("docs-llama2/tokenizer.model"));
}

static int try_create(const char *data, size_t size, flute_error *err) {
    char *copy = malloc(size ? size : 1); // exactly sized: a sanitizer sees any byte read beyond
    assert_non_null(copy);
    memcpy(copy, data, size);
    tokenizer *tok = NULL;
    int code = tokenizer_create(&tok, TOKENIZER_SENTENCEPIECE, copy, size, "test", err);
    assert_true((code == FLUTE_OK) == (tok != NULL));
    free(copy);
    if (tok) {
        id_list ids = encode(tok, "a \xE6\x97\xA5", 5, SPECIAL_AS_TOKEN);
        for (size_t i = 0; i < ids.n; i++)
            assert_true(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_size(tok));
        free(ids.ids);
    }
    tokenizer_free(tok);
    return code;
}

typedef struct appended {
    const char *bytes;
    size_t size;
    int code;
    const char *message;
} appended;

#define APPEND(text) text, sizeof text - 1

static const appended cases[] = {
    {APPEND("\x12\x02\x18\x01"), FLUTE_EUNSUPPORTED, "model type 1"}, // unigram
    {APPEND("\x12\x03\xC0\x01\x01"), FLUTE_EUNSUPPORTED, "treat_whitespace_as_suffix"},
    {APPEND("\x1A\x03\x12\x01x"), FLUTE_EUNSUPPORTED, "normalizes characters"},
    {APPEND("\x2A\x03\x12\x01x"), FLUTE_EUNSUPPORTED, "normalizes characters"}, // the denormalizer
    {APPEND("\x1A\x02\x28\x00"), FLUTE_EUNSUPPORTED, "escape_whitespaces"},
    {APPEND("\x1A\x02\x12\x7F"), FLUTE_EFORMAT, "normalizer section"},
    {APPEND("\x12\x02\x12\x7F"), FLUTE_EFORMAT, "trainer section"},
    {APPEND("\x0A\x02\x0A\x7F"), FLUTE_EFORMAT, "piece 4096 of the sentencepiece model is damaged"},
    {APPEND("\x0A\x00"), FLUTE_EFORMAT, "piece 4096 of the sentencepiece model is empty"},
    {APPEND("\x0A\x04\x0A\x02x\x00"), FLUTE_EFORMAT, "contains a NUL"},
    {APPEND("\x0A\x05\x0A\x01\x01\x18\x07"), FLUTE_EFORMAT, "unknown type 7"},
    {APPEND("\x0A\x05\x0A\x01\x01\x18\x00"), FLUTE_EFORMAT, "unknown type 0"},
    {APPEND("\x0A\x06\x0A\x02zz\x18\x06"), FLUTE_EFORMAT,
     "byte piece 4096 of the sentencepiece model is spelled 'zz'"},
    {APPEND("\x0A\x03\x0A\x01x"), FLUTE_EFORMAT, "sentencepiece refuses the model"}, // twice
    {APPEND("\x0A\x7F"), FLUTE_EFORMAT, "cut short"},
    {APPEND("\x0B"), FLUTE_EFORMAT, "cut short"}, // a group
    {APPEND("\x00"), FLUTE_EFORMAT, "cut short"},
    {APPEND("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), FLUTE_EFORMAT, "cut short"},
    {APPEND("\x9A\x06\x03new"), FLUTE_OK, ""}, // unknown fields pass
};

static void variants(void **state) {
    (void)state;
    bytes model = read_model();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *data = malloc(model.size + cases[i].size);
        assert_non_null(data);
        memcpy(data, model.data, model.size);
        memcpy(data + model.size, cases[i].bytes, cases[i].size);
        flute_error err = {0};
        int code = try_create(data, model.size + cases[i].size, &err);
        if (code != cases[i].code || !strstr(err.message, cases[i].message))
            fail_msg("variant %zu: code %d, '%s' instead of '%s'", i, code, err.message, cases[i].message);
        free(data);
    }
    free(model.data);
}

// No model at all, and none of the pieces that sentencepiece needs.
static void not_a_model(void **state) {
    (void)state;
    flute_error err = {0};
    assert_int_equal(try_create("", 0, &err), FLUTE_EUNSUPPORTED); // an empty message: not a BPE model
    assert_int_equal(try_create("{\"a\":1}", 7, &err), FLUTE_EFORMAT);
    assert_int_equal(try_create("\x12\x02\x18\x02", 4, &err), FLUTE_EFORMAT); // BPE, without pieces
    assert_int_equal(try_create("\x0A\x03\x0A\x01x\x12\x02\x18\x02", 9, &err),
                     FLUTE_EFORMAT); // without <unk>
}

// Without its dummy prefix the model treats the start of a text as any other place.
static void no_dummy_prefix(void **state) {
    (void)state;
    static const char off[] = "\x1A\x02\x18\x00";
    bytes model = read_model();
    char *data = malloc(model.size + 4);
    assert_non_null(data);
    memcpy(data, model.data, model.size);
    memcpy(data + model.size, off, 4);
    tokenizer *with = create(TOKENIZER_SENTENCEPIECE, model.data, model.size);
    tokenizer *without = create(TOKENIZER_SENTENCEPIECE, data, model.size + 4);
    id_list a = encode(with, "Hello world", 11, SPECIAL_AS_TEXT);
    id_list b = encode(without, " Hello world", 12, SPECIAL_AS_TEXT);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    bytes text = decode(with, a.ids, a.n, true);
    assert_string_equal(text.data, "Hello world");
    free(text.data);
    text = decode(without, a.ids, a.n, true);
    assert_string_equal(text.data, " Hello world");
    free(text.data);
    free(a.ids);
    free(b.ids);
    tokenizer_free(with);
    tokenizer_free(without);
    free(data);
    free(model.data);
}

// Cut anywhere it is refused; with a bit changed it is refused or works.
static void damaged(void **state) {
    (void)state;
    bytes model = read_model();
    for (size_t cut = 0; cut < model.size - 1; cut += 1 + cut / 29)
        assert_int_not_equal(try_create(model.data, cut, NULL), FLUTE_OK);
    for (size_t at = 0; at < model.size; at += at < 200 || at > model.size - 100 ? 1 : 499) {
        model.data[at] = (char)(model.data[at] ^ (1 << at % 8));
        (void)try_create(model.data, model.size, NULL);
        model.data[at] = (char)(model.data[at] ^ (1 << at % 8));
    }
    free(model.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants),
        cmocka_unit_test(not_a_model),
        cmocka_unit_test(no_dummy_prefix),
        cmocka_unit_test(damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
