// From a tokenizer.json to struct bpe. Everything in the file is checked: what is damaged is FLUTE_EFORMAT,
// and what byte-level BPE of the Llama 3 kind does not use is FLUTE_EUNSUPPORTED instead of wrong ids.
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "tokenizer/bpe_internal.h"
#include "tokenizer/bytelevel.h"

// What the file says about one id.
typedef struct entry {
    const char *text; // in the document; NULL: no token has the id
    uint32_t size;
    bool in_vocab;   // of the model: the merges can make it
    bool added;      // its text is literal, not in the byte-level alphabet
    bool special;    // a control token
    bool normalized; // matched after the others
} entry;

typedef struct loader {
    bpe *b;
    token_table *tokens;
    const char *origin;
    flute_error *err;
    entry *entries; // (capacity)
    size_t capacity;
    size_t n; // highest id + 1
} loader;

static int claim(loader *l, yyjson_val *text, int64_t id, entry **out) {
    quoted name = token_quote(yyjson_get_str(text), yyjson_get_len(text));
    if (yyjson_get_len(text) == 0)
        return fail(l->err, FLUTE_EFORMAT, "%s: the token with id %lld is empty", l->origin, (long long)id);
    // Ids must be dense, so the number of tokens bounds them.
    if (id < 0 || (uint64_t)id >= l->capacity)
        return fail(l->err, FLUTE_EFORMAT, "%s: token '%s' has the id %lld, but the file has only %zu tokens",
                    l->origin, name.text, (long long)id, l->capacity);
    *out = &l->entries[id];
    if ((size_t)id + 1 > l->n) l->n = (size_t)id + 1;
    return FLUTE_OK;
}

static int load_vocab(loader *l, yyjson_val *vocab) {
    yyjson_obj_iter iter = yyjson_obj_iter_with(vocab);
    for (yyjson_val *key; (key = yyjson_obj_iter_next(&iter));) {
        yyjson_val *value = yyjson_obj_iter_get_val(key);
        entry *e = NULL;
        if (!yyjson_is_int(value))
            return fail(l->err, FLUTE_EFORMAT, "%s: model.vocab: the id of '%s' is not an integer", l->origin,
                        token_quote(yyjson_get_str(key), yyjson_get_len(key)).text);
        // An unsigned id beyond int64 turns negative here and is refused as such.
        int code = claim(l, key, yyjson_get_sint(value), &e);
        if (code) return code;
        if (e->text)
            return fail(l->err, FLUTE_EFORMAT, "%s: model.vocab: '%s' and another token have the id %lld",
                        l->origin, token_quote(yyjson_get_str(key), yyjson_get_len(key)).text,
                        (long long)yyjson_get_sint(value));
        *e = (entry){.text = yyjson_get_str(key), .size = (uint32_t)yyjson_get_len(key), .in_vocab = true};
    }
    return FLUTE_OK;
}

static int load_added_token(loader *l, yyjson_val *item) {
    int64_t id = 0;
    bool special = false, normalized = true, lstrip = false, rstrip = false, single_word = false;
    yyjson_val *content = yyjson_obj_get(item, "content");
    if (!yyjson_is_str(content))
        return fail(l->err, FLUTE_EFORMAT, "%s: added_tokens: an entry without a content string", l->origin);
    int code = json_get_int(item, "id", JSON_REQUIRED, 0, INT32_MAX, &id, l->origin, l->err);
    if (!code) code = json_get_bool(item, "special", JSON_OPTIONAL, &special, l->origin, l->err);
    if (!code) code = json_get_bool(item, "normalized", JSON_OPTIONAL, &normalized, l->origin, l->err);
    if (!code) code = json_get_bool(item, "lstrip", JSON_OPTIONAL, &lstrip, l->origin, l->err);
    if (!code) code = json_get_bool(item, "rstrip", JSON_OPTIONAL, &rstrip, l->origin, l->err);
    if (!code) code = json_get_bool(item, "single_word", JSON_OPTIONAL, &single_word, l->origin, l->err);
    if (code) return code;
    const char *text = yyjson_get_str(content);
    size_t size = yyjson_get_len(content);
    if (lstrip || rstrip || single_word)
        return fail(l->err, FLUTE_EUNSUPPORTED, "%s: added token '%s': %s is not supported", l->origin,
                    token_quote(text, size).text,
                    lstrip   ? "lstrip"
                    : rstrip ? "rstrip"
                             : "single_word");
    entry *e = NULL;
    code = claim(l, content, id, &e);
    if (code) return code;
    if (e->text && (e->added || e->size != size || memcmp(e->text, text, size) != 0))
        return fail(l->err, FLUTE_EFORMAT, "%s: added token '%s' and another token have the id %lld",
                    l->origin, token_quote(text, size).text, (long long)id);
    *e = (entry){.text = text,
                 .size = (uint32_t)size,
                 .in_vocab = e->in_vocab,
                 .added = true,
                 .special = special,
                 .normalized = normalized};
    return FLUTE_OK;
}

