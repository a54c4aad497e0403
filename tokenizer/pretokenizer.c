#include "tokenizer/pretokenizer.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "tokenizer/utf8.h"

enum {
    MAX_STAGES = 16,
    MAX_PATTERN = 16 << 10, // bytes; Llama 3's has 123
    HEAP_LIMIT_KIB = 64 << 10,
};

// What ByteLevel cuts by when use_regex is set: GPT-2's expression.
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// A stage cuts each piece of the stage before it by its expression; without one, it puts a space in front
// (add_prefix_space).
typedef struct stage {
    pcre2_code *code;
} stage;

struct pretokenizer {
    stage stages[MAX_STAGES];
    int n_stages;
    pcre2_match_context *limits;
};

// Rewrites a pattern of Oniguruma, which Hugging Face's tokenizers use, for PCRE2. The two agree on all that
// byte-level tokenizers write, but for \s: PCRE2 10.42 also matches U+180E, which lost the property in
// Unicode 6.3. What is known to differ (\w, \b, \h, ^, $, {,n}, {n}+, nested classes, rare groups) is refused
// rather than guessed.
typedef struct translation {
    const char *in;
    size_t size;
    char *out;
    size_t n;
} translation;

static void put(translation *t, const char *text, size_t size) {
    memcpy(t->out + t->n, text, size);
    t->n += size;
}

// Translates the escape at t->in[i]; returns the number of bytes read, 0 if it is not supported.
static size_t put_escape(translation *t, size_t i) {
    if (i + 1 >= t->size) return 0;
    char c = t->in[i + 1];
    if (c == 's' || c == 'S') {
        put(t, c == 's' ? "\\p{White_Space}" : "\\P{White_Space}", 15);
        return 2;
    }
    size_t size = 2;
    if (c == 'p' || c == 'P') { // a property, whole: \p{L}
        const char *end = memchr(t->in + i, '}', t->size - i);
        if (!end || t->in[i + 2] != '{') return 0;
        size = (size_t)(end - t->in) - i + 1;
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c < 0;
    if (letter && !strchr("dDpPrntf", c)) return 0;
    put(t, t->in + i, size);
    return size;
}

// Whether a group that opens at t->in[i] == '(' is of a kind that means the same in both.
static bool group_supported(const translation *t, size_t i) {
    static const char *const kinds[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (i + 1 >= t->size || (t->in[i + 1] != '?' && t->in[i + 1] != '*')) return true;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        size_t size = strlen(kinds[k]);
        if (t->size - i >= size && memcmp(t->in + i, kinds[k], size) == 0) return true;
    }
    return false;
}

// Translates the whole pattern. Returns t->size, or the offset of the first construct that is not supported.
static size_t translate(translation *t) {
    bool in_class = false;
    for (size_t i = 0; i < t->size;) {
        char c = t->in[i];
        if (c == '\\') {
            size_t size = put_escape(t, i);
            if (size == 0) return i;
            i += size;
            continue;
        }
        if (in_class) {
            if (c == '[' || (c == '&' && i + 1 < t->size && t->in[i + 1] == '&')) return i;
            if (c == ']') in_class = false;
        } else if (c == '[') {
            in_class = true;
            size_t negated = i + 1 < t->size && t->in[i + 1] == '^';
            if (i + 1 + negated < t->size && t->in[i + 1 + negated] == ']')
                return i; // literal or empty class
            put(t, t->in + i, 1 + negated);
            i += 1 + negated;
            continue;
        } else if (c == '^' || c == '$' || (c == '(' && !group_supported(t, i)) ||
                   (c == '{' && i + 1 < t->size && t->in[i + 1] == ',') ||
                   (c == '}' && i + 1 < t->size && t->in[i + 1] == '+')) {
            return i;
        }
        put(t, &c, 1);
        i++;
    }
    return t->size;
}

static int add_regex(pretokenizer *pre, const char *pattern, size_t size, const char *origin,
                     flute_error *err) {
    if (size == 0 || size > MAX_PATTERN || memchr(pattern, '\0', size))
        return fail(err, FLUTE_EFORMAT,
                    "%s: pre_tokenizer: a Regex of %zu bytes (1 to %d, without NUL, are allowed)", origin,
                    size, MAX_PATTERN);
    translation t = {.in = pattern, .size = size, .out = malloc(size * 8)}; // \s grows from 2 to 15 bytes
    if (!t.out) return fail_memory(err, size * 8, "a regular expression");
    int code = FLUTE_OK, number;
    PCRE2_SIZE offset = translate(&t);
    if (offset < size) {
        code = fail(err, FLUTE_EUNSUPPORTED,
                    "%s: pre_tokenizer: the Regex uses at byte %zu what is not supported", origin, offset);
        goto done;
    }
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)t.out, t.n, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                                      &number, &offset, NULL);
    if (!regex) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(number, message, sizeof message);
        code = fail(err, FLUTE_EFORMAT, "%s: pre_tokenizer: the Regex does not compile: %s", origin,
                    (char *)message);
        goto done;
    }
    // Failure is fine (no executable memory, say): pcre2_match then interprets.
    (void)pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    pre->stages[pre->n_stages++].code = regex;
