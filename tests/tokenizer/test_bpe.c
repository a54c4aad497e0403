// tokenizer.json: a small one with every feature that is supported, and one variant for each thing that can
// be wrong with it or is refused.
#include "tests/tokenizer/helper.h"

// 256 bytes, then these; ids of added tokens follow.
enum { AB = 256, ABC, BC, SPACE_A, BOS, EOS, TOOL, LATE, N_TOKENS };

#define PATTERN "\\\\p{L}+|\\\\s+|[^\\\\s\\\\p{L}]+"
#define PRE_TOKENIZER                                                                                        \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" PATTERN        \
    "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"    \
    "\"trim_offsets\":true,\"use_regex\":false}]}"
#define MERGES "[\"b c\",[\"a\",\"b\"],\"ab c\",\"\xC4\xA0 a\"]"
#define POST_PROCESSOR                                                                                       \
    "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\","      \
    "\"single\":"                                                                                            \
    "[{\"SpecialToken\":{\"id\":\"[B]\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"       \
    "\"special_tokens\":{\"[B]\":{\"id\":\"[B]\",\"ids\":[260],\"tokens\":[\"[B]\"]}}}]}"
#define ADDED                                                                                                \
    "{\"id\":260,\"content\":\"[B]\",\"special\":true,\"normalized\":false},"                                \
    "{\"id\":261,\"content\":\"<|end_of_text|>\",\"special\":true,\"normalized\":false},"                    \
    "{\"id\":262,\"content\":\"[BIG]\",\"special\":false,\"normalized\":false},"                             \
    "{\"id\":263,\"content\":\"late [B\",\"special\":false,\"normalized\":true}"

// The vocabulary of single bytes, written with the alphabet of the byte-level format, id = byte.
static char *base_json(void) {
    char *json = malloc(1 << 16);
    assert_non_null(json);
    int n = sprintf(json, "{\"normalizer\":null,\"added_tokens\":[" ADDED "],\"pre_tokenizer\":" PRE_TOKENIZER
                          ",\"post_processor\":" POST_PROCESSOR
                          ",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"byte_fallback\":false,"
                          "\"ignore_merges\":true,\"merges\":" MERGES ",\"vocab\":{");
    for (int byte = 0, shifted = 256; byte < 256; byte++) {
        int plain = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
        int c = plain ? byte : shifted++;
        if (c == '"' || c == '\\')
            n += sprintf(json + n, "\"\\%c\":%d,", c, byte);
        else
            n += sprintf(json + n, "\"\\u%04x\":%d,", (unsigned)c, byte);
    }
    sprintf(json + n, "\"ab\":256,\"abc\":257,\"bc\":258,\"\xC4\xA0"
                      "a\":259}}}");
    return json;
}

// The base with its first occurrence of from replaced by to.
static char *variant(const char *from, const char *to) {
    char *base = base_json(), *at = strstr(base, from);
    if (!at) fail_msg("the base has no %s", from);
    char *json = malloc(strlen(base) + strlen(to) + 1);
    assert_non_null(json);
    sprintf(json, "%.*s%s%s", (int)(at - base), base, to, at + strlen(from));
    free(base);
    return json;
}

static tokenizer *create_variant(const char *from, const char *to) {
    char *json = variant(from, to);
    tokenizer *tok = create(TOKENIZER_BPE, json, strlen(json));
    free(json);
    return tok;
}

#define IDS(...) (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)

