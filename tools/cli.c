#include "tools/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "engine/base/file.h"

static bool begins_option(const struct option *options, const char *text) {
    const size_t length = strcspn(text, "=");
    for (; options->name; options++)
        if (strncmp(options->name, text, length) == 0) return true;
    return false;
}

int cli_next_option(int argc, char **argv, const char *short_options, const struct option *long_options,
                    flute_error *err) {
    opterr = 0;
    const int before = optind;
    const int option = getopt_long(argc, argv, short_options, long_options, NULL);
    if (option != '?' && option != ':') return option;
    // The argument behind us is what is wrong, unless it is a letter inside of a cluster like -vxn.
    const char *text = argv[optind - 1];
    const bool is_long = optind > before && strncmp(text, "--", 2) == 0;
    const char letter[] = {'-', (char)optopt, 0}, *name = is_long ? text : letter;
    if (option == ':')
        fail(err, FLUTE_EINVAL, "%s: a value must follow it", name);
    else if (is_long && optopt)
        fail(err, FLUTE_EINVAL, "%s: this option takes no value", name);
    else if (is_long && begins_option(long_options, text + 2))
        fail(err, FLUTE_EINVAL, "%s: several options begin like this; write it out", name);
    else
        fail(err, FLUTE_EINVAL, "%s: there is no such option", name);
    return '?';
}

int cli_parse_int(const char *option, const char *text, int64_t min, int64_t max, int64_t *out,
                  flute_error *err) {
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < min || value > max)
        return fail(err, FLUTE_EINVAL, "%s: '%s' is not a whole number from %lld to %lld", option, text,
                    (long long)min, (long long)max);
    *out = value;
    return FLUTE_OK;
}

int cli_parse_float(const char *option, const char *text, double min, double max, float *out,
                    flute_error *err) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= min && value <= max))
        return fail(err, FLUTE_EINVAL, "%s: '%s' is not a number from %g to %g", option, text, min, max);
    *out = (float)value;
    return FLUTE_OK;
}

int cli_parse_u64(const char *option, const char *text, uint64_t *out, flute_error *err) {
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[strspn(text, " \t\n")] == '-')
        return fail(err, FLUTE_EINVAL, "%s: '%s' is not a whole number from 0 to %llu", option, text,
                    (unsigned long long)UINT64_MAX);
    *out = value;
    return FLUTE_OK;
}

int cli_parse_name(const char *option, const char *text, const char *const *names, int *out,
                   flute_error *err) {
    char list[128] = "";
    for (int i = 0; names[i]; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = i;
            return FLUTE_OK;
        }
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    return fail(err, FLUTE_EINVAL, "%s: '%s' is none of %s", option, text, list);
}

bool cli_parse_model_option(int option, const char *text, flute_model_options *out, int *code,
                            flute_error *err) {
    static const char *const devices[] = {"auto", "cpu", "cuda", NULL}, *const kernels[] = {"auto", "ref",
                                                                                            NULL};
    int64_t n_threads = 0;
    int index = 0;
    *code = FLUTE_OK;
    switch (option) {
    case 't':
        if (!(*code = cli_parse_int("-t", text, 1, 1024, &n_threads, err))) out->n_threads = (int)n_threads;
        return true;
    case CLI_OPT_DEVICE:
        if (!(*code = cli_parse_name("--device", text, devices, &index, err)))
            out->device = (flute_device)index;
        return true;
    case CLI_OPT_KERNELS:
        if (!(*code = cli_parse_name("--kernels", text, kernels, &index, err)))
            out->kernels = (flute_kernels)index;
        return true;
    case CLI_OPT_NO_VERIFY:
        out->no_verify = true;
        return true;
    default:
        return false;
    }
}

int cli_parse_ids(const char *option, const char *text, int32_t **ids, size_t *n, flute_error *err) {
    size_t capacity = 1;
    for (const char *at = text; *at; at++) capacity += *at == ',';
    int32_t *list = malloc(capacity * sizeof *list);
    if (!list) return fail_memory(err, capacity * sizeof *list, "token ids");
    size_t count = 0;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const long value = strtol(at, &end, 10);
        if (errno || end == at || (*end && *end != ',') || value < 0 || value > INT32_MAX) {
            free(list);
            return fail(err, FLUTE_EINVAL, "%s: number %zu of the list is not a token id; write 1,2,3",
                        option, count + 1);
        }
        list[count++] = (int32_t)value;
        at = end;
        if (!*at) break;
    }
    *ids = list;
    *n = count;
    return FLUTE_OK;
}

#define DEFAULT_MODEL "docs-llama2-q4.flt"

int cli_default_model(char *path, size_t size, flute_error *err) {
    char folder[PATH_MAX], place[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (length > 0) {
        folder[length] = 0;
        *strrchr(folder, '/') = 0;
        static const char *const places[] = {"../models", "../share/flute"};
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            const int n = snprintf(place, sizeof place, "%s/%s/" DEFAULT_MODEL, folder, places[i]);
            char *real = n > 0 && (size_t)n < sizeof place ? realpath(place, NULL) : NULL;
            if (!real) continue;
            snprintf(path, size, "%s", real);
            free(real);
            return FLUTE_OK;
        }
    }
    snprintf(path, size, "%s/" DEFAULT_MODEL, FLUTE_DATADIR);
    if (access(path, F_OK) == 0) return FLUTE_OK;
    return fail(err, FLUTE_EIO, "%s: the default model is not there; choose one with -m FILE", path);
}

