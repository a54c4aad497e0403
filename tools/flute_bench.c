// flute-bench: speed of whole models and of single kernels, against the read bandwidth measured in the same
// run.
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "tools/bench.h"
#include "tools/cli.h"

enum { DEFAULT_REPEATS = 3 };

static const char usage[] =
    "Usage: flute-bench [all|prefill|decode|latency|sums|kernels] [options]\n"
    "\n"
    "Measures, and compares with the read bandwidth of the memory, taken in the same run.\n"
    "\n"
    "  prefill   tokens per second of one prompt, by length\n"
    "  decode    tokens per second and time per step, by tokens in the cache and batch\n"
    "  latency   time to the first token and from token to token, by prompt length and batch: all prompts\n"
    "            arrive together, are run one after the other, then continue together\n"
    "  sums      all-reduces among ranks, by size; with --tp only\n"
    "  kernels   single products on random weights, without a model\n"
    "  all       all of these but kernels; the default\n"
    "\n"
    "  -m, --model FILE            the model; default: the one that comes with flute. flute-quantize "
    "--random\n"
    "                              NAME writes models to measure with\n"
    "      --prompt-lengths LIST   prefill, latency: tokens (default 32,128,512)\n"
    "  -c, --contexts LIST         decode: tokens in the cache at the start (default 32,512)\n"
    "      --batches LIST          decode, latency: sequences that run together (default 1,4,8)\n"
    "  -n, --generate N            decode, latency: tokens that each sequence generates (default 32)\n"
    "      --shapes LIST           kernels: N x K, as 4096x4096,6144x4096 (default: those of Llama-3-8B;\n"
    "                              on a GPU also of Llama-3-70B)\n"
    "      --types LIST            kernels: lut4,lut3,lut2,int8 (default: all); bf16 always runs\n"
    "      --rows LIST             kernels: M, the rows of activations (default 1,8,16,64; on a GPU\n"
    "                              1,2,4,8,16,32,64,256)\n"
    "      --group N               kernels: columns per scale (default 128)\n"
    "      --path NAME             kernels on a GPU, to compare them: auto, gemv, tile, wide or\n"
    "                              ampere (default auto)\n"
    "      --repeat N              measurements of each, after one to warm up; the median counts (default "
    "3;\n"
    "                              kernels on a GPU: 15)\n"
    "  -t, --threads N             CPU threads (default: all)\n"
    "      --device NAME           auto, cpu or cuda (default auto)\n"
    "      --kernels NAME          auto or ref (default auto)\n"
    "      --no-verify             do not check the checksums of the model\n" RANKS_USAGE
    "                           (--tp takes a list, as 1,2,4: each degree in turn, and how they scale)\n"
    "      --plot FILE.svg|.html   draw charts, too: a roofline with every measurement, and one for each "
    "table\n"
    "      --json                  print one JSON object instead of tables\n"
    "  -h, --help                  this text\n"
    "      --version               the version\n"
    "\n"
    "Default lengths that the model's context cannot hold are left out.\n"
    "\n"
    "JSON keys: version command date device read_bandwidth (bytes per second); with a model: model weights "
    "group\n"
    "weight_bytes decode_bytes kv_token_bytes ranks; then an array for each part that ran. With a list of "
    "--tp: degrees,\n"
    "an array of such objects, and scaling.\n"
    "  prefill:  prompt ms tokens_per_second gflops intensity\n"
    "  decode:   context batch tokens_per_second step_ms_p50 step_ms_p90 step_ms_p99 bytes_per_second\n"
    "            bandwidth_share gflops intensity collectives_share\n"
    "  latency:  prompt batch first_ms_p50 first_ms_p90 first_ms_p99 token_ms_p50 token_ms_p90 token_ms_p99\n"
    "  sums:     bytes us\n"
    "  kernels:  n k type group m us bytes_per_second bandwidth_share gflops intensity speedup_over_bf16\n"
    "  scaling:  part tokens batch ranks tokens_per_second efficiency\n"
    "Bytes are those that cannot be avoided (decode: every weight once a step, the cache of every "
    "sequence);\n"
    "intensity is operations per such byte. collectives_share (in the table: % sums) is the share of a "
    "step's "
    "time\n"
    "that rank 0 spends in collectives, waiting for others included, measured in steps of their own; on a "
    "GPU "
    "between\n"
    "two events around each, which make these steps some microseconds slower for each.\n";

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static double percentile(const double *sorted, int n, double p) {
    int index = (int)(p / 100 * n);
    return sorted[index < n ? index : n - 1];
}

