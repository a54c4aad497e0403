#include "tokenizer/tiktoken.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

#include "engine/base/fail.h"
#include "tokenizer/bpe_internal.h"
#include "tokenizer/bytelevel.h"

// A tiktoken file has ranks and no merges: its encoder joins whichever neighbours make the token of the
// lowest rank. A tokenizer.json says the same when it lists, in the order of the tokens' ranks, every way to
// cut a token into two tokens. (Deriving only the one merge that training used is shorter, but then
// neighbours that meet in another way stay apart.) Published Llama 3 files were made so, too: 280,147 merges
// for 128,000 tokens.

enum { N_SPECIAL = 256, MAX_TOKENS = 1 << 21, MAX_TOKEN_SIZE = 1024 };

// The expression, byte-level, BOS in front; %d is its id.
static const char frame[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":\""
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
    "\\\\s+(?!\\\\S)|\\\\s+\"}},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]},"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\","
    "\"single\":[{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\","
    "\"type_id\":0}}],"
    "\"pair\":[{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\","
    "\"type_id\":0}},"
    "{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\",\"type_id\":1}},{\"Sequence\":{\"id\":\"B\",\"type_id\":"
    "1}}],"
    "\"special_tokens\":{\"<|begin_of_text|>\":"
    "{\"id\":\"<|begin_of_text|>\",\"ids\":[%d],\"tokens\":[\"<|begin_of_text|>\"]}}}}";

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Decodes size characters into out (3 bytes for every 4); -1 if they are not padded base64.
static int64_t base64_decode(const char *text, size_t size, char *out) {
    if (size == 0 || size % 4 != 0) return -1;
    size_t padding = (text[size - 1] == '=') + (size_t)(text[size - 1] == '=' && text[size - 2] == '=');
    size_t n = 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < size; i++) {
        int digit = i < size - padding ? base64_digit(text[i]) : 0;
        if (digit < 0) return -1;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 != 3) continue;
        for (int shift = 16; shift >= 0; shift -= 8) out[n++] = (char)(bits >> shift);
    }
    return (int64_t)(n - padding);
}

typedef struct line {
    const char *code; // base64
    size_t code_size;
    uint32_t rank;
} line;

// Reads the line at *at and moves behind it; false if it is not "BASE64 RANK".
static bool read_line(const char *text, size_t size, size_t *at, line *out) {
    size_t i = *at;
    out->code = text + i;
    while (i < size && (base64_digit(text[i]) >= 0 || text[i] == '=')) i++;
    out->code_size = i - *at;
    if (out->code_size == 0 || i == size || text[i++] != ' ') return false;
    size_t digits = i;
    uint32_t rank = 0;
    for (; i < size && text[i] >= '0' && text[i] <= '9'; i++) {
        rank = rank * 10 + (uint32_t)(text[i] - '0');
        if (rank >= MAX_TOKENS) return false;
    }
    if (i == digits) return false;
    out->rank = rank;
    if (i < size && text[i] == '\r') i++;
    if (i < size && text[i++] != '\n') return false;
    *at = i;
    return true;
}

bool tiktoken_probe(const char *text, size_t size) {
    size_t at = 0;
    line first;
    return read_line(text, size, &at, &first) && first.code_size % 4 == 0;
}

// The tokens in the order of their ranks, and a table to find them by their bytes (the encoder's own).
typedef struct ranks {
    token_table tokens;
    bpe index;
} ranks;

static void ranks_clear(ranks *r) {
    token_table_clear(&r->tokens);
    free(r->index.by_bytes);
}

