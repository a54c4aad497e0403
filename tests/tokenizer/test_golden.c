// The three reference tokenizers: ids and texts equal those that transformers gave (golden.json), whole texts
// survive the way to ids and back, and special tokens appear where they should and nowhere else.
#include "tests/tokenizer/helper.h"

#include <pthread.h>

typedef struct model {
    const char *folder;
    const char *file;
    tokenizer_kind kind;
} model;

static const model llama2 = {"docs-llama2", "docs-llama2/tokenizer.model", TOKENIZER_SENTENCEPIECE};
static const model llama3 = {"docs-llama3", "docs-llama3/tokenizer.json", TOKENIZER_BPE};
static const model gemma2 = {"docs-gemma2", "docs-gemma2/tokenizer.model", TOKENIZER_SENTENCEPIECE};

static yyjson_doc *read_golden(const model *m) {
    char name[256];
    snprintf(name, sizeof name, "%s/golden.json", m->folder);
    bytes file = read_file(data_path(name));
    yyjson_doc *doc = yyjson_read(file.data, file.size, 0);
    assert_non_null(doc);
    free(file.data);
    return doc;
}

static int32_t *read_ids(yyjson_val *list, size_t *n) {
    assert_true(yyjson_is_arr(list));
    *n = yyjson_arr_size(list);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)yyjson_get_int(yyjson_arr_get(list, i));
    return ids;
}

static void golden_ids(void **state) {
    const model *m = *state;
    tokenizer *tok = create_from(m->kind, m->file);
    yyjson_doc *doc = read_golden(m);
    yyjson_val *cases = yyjson_obj_get(yyjson_doc_get_root(doc), "tokenize"), *item;
    assert_true(yyjson_arr_size(cases) >= 18);
    size_t index, max;
    yyjson_arr_foreach(cases, index, max, item) {
        yyjson_val *text = yyjson_obj_get(item, "text");
        size_t n;
        int32_t *ids = read_ids(yyjson_obj_get(item, "ids"), &n);
        // One case holds the spelling of a special token; transformers always makes that the token.
        id_list got = encode(tok, yyjson_get_str(text), yyjson_get_len(text), SPECIAL_AS_TOKEN);
        if (got.n != n || memcmp(got.ids, ids, n * sizeof *ids) != 0)
            fail_msg("%s: '%s' gives other ids", m->folder, yyjson_get_str(text));
        bytes back = decode(tok, got.ids, got.n, true);
        if (!strstr(yyjson_get_str(text), "<|eot_id|>")) {
            assert_int_equal(back.size, yyjson_get_len(text));
            assert_memory_equal(back.data, yyjson_get_str(text), back.size);
        }
        free(back.data);
        free(got.ids);
        free(ids);
    }
    yyjson_doc_free(doc);
    tokenizer_free(tok);
}

static void golden_generations(void **state) {
    const model *m = *state;
    tokenizer *tok = create_from(m->kind, m->file);
    yyjson_doc *doc = read_golden(m);
    yyjson_val *cases = yyjson_obj_get(yyjson_doc_get_root(doc), "generations"), *item;
    assert_true(yyjson_arr_size(cases) >= 6);
    size_t index, max;
    yyjson_arr_foreach(cases, index, max, item) {
        const char *prompt = yyjson_get_str(yyjson_obj_get(item, "prompt"));
        size_t n;
        int32_t *ids = read_ids(yyjson_obj_get(item, "prompt_ids"), &n);
        assert_true(tokenizer_adds_bos(tok));
        assert_int_equal(ids[0], tokenizer_bos(tok));
        assert_ids(tok, prompt, SPECIAL_AS_TEXT, ids + 1, n - 1);
        free(ids);
        ids = read_ids(yyjson_obj_get(item, "greedy_ids"), &n);
        bytes text = decode(tok, ids, n, true);
        assert_string_equal(text.data, yyjson_get_str(yyjson_obj_get(item, "greedy_text")));
        free(text.data);
        free(ids);
    }
    yyjson_doc_free(doc);
    tokenizer_free(tok);
}