static void base(void **state) {
    (void)state;
    tokenizer *tok = create_variant("{", "{");
    assert_int_equal(tokenizer_vocab_size(tok), N_TOKENS);
    assert_int_equal(tokenizer_bos(tok), BOS);
    assert_int_equal(tokenizer_eos(tok), EOS);
    assert_true(tokenizer_adds_bos(tok));
    assert_true(tokenizer_is_control(tok, BOS) && tokenizer_is_control(tok, EOS));
    assert_false(tokenizer_is_control(tok, TOOL) || tokenizer_is_control(tok, ABC));
    // "b c" ranks before "a b", so that merging alone would leave a + bc; ignore_merges takes the whole
    // piece.
    assert_ids(tok, "abc", SPECIAL_AS_TEXT, IDS(ABC));
    assert_ids(tok, "xabc", SPECIAL_AS_TEXT, IDS('x', 'a', BC));
    assert_ids(tok, "abab", SPECIAL_AS_TEXT, IDS(AB, AB));
    // The expression keeps the space and "a" apart, so that their merge never happens.
    assert_ids(tok, " a", SPECIAL_AS_TEXT, IDS(' ', 'a'));
    assert_ids(tok, "\xC3\xA9", SPECIAL_AS_TEXT, IDS(0xC3, 0xA9));
    tokenizer_free(tok);
}

static void added_tokens(void **state) {
    (void)state;
    tokenizer *tok = create_variant("{", "{");
    assert_ids(tok, "[B]ab[B]", SPECIAL_AS_TOKEN, IDS(BOS, AB, BOS));
    assert_ids(tok, "[B]ab", SPECIAL_AS_TEXT, IDS('[', 'B', ']', AB));
    // Ordinary added tokens are matched always; the longest one wins; "late [B" only in what is left.
    assert_ids(tok, "[BIG]", SPECIAL_AS_TEXT, IDS(TOOL));
    assert_ids(tok, "late [B", SPECIAL_AS_TEXT, IDS(LATE));
    assert_ids(tok, "late [B]", SPECIAL_AS_TOKEN, IDS('l', 'a', 't', 'e', ' ', BOS));
    assert_ids(tok, "late [B]", SPECIAL_AS_TEXT, IDS(LATE, ']'));
    assert_ids(tok, "[BI[BIG", SPECIAL_AS_TEXT, IDS('[', 'B', 'I', '[', 'B', 'I', 'G'));
    bytes text = decode(tok, IDS(TOOL, BOS, LATE, EOS, ABC), true);
    assert_string_equal(text.data, "[BIG]late [Babc");
    free(text.data);
    tokenizer_free(tok);
}

// A special token that the vocabulary lists as well (GPT-2's <|endoftext|>) does not come out of plain text.
static void special_in_vocab(void **state) {
    (void)state;
    tokenizer *tok = create_variant("\"ab\":256", "\"[B]\":260,\"ab\":256");
    assert_ids(tok, "[B]", SPECIAL_AS_TEXT, IDS('[', 'B', ']'));
    assert_ids(tok, "[B]", SPECIAL_AS_TOKEN, IDS(BOS));
    tokenizer_free(tok);
}

static void options(void **state) {
    (void)state;
    tokenizer *tok = create_variant("\"ignore_merges\":true", "\"ignore_merges\":false");
    assert_ids(tok, "abc", SPECIAL_AS_TEXT, IDS('a', BC));
    tokenizer_free(tok);

    tok = create_variant(PRE_TOKENIZER,
                         "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}");
    assert_ids(tok, "ab a", SPECIAL_AS_TEXT, IDS(' ', AB, SPACE_A));
    assert_ids(tok, " a's", SPECIAL_AS_TEXT, IDS(SPACE_A, '\'', 's'));
    assert_ids(tok, "", SPECIAL_AS_TEXT, NULL, 0);
    tokenizer_free(tok);

    tok = create_variant(PRE_TOKENIZER,
                         "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}");
    assert_ids(tok, "b a", SPECIAL_AS_TEXT, IDS('b', SPACE_A));
    tokenizer_free(tok);

    // What the expression does not match is a piece, too.
    tok = create_variant(PATTERN, "a");
    assert_ids(tok, "abcabc", SPECIAL_AS_TEXT, IDS('a', BC, 'a', BC));
    tokenizer_free(tok);
    tok = create_variant(PATTERN, "x*"); // matches the empty string everywhere
    assert_ids(tok, "abcxab", SPECIAL_AS_TEXT, IDS(ABC, 'x', AB));
    tokenizer_free(tok);

    tok = create_variant(POST_PROCESSOR, "null");
    assert_int_equal(tokenizer_bos(tok), -1);
    assert_int_equal(tokenizer_eos(tok), EOS);
    assert_false(tokenizer_adds_bos(tok));
    tokenizer_free(tok);
}