done:
    free(t.out);
    return code;
}

static int add_split(pretokenizer *pre, yyjson_val *spec, const char *origin, flute_error *err) {
    yyjson_val *pattern = yyjson_obj_get(yyjson_obj_get(spec, "pattern"), "Regex");
    if (!yyjson_is_str(pattern))
        return fail(err, FLUTE_EUNSUPPORTED, "%s: pre_tokenizer: Split without a Regex pattern", origin);
    if (!yyjson_equals_str(yyjson_obj_get(spec, "behavior"), "Isolated") ||
        yyjson_is_true(yyjson_obj_get(spec, "invert")))
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%s: pre_tokenizer: Split must have behavior Isolated and not be inverted", origin);
    return add_regex(pre, yyjson_get_str(pattern), yyjson_get_len(pattern), origin, err);
}

static int add_bytelevel(pretokenizer *pre, yyjson_val *spec, const char *origin, flute_error *err) {
    bool prefix = true, use_regex = true; // the defaults of Hugging Face's tokenizers
    int code = json_get_bool(spec, "add_prefix_space", JSON_OPTIONAL, &prefix, origin, err);
    if (!code) code = json_get_bool(spec, "use_regex", JSON_OPTIONAL, &use_regex, origin, err);
    if (code) return code;
    if (prefix) pre->stages[pre->n_stages++].code = NULL;
    if (!use_regex) return FLUTE_OK;
    return add_regex(pre, gpt2_pattern, sizeof gpt2_pattern - 1, origin, err);
}

static int add_stages(pretokenizer *pre, yyjson_val *spec, const char *origin, flute_error *err) {
    static const char remedy[] =
        "only byte-level BPE (ByteLevel, or a Sequence of Split that ends in ByteLevel) "
        "is supported";
    yyjson_val *list = yyjson_obj_get(spec, "pretokenizers");
    bool sequence = yyjson_equals_str(yyjson_obj_get(spec, "type"), "Sequence") && yyjson_is_arr(list);
    size_t n = sequence ? yyjson_arr_size(list) : 1;
    if (n == 0 || n > MAX_STAGES - 2) // ByteLevel may make two
        return fail(err, FLUTE_EUNSUPPORTED, "%s: pre_tokenizer: a Sequence of %zu; %s", origin, n, remedy);
    for (size_t i = 0; i < n; i++) {
        yyjson_val *item = sequence ? yyjson_arr_get(list, i) : spec;
        yyjson_val *type = yyjson_obj_get(item, "type");
        bool last = i + 1 == n;
        int code;
        if (last && yyjson_equals_str(type, "ByteLevel"))
            code = add_bytelevel(pre, item, origin, err);
        else if (!last && yyjson_equals_str(type, "Split"))
            code = add_split(pre, item, origin, err);
        else
            code = fail(err, FLUTE_EUNSUPPORTED, "%s: pre_tokenizer: type %.40s at place %zu of %zu; %s",
                        origin, yyjson_is_str(type) ? yyjson_get_str(type) : "(none)", i + 1, n, remedy);
        if (code) return code;
    }
    return FLUTE_OK;
}

