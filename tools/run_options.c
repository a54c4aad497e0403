#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "engine/base/fail.h"
#include "tools/run.h"

static const char usage[] =
    "Usage: flute-run [-m MODEL.flt] -p PROMPT [options]\n"
    "       flute-run [-m MODEL.flt] --chat [options]\n"
    "\n"
    "Generates text.\n"
    "\n"
    "  -m, --model FILE         the model; without it, the small one that comes with flute\n"
    "  -p, --prompt TEXT        the text to continue; - reads it from standard input\n"
    "  -f, --file FILE          the same from a file (or -), less a newline at its end\n"
    "      --prompt-ids LIST    the same as token ids, like 1,2,3; no BOS is added\n"
    "  -n, --tokens N           most tokens to generate; -1: no limit (default 256; in a chat -1)\n"
    "  -c, --context N          most tokens of prompt and answer (default: the model's, at most 4096)\n"
    "      --chat               hold a conversation; a prompt is its first message\n"
    "      --system TEXT        instructions for the conversation\n"
    "\n"
    "      --temp T             temperature; 0 always takes the likeliest token (default 0.8)\n"
    "      --greedy             the same as --temp 0\n"
    "      --top-k N            only the N likeliest tokens; 0: all (default 40)\n"
    "      --top-p P            only the likeliest that hold the probability P (default 0.95)\n"
    "      --min-p P            none less likely than P times the likeliest (default 0.05)\n"
    "      --repeat-penalty X   makes tokens of the last 64 less likely; 1: no change (default 1)\n"
    "      --presence-penalty X, --frequency-penalty X\n"
    "                           subtracted from logits, once or per occurrence (default 0)\n"
    "      --seed N             the same seed draws the same text (default: a random one)\n"
    "      --stop TEXT          ends the answer where TEXT would come; may be given several times\n"
    "      --ignore-eos         goes on after the token that ends a text\n"
    "\n"
    "  -t, --threads N          CPU threads (default: all)\n"
    "      --device NAME        auto, cpu or cuda (default auto)\n"
    "      --kernels NAME       auto or ref, the slow reference (default auto)\n"
    "      --no-verify          do not check the checksums of the model\n" RANKS_USAGE
    "      --logits-out FILE    writes the logits of every prompt position, float32, a row each; generates\n"
    "                           only when -n is given, too\n"
    "      --json               prints one object instead of the text: text, tokens, prompt_tokens, finish,\n"
    "                           prefill_tokens_per_second, decode_tokens_per_second and more\n"
    "  -v, --verbose            says more on standard error: the model, how fast it was loaded, the seed\n"
    "  -h, --help               this text\n"
    "      --version            the version\n";

enum {
    OPT_PROMPT_IDS = 256,
    OPT_CHAT,
    OPT_SYSTEM,
    OPT_TEMP,
    OPT_GREEDY,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_REPEAT,
    OPT_PRESENCE,
    OPT_FREQUENCY,
    OPT_SEED,
    OPT_STOP,
    OPT_IGNORE_EOS,
    OPT_LOGITS_OUT,
    OPT_JSON,
    OPT_VERSION
};

static const struct option long_options[] = {{"model", required_argument, NULL, 'm'},
                                             {"prompt", required_argument, NULL, 'p'},
                                             {"file", required_argument, NULL, 'f'},
                                             {"prompt-ids", required_argument, NULL, OPT_PROMPT_IDS},
                                             {"tokens", required_argument, NULL, 'n'},
                                             {"context", required_argument, NULL, 'c'},
                                             {"chat", no_argument, NULL, OPT_CHAT},
                                             {"system", required_argument, NULL, OPT_SYSTEM},
                                             {"temp", required_argument, NULL, OPT_TEMP},
                                             {"greedy", no_argument, NULL, OPT_GREEDY},
                                             {"top-k", required_argument, NULL, OPT_TOP_K},
                                             {"top-p", required_argument, NULL, OPT_TOP_P},
                                             {"min-p", required_argument, NULL, OPT_MIN_P},
                                             {"repeat-penalty", required_argument, NULL, OPT_REPEAT},
                                             {"presence-penalty", required_argument, NULL, OPT_PRESENCE},
                                             {"frequency-penalty", required_argument, NULL, OPT_FREQUENCY},
                                             {"seed", required_argument, NULL, OPT_SEED},
                                             {"stop", required_argument, NULL, OPT_STOP},
                                             {"ignore-eos", no_argument, NULL, OPT_IGNORE_EOS},
                                             CLI_MODEL_LONG_OPTIONS,
                                             {"logits-out", required_argument, NULL, OPT_LOGITS_OUT},
                                             {"json", no_argument, NULL, OPT_JSON},
                                             {"verbose", no_argument, NULL, 'v'},
                                             {"help", no_argument, NULL, 'h'},
                                             {"version", no_argument, NULL, OPT_VERSION},
                                             RANKS_LONG_OPTIONS,
                                             {0}};

static int add_stop(run_options *o, const char *text, flute_error *err) {
    if (!*text) return fail(err, FLUTE_EINVAL, "--stop: the text is empty");
    if (o->n_stops == RUN_MAX_STOPS)
        return fail(err, FLUTE_EINVAL, "--stop: at most %d texts", RUN_MAX_STOPS);
    o->stops[o->n_stops++] = text;
    return FLUTE_OK;
}

