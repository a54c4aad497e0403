// Conversations as the families' published templates write them:
//
//   Llama 3:  <|begin_of_text|> and for each message
//             <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>
//   Gemma:    <bos> and for each message <start_of_turn>ROLE\nCONTENT<end_of_turn>\n, where the assistant is
//             called "model", and system text goes before the first user message, an empty line between
//   plain:    contents only: the model continues the last one, later messages start on a new line
//
// A conversation is rendered as runs of text between special tokens. A run is encoded as a whole, as it would
// be in the rendered string, but never as special tokens: what a message says is only text.
#include "engine/chat.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/model.h"

typedef struct chat_template {
    const char *turn_start; // special token before the role; NULL: none
    const char *header_end; // special token after the role; NULL: none
    const char *turn_end;   // special token after the content
    const char *after_role; // text between role and content
    const char *after_turn; // text between turns
    const char *assistant;  // what the assistant is called
    bool has_system;        // false: system text goes into the first user message
} chat_template;

static const chat_template templates[] = {
    [CHAT_PLAIN] = {.after_role = "", .after_turn = "\n", .has_system = true},
    [CHAT_LLAMA3] = {.turn_start = "<|start_header_id|>",
                     .header_end = "<|end_header_id|>",
                     .turn_end = "<|eot_id|>",
                     .after_role = "\n\n",
                     .after_turn = "",
                     .assistant = "assistant",
                     .has_system = true},
    [CHAT_GEMMA] = {.turn_start = "<start_of_turn>",
                    .turn_end = "<end_of_turn>",
                    .after_role = "\n",
                    .after_turn = "\n",
                    .assistant = "model"},
};

int32_t chat_end_of_turn(chat_style style, const tokenizer *tok) {
    const char *spelling = templates[style].turn_end;
    return spelling && tok ? tokenizer_find_token(tok, spelling) : -1;
}

typedef struct chat_writer {
    const tokenizer *tok;
    const char *spellings[3]; // turn_start, header_end, turn_end
    int32_t specials[3];      // their ids; -1: none
    char *run;                // text since the last special token
    size_t run_size, run_capacity;
    int32_t *run_ids;
    size_t run_ids_capacity;
    int32_t *ids; // of the caller
    size_t capacity;
    int64_t n;
    flute_error *err;
    int code;
} chat_writer;

static void put_id(chat_writer *w, int32_t id) {
    if ((size_t)w->n < w->capacity) w->ids[w->n] = id;
    w->n++;
}

static void put_text(chat_writer *w, const char *text, size_t size) {
    if (w->code) return;
    if (w->run_capacity - w->run_size < size) {
        const size_t capacity = 2 * w->run_capacity + size;
        char *run = realloc(w->run, capacity);
        if (!run) {
            w->code = fail_memory(w->err, capacity, "a conversation");
            return;
        }
        w->run = run;
        w->run_capacity = capacity;
    }
    if (size) memcpy(w->run + w->run_size, text, size);
    w->run_size += size;
}

// Both families' templates trim contents.
static void put_trimmed(chat_writer *w, const char *text) {
    static const char space[] = " \t\r\n\v\f";
    text += strspn(text, space);
    size_t size = strlen(text);
    while (size > 0 && strchr(space, text[size - 1])) size--;
    put_text(w, text, size);
}

static bool is_special(const chat_writer *w, int32_t id) {
    for (int i = 0; i < 3; i++)
        if (id >= 0 && id == w->specials[i]) return true;
    return false;
}

// Encodes text into run_ids; returns the number of ids, or -1 with w->code set.
static int64_t encode(chat_writer *w, const char *text, size_t size) {
    int64_t n =
        tokenizer_encode(w->tok, text, size, SPECIAL_AS_TEXT, w->run_ids, w->run_ids_capacity, w->err);
    if (n > (int64_t)w->run_ids_capacity) {
        int32_t *ids = realloc(w->run_ids, (size_t)n * sizeof *ids);
        if (!ids) {
            w->code = fail_memory(w->err, (size_t)n * sizeof *ids, "a conversation");
            return -1;
        }
        w->run_ids = ids;
        w->run_ids_capacity = (size_t)n;
        n = tokenizer_encode(w->tok, text, size, SPECIAL_AS_TEXT, ids, (size_t)n, w->err);
    }
    if (n < 0) w->code = (int)n;
    return n < 0 ? -1 : n;
}

// Sentencepiece matches user-defined symbols even in plain text, and Gemma's turn markers are such: a message
// that spells one is cut inside the spelling ("<" and "end_of_turn>"), so that it stays text.
static size_t cut_of(chat_writer *w, const char *text, size_t size) {
    bool found = false;
    const int64_t n = encode(w, text, size);
    for (int64_t i = 0; i < n; i++) found = found || is_special(w, w->run_ids[i]);
    if (!found) return size;
    size_t cut = size;
    for (int i = 0; i < 3; i++) {
        if (w->specials[i] < 0) continue;
        const char *at = memmem(text, cut, w->spellings[i], strlen(w->spellings[i]));
        if (at) cut = (size_t)(at - text) + 1;
    }
    return cut;
}