int pretokenizer_create(pretokenizer **out, yyjson_val *spec, const char *origin, flute_error *err) {
    *out = NULL;
    int code = FLUTE_ENOMEM;
    pretokenizer *pre = calloc(1, sizeof *pre);
    if (!pre || !(pre->limits = pcre2_match_context_create(NULL))) {
        code = fail_memory(err, sizeof *pre, "the pre-tokenizer");
        goto error;
    }
    pcre2_set_match_limit(pre->limits, PRETOKENIZER_MATCH_LIMIT);
    pcre2_set_heap_limit(pre->limits, HEAP_LIMIT_KIB);
    code = add_stages(pre, spec, origin, err);
    if (code) goto error;
    *out = pre;
    return FLUTE_OK;
error:
    pretokenizer_free(pre);
    return code;
}

void pretokenizer_free(pretokenizer *pre) {
    if (!pre) return;
    for (int i = 0; i < pre->n_stages; i++) pcre2_code_free(pre->stages[i].code);
    pcre2_match_context_free(pre->limits);
    free(pre);
}

typedef struct run {
    const pretokenizer *pre;
    pcre2_match_data *match;
    pretokenizer_piece *piece;
    void *context;
} run;

static int run_stage(const run *r, int index, const char *text, size_t size, flute_error *err);

static int run_prefix(const run *r, int index, const char *text, size_t size, flute_error *err) {
    if (text[0] == ' ') return run_stage(r, index + 1, text, size, err);
    char *copy = malloc(size + 1);
    if (!copy) return fail_memory(err, size + 1, "a piece of text");
    copy[0] = ' ';
    memcpy(copy + 1, text, size);
    int code = run_stage(r, index + 1, copy, size + 1, err);
    free(copy);
    return code;
}

// Finds the next non-empty match at or after *at. 1 and its bounds, 0 for none, or a negative PCRE2 error.
static int next_match(const run *r, const pcre2_code *regex, const char *text, size_t size, size_t *at,
                      size_t *end) {
    for (size_t from = *at; from < size;) {
        PCRE2_SPTR subject = (PCRE2_SPTR)text;
        int n = pcre2_match(regex, subject, size, from, PCRE2_NO_UTF_CHECK, r->match, r->pre->limits);
        if (n == PCRE2_ERROR_JIT_STACKLIMIT) // 32 KiB did not suffice; the interpreter takes its frames from
                                             // the heap
            n = pcre2_match(regex, subject, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match,
                            r->pre->limits);
        if (n == PCRE2_ERROR_NOMATCH) return 0;
        if (n < 0) return n;
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(r->match);
        if (bounds[1] > bounds[0]) {
            *at = bounds[0];
            *end = bounds[1];
            return 1;
        }
        if (bounds[0] >= size) return 0;
        int length = utf8_next(text + bounds[0], size - bounds[0]);
        assert(length > 0); // the text is valid UTF-8 and matches begin at characters
        from = bounds[0] + (size_t)length;
    }
    return 0;
}

// Isolated: matches are pieces, and so is what lies between them.
static int run_regex(const run *r, int index, const char *text, size_t size, flute_error *err) {
    size_t done = 0;
    while (done < size) {
        size_t at = done, end = size;
        int found = next_match(r, r->pre->stages[index].code, text, size, &at, &end);
        if (found < 0) {
            PCRE2_UCHAR message[128] = "";
            pcre2_get_error_message(found, message, sizeof message);
            return fail(err, FLUTE_ERANGE, "the tokenizer's regular expression gives up on the text (%s)",
                        (char *)message);
        }
        if (!found) at = size;
        int code = at > done ? run_stage(r, index + 1, text + done, at - done, err) : FLUTE_OK;
        if (!code && found) code = run_stage(r, index + 1, text + at, end - at, err);
        if (code) return code;
        done = found ? end : size;
    }
    return FLUTE_OK;
}

static int run_stage(const run *r, int index, const char *text, size_t size, flute_error *err) {
    if (index == r->pre->n_stages) return r->piece(r->context, text, size, err);
    if (!r->pre->stages[index].code) return run_prefix(r, index, text, size, err);
    return run_regex(r, index, text, size, err);
}

int pretokenizer_run(const pretokenizer *pre, const char *text, size_t size, pretokenizer_piece *piece,
                     void *context, flute_error *err) {
    if (size == 0) return FLUTE_OK;
    run r = {.pre = pre, .match = pcre2_match_data_create(1, NULL), .piece = piece, .context = context};
    if (!r.match) return fail_memory(err, 64, "a regular expression match");
    int code = run_stage(&r, 0, text, size, err);
    pcre2_match_data_free(r.match);
    return code;
}