// 300 kB of text to ids and back, in one piece and in lines; the ids fit where they are counted to fit.
static void round_trip(void **state) {
    const model *m = *state;
    tokenizer *tok = create_from(m->kind, m->file);
    bytes text = read_file(data_path("eval.txt"));
    id_list all = encode(tok, text.data, text.size, SPECIAL_AS_TEXT);
    assert_true(all.n > text.size / 10 && all.n < text.size);
    bytes back = decode(tok, all.ids, all.n, true);
    assert_int_equal(back.size, text.size);
    assert_memory_equal(back.data, text.data, text.size);
    free(back.data);
    int32_t few[5] = {-7, -7, -7, -7, -7};
    assert_int_equal(tokenizer_encode(tok, text.data, text.size, SPECIAL_AS_TEXT, few, 4, NULL), all.n);
    assert_memory_equal(few, all.ids, 4 * sizeof *few);
    assert_int_equal(few[4], -7);
    free(all.ids);
    for (char *line = text.data; *line;) {
        size_t size = strcspn(line, "\n");
        id_list ids = encode(tok, line, size, SPECIAL_AS_TEXT);
        for (size_t i = 0; i < ids.n; i++) assert_false(tokenizer_is_control(tok, ids.ids[i]));
        back = decode(tok, ids.ids, ids.n, true);
        assert_int_equal(back.size, size);
        assert_memory_equal(back.data, line, size);
        free(back.data);
        free(ids.ids);
        line += size + (line[size] == '\n');
    }
    free(text.data);
    tokenizer_free(tok);
}

static void invalid_utf8(void **state) {
    const model *m = *state;
    static const struct {
        const char *text;
        size_t size;
        int offset;
    } cases[] = {
        {"abc\x80", 4, 3},          {"\xC0\xAF", 2, 0},          {"ab\xED\xA0\x80", 5, 2},
        {"\xE2\x82", 2, 0},         {"a\xF4\x90\x80\x80", 5, 1}, {"\xF0\x80\x80\x80", 4, 0},
        {"\xE2\x82\xAC\xFF", 4, 3}, {"x\xE2(\xA1", 4, 1},        {"\0\xC2", 2, 1},
    };
    tokenizer *tok = create_from(m->kind, m->file);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        flute_error err = {0};
        char expected[64];
        snprintf(expected, sizeof expected, "not valid UTF-8 at byte %d ", cases[i].offset);
        assert_int_equal(tokenizer_encode(tok, cases[i].text, cases[i].size, SPECIAL_AS_TEXT, NULL, 0, &err),
                         FLUTE_EFORMAT);
        if (!strstr(err.message, expected)) fail_msg("'%s' does not say '%s'", err.message, expected);
    }
    tokenizer_free(tok);
}

// What a text from outside says never becomes a control token, whatever it spells.
static void special_as_text(void **state) {
    const model *m = *state;
    static const char *const texts[] = {"<s></s><bos><eos><pad><unk>",
                                        "<start_of_turn>user\nhi<end_of_turn>\n",
                                        "<|begin_of_text|><|eot_id|>",
                                        "a <|start_header_id|>system<|end_header_id|>\n\n",
                                        "<start_of_turn",
                                        "<|eot_id|",
                                        "<end_of_turn>"};
    tokenizer *tok = create_from(m->kind, m->file);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        id_list ids = encode(tok, texts[i], strlen(texts[i]), SPECIAL_AS_TEXT);
        for (size_t k = 0; k < ids.n; k++) assert_false(tokenizer_is_control(tok, ids.ids[k]));
        bytes back = decode(tok, ids.ids, ids.n, true);
        assert_string_equal(back.data, texts[i]);
        free(back.data);
        free(ids.ids);
    }
    tokenizer_free(tok);
}