int cli_fail(const char *tool, const flute_error *err, bool usage) {
    fprintf(stderr, "%s: ", tool);
    cli_put_text(stderr, err->message, strlen(err->message), isatty(STDERR_FILENO));
    fprintf(stderr, "%s%s%s\n", usage ? "; see " : "", usage ? tool : "", usage ? " --help" : "");
    return usage ? CLI_USAGE : CLI_FAILED;
}

static int read_stdin(char **text, size_t *size, flute_error *err) {
    size_t capacity = 1 << 16, used = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        used += fread(buffer + used, 1, capacity - used - 1, stdin);
        if (used < capacity - 1) break;
        capacity *= 2;
        char *larger = realloc(buffer, capacity);
        if (!larger) free(buffer);
        buffer = larger;
    }
    if (!buffer) return fail_memory(err, capacity, "standard input");
    if (ferror(stdin)) {
        free(buffer);
        return fail(err, FLUTE_EIO, "standard input: %s", strerror(errno));
    }
    buffer[used] = 0;
    *text = buffer;
    *size = used;
    return FLUTE_OK;
}

int cli_read_text(const char *path, char **text, size_t *size, flute_error *err) {
    return strcmp(path, "-") == 0 ? read_stdin(text, size, err) : file_read(path, text, size, err);
}

const char *cli_input_name(const char *path) {
    return strcmp(path, "-") == 0 ? "standard input" : path;
}

int cli_tokenize(const flute_model *model, const char *origin, const char *text, size_t size, int flags,
                 int32_t **ids, size_t *n, flute_error *err) {
    flute_error problem;
    int64_t count = flute_tokenize(model, text, size, flags, NULL, 0, &problem);
    // What else can fail names the model.
    if (count == FLUTE_EFORMAT) return fail(err, FLUTE_EFORMAT, "%s: %s", origin, problem.message);
    if (count < 0) return fail(err, (int)count, "%s", problem.message);
    *ids = malloc(((size_t)count + 1) * sizeof **ids);
    if (!*ids) return fail_memory(err, ((size_t)count + 1) * sizeof **ids, "the tokens of the text");
    count = flute_tokenize(model, text, size, flags, *ids, (size_t)count, err);
    *n = count < 0 ? 0 : (size_t)count;
    return count < 0 ? (int)count : FLUTE_OK;
}

void cli_put_text(FILE *out, const char *text, size_t size, bool safe) {
    if (!safe) {
        fwrite(text, 1, size, out);
        return;
    }
    const unsigned char *at = (const unsigned char *)text, *end = at + size;
    for (; at < end; at++) {
        if ((*at < 0x20 && *at != '\n' && *at != '\t') || *at == 0x7f) {
            putc('^', out);
            putc(*at ^ 0x40, out);
        } else if (*at == 0xc2 && at + 1 < end && at[1] < 0xa0) { // C1: 0x9b alone starts an escape sequence
            fprintf(out, "\\u%04x", at[1]);
            at++;
        } else {
            putc(*at, out);
        }
    }
}

enum { PROGRESS_WIDTH = 30, PROGRESS_NAME = 28 };

void cli_progress(double share, const char *what) {
    if (!isatty(STDERR_FILENO)) return;
    const int filled = (int)(share * PROGRESS_WIDTH);
    fprintf(stderr, "\r[%.*s%*s] %3d%%  %-*s", filled,
            "==============================", PROGRESS_WIDTH - filled, "", (int)(100 * share), PROGRESS_NAME,
            what);
    fflush(stderr);
}

void cli_progress_end(void) {
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r%*s\r", PROGRESS_WIDTH + PROGRESS_NAME + 10, "");
}

typedef struct loading {
    double begin, end; // 0: nothing was to be done
} loading;

static void show_loading(void *user, uint64_t done, uint64_t total) {
    loading *l = user;
    l->end = seconds_now();
    if (done == 0) l->begin = l->end;
    cli_progress((double)done / (double)total, "loading");
}

int cli_open_model(flute_model **model, const char *path, const flute_model_options *options, double *seconds,
                   flute_error *err) {
    loading l = {0};
    flute_model_options shown = *options;
    shown.progress = show_loading, shown.progress_user = &l;
    int code = flute_model_open(model, path, &shown, err);
    if (l.end > 0) cli_progress_end();
    if (seconds) *seconds = l.end - l.begin;
    return code;
}

int cli_put_json(yyjson_mut_doc *doc, flute_error *err) {
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_NOFLAG, NULL);
    if (!text) return fail(err, FLUTE_ENOMEM, "out of memory for the JSON output");
    puts(text);
    free(text);
    return cli_flush(err);
}

int cli_flush(flute_error *err) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return FLUTE_OK;
    return fail(err, FLUTE_EIO, "standard output: %s", errno ? strerror(errno) : "cannot write");
}

static void on_signal(int signal_number) {
    file_writer_remove_all();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

void cli_set_signals(void) {
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP};
    signal(SIGPIPE, SIG_DFL);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (signal(ends[i], on_signal) == SIG_IGN) signal(ends[i], SIG_IGN);
}