// \s is White_Space of the current Unicode: U+180E is not (PCRE2 10.42's own \s still matches it), U+0085,
// U+00A0 and U+3000 are; in and outside of classes.
static void white_space(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int space;
    } cases[] = {
        {"\xE1\xA0\x8E", 0}, {"\xC2\x85", 1}, {"\xC2\xA0", 1}, {"\xE3\x80\x80", 1}, {"\xE2\x80\x8B", 0}};
    // A space and the character are one piece if both are white space, which the merges of "Ġ" and the first
    // byte show: the merge is made only within a piece.
    for (int in_class = 0; in_class < 2; in_class++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            char *json = variant(PATTERN, in_class ? "[\\\\s]+|[^\\\\s]+" : "\\\\s+|\\\\S+");
            // "Ġâ": the bytes 0x20 and the first of the character, as letters of the alphabet
            unsigned char first = (unsigned char)cases[i].text[0];
            char pair[64], from[] = "[\"b c\"", vocab[] = "\"ab\":256";
            char *at = strstr(json, vocab), *longer = malloc(strlen(json) + 256);
            assert_non_null(at);
            assert_non_null(longer);
            snprintf(pair, sizeof pair, "\\u0120\\u%04x", first);
            sprintf(longer, "%.*s\"%s\":264,%s", (int)(at - json), json, pair, at);
            at = strstr(longer, from);
            assert_non_null(at);
            char *merges = malloc(strlen(longer) + 256);
            assert_non_null(merges);
            sprintf(merges, "%.*s[\"\\u0120 \\u%04x\",%s", (int)(at - longer), longer, first, at + 1);
            tokenizer *tok = create(TOKENIZER_BPE, merges, strlen(merges));
            char text[8];
            snprintf(text, sizeof text, " %s", cases[i].text);
            id_list ids = encode(tok, text, strlen(text), SPECIAL_AS_TEXT);
            assert_int_equal(ids.ids[0], cases[i].space ? 264 : ' ');
            free(ids.ids);
            tokenizer_free(tok);
            free(merges);
            free(longer);
            free(json);
        }
    }
}

typedef struct broken {
    const char *from, *to;
    int code;
    const char *message; // a part of it
} broken;