bench_percentiles bench_percentiles_of(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return (bench_percentiles){percentile(values, n, 50), percentile(values, n, 90),
                               percentile(values, n, 99)};
}

static int parse_int(const char *option, const char *text, int min, int max, int *out, flute_error *err) {
    int64_t value = 0;
    int code = cli_parse_int(option, text, min, max, &value, err);
    if (!code) *out = (int)value;
    return code;
}

// Calls parse for every comma-separated piece of text, with its index.
static int for_each_piece(const char *option, const char *text, int max_pieces,
                          int (*parse)(const char *, const char *, int, void *, flute_error *), void *out,
                          int *n, flute_error *err) {
    char piece[64];
    *n = 0;
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= sizeof piece)
            return fail(err, FLUTE_EINVAL, "%s: '%s' is not a list like 1,2,3", option, text);
        if (*n == max_pieces) return fail(err, FLUTE_EINVAL, "%s: more than %d values", option, max_pieces);
        memcpy(piece, at, length);
        piece[length] = 0;
        int code = parse(option, piece, (*n)++, out, err);
        if (code) return code;
        at += length;
        if (!*at) return FLUTE_OK;
    }
}

static int piece_int(const char *option, const char *text, int i, void *out, flute_error *err) {
    return parse_int(option, text, 1, 1 << 20, &((int *)out)[i], err);
}

static int piece_shape(const char *option, const char *text, int i, void *out, flute_error *err) {
    int64_t *shape = ((int64_t(*)[2])out)[i];
    long long n, k;
    int used = 0;
    if (sscanf(text, "%lldx%lld%n", &n, &k, &used) != 2 || text[used] || n < 16 || k < 32 || n > 1 << 20 ||
        k > 1 << 20)
        return fail(err, FLUTE_EINVAL, "%s: '%s' is not a shape like 4096x4096", option, text);
    shape[0] = n;
    shape[1] = k;
    return FLUTE_OK;
}

static int piece_type(const char *option, const char *text, int i, void *out, flute_error *err) {
    int type = weight_type_parse(text);
    if (type < 0 || (type != WEIGHT_BF16 && !weight_is_quantized((weight_type)type)))
        return fail(err, FLUTE_EINVAL, "%s: '%s' is none of lut4, lut3, lut2, int8, bf16", option, text);
    ((weight_type *)out)[i] = (weight_type)type;
    return FLUTE_OK;
}

static int parse_list(const char *option, const char *text, bench_list *out, flute_error *err) {
    out->chosen = true;
    return for_each_piece(option, text, BENCH_MAX_VALUES, piece_int, out->values, &out->n, err);
}

enum {
    OPT_PROMPTS = 256,
    OPT_BATCHES,
    OPT_SHAPES,
    OPT_TYPES,
    OPT_ROWS,
    OPT_GROUP,
    OPT_PATH,
    OPT_REPEAT,
    OPT_PLOT,
    OPT_JSON,
    OPT_VERSION
};

static const struct option long_options[] = {{"model", required_argument, NULL, 'm'},
                                             {"prompt-lengths", required_argument, NULL, OPT_PROMPTS},
                                             {"contexts", required_argument, NULL, 'c'},
                                             {"batches", required_argument, NULL, OPT_BATCHES},
                                             {"generate", required_argument, NULL, 'n'},
                                             {"shapes", required_argument, NULL, OPT_SHAPES},
                                             {"types", required_argument, NULL, OPT_TYPES},
                                             {"rows", required_argument, NULL, OPT_ROWS},
                                             {"group", required_argument, NULL, OPT_GROUP},
                                             {"path", required_argument, NULL, OPT_PATH},
                                             {"repeat", required_argument, NULL, OPT_REPEAT},
                                             CLI_MODEL_LONG_OPTIONS,
                                             {"plot", required_argument, NULL, OPT_PLOT},
                                             {"json", no_argument, NULL, OPT_JSON},
                                             {"help", no_argument, NULL, 'h'},
                                             {"version", no_argument, NULL, OPT_VERSION},
                                             RANKS_LONG_OPTIONS,
                                             {0}};

