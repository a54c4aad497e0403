#include "tokenizer/tokenizer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "tokenizer/internal.h"
#include "tokenizer/tiktoken.h"
#include "tokenizer/utf8.h"

static const char *const kind_names[] = {
    [TOKENIZER_NONE] = "none", [TOKENIZER_SENTENCEPIECE] = "sentencepiece", [TOKENIZER_BPE] = "bpe"};

enum { N_KINDS = sizeof kind_names / sizeof *kind_names };

const char *tokenizer_kind_name(tokenizer_kind kind) {
    return (unsigned)kind < N_KINDS ? kind_names[kind] : NULL;
}

int tokenizer_kind_parse(const char *name) {
    for (int kind = 0; kind < N_KINDS; kind++)
        if (strcmp(name, kind_names[kind]) == 0) return kind;
    return -1;
}

// ---- creation

// The spellings that become tokens with SPECIAL_AS_TOKEN: the control pieces, and the unknown one.
static int collect_controls(tokenizer *tok, flute_error *err) {
    static const char unknown[] = "<unk>";
    int32_t unknown_id = spm_find(tok->sp, unknown);
    spelled_token *items = malloc(((size_t)tok->tokens.n + 1) * sizeof *items);
    if (!items) return fail_memory(err, (size_t)tok->tokens.n * sizeof *items, "the special tokens");
    size_t n = 0;
    for (int32_t id = 0; id < tok->tokens.n; id++) {
        if (!tok->tokens.control[id]) continue;
        spelled_token *s = &items[n++];
        *s = (spelled_token){.id = id, .special = true};
        s->text = token_text(&tok->tokens, id, &s->size);
    }
    if (unknown_id >= 0)
        items[n++] =
            (spelled_token){.text = unknown, .size = sizeof unknown - 1, .id = unknown_id, .special = true};
    spelling_set_init(&tok->controls, items, n);
    return FLUTE_OK;
}

static int create_spm(tokenizer *tok, const void *blob, size_t size, const char *origin, flute_error *err) {
    spm_model model;
    int code = spm_model_parse(&model, &tok->tokens, blob, size, origin, err);
    if (!code) code = spm_create(&tok->sp, &model, origin, err);
    if (!code) code = collect_controls(tok, err);
    tok->dummy_prefix = model.add_dummy_prefix;
    spm_model_clear(&model);
    return code;
}

int tokenizer_create(tokenizer **out, tokenizer_kind kind, const void *blob, size_t size, const char *origin,
                     flute_error *err) {
    *out = NULL;
    if (!tokenizer_kind_name(kind))
        return fail(err, FLUTE_EINVAL, "%s: unknown tokenizer kind %d", origin, (int)kind);
    if (size > TOKENIZER_BLOB_MAX)
        return fail(err, FLUTE_EFORMAT, "%s: a tokenizer of %zu bytes; at most 1 GiB is allowed", origin,
                    size);
    int code = FLUTE_OK;
    tokenizer *tok = calloc(1, sizeof *tok);
    if (!tok) return fail_memory(err, sizeof *tok, "the tokenizer");
    tok->kind = kind;
    if (kind == TOKENIZER_SENTENCEPIECE) code = create_spm(tok, blob, size, origin, err);
    if (kind == TOKENIZER_BPE) code = bpe_create(&tok->b, &tok->tokens, blob, size, origin, err);
    if (code)
        tokenizer_free(tok);
    else
        *out = tok;
    return code;
}

void tokenizer_free(tokenizer *tok) {
    if (!tok) return;
    spm_free(tok->sp);
    bpe_free(tok->b);
    spelling_set_clear(&tok->controls);
    token_table_clear(&tok->tokens);
    free(tok);
}

// ---- finding the tokenizer of a folder

// Reads folder/name if it exists; otherwise *data stays NULL.
static int read_if_there(const char *folder, const char *name, char *path, char **data, size_t *size,
                         flute_error *err) {
    *data = NULL;
    *size = 0;
    int length = snprintf(path, PATH_MAX, "%s/%s", folder, name);
    if (length < 0 || length >= PATH_MAX) return fail(err, FLUTE_EINVAL, "%s: the path is too long", folder);
    if (access(path, F_OK) != 0 && errno == ENOENT) return FLUTE_OK;
    return file_read(path, data, size, err);
}

