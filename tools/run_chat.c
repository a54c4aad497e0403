#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef FLUTE_HAVE_EDIT
#include <locale.h>

#include <editline/readline.h>
#endif

#include "engine/base/fail.h"
#include "tools/run.h"

typedef struct conversation {
    flute_message *messages;
    size_t n, capacity;
    int32_t *ids; // rendered
    size_t ids_capacity;
} conversation;

static void conversation_cut(conversation *c, size_t n) {
    while (c->n > n) free((char *)c->messages[--c->n].content);
}

static void conversation_free(conversation *c) {
    conversation_cut(c, 0);
    free(c->messages);
    free(c->ids);
}

static int conversation_add(conversation *c, const char *role, const char *content, flute_error *err) {
    if (c->n == c->capacity) {
        const size_t capacity = 2 * c->capacity + 8;
        flute_message *larger = realloc(c->messages, capacity * sizeof *larger);
        if (!larger) return fail_memory(err, capacity * sizeof *larger, "the conversation");
        c->messages = larger;
        c->capacity = capacity;
    }
    char *copy = strdup(content);
    if (!copy) return fail_memory(err, strlen(content) + 1, "the conversation");
    c->messages[c->n++] = (flute_message){.role = role, .content = copy};
    return FLUTE_OK;
}

// Renders into c->ids; returns the number of ids or a negative code.
static int64_t conversation_render(conversation *c, const flute_model *model, flute_error *err) {
    int64_t n = flute_chat_tokenize(model, c->messages, c->n, c->ids, c->ids_capacity, err);
    if (n <= (int64_t)c->ids_capacity) return n;
    int32_t *larger = realloc(c->ids, (size_t)n * sizeof *larger);
    if (!larger) return fail_memory(err, (size_t)n * sizeof *larger, "the conversation");
    c->ids = larger;
    c->ids_capacity = (size_t)n;
    return flute_chat_tokenize(model, c->messages, c->n, c->ids, c->ids_capacity, err);
}

static void on_interrupt(int signal_number) {
    (void)signal_number;
    generate_cancel();
}

// The answer to one message. While it runs, Ctrl-C ends the answer only.
static int answer(generator *g, conversation *c, const char *message, flute_error *err) {
    const size_t before = c->n;
    int code = conversation_add(c, "user", message, err);
    if (code) return code;
    struct sigaction cancel = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART}, saved;
    sigaction(SIGINT, &cancel, &saved);
    const int64_t n = conversation_render(c, g->model, err);
    code = n < 0 ? (int)n : generate(g, c->ids, (size_t)n, err);
    sigaction(SIGINT, &saved, NULL);
    if (!code && g->stream) {
        putchar('\n');
        code = cli_flush(err);
    }
    if (!code) code = conversation_add(c, "assistant", g->text, err);
    if (code) conversation_cut(c, before);
    return code;
}

// Line editing drops what is not in the locale's encoding; text is UTF-8 here, whatever the locale.
static void prepare_editing(void) {
#ifdef FLUTE_HAVE_EDIT
    if (!setlocale(LC_CTYPE, "C.UTF-8")) setlocale(LC_CTYPE, "");
#endif
}

// The next line without its newline, malloc'd; *line is NULL at the end of the input.
static int read_line(bool terminal, char **line, flute_error *err) {
    static const char prompt[] = "> ";
#ifdef FLUTE_HAVE_EDIT
    if (terminal) {
        *line = readline(prompt);
        if (*line && **line) add_history(*line);
        return FLUTE_OK;
    }
#endif
    size_t capacity = 0;
    if (terminal) {
        fputs(prompt, stdout);
        fflush(stdout);
    }
    *line = NULL;
    errno = 0;
    const ssize_t size = getline(line, &capacity, stdin);
    if (size < 0) {
        const int problem = errno;
        free(*line);
        *line = NULL;
        return feof(stdin) ? FLUTE_OK : fail(err, FLUTE_EIO, "standard input: %s", strerror(problem));
    }
    (*line)[strcspn(*line, "\r\n")] = 0;
    return FLUTE_OK;
}

// After an answer that ended early, why; the conversation goes on.
static void note_finish(const generator *g) {
    if (!g->stream) return; // JSON says it
    if (g->finish == FINISH_CANCELED) fputs("[stopped]\n", stderr);
    if (g->finish == FINISH_CONTEXT) fputs("[the context is full; /reset starts anew]\n", stderr);
    if (g->finish == FINISH_LENGTH) fprintf(stderr, "[stopped after %zu tokens]\n", g->n_ids);
}

// A message that cannot be answered is an error of that message alone, as long as someone is there to see it.
static int answer_or_explain(generator *g, conversation *c, const char *message, bool terminal,
                             flute_error *err) {
    flute_error local = {0};
    int code = answer(g, c, message, &local);
    if (!code) {
        note_finish(g);
        return FLUTE_OK;
    }
    if (terminal && (code == FLUTE_ECONTEXT || code == FLUTE_EFORMAT)) {
        cli_fail("flute-run", &local, false);
        if (code == FLUTE_ECONTEXT) fputs("[/reset starts a new conversation]\n", stderr);
        return FLUTE_OK;
    }
    if (err) *err = local;
    return code;
}

int run_chat(generator *g, const run_options *options, const char *first_message, flute_error *err) {
    static const char help[] = "/reset  forgets the conversation\n"
                               "/exit   ends (as Ctrl-D does)\n"
                               "/help   says this\n"
                               "Ctrl-C  stops an answer; at the prompt, ends\n";
    const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    conversation c = {0};
    if (terminal) prepare_editing();
    int code = options->system ? conversation_add(&c, "system", options->system, err) : FLUTE_OK;
    const size_t start = c.n;
    if (!code && first_message) code = answer_or_explain(g, &c, first_message, terminal, err);
    if (!code && terminal && !options->json) fputs(help, stderr);
    while (!code && !options->json) {
        char *line;
        if ((code = read_line(terminal, &line, err))) break;
        if (!line) {
            if (terminal) putchar('\n');
            break;
        }
        const bool leave = strcmp(line, "/exit") == 0;
        if (strcmp(line, "/reset") == 0)
            conversation_cut(&c, start);
        else if (strcmp(line, "/help") == 0)
            fputs(help, stderr);
        else if (*line && !leave)
            code = answer_or_explain(g, &c, line, terminal, err);
        free(line);
        if (leave) break;
    }
    conversation_free(&c);
    return code;
}