static const bench_options defaults = {
    .prompts = {3, {32, 128, 512}, false},
    .contexts = {2, {32, 512}, false},
    .batches = {3, {1, 4, 8}, false},
    .n_generate = 32,
    .n_types = 5,
    .types = {WEIGHT_BF16, WEIGHT_LUT4, WEIGHT_LUT3, WEIGHT_LUT2, WEIGHT_INT8},
    .group_size = 128,
};

// Types of --types, behind bf16, with which the others are compared.
static int parse_types(const char *text, bench_options *o, flute_error *err) {
    weight_type types[WEIGHT_N_TYPES];
    int n = 0;
    const int code = for_each_piece("--types", text, WEIGHT_N_TYPES, piece_type, types, &n, err);
    o->n_types = 1;
    for (int i = 0; !code && i < n; i++)
        if (types[i] != WEIGHT_BF16) o->types[o->n_types++] = types[i];
    return code;
}

static int parse_option(int option, const char *text, bench_options *o, flute_error *err) {
    static const char *const paths[] = {"auto", "gemv", "tile", "wide", "ampere", NULL}; // as lut_path
    int code;
    if (option != RANKS_OPT_TP && ranks_parse_option(option, text, &o->ranks, &o->model, &code, err))
        return code;
    if (cli_parse_model_option(option, text, &o->model, &code, err)) return code;
    switch (option) {
    case RANKS_OPT_TP:
        if (parse_list("--tp", text, &o->degrees, err)) return FLUTE_EINVAL;
        o->ranks.n = o->degrees.values[0];
        return FLUTE_OK;
    case 'm':
        o->model_path = text;
        return FLUTE_OK;
    case 'n':
        return parse_int("--generate", text, 1, 1 << 20, &o->n_generate, err);
    case 'c':
        return parse_list("--contexts", text, &o->contexts, err);
    case OPT_PROMPTS:
        return parse_list("--prompt-lengths", text, &o->prompts, err);
    case OPT_BATCHES:
        return parse_list("--batches", text, &o->batches, err);
    case OPT_SHAPES:
        return for_each_piece("--shapes", text, BENCH_MAX_VALUES, piece_shape, o->shapes, &o->n_shapes, err);
    case OPT_TYPES:
        return parse_types(text, o, err);
    case OPT_ROWS:
        return parse_list("--rows", text, &o->rows, err);
    case OPT_GROUP:
        if (parse_int("--group", text, 32, 256, &o->group_size, err) || (o->group_size & (o->group_size - 1)))
            return fail(err, FLUTE_EINVAL, "--group: '%s' is none of 32, 64, 128, 256", text);
        return FLUTE_OK;
    case OPT_PATH:
        return cli_parse_name("--path", text, paths, &o->path, err);
    case OPT_REPEAT:
        return parse_int("--repeat", text, 1, 1000, &o->repeats, err);
    case OPT_PLOT:
        o->plot_path = text;
        return bench_plot_check(text, err);
    default: // OPT_JSON
        o->json = true;
        return FLUTE_OK;
    }
}

typedef int bench_part(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                       flute_error *err);

static const struct {
    const char *name;
    bench_part *part;
} parts[] = {
    {"prefill", bench_prefill}, {"decode", bench_decode}, {"latency", bench_latency}, {"sums", bench_sums}};
enum { N_PARTS = sizeof parts / sizeof *parts };

// Runs the parts of that name, or all of them.
static int bench_model(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                       flute_error *err) {
    const flute_model_info *info = &report->model;
    flute_model_get_info(model, &report->model);
    snprintf(report->device, sizeof report->device, "%s", info->device);
    report->read_bandwidth = flute_model_measure_bandwidth(model);
    if (out)
        fprintf(
            out,
            "%s, %s, group %d, %.2f GB of weights, %.2f GB read per token\n%s\nread bandwidth %.1f GB/s\n",
            info->name, info->weights, info->group_size, (double)info->weight_bytes / 1e9,
            (double)info->decode_bytes / 1e9, info->device, report->read_bandwidth / 1e9);
    const bool all = strcmp(report->command, "all") == 0;
    int code = FLUTE_OK;
    for (int i = 0; !code && i < N_PARTS; i++)
        if (all || strcmp(report->command, parts[i].name) == 0)
            code = parts[i].part(model, options, report, out, err);
    return code;
}