// Ranks are 0, 1, 2, … in every file known; they are also the ids.
static int read_tokens(ranks *r, const char *text, size_t size, const char *origin, flute_error *err) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) n += text[i] == '\n';
    n += size > 0 && text[size - 1] != '\n';
    if (n > MAX_TOKENS - N_SPECIAL)
        return fail(err, FLUTE_EFORMAT, "%s: a tiktoken file of %zu lines; at most %d are allowed", origin, n,
                    MAX_TOKENS - N_SPECIAL);
    int code = token_table_reserve(&r->tokens, n, size, err);
    if (code) return code;
    size_t slots = bpe_table_size(n);
    r->index =
        (bpe){.tokens = &r->tokens, .by_bytes = malloc(slots * sizeof(int32_t)), .by_bytes_mask = slots - 1};
    if (!r->index.by_bytes) return fail_memory(err, slots * sizeof(int32_t), "the vocabulary");
    memset(r->index.by_bytes, 0xFF, slots * sizeof(int32_t));
    for (size_t at = 0, number = 1; at < size; number++) {
        line in;
        char *out = r->tokens.bytes + r->tokens.start[r->tokens.n];
        bool good = read_line(text, size, &at, &in);
        int64_t length =
            good && in.code_size <= MAX_TOKEN_SIZE ? base64_decode(in.code, in.code_size, out) : -1;
        if (length <= 0)
            return fail(err, FLUTE_EFORMAT,
                        "%s: line %zu of the tiktoken file is not a base64 token and its rank", origin,
                        number);
        if (in.rank + 1 != number)
            return fail(err, FLUTE_EFORMAT,
                        "%s: line %zu of the tiktoken file has the rank %u; ranks must count from 0", origin,
                        number, (unsigned)in.rank);
        if (bpe_find_bytes(&r->index, out, (size_t)length) >= 0)
            return fail(err, FLUTE_EFORMAT, "%s: line %zu of the tiktoken file repeats a token", origin,
                        number);
        token_table_append(&r->tokens, out, (size_t)length, false);
        bpe_add_bytes(&r->index, r->tokens.n - 1);
    }
    return FLUTE_OK;
}

typedef struct cut {
    int32_t left, right;
} cut;