static const broken broken_files[] = {
    {"{\"norm", "{norm", FLUTE_EFORMAT, "test"},
    {"\"model\"", "\"Model\"", FLUTE_EFORMAT, "it has no model"},
    {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", FLUTE_EUNSUPPORTED, "model type Unigram"},
    {"\"type\":\"BPE\"", "\"type\":7", FLUTE_EUNSUPPORTED, "model type (not a string)"},
    {"\"byte_fallback\":false", "\"byte_fallback\":true", FLUTE_EUNSUPPORTED,
     "put the original tokenizer.model"},
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", FLUTE_EUNSUPPORTED, "a normalizer"},
    {"\"dropout\":null", "\"dropout\":0.1", FLUTE_EUNSUPPORTED, "model.dropout"},
    {"\"dropout\"", "\"continuing_subword_prefix\":\"##\",\"dropout\"", FLUTE_EUNSUPPORTED,
     "model.continuing_subword_prefix"},
    {"\"dropout\"", "\"end_of_word_suffix\":\"</w>\",\"dropout\"", FLUTE_EUNSUPPORTED,
     "model.end_of_word_suffix"},
    {"\"ignore_merges\":true", "\"ignore_merges\":1", FLUTE_EFORMAT, "ignore_merges"},
    // the vocabulary
    {"\"vocab\":{", "\"vocab\":[],\"v\":{", FLUTE_EFORMAT, "model.vocab is not an object"},
    {"\"ab\":256", "\"ab\":\"256\"", FLUTE_EFORMAT, "the id of 'ab' is not an integer"},
    {"\"ab\":256", "\"ab\":-1", FLUTE_EFORMAT, "token 'ab' has the id -1"},
    {"\"ab\":256", "\"ab\":4000000000", FLUTE_EFORMAT, "token 'ab' has the id 4000000000"},
    {"\"ab\":256", "\"ab\":18446744073709551615", FLUTE_EFORMAT, "token 'ab' has the id -1"},
    {"\"ab\":256", "\"ab\":65", FLUTE_EFORMAT, "'ab' and another token have the id 65"},
    {"\"ab\":256", "\"ab\":256,\"ab\":264", FLUTE_EFORMAT, "lists 'ab' twice"},
    {"\"ab\":256", "\"\":256", FLUTE_EFORMAT, "the token with id 256 is empty"},
    {"\"ab\":256", "\"a b\":256", FLUTE_EUNSUPPORTED,
     "token 'a b' (id 256) is not written in the byte-level"},
    {"\"ab\":256", "\"\xE2\x96\x81\":256", FLUTE_EUNSUPPORTED, "token '\\xe2\\x96\\x81' (id 256)"},
    {"\"ab\":256", "\"\xC2\x9B\":256", FLUTE_EUNSUPPORTED, "token '\\xc2\\x9b' (id 256)"},
    {"\"\\u0041\":65", "\"xyz\":65", FLUTE_EFORMAT, "no token for the byte 0x41"},
    {"\"id\":263", "\"id\":264", FLUTE_EFORMAT, "'late [B' has the id 264"},
    {"\"bc\":258,", "", FLUTE_EFORMAT, "'late [B' has the id 263"},
    {"\"ab\":256", "\"[B]\":260,\"ab\":264", FLUTE_EFORMAT, "no token has the id 256"},
    // the merges
    {MERGES, "{}", FLUTE_EFORMAT, "model.merges is not an array"},
    {MERGES, "[\"bc\"]", FLUTE_EFORMAT, "entry 0 is not a pair"},
    {MERGES, "[\"b c\",[\"a\"]]", FLUTE_EFORMAT, "entry 1 is not a pair"},
    {MERGES, "[\"b c\",[\"a\",5]]", FLUTE_EFORMAT, "entry 1 is not a pair"},
    {MERGES, "[\"#version: 0.2\",\"a c\"]", FLUTE_EFORMAT, "entry 1 joins or makes"},
    {MERGES, "[\"a b c\"]", FLUTE_EFORMAT, "entry 0 joins or makes"},
    {MERGES, "[\"a \"]", FLUTE_EFORMAT, "entry 0 joins or makes"},
    {MERGES, "[\" a\"]", FLUTE_EFORMAT, "entry 0 joins or makes"},
    {MERGES, "[\"[ B]\"]", FLUTE_EFORMAT, "entry 0 joins or makes"},
    {MERGES, "[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa b\"]", FLUTE_EFORMAT,
     "entry 0 joins or makes"},
    // added tokens
    {"\"added_tokens\":[", "\"added_tokens\":5,\"a\":[", FLUTE_EFORMAT, "added_tokens is not an array"},
    {"\"content\":\"[B]\"", "\"content\":7", FLUTE_EFORMAT, "without a content string"},
    {"\"content\":\"[B]\"", "\"content\":\"\"", FLUTE_EFORMAT, "the token with id 260 is empty"},
    {"\"id\":261", "\"id\":\"261\"", FLUTE_EFORMAT, "id"},
    {"\"id\":261", "\"id\":260", FLUTE_EFORMAT, "'<|end_of_text|>' and another token have the id 260"},
    {"\"id\":261", "\"id\":65", FLUTE_EFORMAT, "'<|end_of_text|>' and another token have the id 65"},
    {"\"<|end_of_text|>\"", "\"[B]\"", FLUTE_EFORMAT, "added_tokens lists '[B]' twice"},
    {"\"special\":true", "\"special\":true,\"lstrip\":true", FLUTE_EUNSUPPORTED, "lstrip"},
    {"\"special\":true", "\"special\":true,\"rstrip\":true", FLUTE_EUNSUPPORTED, "rstrip"},
    {"\"special\":true", "\"special\":true,\"single_word\":true", FLUTE_EUNSUPPORTED, "single_word"},
    {"\"special\":true", "\"special\":\"yes\"", FLUTE_EFORMAT, "special"},
    // the pre-tokenizer
    {PRE_TOKENIZER, "null", FLUTE_EUNSUPPORTED, "pre_tokenizer: type (none)"},
    {PRE_TOKENIZER, "{\"type\":\"Metaspace\"}", FLUTE_EUNSUPPORTED,
     "pre_tokenizer: type Metaspace at place 1 of 1"},
    {PRE_TOKENIZER, "{\"type\":\"Sequence\",\"pretokenizers\":[]}", FLUTE_EUNSUPPORTED, "a Sequence of 0"},
    {"\"type\":\"Split\"", "\"type\":\"Digits\"", FLUTE_EUNSUPPORTED, "type Digits at place 1 of 2"},
    {"\"Regex\"", "\"String\"", FLUTE_EUNSUPPORTED, "Split without a Regex"},
    {"Isolated", "Removed", FLUTE_EUNSUPPORTED, "behavior Isolated"},
    {"\"invert\":false", "\"invert\":true", FLUTE_EUNSUPPORTED, "not be inverted"},
    {"\"use_regex\":false", "\"use_regex\":0", FLUTE_EFORMAT, "use_regex"},
    {PATTERN, "", FLUTE_EFORMAT, "a Regex of 0 bytes"},
    {PATTERN, "(a", FLUTE_EFORMAT, "does not compile"},
    {PATTERN, "a\\u0000", FLUTE_EFORMAT, "without NUL"},
    {PATTERN, "ab\\\\w+", FLUTE_EUNSUPPORTED, "at byte 2 "},
    {PATTERN, "a\\\\b", FLUTE_EUNSUPPORTED, "at byte 1 "},
    {PATTERN, "a\\\\h", FLUTE_EUNSUPPORTED, "at byte 1 "},
    {PATTERN, "\\\\pL", FLUTE_EUNSUPPORTED, "at byte 0 "},
    {PATTERN, "\\\\p{L", FLUTE_EUNSUPPORTED, "at byte 0 "},
    {PATTERN, "a\\\\", FLUTE_EUNSUPPORTED, "at byte 1 "},
    {PATTERN, "^a", FLUTE_EUNSUPPORTED, "at byte 0 "},
    {PATTERN, "a$", FLUTE_EUNSUPPORTED, "at byte 1 "},
    {PATTERN, "[a[b]]", FLUTE_EUNSUPPORTED, "at byte 2 "},
    {PATTERN, "[a&&b]", FLUTE_EUNSUPPORTED, "at byte 2 "},
    {PATTERN, "[]a]", FLUTE_EUNSUPPORTED, "at byte 0 "},
    {PATTERN, "a{,3}", FLUTE_EUNSUPPORTED, "at byte 1 "},
    {PATTERN, "a{1,3}+", FLUTE_EUNSUPPORTED, "at byte 5 "},
    {PATTERN, "(*LIMIT_MATCH=4)a", FLUTE_EUNSUPPORTED, "at byte 0 "},
    {PATTERN, "(?R)a", FLUTE_EUNSUPPORTED, "at byte 0 "},
    // the post-processor
    {"TemplateProcessing", "BertProcessing", FLUTE_EUNSUPPORTED, "post_processor: type BertProcessing"},
    {"\"ids\":[260]", "\"ids\":[264]", FLUTE_EFORMAT, "post_processor: '[B]' is not one id"},
    {"\"ids\":[260]", "\"ids\":[260,1]", FLUTE_EFORMAT, "post_processor: '[B]' is not one id"},
    {"\"ids\":[260]", "\"ids\":[-1]", FLUTE_EFORMAT, "post_processor: '[B]' is not one id"},
    {"{\"[B]\":", "{\"C\":", FLUTE_EFORMAT, "post_processor: '[B]' is not one id"},
};

static void broken_variants(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof broken_files / sizeof *broken_files; i++) {
        const broken *b = &broken_files[i];
        char *json = variant(b->from, b->to);
        flute_error err = {0};
        tokenizer *tok = NULL;
        int code = tokenizer_create(&tok, TOKENIZER_BPE, json, strlen(json), "test", &err);
        if (code != b->code || !strstr(err.message, b->message) || strncmp(err.message, "test", 4) != 0)
            fail_msg("%s → %s: code %d, '%s'", b->from, b->to, code, err.message);
        assert_null(tok);
        free(json);
    }
}