static int load_entries(loader *l, yyjson_val *vocab, yyjson_val *added) {
    if (!yyjson_is_obj(vocab))
        return fail(l->err, FLUTE_EFORMAT, "%s: model.vocab is not an object", l->origin);
    if (added && !yyjson_is_arr(added) && !yyjson_is_null(added))
        return fail(l->err, FLUTE_EFORMAT, "%s: added_tokens is not an array", l->origin);
    l->capacity = yyjson_obj_size(vocab) + yyjson_arr_size(added);
    l->entries = calloc(l->capacity + 1, sizeof *l->entries);
    if (!l->entries) return fail_memory(l->err, l->capacity * sizeof *l->entries, "the vocabulary");
    int code = load_vocab(l, vocab);
    yyjson_arr_iter iter = yyjson_arr_iter_with(added);
    for (yyjson_val *item; !code && (item = yyjson_arr_iter_next(&iter));) code = load_added_token(l, item);
    for (size_t id = 0; !code && id < l->n; id++)
        if (!l->entries[id].text)
            code = fail(l->err, FLUTE_EFORMAT, "%s: no token has the id %zu, but one has %zu", l->origin, id,
                        l->n - 1);
    return code;
}

static int build_tokens(loader *l) {
    size_t n_bytes = 0;
    for (size_t id = 0; id < l->n; id++) n_bytes += l->entries[id].size;
    int code = token_table_reserve(l->tokens, l->n, n_bytes, l->err);
    for (size_t id = 0; !code && id < l->n; id++) {
        const entry *e = &l->entries[id];
        if (e->added) {
            token_table_append(l->tokens, e->text, e->size, e->special);
            continue;
        }
        char *out = l->tokens->bytes + l->tokens->start[id];
        int64_t size = bytelevel_decode(e->text, e->size, out);
        if (size < 0)
            return fail(
                l->err, FLUTE_EUNSUPPORTED,
                "%s: token '%s' (id %zu) is not written in the byte-level alphabet; only byte-level BPE is "
                "supported (for a sentencepiece model, put its tokenizer.model into the folder)",
                l->origin, token_quote(e->text, e->size).text, id);
        token_table_append(l->tokens, out, (size_t)size, false);
    }
    return code;
}