static int parse_sampling(int option, const char *text, run_options *o, flute_error *err) {
    flute_sampling *s = &o->sampling;
    int64_t number = 0;
    int code;
    switch (option) {
    case OPT_TEMP:
        return cli_parse_float("--temp", text, 0, 100, &s->temperature, err);
    case OPT_TOP_K:
        code = cli_parse_int("--top-k", text, 0, INT_MAX, &number, err);
        s->top_k = (int)number;
        return code;
    case OPT_TOP_P:
        return cli_parse_float("--top-p", text, 0, 1, &s->top_p, err);
    case OPT_MIN_P:
        return cli_parse_float("--min-p", text, 0, 1, &s->min_p, err);
    case OPT_REPEAT:
        return cli_parse_float("--repeat-penalty", text, 0.01, 100, &s->repeat_penalty, err);
    case OPT_PRESENCE:
        return cli_parse_float("--presence-penalty", text, -100, 100, &s->presence_penalty, err);
    case OPT_FREQUENCY:
        return cli_parse_float("--frequency-penalty", text, -100, 100, &s->frequency_penalty, err);
    default: // OPT_SEED
        o->has_seed = true;
        return cli_parse_u64("--seed", text, &s->seed, err);
    }
}

// Options without a value of their own, or with a text that is taken as it is. False: not one of these.
static bool set_plain(int option, char *text, run_options *o) {
    switch (option) {
    case 'm':
        return o->model_path = text, true;
    case 'p':
        return o->prompt = text, true;
    case 'f':
        return o->prompt_file = text, true;
    case OPT_SYSTEM:
        return o->system = text, true;
    case OPT_LOGITS_OUT:
        return o->logits_out = text, true;
    case OPT_CHAT:
        return o->chat = true;
    case OPT_GREEDY:
        return o->greedy = true;
    case OPT_IGNORE_EOS:
        return o->ignore_eos = true;
    case OPT_JSON:
        return o->json = true;
    case 'v':
        return o->verbose = true;
    default:
        return false;
    }
}

static int parse_option(int option, char *text, run_options *o, flute_error *err) {
    int code;
    if (set_plain(option, text, o)) return FLUTE_OK;
    if (ranks_parse_option(option, text, &o->ranks, &o->model, &code, err) ||
        cli_parse_model_option(option, text, &o->model, &code, err))
        return code;
    switch (option) {
    case 'n':
        o->has_max_tokens = true;
        return cli_parse_int("-n", text, -1, INT_MAX, &o->max_tokens, err);
    case 'c':
        return cli_parse_int("-c", text, 1, INT_MAX, &o->context, err);
    case OPT_PROMPT_IDS:
        free(o->prompt_ids);
        o->prompt_ids = NULL;
        return cli_parse_ids("--prompt-ids", text, &o->prompt_ids, &o->n_prompt_ids, err);
    case OPT_STOP:
        return add_stop(o, text, err);
    default:
        return parse_sampling(option, text, o, err);
    }
}

static int check_together(const run_options *o, flute_error *err) {
    const int prompts = (o->prompt != NULL) + (o->prompt_file != NULL) + (o->prompt_ids != NULL);
    if (prompts > 1) return fail(err, FLUTE_EINVAL, "give one of -p, -f and --prompt-ids");
    if (prompts == 0 && !o->chat)
        return fail(err, FLUTE_EINVAL, "what should the model continue? give -p TEXT, -f FILE or --chat");
    if (o->chat && o->prompt_ids) return fail(err, FLUTE_EINVAL, "--prompt-ids does not go with --chat");
    if (o->chat && o->logits_out) return fail(err, FLUTE_EINVAL, "--logits-out does not go with --chat");
    if (o->chat && o->json && prompts == 0)
        return fail(err, FLUTE_EINVAL, "--chat with --json answers one message: give it with -p or -f");
    if (o->system && !o->chat) return fail(err, FLUTE_EINVAL, "--system needs --chat");
    return FLUTE_OK;
}

static int random_seed(uint64_t *seed, flute_error *err) {
    if (getrandom(seed, sizeof *seed, 0) == (ssize_t)sizeof *seed) return FLUTE_OK;
    return fail(err, FLUTE_EIO, "cannot draw a random seed: %s; give --seed", strerror(errno));
}

int run_parse_options(run_options *options, int argc, char **argv, bool *done, flute_error *err) {
    *options = (run_options){.sampling = flute_sampling_default(), .max_tokens = 256};
    *done = false;
    int code = FLUTE_OK;
    for (int option;
         !code && (option = cli_next_option(argc, argv, ":m:p:f:n:c:t:vh", long_options, err)) != -1;) {
        if (option == '?') return FLUTE_EINVAL;
        if (option == 'h' || option == OPT_VERSION) {
            if (option == 'h')
                fputs(usage, stdout);
            else
                printf("flute-run %s\n", flute_version());
            *done = true;
            return cli_flush(err);
        }
        code = parse_option(option, optarg, options, err);
    }
    if (code) return code;
    if (optind < argc)
        return fail(err, FLUTE_EINVAL, "'%s' is one argument too many; a prompt comes after -p",
                    argv[optind]);
    if (options->greedy) options->sampling.temperature = 0;
    if (options->chat && !options->has_max_tokens) options->max_tokens = -1;
    if (options->logits_out && !options->has_max_tokens) options->max_tokens = 0;
    code = check_together(options, err);
    return code || options->has_seed ? code : random_seed(&options->sampling.seed, err);
}