// Cut anywhere, the file is refused; with any byte changed, it is refused or works.
static void truncated_and_damaged(void **state) {
    (void)state;
    char *json = base_json();
    size_t size = strlen(json);
    for (size_t cut = 0; cut < size; cut += 1 + cut / 97) {
        tokenizer *tok = NULL;
        char *copy = malloc(cut + 1); // exactly sized: a sanitizer sees any byte read beyond
        assert_non_null(copy);
        memcpy(copy, json, cut);
        assert_int_not_equal(tokenizer_create(&tok, TOKENIZER_BPE, copy, cut, "test", NULL), FLUTE_OK);
        free(copy);
    }
    for (size_t at = 0; at < size; at += 3) {
        char before = json[at];
        json[at] = (char)(before ^ (1 << at % 7));
        tokenizer *tok = NULL;
        if (tokenizer_create(&tok, TOKENIZER_BPE, json, size, "test", NULL) == FLUTE_OK) {
            id_list ids = encode(tok, "abc [B] late", 12, SPECIAL_AS_TOKEN);
            for (size_t i = 0; i < ids.n; i++)
                assert_true(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_size(tok));
            free(ids.ids);
            tokenizer_free(tok);
        }
        json[at] = before;
    }
    free(json);
}

// An expression that takes exponential time ends with a message.
static void hostile_regex(void **state) {
    (void)state;
    tokenizer *tok = create_variant(PATTERN, "(?:a|a|aa)+x");
    flute_error err = {0};
    // The x at the end keeps PCRE2 from seeing at once that there is no match.
    static const char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!x";
    assert_int_equal(tokenizer_encode(tok, text, sizeof text - 1, SPECIAL_AS_TEXT, NULL, 0, &err),
                     FLUTE_ERANGE);
    assert_non_null(strstr(err.message, "gives up"));
    tokenizer_free(tok);
}

// A group that repeats 100,000 times is more than the JIT's stack of 32 KiB holds; the interpreter takes
// over.
static void deep_match(void **state) {
    (void)state;
    enum { SIZE = 200000 };
    tokenizer *tok = create_variant(PATTERN, "(?:ab|ba|b)+c?");
    char *text = malloc(SIZE);
    assert_non_null(text);
    for (int i = 0; i < SIZE; i++) text[i] = "ab"[i % 2];
    flute_error err = {0};
    if (tokenizer_encode(tok, text, SIZE, SPECIAL_AS_TEXT, NULL, 0, &err) != SIZE / 2)
        fail_msg("%s", err.message);
    free(text);
    tokenizer_free(tok);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(special_in_vocab),
        cmocka_unit_test(options),
        cmocka_unit_test(white_space),
        cmocka_unit_test(broken_variants),
        cmocka_unit_test(truncated_and_damaged),
        cmocka_unit_test(hostile_regex),
        cmocka_unit_test(deep_match),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