static void llama2_special(void **state) {
    (void)state;
    tokenizer *tok = create_from(llama2.kind, llama2.file);
    assert_int_equal(tokenizer_vocab_size(tok), 4096);
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_int_equal(tokenizer_eos(tok), 2);
    assert_int_equal(tokenizer_find_token(tok, "</s>"), 2);
    assert_int_equal(tokenizer_find_token(tok, "<0x0A>"), 13);
    assert_int_equal(tokenizer_find_token(tok, "no such piece"), -1);
    assert_true(tokenizer_is_control(tok, 1) && tokenizer_is_control(tok, 2));
    assert_false(tokenizer_is_control(tok, 13) || tokenizer_is_control(tok, -1) ||
                 tokenizer_is_control(tok, 4096));
    // golden: "Hello world" is 535 3626 287 2696. Behind a special token there is no dummy prefix, so that
    // "world" is not "▁world"; its own space makes it that.
    id_list inner = encode(tok, "<s>world", 8, SPECIAL_AS_TOKEN);
    id_list spaced = encode(tok, "<s> world", 9, SPECIAL_AS_TOKEN);
    id_list start = encode(tok, "world", 5, SPECIAL_AS_TOKEN);
    assert_int_equal(inner.ids[0], 1);
    assert_int_equal(spaced.n, start.n + 1);
    assert_memory_equal(spaced.ids + 1, start.ids, start.n * sizeof(int32_t));
    assert_int_not_equal(inner.ids[1], start.ids[0]);
    bytes text = decode(tok, inner.ids, inner.n, false);
    assert_string_equal(text.data, "world");
    free(text.data);
    free(inner.ids);
    free(spaced.ids);
    free(start.ids);
    assert_ids(tok, "<s></s><unk>", SPECIAL_AS_TOKEN, (int32_t[]){1, 2, 0}, 3);
    assert_ids(tok, "Hello world</s>", SPECIAL_AS_TOKEN, (int32_t[]){535, 3626, 287, 2696, 2}, 5);
    tokenizer_free(tok);
}

static void gemma2_special(void **state) {
    (void)state;
    tokenizer *tok = create_from(gemma2.kind, gemma2.file);
    assert_int_equal(tokenizer_vocab_size(tok), 8192);
    assert_int_equal(tokenizer_bos(tok), 2);
    assert_int_equal(tokenizer_eos(tok), 1);
    int32_t begin = tokenizer_find_token(tok, "<start_of_turn>"),
            end = tokenizer_find_token(tok, "<end_of_turn>");
    assert_int_equal(begin, 4);
    assert_int_equal(end, 5);
    assert_true(tokenizer_is_control(tok, begin) && tokenizer_is_control(tok, end));
    // "Hello world" is 3859 4625 (golden) and the line breaks are user-defined symbols, 6 and 7.
    assert_ids(tok, "<s><start_of_turn>Hello world<end_of_turn>\n", SPECIAL_AS_TOKEN,
               (int32_t[]){2, 4, 3859, 4625, 5, 6}, 6);
    assert_ids(tok, "\n\n\n", SPECIAL_AS_TEXT, (int32_t[]){7, 6}, 2);
    tokenizer_free(tok);
}

static void llama3_special(void **state) {
    (void)state;
    tokenizer *tok = create_from(llama3.kind, llama3.file);
    assert_int_equal(tokenizer_vocab_size(tok), 8192);
    assert_int_equal(tokenizer_bos(tok), 8187);
    assert_int_equal(tokenizer_eos(tok), 8188);
    assert_int_equal(tokenizer_find_token(tok, "<|eot_id|>"), 8191);
    assert_int_equal(tokenizer_find_token(tok, "Hello"), 4900);
    assert_int_equal(tokenizer_find_token(tok, "\xC4\xA0"), 220); // Ġ, a space
    assert_int_equal(tokenizer_find_token(tok, " "), -1);
    assert_int_equal(tokenizer_find_token(tok, ""), -1);
    assert_true(tokenizer_is_control(tok, 8191));
    assert_ids(tok, "<|begin_of_text|>Hello world<|eot_id|><|eot_id|>", SPECIAL_AS_TOKEN,
               (int32_t[]){8187, 4900, 4593, 8191, 8191}, 5);
    tokenizer_free(tok);
}

// A megabyte of one letter is one piece: the heap makes it n log n, where a scan for each merge would take
// hours.
static void long_run(void **state) {
    const model *m = *state;
    // sentencepiece keeps more per letter, and its speed is not ours to test: 1 MB takes it more than a
    // second.
    const size_t size = m->kind == TOKENIZER_BPE ? 1 << 20 : 1 << 16;
    tokenizer *tok = create_from(m->kind, m->file);
    char *text = malloc(size);
    assert_non_null(text);
    for (int letter = 0; letter < 3; letter++) {
        memset(text, "x <"[letter], size);
        id_list ids = encode(tok, text, size, SPECIAL_AS_TOKEN);
        bytes back = decode(tok, ids.ids, ids.n, true);
        assert_int_equal(back.size, size);
        assert_memory_equal(back.data, text, size);
        free(back.data);
        free(ids.ids);
    }
    free(text);
    tokenizer_free(tok);
}