static void flush_run(chat_writer *w) {
    size_t done = 0;
    while (!w->code && done < w->run_size) {
        const size_t cut = cut_of(w, w->run + done, w->run_size - done);
        const int64_t n = encode(w, w->run + done, cut);
        for (int64_t i = 0; i < n; i++) put_id(w, w->run_ids[i]);
        done += cut;
    }
    w->run_size = 0;
}

static void put_special(chat_writer *w, int32_t id) {
    if (id < 0 || w->code) return;
    flush_run(w);
    put_id(w, id);
}

enum { TURN_START, HEADER_END, TURN_END };

// The template of the model's style, or the plain one when the tokenizer lacks a token that it needs.
static const chat_template *choose_template(chat_writer *w, chat_style style) {
    const chat_template *t = &templates[style];
    const char *const spellings[3] = {t->turn_start, t->header_end, t->turn_end};
    for (int i = 0; i < 3; i++) {
        w->spellings[i] = spellings[i];
        w->specials[i] = spellings[i] ? tokenizer_find_token(w->tok, spellings[i]) : -1;
        if (spellings[i] && w->specials[i] < 0) return choose_template(w, CHAT_PLAIN);
    }
    return t;
}

static void put_turn_start(chat_writer *w, const chat_template *t, const char *role) {
    put_special(w, w->specials[TURN_START]);
    put_text(w, role, strlen(role));
    put_special(w, w->specials[HEADER_END]);
    put_text(w, t->after_role, strlen(t->after_role));
}

static void put_turn_end(chat_writer *w, const chat_template *t) {
    put_special(w, w->specials[TURN_END]);
    put_text(w, t->after_turn, strlen(t->after_turn));
}

// With turns: messages between special tokens.
static void put_turns(chat_writer *w, const chat_template *t, const flute_message *messages, size_t n) {
    size_t first_system = 0, n_system = 0; // system messages that wait for a user message to stand before
    for (size_t i = 0; i < n; i++) {
        const bool system = strcmp(messages[i].role, "system") == 0;
        if (system && !t->has_system) {
            if (n_system++ == 0) first_system = i;
            if (i + 1 < n) continue;
        }
        const bool assistant = strcmp(messages[i].role, "assistant") == 0;
        put_turn_start(w, t, assistant ? t->assistant : system && !t->has_system ? "user" : messages[i].role);
        for (size_t s = first_system; n_system > 0 && !assistant && s < i; s++) {
            if (strcmp(messages[s].role, "system") != 0) continue;
            put_text(w, messages[s].content, strlen(messages[s].content));
            put_text(w, "\n\n", 2);
        }
        if (!assistant) n_system = 0;
        put_trimmed(w, messages[i].content);
        put_turn_end(w, t);
    }
    put_turn_start(w, t, t->assistant);
}

// Without: what users and models wrote is one text.
static void put_plain(chat_writer *w, const chat_template *t, const flute_message *messages, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const bool assistant = strcmp(messages[i].role, "assistant") == 0;
        if (i > 0 && !assistant) put_text(w, t->after_turn, strlen(t->after_turn));
        put_text(w, messages[i].content, strlen(messages[i].content));
    }
}

static int check_messages(const flute_message *messages, size_t n, flute_error *err) {
    if (n == 0) return fail(err, FLUTE_EINVAL, "the conversation is empty");
    for (size_t i = 0; i < n; i++) {
        const char *role = messages[i].role;
        if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
            return fail(err, FLUTE_EINVAL, "message %zu: role '%s' is none of system, user, assistant", i,
                        role);
    }
    return FLUTE_OK;
}

int64_t flute_chat_tokenize(const flute_model *model, const flute_message *messages, size_t n_messages,
                            int32_t *ids, size_t capacity, flute_error *err) {
    int code = model_need_tokenizer(model, err);
    if (!code) code = check_messages(messages, n_messages, err);
    if (code) return code;
    chat_writer w = {.tok = model->tok, .ids = ids, .capacity = capacity, .err = err};
    const chat_template *t = choose_template(&w, model->file.arch.chat);
    const int32_t bos = flute_token_bos(model);
    if (bos >= 0) put_id(&w, bos);
    if (t->assistant)
        put_turns(&w, t, messages, n_messages);
    else
        put_plain(&w, t, messages, n_messages);
    flush_run(&w);
    free(w.run);
    free(w.run_ids);
    return w.code ? w.code : w.n;
}