static int write_json(const bench_report *report, FILE *results, flute_error *err) {
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) return fail(err, FLUTE_ENOMEM, "out of memory for the results");
    bench_report_json(report, doc);
    int code = FLUTE_OK;
    if (!results)
        code = cli_put_json(doc, err);
    else if (!yyjson_mut_write_fp(results, doc, YYJSON_WRITE_NOFLAG, NULL, NULL) || fflush(results))
        code = fail(err, FLUTE_EIO, "cannot hand the results on");
    yyjson_mut_doc_free(doc);
    return code;
}

static int measure(const bench_options *options, bench_report *report, flute_error *err) {
    FILE *out = options->json ? NULL : stdout;
    flute_model *model = NULL;
    file_writer *plot = NULL;
    char path[PATH_MAX];
    int code = FLUTE_OK;
    // Opened first: a folder that does not exist should not be found out after minutes of measuring.
    if (options->plot_path && !(plot = file_writer_open(options->plot_path, err))) return err->code;
    if (strcmp(report->command, "kernels") == 0) {
        code = bench_kernels(options, report, out, err);
    } else {
        if (!options->model_path) code = cli_default_model(path, sizeof path, err);
        if (!code)
            code = cli_open_model(&model, options->model_path ? options->model_path : path, &options->model,
                                  NULL, err);
        if (!code) code = bench_model(model, options, report, out, err);
    }
    if (!code && (options->json || options->results)) code = write_json(report, options->results, err);
    if (!code) code = cli_flush(err);
    if (!code && plot) code = bench_report_plot(report, options->plot_path, plot, err);
    if (!code && plot)
        code = file_writer_commit(plot, err);
    else
        file_writer_abort(plot);
    flute_model_free(model); // after the results, which refer to it
    return code;
}

static int run(const bench_options *options, flute_error *err) {
    bench_report *report = calloc(1, sizeof *report);
    if (!report) return fail_memory(err, sizeof *report, "the results");
    const time_t now = time(NULL);
    strftime(report->date, sizeof report->date, "%Y-%m-%d %H:%M UTC", gmtime(&now));
    report->command = options->command;
    const int code = measure(options, report, err);
    free(report);
    return code;
}

// The part named on the command line, "all" if there is none.
static int parse_command(int argc, char **argv, const char **command, flute_error *err) {
    static const char *const names[] = {"all", "prefill", "decode", "latency", "sums", "kernels", NULL};
    int index = 0;
    if (argc - optind > 1) return fail(err, FLUTE_EINVAL, "'%s' is one argument too many", argv[optind + 1]);
    if (optind < argc && cli_parse_name("what to measure", argv[optind], names, &index, err))
        return FLUTE_EINVAL;
    *command = names[index];
    return FLUTE_OK;
}

// Everything for one degree; returns the exit status.
static int run_ranks(bench_options *options) {
    flute_error err = {0};
    int status;
    if (!ranks_begin("flute-bench", &options->ranks, &options->model, &status)) return status;
    status = run(options, &err) ? cli_fail("flute-bench", &err, false) : CLI_OK;
    ranks_end(&options->model);
    return status;
}

int main(int argc, char **argv) {
    bench_options options = defaults;
    flute_error err = {0};
    int code = FLUTE_OK;
    cli_set_signals();
    for (int option;
         !code && (option = cli_next_option(argc, argv, ":m:c:n:t:h", long_options, &err)) != -1;) {
        if (option == '?') return cli_fail("flute-bench", &err, true);
        if (option == 'h' || option == OPT_VERSION) {
            if (option == 'h')
                fputs(usage, stdout);
            else
                printf("flute-bench %s\n", flute_version());
            return cli_flush(&err) ? cli_fail("flute-bench", &err, false) : CLI_OK;
        }
        code = parse_option(option, optarg, &options, &err);
    }
    if (!code) code = parse_command(argc, argv, &options.command, &err);
    if (code) return cli_fail("flute-bench", &err, true);
    if (!options.repeats && strcmp(options.command, "kernels") != 0) options.repeats = DEFAULT_REPEATS;
    return options.degrees.n > 1 ? bench_degrees(&options, run_ranks) : run_ranks(&options);
}