// The tokens that merging can reach. Control tokens are left out even when the vocabulary lists them, so that
// plain text never gives one.
static int build_bytes(loader *l) {
    bpe *b = l->b;
    size_t slots = bpe_table_size(l->n);
    b->by_bytes = malloc(slots * sizeof *b->by_bytes);
    if (!b->by_bytes) return fail_memory(l->err, slots * sizeof *b->by_bytes, "the vocabulary");
    memset(b->by_bytes, 0xFF, slots * sizeof *b->by_bytes); // -1: empty
    b->by_bytes_mask = slots - 1;
    for (size_t id = 0; id < l->n; id++) {
        const entry *e = &l->entries[id];
        if (!e->in_vocab || e->special) continue;
        size_t size;
        const char *bytes = token_text(l->tokens, (int32_t)id, &size);
        if (bpe_find_bytes(b, bytes, size) >= 0)
            return fail(l->err, FLUTE_EFORMAT, "%s: model.vocab lists '%s' twice", l->origin,
                        token_quote(e->text, e->size).text);
        bpe_add_bytes(b, (int32_t)id);
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        b->byte_id[byte] = bpe_find_bytes(b, &c, 1);
        if (b->byte_id[byte] < 0)
            return fail(l->err, FLUTE_EFORMAT, "%s: model.vocab has no token for the byte 0x%02x", l->origin,
                        byte);
    }
    return FLUTE_OK;
}

// The two halves of a merge: "a b" or ["a", "b"].
static bool merge_halves(yyjson_val *item, const char *half[2], size_t size[2]) {
    if (yyjson_is_str(item)) {
        half[0] = yyjson_get_str(item);
        size_t total = yyjson_get_len(item);
        const char *space = memchr(half[0], ' ', total);
        if (!space) return false;
        half[1] = space + 1;
        size[0] = (size_t)(space - half[0]);
        size[1] = total - size[0] - 1;
        return true; // a second space is in no token, and is found there
    }
    if (!yyjson_is_arr(item) || yyjson_arr_size(item) != 2) return false;
    for (size_t i = 0; i < 2; i++) {
        yyjson_val *value = yyjson_arr_get(item, i);
        if (!yyjson_is_str(value)) return false;
        half[i] = yyjson_get_str(value);
        size[i] = yyjson_get_len(value);
    }
    return true;
}

// scratch has room for two of the longest token, in the byte-level alphabet.
static int load_merge(loader *l, yyjson_val *item, size_t rank, char *scratch) {
    const char *half[2];
    size_t size[2];
    if (!merge_halves(item, half, size))
        return fail(l->err, FLUTE_EFORMAT, "%s: model.merges: entry %zu is not a pair of tokens", l->origin,
                    rank);
    int64_t n[2] = {-1, -1};
    size_t longest = 2 * l->tokens->longest;
    if (size[0] <= longest && size[1] <= longest) {
        n[0] = bytelevel_decode(half[0], size[0], scratch);
        if (n[0] > 0) n[1] = bytelevel_decode(half[1], size[1], scratch + n[0]);
    }
    merge m = {.left = -1, .right = -1, .rank = (uint32_t)rank, .result = -1};
    if (n[0] > 0 && n[1] > 0) {
        m.left = bpe_find_bytes(l->b, scratch, (size_t)n[0]);
        m.right = bpe_find_bytes(l->b, scratch + n[0], (size_t)n[1]);
        m.result = bpe_find_bytes(l->b, scratch, (size_t)(n[0] + n[1]));
    }
    if (m.left < 0 || m.right < 0 || m.result < 0)
        return fail(l->err, FLUTE_EFORMAT,
                    "%s: model.merges: entry %zu joins or makes a token that is not in model.vocab",
                    l->origin, rank);
    bpe_add_merge(l->b, &m); // of two entries for a pair the later counts, as with Hugging Face's tokenizers
    return FLUTE_OK;
}

static int load_merges(loader *l, yyjson_val *merges) {
    bpe *b = l->b;
    if (!yyjson_is_arr(merges))
        return fail(l->err, FLUTE_EFORMAT, "%s: model.merges is not an array", l->origin);
    size_t slots = bpe_table_size(yyjson_arr_size(merges));
    b->merges = malloc(slots * sizeof *b->merges);
    char *scratch = malloc(4 * l->tokens->longest + 1);
    if (!b->merges || !scratch) {
        free(scratch);
        return fail_memory(l->err, slots * sizeof *b->merges, "the merges");
    }
    memset(b->merges, 0xFF, slots * sizeof *b->merges); // left = -1: empty
    b->merges_mask = slots - 1;
    int code = FLUTE_OK;
    size_t rank = 0;
    yyjson_arr_iter iter = yyjson_arr_iter_with(merges);
    for (yyjson_val *item; !code && (item = yyjson_arr_iter_next(&iter)); rank++) {
        bool comment = yyjson_is_str(item) && strncmp(yyjson_get_str(item), "#version", 8) == 0;
        if (!comment) code = load_merge(l, item, rank, scratch);
    }
    free(scratch);
    return code;
}

