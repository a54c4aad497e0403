// flute-quantize: Hugging Face checkpoints to .flt files.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/base/fail.h"
#include "tools/cli.h"
#include "tools/quantize.h"

static const char usage[] =
    "Usage: flute-quantize [options] HF_DIR\n"
    "       flute-quantize [options] --random NAME\n"
    "\n"
    "Converts a Hugging Face checkpoint (LLaMA or Gemma: config.json, safetensors, tokenizer) into one\n"
    ".flt file. No calibration data is needed.\n"
    "\n"
    "  -b, --bits N          width of the projections: 2, 3, 4, 8, or 16 for dense (default 4)\n"
    "  -g, --group N         weights per scale: 32, 64, 128 or 256 (default 128)\n"
    "      --table TABLE     the values that codes stand for (default opt)\n"
    "                          opt    learned on the distribution of weights\n"
    "                          nf     NormalFloat\n"
    "                          int    uniform\n"
    "                          lloyd  learned anew for every matrix, from opt\n"
    "                          FILE   your own: 2^bits numbers in a text file\n"
    "      --absmax          scales from the largest weight of a group, without a search (for comparison)\n"
    "      --head-bits N     width of the output head (default 8; 16 when --bits is 16)\n"
    "      --embed-bits N    width of the embedding (the same default; a tied head is stored once)\n"
    "  -o, --output FILE     the file to write (default NAME-lut4-g128.flt in the current folder); of what "
    "is\n"
    "                        there already, only a .flt file is replaced\n"
    "      --random NAME     no checkpoint: random weights, to measure speed with, in the shape of "
    "llama-3-8b,\n"
    "                        llama-3.2-1b, llama-3-70b, gemma-2-9b or gemma-2-27b\n"
    "      --seed N          of the random weights (default 0)\n"
    "  -t, --threads N       CPU threads (default: all)\n"
    "  -q, --quiet           no progress bar and no table\n"
    "  -h, --help            this text\n"
    "      --version         the version\n";

enum { OPT_TABLE = 256, OPT_ABSMAX, OPT_HEAD_BITS, OPT_EMBED_BITS, OPT_RANDOM, OPT_SEED, OPT_VERSION };

static const struct option long_options[] = {{"bits", required_argument, NULL, 'b'},
                                             {"group", required_argument, NULL, 'g'},
                                             {"output", required_argument, NULL, 'o'},
                                             {"threads", required_argument, NULL, 't'},
                                             {"quiet", no_argument, NULL, 'q'},
                                             {"help", no_argument, NULL, 'h'},
                                             {"table", required_argument, NULL, OPT_TABLE},
                                             {"absmax", no_argument, NULL, OPT_ABSMAX},
                                             {"head-bits", required_argument, NULL, OPT_HEAD_BITS},
                                             {"embed-bits", required_argument, NULL, OPT_EMBED_BITS},
                                             {"random", required_argument, NULL, OPT_RANDOM},
                                             {"seed", required_argument, NULL, OPT_SEED},
                                             {"version", no_argument, NULL, OPT_VERSION},
                                             {0}};

// One of a few numbers that a NULL-terminated list spells out.
static int parse_choice(const char *option, const char *text, const char *const *names, int *out,
                        flute_error *err) {
    int index;
    int code = cli_parse_name(option, text, names, &index, err);
    if (!code) *out = atoi(names[index]);
    return code;
}

static int parse_option(int option, const char *text, quantize_options *o, flute_error *err) {
    static const char *const widths[] = {"2", "3", "4", "8", "16", NULL};
    static const char *const groups[] = {"32", "64", "128", "256", NULL};
    int64_t n_threads = 0;
    int code = FLUTE_OK;
    switch (option) {
    case 'b':
        return parse_choice("--bits", text, widths, &o->bits, err);
    case 'g':
        return parse_choice("--group", text, groups, &o->group_size, err);
    case 'o':
        o->output = text;
        return FLUTE_OK;
    case 't':
        code = cli_parse_int("--threads", text, 1, 1024, &n_threads, err);
        o->n_threads = (int)n_threads;
        return code;
    case 'q':
        o->quiet = true;
        return FLUTE_OK;
    case OPT_TABLE:
        o->table = text;
        return FLUTE_OK;
    case OPT_ABSMAX:
        o->absmax = true;
        return FLUTE_OK;
    case OPT_HEAD_BITS:
        return parse_choice("--head-bits", text, widths, &o->head_bits, err);
    case OPT_EMBED_BITS:
        return parse_choice("--embed-bits", text, widths, &o->embed_bits, err);
    case OPT_RANDOM:
        o->random = text;
        return FLUTE_OK;
    default: // OPT_SEED
        o->has_seed = true;
        return cli_parse_u64("--seed", text, &o->seed, err);
    }
}

// Options that would have no effect are mistakes.
static int check_together(const quantize_options *o, flute_error *err) {
    const bool has_codes =
        o->bits < 8 || (o->head_bits && o->head_bits < 8) || (o->embed_bits && o->embed_bits < 8);
    const char *option = o->absmax ? "--absmax" : o->table ? "--table" : NULL;
    if (option && o->random)
        return fail(err, FLUTE_EINVAL, "%s does not go with --random, which quantizes nothing", option);
    if (o->table && !has_codes)
        return fail(err, FLUTE_EINVAL, "--table: tables are for 2, 3 and 4 bits, not for --bits %d", o->bits);
    if (o->absmax && o->bits == 16 && !o->head_bits && !o->embed_bits)
        return fail(err, FLUTE_EINVAL, "--absmax does not go with --bits 16, which quantizes nothing");
    if (o->has_seed && !o->random) return fail(err, FLUTE_EINVAL, "--seed is for --random only");
    return FLUTE_OK;
}

static int parse_arguments(int argc, char **argv, quantize_options *o, flute_error *err) {
    if (argc - optind > 1) return fail(err, FLUTE_EINVAL, "'%s' is one argument too many", argv[optind + 1]);
    o->input = optind < argc ? argv[optind] : NULL;
    if (o->input && o->random)
        return fail(err, FLUTE_EINVAL, "--random %s and the folder %s exclude each other", o->random,
                    o->input);
    if (!o->input && !o->random) return fail(err, FLUTE_EINVAL, "which checkpoint? give its folder");
    return check_together(o, err);
}

int main(int argc, char **argv) {
    quantize_options options = {.bits = 4, .group_size = 128};
    flute_error err = {0};
    cli_set_signals();
    for (int option; (option = cli_next_option(argc, argv, ":b:g:o:t:qh", long_options, &err)) != -1;) {
        if (option == 'h' || option == OPT_VERSION) {
            if (option == 'h')
                fputs(usage, stdout);
            else
                printf("flute-quantize %s\n", flute_version());
            return cli_flush(&err) ? cli_fail("flute-quantize", &err, false) : CLI_OK;
        }
        if (option == '?' || parse_option(option, optarg, &options, &err))
            return cli_fail("flute-quantize", &err, true);
    }
    if (parse_arguments(argc, argv, &options, &err)) return cli_fail("flute-quantize", &err, true);
    if (!options.table) options.table = "opt";

    thread_pool *pool = threads_create(options.n_threads, &err);
    if (!pool) return cli_fail("flute-quantize", &err, false);
    int code =
        options.random ? quantize_random(&options, pool, &err) : quantize_checkpoint(&options, pool, &err);
    threads_free(pool);
    if (!code) code = cli_flush(&err);
    return code ? cli_fail("flute-quantize", &err, code == FLUTE_EINVAL) : CLI_OK;
}
