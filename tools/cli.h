// What the command-line tools share: numbers with ranges, names, lists, text that is safe on a terminal, JSON
// and exit codes. A tool ends with 0, with 1 when the run failed and with 2 when the command line was wrong.
#ifndef FLUTE_CLI_H
#define FLUTE_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <yyjson.h>

#include "engine/flute.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct option;

// getopt_long, whose own messages are switched off: for a command line that cannot be understood it returns
// '?' with *err filled. short_options begins with ':'.
int cli_next_option(int argc, char **argv, const char *short_options, const struct option *long_options,
                    flute_error *err);

// Each parses the value of an option and names option, value and what is allowed in its message
// (FLUTE_EINVAL).
int cli_parse_int(const char *option, const char *text, int64_t min, int64_t max, int64_t *out,
                  flute_error *err);
int cli_parse_float(const char *option, const char *text, double min, double max, float *out,
                    flute_error *err);
int cli_parse_u64(const char *option, const char *text, uint64_t *out, flute_error *err);
// One of the names, a NULL-terminated list; *out is its index.
int cli_parse_name(const char *option, const char *text, const char *const *names, int *out,
                   flute_error *err);
// "1,2,3": token ids, malloc'd.
int cli_parse_ids(const char *option, const char *text, int32_t **ids, size_t *n, flute_error *err);

// How a model is run: -t, --device, --kernels and --no-verify, for a table of options.
enum { CLI_OPT_DEVICE = 900, CLI_OPT_KERNELS, CLI_OPT_NO_VERIFY };
#define CLI_MODEL_LONG_OPTIONS                                                                               \
    {"threads", required_argument, NULL, 't'}, {"device", required_argument, NULL, CLI_OPT_DEVICE},          \
        {"kernels", required_argument, NULL, CLI_OPT_KERNELS}, {                                             \
        "no-verify", no_argument, NULL, CLI_OPT_NO_VERIFY                                                    \
    }
// Takes one of them; false for another option. *code says how it went.
bool cli_parse_model_option(int option, const char *text, flute_model_options *out, int *code,
                            flute_error *err);

// The model that comes with flute: beside the sources when the tool runs from a build folder in them, else
// the installed one.
int cli_default_model(char *path, size_t size, flute_error *err);

// Prints "TOOL: MESSAGE" to stderr and returns the exit code: CLI_USAGE for usage, else CLI_FAILED.
int cli_fail(const char *tool, const flute_error *err, bool usage);

// Reads a whole file, or standard input for "-"; malloc'd, with a NUL after it. size may not be NULL.
int cli_read_text(const char *path, char **text, size_t *size, flute_error *err);
// What messages call the text that was read from path.
const char *cli_input_name(const char *path);
// flute_tokenize into malloc'd *ids; messages about the text say where it came from.
int cli_tokenize(const flute_model *model, const char *origin, const char *text, size_t size, int flags,
                 int32_t **ids, size_t *n, flute_error *err);

// Writes UTF-8 text. With safe set, control characters (C0 but \n and \t, DEL, C1) become visible (^[,
// \u009b), so that nothing a model says is executed by the terminal.
void cli_put_text(FILE *out, const char *text, size_t size, bool safe);

// Draws a bar on standard error where that is a terminal: the share that is done, 0 to 1, and of what.
// cli_progress_end takes it away.
void cli_progress(double share, const char *what);
void cli_progress_end(void);

// flute_model_open with a progress bar. *seconds, unless NULL: what checking the file and copying it to the
// device took; 0 where there was nothing to do.
int cli_open_model(flute_model **model, const char *path, const flute_model_options *options, double *seconds,
                   flute_error *err);

// Writes a JSON document to standard output as one line and flushes.
int cli_put_json(yyjson_mut_doc *doc, flute_error *err);

// Flushes standard output; FLUTE_EIO when something could not be written.
int cli_flush(flute_error *err);
// For the start of main: a closed pipe ends the tool quietly, even if its parent ignored SIGPIPE; Ctrl-C and
// the other signals that end programs leave no half-written file behind. Those that the parent ignores stay
// ignored, so that nohup works.
void cli_set_signals(void);

#endif