static int build_spellings(loader *l, spelling_set *set, bool normalized) {
    size_t n = 0;
    for (size_t id = 0; id < l->n; id++) n += l->entries[id].added && l->entries[id].normalized == normalized;
    spelled_token *items = malloc((n + 1) * sizeof *items);
    if (!items) return fail_memory(l->err, n * sizeof *items, "the added tokens");
    n = 0;
    for (size_t id = 0; id < l->n; id++) {
        const entry *e = &l->entries[id];
        if (!e->added || e->normalized != normalized) continue;
        size_t size;
        const char *text = token_text(l->tokens, (int32_t)id, &size);
        items[n++] = (spelled_token){.text = text, .size = size, .id = (int32_t)id, .special = e->special};
    }
    spelling_set_init(set, items, n);
    for (size_t i = 1; i < n; i++)
        if (items[i].size == items[i - 1].size &&
            memcmp(items[i].text, items[i - 1].text, items[i].size) == 0)
            return fail(l->err, FLUTE_EFORMAT, "%s: added_tokens lists '%s' twice", l->origin,
                        token_quote(items[i].text, items[i].size).text);
    return FLUTE_OK;
}

// TemplateProcessing: the special token before sequence A is BOS.
static int load_template(loader *l, yyjson_val *spec) {
    yyjson_val *first = yyjson_arr_get_first(yyjson_obj_get(spec, "single"));
    yyjson_val *name = yyjson_obj_get(yyjson_obj_get(first, "SpecialToken"), "id");
    if (!yyjson_is_str(name)) return FLUTE_OK; // the template begins with the text
    yyjson_val *token =
        yyjson_obj_getn(yyjson_obj_get(spec, "special_tokens"), yyjson_get_str(name), yyjson_get_len(name));
    yyjson_val *ids = yyjson_obj_get(token, "ids"), *id = yyjson_arr_get_first(ids);
    if (yyjson_arr_size(ids) != 1 || !yyjson_is_int(id) || yyjson_get_sint(id) < 0 ||
        (uint64_t)yyjson_get_sint(id) >= l->n)
        return fail(l->err, FLUTE_EFORMAT, "%s: post_processor: '%s' is not one id of the vocabulary",
                    l->origin, token_quote(yyjson_get_str(name), yyjson_get_len(name)).text);
    l->b->bos = (int32_t)yyjson_get_sint(id);
    l->b->adds_bos = true;
    return FLUTE_OK;
}

static int load_post_processor(loader *l, yyjson_val *spec, int depth) {
    yyjson_val *type = yyjson_obj_get(spec, "type");
    if (!spec || yyjson_is_null(spec) || yyjson_equals_str(type, "ByteLevel"))
        return FLUTE_OK; // moves offsets only
    if (yyjson_equals_str(type, "TemplateProcessing")) return load_template(l, spec);
    if (depth > 0 || !yyjson_equals_str(type, "Sequence"))
        return fail(l->err, FLUTE_EUNSUPPORTED,
                    "%s: post_processor: type %.40s; only TemplateProcessing and ByteLevel "
                    "are supported",
                    l->origin, yyjson_is_str(type) ? yyjson_get_str(type) : "(none)");
    int code = FLUTE_OK;
    yyjson_arr_iter iter = yyjson_arr_iter_with(yyjson_obj_get(spec, "processors"));
    for (yyjson_val *item; !code && (item = yyjson_arr_iter_next(&iter));)
        code = load_post_processor(l, item, depth + 1);
    return code;
}

