#include "tools/ranks.h"

#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include "engine/base/file.h"

static const char *tool_name;
static flute_ranks *running; // for signals

bool ranks_parse_option(int option, const char *text, ranks_options *out, flute_model_options *model,
                        int *code, flute_error *err) {
    static const char *const loads[] = {"map", "scatter", NULL};
    static const char *const comms[] = {"auto", "local", "mpi", "nccl", NULL}; // as flute_comm
    int64_t number = 0;
    int index = 0;
    switch (option) {
    case RANKS_OPT_TP:
        if (!(*code = cli_parse_int("--tp", text, 1, 1024, &number, err))) out->n = (int)number;
        return true;
    case RANKS_OPT_TIMEOUT:
        *code = cli_parse_int("--tp-timeout", text, 1, 86400, &number, err);
        if (!*code) out->timeout_s = (int)number;
        return true;
    case RANKS_OPT_LOAD:
        if (!(*code = cli_parse_name("--load", text, loads, &index, err))) model->scatter = index == 1;
        return true;
    case RANKS_OPT_COMM:
        if (!(*code = cli_parse_name("--comm", text, comms, &index, err))) model->comm = (flute_comm)index;
        return true;
    default:
        return false;
    }
}

// The process may wait for anything: it ends here.
static void on_failure(const flute_error *cause) {
    if (cause) cli_fail(tool_name, cause, false);
    file_writer_remove_all();
    _exit(CLI_FAILED);
}

static void on_signal(int number) {
    file_writer_remove_all();
    flute_ranks_leave(running);
    signal(number, SIG_DFL);
    raise(number);
}

bool ranks_begin(const char *tool, const ranks_options *options, flute_model_options *model, int *status) {
    const flute_ranks_options start = {
        .n = options->n, .timeout_s = options->timeout_s, .on_failure = on_failure};
    flute_error err = {0};
    tool_name = tool;
    int code = flute_ranks_start(&running, &start, status, &err);
    if (code) { // canceled: another rank says why
        *status = code == FLUTE_ECANCELED ? CLI_FAILED : cli_fail(tool, &err, false);
        return false;
    }
    if (*status >= 0) return false;
    if (flute_ranks_rank(running) > 0) {
        *status = flute_ranks_follow(running, &err) ? CLI_FAILED : CLI_OK;
        flute_ranks_free(running);
        return false;
    }
    if (running) { // else cli_set_signals has said what they do
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        signal(SIGHUP, on_signal);
    }
    model->ranks = running;
    return true;
}

void ranks_end(const flute_model_options *model) {
    running = NULL;
    flute_ranks_free(model->ranks);
}