int tokenizer_find(const char *folder, tokenizer_kind *kind, char **blob, size_t *size, flute_error *err) {
    char path[PATH_MAX], json_path[PATH_MAX], *model = NULL, *json = NULL;
    size_t model_size = 0, json_size = 0;
    *kind = TOKENIZER_NONE;
    *blob = NULL;
    *size = 0;
    int code = read_if_there(folder, "tokenizer.model", path, &model, &model_size, err);
    if (code) goto done;
    if (model && spm_model_probe(model, model_size)) {
        *kind = TOKENIZER_SENTENCEPIECE;
        *blob = model;
        *size = model_size;
        return FLUTE_OK;
    }
    code = read_if_there(folder, "tokenizer.json", json_path, &json, &json_size, err);
    if (code) goto done;
    if (!json && model && !tiktoken_probe(model, model_size)) {
        code = fail(
            err, FLUTE_EFORMAT,
            "%s: neither a sentencepiece model nor a tiktoken file; fetch it again, or put a tokenizer.json "
            "beside it",
            path);
    } else if (!json && model) {
        code = tiktoken_convert(model, model_size, &json, &json_size, path, err);
    }
    if (!code && json) {
        *kind = TOKENIZER_BPE;
        *blob = json;
        *size = json_size;
    }
done:
    free(model);
    return code;
}

// ---- questions

int tokenizer_vocab_size(const tokenizer *tok) {
    return tok->tokens.n;
}

int32_t tokenizer_bos(const tokenizer *tok) {
    return tok->sp ? spm_bos(tok->sp) : tok->b ? bpe_bos(tok->b) : -1;
}

int32_t tokenizer_eos(const tokenizer *tok) {
    return tok->sp ? spm_eos(tok->sp) : tok->b ? bpe_eos(tok->b) : -1;
}

bool tokenizer_adds_bos(const tokenizer *tok) {
    // A sentencepiece model does not say; all of Llama's and Gemma's want it.
    return tok->sp ? spm_bos(tok->sp) >= 0 : tok->b && bpe_adds_bos(tok->b);
}

int32_t tokenizer_find_token(const tokenizer *tok, const char *spelling) {
    return tok->sp ? spm_find(tok->sp, spelling) : tok->b ? bpe_find(tok->b, spelling) : -1;
}

bool tokenizer_is_control(const tokenizer *tok, int32_t id) {
    return id >= 0 && id < tok->tokens.n && tok->tokens.control[id];
}

// ---- encoding

// Special tokens cut the text, and sentencepiece sees what lies between. Only a segment at the very start of
// the text gets the dummy prefix: "<s>Hello" is <s> and "Hello" without ▁. That is what transformers does
// with Llama since legacy=false (Metaspace with prepend_scheme "first"); its older behaviour gave every
// segment one, so that a space crept into each turn of a conversation.
static int encode_spm(const tokenizer *tok, const char *text, size_t size, bool with_special, id_sink *sink,
                      flute_error *err) {
    if (!with_special) return spm_encode(tok->sp, text, size, true, sink, err);
    for (size_t done = 0; done < size;) {
        size_t at = done;
        const spelled_token *token = spelling_set_find(&tok->controls, text, size, true, &at);
        int code = at > done ? spm_encode(tok->sp, text + done, at - done, done == 0, sink, err) : FLUTE_OK;
        if (code) return code;
        if (token) id_sink_push(sink, token->id);
        done = at + (token ? token->size : 0);
    }
    return FLUTE_OK;
}

int64_t tokenizer_encode(const tokenizer *tok, const char *text, size_t size, tokenizer_special special,
                         int32_t *ids, size_t capacity, flute_error *err) {
    size_t invalid = utf8_find_invalid(text, size);
    if (invalid < size)
        return fail(err, FLUTE_EFORMAT,
                    "the text is not valid UTF-8 at byte %zu (0x%02x); convert it to UTF-8", invalid,
                    (unsigned)(uint8_t)text[invalid]);
    id_sink sink = {.ids = ids, .capacity = capacity};
    bool with_special = special == SPECIAL_AS_TOKEN;
    int code;
    if (tok->sp)
        code = encode_spm(tok, text, size, with_special, &sink, err);
    else if (tok->b)
        code = bpe_encode(tok->b, text, size, with_special, &sink, err);
    else
        code = fail(err, FLUTE_EUNSUPPORTED,
                    "the model has no tokenizer, so it takes ids only (--prompt-ids); convert it "
                    "again from a folder with tokenizer.model or tokenizer.json");
    return code ? code : (int64_t)sink.n;
}