static int32_t find_first(const bpe *b, const char *const *names) {
    for (; *names; names++) {
        int32_t id = bpe_find(b, *names);
        if (id >= 0 && b->tokens->control[id]) return id;
    }
    return -1;
}

static int load_roles(loader *l, yyjson_val *post_processor) {
    static const char *const bos[] = {"<|begin_of_text|>", "<s>", "<bos>", NULL};
    static const char *const eos[] = {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", NULL};
    l->b->bos = find_first(l->b, bos);
    l->b->eos = find_first(l->b, eos);
    // Llama 3 was first published with a tokenizer.json whose template lacked BOS, by mistake.
    l->b->adds_bos = l->b->bos >= 0 && l->b->bos == bpe_find(l->b, bos[0]);
    return load_post_processor(l, post_processor, 0);
}

static bool absent_or_empty(yyjson_val *value) {
    return !value || yyjson_is_null(value) || yyjson_equals_str(value, "");
}

static int check_model(yyjson_val *root, yyjson_val *model, const char *origin, flute_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    if (!yyjson_is_obj(model))
        return fail(err, FLUTE_EFORMAT, "%s: not a tokenizer.json: it has no model", origin);
    yyjson_val *type = yyjson_obj_get(model, "type");
    if (type && !yyjson_equals_str(type, "BPE"))
        return fail(err, FLUTE_EUNSUPPORTED, "%s: model type %.40s; only byte-level BPE is supported", origin,
                    yyjson_is_str(type) ? yyjson_get_str(type) : "(not a string)");
    if (yyjson_is_true(yyjson_obj_get(model, "byte_fallback")))
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%s: byte_fallback: this is a converted sentencepiece model; put the "
                    "original tokenizer.model into the folder",
                    origin);
    if (!absent_or_empty(yyjson_obj_get(root, "normalizer")))
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%s: a normalizer is not supported (Llama 3 has none); a sentencepiece model "
                    "needs its original tokenizer.model",
                    origin);
    yyjson_val *dropout = yyjson_obj_get(model, "dropout");
    if (dropout && !yyjson_is_null(dropout) && yyjson_get_num(dropout) != 0)
        return fail(err, FLUTE_EUNSUPPORTED, "%s: model.dropout makes ids random; set it to null", origin);
    for (size_t i = 0; i < sizeof affixes / sizeof *affixes; i++)
        if (!absent_or_empty(yyjson_obj_get(model, affixes[i])))
            return fail(err, FLUTE_EUNSUPPORTED, "%s: model.%s is not supported", origin, affixes[i]);
    return FLUTE_OK;
}

int bpe_load(bpe *b, token_table *tokens, const char *json, size_t size, const char *origin,
             flute_error *err) {
    loader l = {.b = b, .tokens = tokens, .origin = origin, .err = err};
    b->tokens = tokens;
    b->bos = b->eos = -1;
    yyjson_doc *doc = json_parse(json, size, origin, err);
    if (!doc) return FLUTE_EFORMAT;
    yyjson_val *root = yyjson_doc_get_root(doc), *model = yyjson_obj_get(root, "model");
    int code = check_model(root, model, origin, err);
    if (!code) code = json_get_bool(model, "ignore_merges", JSON_OPTIONAL, &b->ignore_merges, origin, err);
    if (!code) code = load_entries(&l, yyjson_obj_get(model, "vocab"), yyjson_obj_get(root, "added_tokens"));
    if (!code) code = build_tokens(&l);
    if (!code) code = build_bytes(&l);
    if (!code) code = load_merges(&l, yyjson_obj_get(model, "merges"));
    if (!code) code = build_spellings(&l, &b->raw, false);
    if (!code) code = build_spellings(&l, &b->normalized, true);
    if (!code) code = pretokenizer_create(&b->pre, yyjson_obj_get(root, "pre_tokenizer"), origin, err);
    if (!code) code = load_roles(&l, yyjson_obj_get(root, "post_processor"));
    free(l.entries);
    yyjson_doc_free(doc);
    return code;
}
