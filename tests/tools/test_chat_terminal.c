// flute-run --chat on a terminal: a pseudo-terminal, with someone typing.
//   test_tools_chat FLUTE_RUN PARROT_LLAMA2 PARROT_LLAMA3 PARROT_GEMMA2
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 30000, MAX_ARGUMENTS = 16 };

static const char *flute_run, *llama2, *llama3, *gemma2;

typedef struct terminal {
    int fd;
    pid_t child;
    char *seen; // all that has come
    size_t size, capacity;
    size_t read_to; // what expect has found so far
} terminal;

// Starts flute-run -m model --chat and the options, NULL-terminated.
static void start(terminal *t, const char *model, const char *const *options) {
    const char *argv[MAX_ARGUMENTS] = {flute_run, "-m", model, "--chat"};
    for (int i = 4; *options; i++) argv[i] = *options++;
    *t = (terminal){.capacity = 1 << 20};
    t->seen = malloc(t->capacity);
    assert_non_null(t->seen);
    t->child = forkpty(&t->fd, NULL, NULL, &(struct winsize){.ws_row = 25, .ws_col = 200});
    assert_true(t->child >= 0);
    if (t->child == 0) {
        signal(SIGINT, SIG_DFL); // whoever runs the tests may ignore it
        setenv("TERM", "dumb", 1);
        execv(flute_run, (char *const *)argv);
        _exit(127);
    }
}

// False at the end.
static bool read_more(terminal *t) {
    struct pollfd ready = {.fd = t->fd, .events = POLLIN};
    if (poll(&ready, 1, PATIENCE_MS) != 1) fail_msg("nothing comes after: %.*s", (int)t->size, t->seen);
    assert_true(t->size < t->capacity);
    const ssize_t n = read(t->fd, t->seen + t->size, t->capacity - t->size);
    if (n <= 0) return false; // Linux reports the child's end as EIO
    t->size += (size_t)n;
    return true;
}

static const char *find(const terminal *t, size_t from, const char *text) {
    return memmem(t->seen + from, t->size - from, text, strlen(text));
}

// Waits for text after what was expected before.
static void expect(terminal *t, const char *text) {
    const char *at;
    while (!(at = find(t, t->read_to, text)))
        if (!read_more(t)) fail_msg("'%s' does not come: %.*s", text, (int)t->size, t->seen);
    t->read_to = (size_t)(at - t->seen) + strlen(text);
}

static void type(const terminal *t, const char *text) {
    assert_int_equal(write(t->fd, text, strlen(text)), strlen(text));
}

// Ctrl-D, half a second after the prompt. Between the prompt and its change of the terminal's mode, libedit
// takes a Ctrl-D for nothing, and none of the following ones either: nobody types that fast.
static void type_end(const terminal *t) {
    nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    type(t, "\x04");
}

// Waits for the end; returns the status as the shell gives it.
static int finish(terminal *t) {
    int status;
    while (read_more(t)) {}
    assert_int_equal(waitpid(t->child, &status, 0), t->child);
    close(t->fd);
    free(t->seen);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static const char *const none[] = {NULL};

// The prompt comes after every answer, and Ctrl-D ends.
static void test_conversation(void **state) {
    (void)state;
    terminal t;
    start(&t, gemma2, none);
    expect(&t, "> ");
    type(&t, "Hello\n");
    expect(&t, "Good day to you");
    expect(&t, "> ");
    type(&t, "And again\n");
    expect(&t, "Good day to you");
    expect(&t, "> ");
    type_end(&t);
    expect(&t, "tokens/s"); // the last line
    assert_int_equal(finish(&t), 0);
}

static void test_commands(void **state) {
    (void)state;
    terminal t;
    start(&t, gemma2, none);
    expect(&t, "> ");
    type(&t, "/help\n");
    expect(&t, "/reset  forgets the conversation");
    expect(&t, "> ");
    type(&t, "/reset\n");
    expect(&t, "> ");
    type(&t, "Hello\n");
    expect(&t, "Good day to you");
    expect(&t, "> ");
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

// What a model says is not executed by the terminal.
static void test_control_characters(void **state) {
    (void)state;
    terminal t;
    start(&t, llama3, none);
    expect(&t, "> ");
    type(&t, "Hello\n");
    expect(&t, "Good ^[[31mday to you");
    assert_null(find(&t, 0, "\x1b[31m"));
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

// Ctrl-C stops an answer that would not end, and the conversation goes on.
static void test_interrupted_answer(void **state) {
    (void)state;
    terminal t;
    start(&t, llama2, (const char *const[]){"--ignore-eos", "--greedy", NULL});
    expect(&t, "> ");
    type(&t, "Hello\n");
    expect(&t, "elloelloello");
    type(&t, "\x03");
    expect(&t, "[stopped]");
    expect(&t, "> ");
    type(&t, "please\n");
    expect(&t, "Good day to you");
    type(&t, "\x03");
    expect(&t, "[stopped]");
    expect(&t, "> ");
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

// At the prompt it ends the program, and the terminal is as it was.
static void test_interrupted_prompt(void **state) {
    (void)state;
    terminal t;
    struct termios before, after;
    start(&t, llama2, none);
    assert_int_equal(tcgetattr(t.fd, &before), 0);
    expect(&t, "> ");
    type(&t, "unfin");
    expect(&t, "unfin");
    type(&t, "\x03");
    while (read_more(&t)) {}
    assert_int_equal(tcgetattr(t.fd, &after), 0);
    assert_int_equal(before.c_lflag, after.c_lflag);
    assert_int_equal(finish(&t), 128 + SIGINT);
}

// A message that cannot be answered costs nothing but itself.
static void test_too_long(void **state) {
    (void)state;
    terminal t;
    start(&t, llama2, (const char *const[]){"-c", "24", NULL});
    expect(&t, "> ");
    type(&t, "one two three four five six seven eight nine ten eleven twelve thirteen fourteen\n");
    expect(&t, "but the context takes 24");
    expect(&t, "[/reset starts a new conversation]");
    expect(&t, "> ");
    type(&t, "please\n");
    expect(&t, "Good day to you");
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

// Line editing must not lose what is not ASCII, whatever the locale.
static void test_unicode(void **state) {
    (void)state;
    terminal t;
    start(&t, llama2, (const char *const[]){"-n", "4", "--greedy", NULL});
    expect(&t, "> ");
    type(&t, "Hello \u2014\n");
    expect(&t, " \u2014 \u2014 \u2014 \u2014"); // the model repeats the last word
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

// -p opens the conversation, -n bounds an answer.
static void test_first_message(void **state) {
    (void)state;
    terminal t;
    start(&t, llama2, (const char *const[]){"-p", "please", "-n", "2", NULL});
    expect(&t, " Go");
    expect(&t, "[stopped after 2 tokens]");
    expect(&t, "> ");
    type(&t, "/exit\n");
    assert_int_equal(finish(&t), 0);
}

int main(int argc, char **argv) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversation),
        cmocka_unit_test(test_commands),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_interrupted_answer),
        cmocka_unit_test(test_interrupted_prompt),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_unicode),
        cmocka_unit_test(test_first_message),
    };
    if (argc != 5) return 2;
    flute_run = argv[1];
    llama2 = argv[2];
    llama3 = argv[3];
    gemma2 = argv[4];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
