// tokenizer_find: which file of a folder is the tokenizer; and the conversion of tiktoken files.
#include "tests/tokenizer/helper.h"

#include <sys/stat.h>
#include <unistd.h>

enum { N_RANKS = 8187 }; // docs-llama3's ordinary tokens

static int make_folder(void **state) {
    char *folder = strdup("/tmp/flute-find-XXXXXX");
    *state = folder;
    return folder && mkdtemp(folder) ? 0 : -1;
}

static const char *path_in(const char *folder, const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int remove_folder(void **state) {
    unlink(path_in(*state, "tokenizer.model"));
    unlink(path_in(*state, "tokenizer.json"));
    int code = rmdir(*state);
    free(*state);
    return code;
}

static void put_file(const char *folder, const char *name, const char *data, size_t size) {
    FILE *file = fopen(path_in(folder, name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void assert_found(const char *folder, tokenizer_kind kind, const char *blob, size_t size) {
    flute_error err = {0};
    tokenizer_kind found_kind = TOKENIZER_BPE;
    char *found = NULL;
    size_t found_size = 1;
    if (tokenizer_find(folder, &found_kind, &found, &found_size, &err)) fail_msg("%s", err.message);
    assert_int_equal(found_kind, kind);
    assert_int_equal(found_size, size);
    if (size > 0)
        assert_memory_equal(found, blob, size);
    else
        assert_null(found);
    free(found);
}

static void assert_refused(const char *folder, int code, const char *message) {
    flute_error err = {0};
    tokenizer_kind kind;
    char *blob = NULL;
    size_t size = 0;
    assert_int_equal(tokenizer_find(folder, &kind, &blob, &size, &err), code);
    if (!strstr(err.message, message) || !strstr(err.message, folder))
        fail_msg("'%s' does not say '%s' and the folder", err.message, message);
    assert_null(blob);
}

static void precedence(void **state) {
    bytes model = read_file(data_path("docs-llama2/tokenizer.model"));
    bytes json = read_file(data_path("docs-llama3/tokenizer.json"));
    static const char tiktoken[] = "IQ== 0\nIg== 1\n";
    assert_found(*state, TOKENIZER_NONE, NULL, 0);
    put_file(*state, "tokenizer.json", json.data, json.size);
    assert_found(*state, TOKENIZER_BPE, json.data, json.size);
    put_file(*state, "tokenizer.model", tiktoken, sizeof tiktoken - 1);
    assert_found(*state, TOKENIZER_BPE, json.data, json.size);
    put_file(*state, "tokenizer.model", "rubbish", 7);
    assert_found(*state, TOKENIZER_BPE, json.data, json.size);
    put_file(*state, "tokenizer.model", model.data, model.size);
    assert_found(*state, TOKENIZER_SENTENCEPIECE, model.data, model.size);
    unlink(path_in(*state, "tokenizer.json"));
    assert_found(*state, TOKENIZER_SENTENCEPIECE, model.data, model.size);
    put_file(*state, "tokenizer.model", "rubbish", 7);
    assert_refused(*state, FLUTE_EFORMAT, "neither a sentencepiece model nor a tiktoken file");
    put_file(*state, "tokenizer.model", "", 0);
    assert_refused(*state, FLUTE_EFORMAT, "neither a sentencepiece model nor a tiktoken file");
    unlink(path_in(*state, "tokenizer.model"));
    assert_int_equal(mkdir(path_in(*state, "tokenizer.model"), 0700), 0);
    assert_refused(*state, FLUTE_EIO, "tokenizer.model");
    assert_int_equal(rmdir(path_in(*state, "tokenizer.model")), 0);
    free(model.data);
    free(json.data);
}

// Appends the line of one token: base64 and rank.
static size_t put_line(char *out, const uint8_t *token, size_t size, int rank) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i < 3 ? size - i : 3;
        unsigned bits = (unsigned)token[i] << 16 | (left > 1 ? (unsigned)token[i + 1] << 8 : 0) |
                        (left > 2 ? token[i + 2] : 0);
        for (size_t k = 0; k < 4; k++) out[n++] = k <= left ? digits[bits >> (18 - 6 * k) & 63] : '=';
    }
    return n + (size_t)sprintf(out + n, " %d\n", rank);
}

// docs-llama3's vocabulary as a tiktoken file; its ids are in the order of training, as ranks are.
static bytes make_tiktoken(void) {
    int byte_of[324] = {0};
    for (int byte = 0, shifted = 256; byte < 256; byte++) {
        int plain = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
        byte_of[plain ? byte : shifted++] = byte;
    }
    bytes json = read_file(data_path("docs-llama3/tokenizer.json"));
    yyjson_doc *doc = yyjson_read(json.data, json.size, 0);
    yyjson_val *vocab = yyjson_obj_get(yyjson_obj_get(yyjson_doc_get_root(doc), "model"), "vocab"), *key,
               *value;
    assert_int_equal(yyjson_obj_size(vocab), N_RANKS);
    const char **names = calloc(N_RANKS, sizeof *names);
    bytes out = {.data = malloc(json.size)};
    assert_true(names && out.data);
    size_t index, max;
    yyjson_obj_foreach(vocab, index, max, key, value) names[yyjson_get_int(value)] = yyjson_get_str(key);
    for (int rank = 0; rank < N_RANKS; rank++) {
        uint8_t token[256];
        size_t size = 0;
        for (const uint8_t *c = (const uint8_t *)names[rank]; *c; c++) {
            int letter = *c;
            if (letter >= 0x80) letter = (letter & 0x1F) << 6 | (*++c & 0x3F);
            token[size++] = (uint8_t)byte_of[letter];
        }
        out.size += put_line(out.data + out.size, token, size, rank);
    }
    free(names);
    yyjson_doc_free(doc);
    free(json.data);
    return out;
}

static void assert_same_ids(const tokenizer *a, const tokenizer *b, const char *text, size_t size) {
    id_list x = encode(a, text, size, SPECIAL_AS_TEXT), y = encode(b, text, size, SPECIAL_AS_TEXT);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.ids, y.ids, x.n * sizeof *x.ids);
    free(x.ids);
    free(y.ids);
}

static void tiktoken_ids(void **state) {
    bytes file = make_tiktoken();
    put_file(*state, "tokenizer.model", file.data, file.size);
    tokenizer_kind kind;
    char *blob;
    size_t size;
    flute_error err = {0};
    if (tokenizer_find(*state, &kind, &blob, &size, &err)) fail_msg("%s", err.message);
    assert_int_equal(kind, TOKENIZER_BPE);
    tokenizer *converted = create(kind, blob, size);
    tokenizer *original = create_from(TOKENIZER_BPE, "docs-llama3/tokenizer.json");
    bytes text = read_file(data_path("eval.txt"));
    assert_same_ids(original, converted, text.data, text.size);
    static const char *const texts[] = {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "日本語のテキスト 🙂",
                                        "\t\t \r\n\n x", "I'LL 12345"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_same_ids(original, converted, texts[i], strlen(texts[i]));
    // The special tokens of Llama 3.1 in its order, behind the ranks.
    assert_int_equal(tokenizer_vocab_size(converted), N_RANKS + 256);
    assert_int_equal(tokenizer_bos(converted), N_RANKS);
    assert_int_equal(tokenizer_eos(converted), N_RANKS + 1);
    assert_true(tokenizer_adds_bos(converted));
    static const struct {
        const char *name;
        int place;
    } special[] = {{"<|begin_of_text|>", 0},
                   {"<|end_of_text|>", 1},
                   {"<|reserved_special_token_1|>", 3},
                   {"<|finetune_right_pad_id|>", 4},
                   {"<|reserved_special_token_2|>", 5},
                   {"<|start_header_id|>", 6},
                   {"<|end_header_id|>", 7},
                   {"<|eom_id|>", 8},
                   {"<|eot_id|>", 9},
                   {"<|python_tag|>", 10},
                   {"<|reserved_special_token_3|>", 11},
                   {"<|reserved_special_token_247|>", 255}};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        assert_int_equal(tokenizer_find_token(converted, special[i].name), N_RANKS + special[i].place);
        assert_true(tokenizer_is_control(converted, N_RANKS + special[i].place));
    }
    tokenizer_free(converted);
    tokenizer_free(original);
    free(text.data);
    free(blob);
    free(file.data);
}

static void tiktoken_broken(void **state) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"IQ== 0\nIg== 2\n", "line 2 of the tiktoken file has the rank 2"},
        {"IQ== 0\nIQ== 1\n", "line 2 of the tiktoken file repeats a token"},
        {"IQ== 0\nIg= 1\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\nI=== 1\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\nI=g= 1\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\nIg==\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\n\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\nIg== 99999999999\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 0\nIg== 1 x\n", "line 2 of the tiktoken file is not a base64 token"},
        {"IQ== 7\n", "line 1 of the tiktoken file has the rank 7"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_file(*state, "tokenizer.model", cases[i].text, strlen(cases[i].text));
        assert_refused(*state, FLUTE_EFORMAT, cases[i].message);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(precedence, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(tiktoken_ids, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(tiktoken_broken, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
