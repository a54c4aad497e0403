// The parts of flute-run.
#ifndef FLUTE_RUN_H
#define FLUTE_RUN_H

#include "tools/generate.h"
#include "tools/ranks.h"

enum { RUN_MAX_STOPS = 32 };

typedef struct run_options {
    const char *model_path; // NULL: the default model
    flute_model_options model;
    ranks_options ranks;
    const char *prompt;      // -p; "-": standard input
    const char *prompt_file; // -f
    const char *logits_out;
    const char *system;
    int32_t *prompt_ids; // (n_prompt_ids) of --prompt-ids, malloc'd; NULL: not given
    size_t n_prompt_ids;
    const char *stops[RUN_MAX_STOPS];
    int n_stops;
    flute_sampling sampling;
    int64_t context;    // 0: not given
    int64_t max_tokens; // -1: no limit
    bool has_max_tokens, has_seed, greedy;
    bool ignore_eos, chat, json, verbose;
} run_options;

// Parses the command line. *done is set when --help or --version has answered it. prompt_ids is the caller's
// to free, whatever is returned.
int run_parse_options(run_options *options, int argc, char **argv, bool *done, flute_error *err);

// Holds a conversation on standard input and output; first_message, unless NULL, opens it.
int run_chat(generator *g, const run_options *options, const char *first_message, flute_error *err);

#endif