static int cut_compare(const void *a, const void *b) {
    const cut *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

// Appends the merges that make token id, lower ranks first. text has room for 4 × MAX_TOKEN_SIZE bytes.
static bool add_cuts(yyjson_mut_doc *doc, yyjson_mut_val *merges, const ranks *r, int32_t id, char *text) {
    cut cuts[MAX_TOKEN_SIZE];
    size_t size, n = 0;
    const char *bytes = token_text(&r->tokens, id, &size);
    for (size_t at = 1; at < size; at++) {
        cut c = {.left = bpe_find_bytes(&r->index, bytes, at),
                 .right = bpe_find_bytes(&r->index, bytes + at, size - at)};
        if (c.left >= 0 && c.right >= 0) cuts[n++] = c;
    }
    qsort(cuts, n, sizeof *cuts, cut_compare);
    for (size_t i = 0; i < n; i++) {
        size_t half, length;
        const char *left = token_text(&r->tokens, cuts[i].left, &half);
        length = bytelevel_encode(left, half, text);
        text[length++] = ' ';
        length += bytelevel_encode(bytes + half, size - half, text + length);
        if (!yyjson_mut_arr_add_strncpy(doc, merges, text, length)) return false;
    }
    return true;
}

static bool add_model(yyjson_mut_doc *doc, yyjson_mut_val *root, const ranks *r, char *text) {
    yyjson_mut_val *model = yyjson_mut_obj_add_obj(doc, root, "model");
    bool good = yyjson_mut_obj_add_str(doc, model, "type", "BPE") &&
                yyjson_mut_obj_add_bool(doc, model, "byte_fallback", false) &&
                yyjson_mut_obj_add_bool(doc, model, "ignore_merges", true);
    yyjson_mut_val *vocab = yyjson_mut_obj_add_obj(doc, model, "vocab");
    for (int32_t id = 0; good && id < r->tokens.n; id++) {
        size_t size;
        const char *bytes = token_text(&r->tokens, id, &size);
        size_t length = bytelevel_encode(bytes, size, text);
        good = yyjson_mut_obj_add(vocab, yyjson_mut_strncpy(doc, text, length), yyjson_mut_int(doc, id));
    }
    yyjson_mut_val *merges = yyjson_mut_obj_add_arr(doc, model, "merges");
    for (int32_t id = 0; good && id < r->tokens.n; id++) good = add_cuts(doc, merges, r, id, text);
    return good && merges;
}

// The special tokens of Llama 3.1, which keeps Llama 3's ids and names some of its reserved ones.
static const char *special_name(int index, char *buffer, size_t size) {
    static const char *const named[] = {"<|begin_of_text|>",
                                        "<|end_of_text|>",
                                        "<|reserved_special_token_0|>",
                                        "<|reserved_special_token_1|>",
                                        "<|finetune_right_pad_id|>",
                                        "<|reserved_special_token_2|>",
                                        "<|start_header_id|>",
                                        "<|end_header_id|>",
                                        "<|eom_id|>",
                                        "<|eot_id|>",
                                        "<|python_tag|>"};
    enum { N_NAMED = sizeof named / sizeof *named, N_RESERVED_NAMED = 3 };
    if (index < N_NAMED) return named[index];
    snprintf(buffer, size, "<|reserved_special_token_%d|>", index - N_NAMED + N_RESERVED_NAMED);
    return buffer;
}

static bool add_special_tokens(yyjson_mut_doc *doc, yyjson_mut_val *root, int32_t first) {
    yyjson_mut_val *list = yyjson_mut_obj_add_arr(doc, root, "added_tokens");
    bool good = list;
    for (int i = 0; good && i < N_SPECIAL; i++) {
        char buffer[64];
        yyjson_mut_val *token = yyjson_mut_arr_add_obj(doc, list);
        good = yyjson_mut_obj_add_int(doc, token, "id", first + i) &&
               yyjson_mut_obj_add_strcpy(doc, token, "content", special_name(i, buffer, sizeof buffer)) &&
               yyjson_mut_obj_add_bool(doc, token, "single_word", false) &&
               yyjson_mut_obj_add_bool(doc, token, "lstrip", false) &&
               yyjson_mut_obj_add_bool(doc, token, "rstrip", false) &&
               yyjson_mut_obj_add_bool(doc, token, "normalized", false) &&
               yyjson_mut_obj_add_bool(doc, token, "special", true);
    }
    return good;
}

// Starts the document with what surrounds the vocabulary in Llama 3's tokenizer.json.
static yyjson_mut_doc *create_frame(int32_t bos) {
    char text[2048];
    snprintf(text, sizeof text, frame, (int)bos);
    yyjson_doc *parsed = yyjson_read(text, strlen(text), 0);
    yyjson_mut_doc *doc = yyjson_doc_mut_copy(parsed, NULL);
    yyjson_doc_free(parsed);
    return doc;
}

int tiktoken_convert(const char *text, size_t size, char **json, size_t *json_size, const char *origin,
                     flute_error *err) {
    char *scratch = malloc(4 * MAX_TOKEN_SIZE + 1);
    ranks r = {0};
    yyjson_mut_doc *doc = NULL;
    *json = NULL;
    int code =
        scratch ? read_tokens(&r, text, size, origin, err) : fail_memory(err, MAX_TOKEN_SIZE, "a token");
    if (code) goto done;
    doc = create_frame(r.tokens.n);
    yyjson_mut_val *root = yyjson_mut_doc_get_root(doc);
    bool good = root && add_special_tokens(doc, root, r.tokens.n) && add_model(doc, root, &r, scratch);
    if (good) *json = yyjson_mut_write(doc, YYJSON_WRITE_NOFLAG, json_size);
    if (!*json) code = fail_memory(err, 2 * size, "the converted tokenizer");
done:
    yyjson_mut_doc_free(doc);
    ranks_clear(&r);
    free(scratch);
    return code;
}
