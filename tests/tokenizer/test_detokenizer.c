// The streaming detokenizer: valid UTF-8 at every step, nothing lost, nothing held longer than needed.
#include "tests/tokenizer/helper.h"
#include "tokenizer/utf8.h"

enum { FIRST_BYTE = 3 }; // docs-llama2: id of <0x00>

static int open_llama2(void **state) {
    *state = create_from(TOKENIZER_SENTENCEPIECE, "docs-llama2/tokenizer.model");
    return 0;
}

static int close_llama2(void **state) {
    tokenizer_free(*state);
    return 0;
}

#define R "\xEF\xBF\xBD"

// The replacement of broken sequences follows the Unicode standard's recommendation (one U+FFFD for each
// maximal subpart), as Python and browsers do.
static void replacement(void **state) {
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain", "plain"},
        {"\xE6\x97\xA5\xE6\x9C\xAC", "\xE6\x97\xA5\xE6\x9C\xAC"},
        {"\xF0\x9F\x99\x82!", "\xF0\x9F\x99\x82!"},
        {"\x80", R},
        {"\xFF\xFE", R R},
        {"\xE6\x97", R},      // cut short by the end
        {"\xE6\x97x", R "x"}, // cut short by a character
        {"\xE6\xE6\x97\xA5", R "\xE6\x97\xA5"},
        {"\xF0\x9F\x99", R},
        {"\xF0\x9F\x99\xF0\x9F\x99\x82", R "\xF0\x9F\x99\x82"},
        {"\xC0\xAF", R R}, // overlong
        {"\xE0\x80\xAF", R R R},
        {"\xED\xA0\x80", R R R},       // surrogate
        {"\xF4\x90\x80\x80", R R R R}, // above U+10FFFF
        {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
        {"\xC2\xC2\xC2\xA9", R R "\xC2\xA9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[16];
        size_t n = strlen(cases[i].in);
        for (size_t k = 0; k < n; k++) ids[k] = FIRST_BYTE + (uint8_t)cases[i].in[k];
        bytes text = decode(*state, ids, n, true);
        assert_string_equal(text.data, cases[i].out);
        free(text.data);
    }
}

// Every output is valid by itself, bytes are held only while they may become a character, and then come out
// with the byte that completes it.
static void no_delay(void **state) {
    detokenizer *detok = detokenizer_create(*state, true, NULL);
    size_t size;
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0xF0, &size), "");
    assert_int_equal(size, 0);
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0x9F, NULL), "");
    assert_string_equal(detokenizer_push(detok, 1, NULL), ""); // a control token between leaves them held
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0x99, NULL), "");
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0x82, NULL), "\xF0\x9F\x99\x82");
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0xC3, NULL), "");
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 'a', &size), R "a");
    assert_int_equal(size, 4);
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0xFF, NULL), R);
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE, &size), "");
    assert_int_equal(size, 1); // a NUL is a character like any other
    assert_string_equal(detokenizer_push(detok, FIRST_BYTE + 0xE2, NULL), "");
    assert_string_equal(detokenizer_flush(detok, NULL), R);
    assert_string_equal(detokenizer_flush(detok, &size), "");
    assert_int_equal(size, 0);
    detokenizer_free(detok);
    detokenizer_free(NULL);
}

// "▁the": one space goes at the start of a text, none elsewhere, and none after a flush.
static void dummy_prefix(void **state) {
    static const char the[] = "\xE2\x96\x81the";
    const tokenizer *tok = *state;
    int32_t id = tokenizer_find_token(tok, the);
    assert_true(id > 0);
    detokenizer *detok = detokenizer_create(tok, true, NULL);
    assert_string_equal(detokenizer_push(detok, 1, NULL), ""); // BOS is no text: the start is still to come
    assert_string_equal(detokenizer_push(detok, -1, NULL), "");
    assert_string_equal(detokenizer_push(detok, 4096, NULL), "");
    assert_string_equal(detokenizer_push(detok, id, NULL), "the");
    assert_string_equal(detokenizer_push(detok, id, NULL), " the");
    assert_string_equal(detokenizer_flush(detok, NULL), "");
    assert_string_equal(detokenizer_push(detok, id, NULL), " the");
    detokenizer_free(detok);
    detok = detokenizer_create(tok, false, NULL);
    assert_string_equal(detokenizer_push(detok, id, NULL), " the");
    assert_string_equal(detokenizer_push(detok, 0, NULL),
                        " \xE2\x81\x87 "); // <unk>, as sentencepiece shows it
    detokenizer_free(detok);
    tokenizer *gemma = create_from(TOKENIZER_SENTENCEPIECE, "docs-gemma2/tokenizer.model");
    id = tokenizer_find_token(gemma, the);
    assert_true(id > 0);
    detok = detokenizer_create(gemma, true, NULL); // without a dummy prefix the space belongs to the text
    assert_string_equal(detokenizer_push(detok, id, NULL), " the");
    assert_string_equal(detokenizer_push(detok, 4, NULL), ""); // <start_of_turn>
    detokenizer_free(detok);
    tokenizer_free(gemma);
}

// The byte that docs-llama3 gives the id: its first 256 ids follow the alphabet of the byte-level format.
static char byte_of_id(int32_t id) {
    static const struct {
        int32_t end;
        int first;
    } runs[] = {{94, '!'}, {106, 0xA1}, {188, 0xAE}, {221, 0}, {255, 127}, {256, 0xAD}};
    int32_t begin = 0;
    size_t run = 0;
    while (id >= runs[run].end) begin = runs[run++].end;
    return (char)(runs[run].first + id - begin);
}

// Random bytes, which make broken sequences likely: what streams out byte by byte equals the bytes decoded at
// once, and is valid.
static void random_streams(void **state) {
    (void)state;
    unsigned seed = 20241124;
    print_message("# seed %u\n", seed);
    tokenizer *tok = create_from(TOKENIZER_BPE, "docs-llama3/tokenizer.json");
    for (int round = 0; round < 5000; round++) {
        int32_t ids[24];
        char raw[24], expected[3 * sizeof raw];
        size_t n = (size_t)(rand_r(&seed) % 24), n_expected = 0;
        for (size_t i = 0; i < n; i++) {
            // Half of them from one end of the alphabet, where the bytes above 0x7F are.
            ids[i] = rand_r(&seed) % 2 ? 94 + rand_r(&seed) % 94 : rand_r(&seed) % 256;
            raw[i] = byte_of_id(ids[i]);
        }
        for (size_t at = 0; at < n;) {
            int length = utf8_next(raw + at, n - at);
            size_t size = length > 0 ? (size_t)length : 3;
            memcpy(expected + n_expected, length > 0 ? raw + at : R, size);
            n_expected += size;
            at += length > 0 ? (size_t)length : length < 0 ? (size_t)-length : n - at;
        }
        bytes text = decode(tok, ids, n, round % 2);
        assert_int_equal(text.size, n_expected);
        assert_memory_equal(text.data, expected, n_expected);
        assert_int_equal(utf8_find_invalid(text.data, text.size), text.size);
        free(text.data);
    }
    tokenizer_free(tok);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replacement),
        cmocka_unit_test(no_delay),
        cmocka_unit_test(dummy_prefix),
        cmocka_unit_test(random_streams),
    };
    return cmocka_run_group_tests(tests, open_llama2, close_llama2);
}