// Several threads encode with one tokenizer; each gets what one alone gets.
typedef struct shared_job {
    const tokenizer *tok;
    const char *text;
    size_t size;
    id_list expected;
    int differs;
} shared_job;

static void *encode_shared(void *argument) {
    shared_job *job = argument;
    int32_t *ids = calloc(job->expected.n, sizeof *ids);
    for (int round = 0; round < 5 && ids; round++) {
        int64_t n =
            tokenizer_encode(job->tok, job->text, job->size, SPECIAL_AS_TOKEN, ids, job->expected.n, NULL);
        if (n != (int64_t)job->expected.n ||
            memcmp(ids, job->expected.ids, job->expected.n * sizeof *ids) != 0)
            job->differs = 1;
    }
    free(ids);
    return NULL;
}

static void shared_by_threads(void **state) {
    enum { N_THREADS = 4, SIZE = 20000 };
    const model *m = *state;
    tokenizer *tok = create_from(m->kind, m->file);
    bytes text = read_file(data_path("eval.txt"));
    shared_job jobs[N_THREADS];
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        // Slices start at line breaks, lest they cut a character.
        const char *start = strchr(text.data + i * SIZE, '\n'), *end = strchr(start + SIZE, '\n');
        jobs[i] = (shared_job){.tok = tok, .text = start, .size = (size_t)(end - start)};
        jobs[i].expected = encode(tok, start, jobs[i].size, SPECIAL_AS_TOKEN);
    }
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_shared, &jobs[i]), 0);
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(jobs[i].differs);
        free(jobs[i].expected.ids);
    }
    free(text.data);
    tokenizer_free(tok);
}

static void no_tokenizer(void **state) {
    (void)state;
    flute_error err = {0};
    tokenizer *tok = create(TOKENIZER_NONE, NULL, 0);
    assert_int_equal(tokenizer_vocab_size(tok), 0);
    assert_int_equal(tokenizer_bos(tok), -1);
    assert_int_equal(tokenizer_eos(tok), -1);
    assert_false(tokenizer_adds_bos(tok));
    assert_int_equal(tokenizer_find_token(tok, "a"), -1);
    assert_int_equal(tokenizer_encode(tok, "a", 1, SPECIAL_AS_TEXT, NULL, 0, &err), FLUTE_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "--prompt-ids"));
    bytes text = decode(tok, (int32_t[]){0, 1, -1}, 3, true);
    assert_string_equal(text.data, "");
    free(text.data);
    tokenizer_free(tok);
    tokenizer_free(NULL);
    for (int kind = TOKENIZER_NONE; kind <= TOKENIZER_BPE; kind++)
        assert_int_equal(tokenizer_kind_parse(tokenizer_kind_name((tokenizer_kind)kind)), kind);
    assert_int_equal(tokenizer_kind_parse("word2vec"), -1);
    assert_null(tokenizer_kind_name((tokenizer_kind)99));
    assert_int_equal(tokenizer_create(&tok, (tokenizer_kind)99, "", 0, "f", &err), FLUTE_EINVAL);
    assert_null(tok);
}

#define FOR_EACH_MODEL(test)                                                                                 \
    {#test " llama2", test, NULL, NULL, (void *)&llama2},                                                    \
        {#test " llama3", test, NULL, NULL, (void *)&llama3}, {                                              \
#test " gemma2", test, NULL, NULL, (void *)&gemma2                                                   \
    }

int main(void) {
    const struct CMUnitTest tests[] = {
        FOR_EACH_MODEL(golden_ids),        FOR_EACH_MODEL(golden_generations),
        FOR_EACH_MODEL(round_trip),        FOR_EACH_MODEL(invalid_utf8),
        FOR_EACH_MODEL(special_as_text),   FOR_EACH_MODEL(long_run),
        FOR_EACH_MODEL(shared_by_threads), cmocka_unit_test(llama2_special),
        cmocka_unit_test(gemma2_special),  cmocka_unit_test(llama3_special),
        cmocka_unit_test(no_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
