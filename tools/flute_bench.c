// flute-bench: speed of whole models and of single kernels, against the read bandwidth measured in the same
// run.
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "tools/bench.h"
#include "tools/cli.h"

static const char usage[] =
    "Usage: flute-bench [all|prefill|decode] -m MODEL.flt [options]\n"
    "       flute-bench kernels [options]\n"
    "\n"
    "Measures, and compares with the read bandwidth of the memory, taken in the same run.\n"
    "\n"
    "  -m, --model FILE        the model; flute-quantize --random NAME writes ones for measuring\n"
    "      --prompts LIST      prefill: prompt lengths in tokens (default 32,128,512)\n"
    "      --contexts LIST     decode: tokens in the cache at the start (default 32,512)\n"
    "      --batches LIST      decode: sequences per step (default 1,4,8)\n"
    "  -n, --tokens N          decode: tokens per measurement (default 32)\n"
    "      --shapes LIST       kernels: N x K, as 4096x4096,6144x4096 (default: those of Llama-3.2-1B)\n"
    "      --types LIST        kernels: lut4,lut3,lut2,int8,bf16 (default lut4,lut3,lut2,int8); bf16 always "
    "runs\n"
    "      --rows LIST         kernels: M, the rows of activations (default 1,8,16,32,128)\n"
    "      --group N           kernels: columns per scale (default 128)\n"
    "      --repeats N         measurements of each; the median counts (default 3)\n"
    "  -t, --threads N         CPU threads (default: all)\n"
    "      --device NAME       auto, cpu or cuda (default auto)\n"
    "      --kernels NAME      auto or ref (default auto)\n"
    "      --no-verify         do not check the checksums of the model\n"
    "      --json              print one JSON object instead of tables\n"
    "  -h, --help              this text\n"
    "      --version           the version\n";

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

double bench_percentile(const double *sorted, int n, double p) {
    int index = (int)(p / 100 * n);
    return sorted[index < n ? index : n - 1];
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
    return for_each_piece(option, text, BENCH_MAX_VALUES, piece_int, out->values, &out->n, err);
}

enum {
    OPT_PROMPTS = 256,
    OPT_CONTEXTS,
    OPT_BATCHES,
    OPT_SHAPES,
    OPT_TYPES,
    OPT_ROWS,
    OPT_GROUP,
    OPT_REPEATS,
    OPT_DEVICE,
    OPT_KERNELS,
    OPT_NO_VERIFY,
    OPT_JSON,
    OPT_VERSION
};

static const struct option long_options[] = {
    {"model", required_argument, NULL, 'm'},           {"tokens", required_argument, NULL, 'n'},
    {"threads", required_argument, NULL, 't'},         {"help", no_argument, NULL, 'h'},
    {"prompts", required_argument, NULL, OPT_PROMPTS}, {"contexts", required_argument, NULL, OPT_CONTEXTS},
    {"batches", required_argument, NULL, OPT_BATCHES}, {"shapes", required_argument, NULL, OPT_SHAPES},
    {"types", required_argument, NULL, OPT_TYPES},     {"rows", required_argument, NULL, OPT_ROWS},
    {"group", required_argument, NULL, OPT_GROUP},     {"repeats", required_argument, NULL, OPT_REPEATS},
    {"device", required_argument, NULL, OPT_DEVICE},   {"kernels", required_argument, NULL, OPT_KERNELS},
    {"no-verify", no_argument, NULL, OPT_NO_VERIFY},   {"json", no_argument, NULL, OPT_JSON},
    {"version", no_argument, NULL, OPT_VERSION},       {0}};

static const bench_options defaults = {
    .prompts = {3, {32, 128, 512}},
    .contexts = {2, {32, 512}},
    .batches = {3, {1, 4, 8}},
    .n_decode = 32,
    .repeats = 3,
    .n_shapes = 5,
    .shapes = {{3072, 2048}, {2048, 2048}, {16384, 2048}, {2048, 8192}, {128256, 2048}},
    .n_types = 4,
    .types = {WEIGHT_LUT4, WEIGHT_LUT3, WEIGHT_LUT2, WEIGHT_INT8},
    .rows = {5, {1, 8, 16, 32, 128}},
    .group_size = 128,
};

static int parse_option(int option, const char *text, bench_options *o, bool *json, flute_error *err) {
    switch (option) {
    case 'm':
        o->model_path = text;
        return FLUTE_OK;
    case 'n':
        return parse_int("--tokens", text, 1, 1 << 20, &o->n_decode, err);
    case 't':
        return parse_int("--threads", text, 1, 4096, &o->model.n_threads, err);
    case OPT_PROMPTS:
        return parse_list("--prompts", text, &o->prompts, err);
    case OPT_CONTEXTS:
        return parse_list("--contexts", text, &o->contexts, err);
    case OPT_BATCHES:
        return parse_list("--batches", text, &o->batches, err);
    case OPT_SHAPES:
        return for_each_piece("--shapes", text, BENCH_MAX_VALUES, piece_shape, o->shapes, &o->n_shapes, err);
    case OPT_TYPES:
        return for_each_piece("--types", text, WEIGHT_N_TYPES, piece_type, o->types, &o->n_types, err);
    case OPT_ROWS:
        return parse_list("--rows", text, &o->rows, err);
    case OPT_GROUP:
        if (parse_int("--group", text, 32, 256, &o->group_size, err) || (o->group_size & (o->group_size - 1)))
            return fail(err, FLUTE_EINVAL, "--group: '%s' is none of 32, 64, 128, 256", text);
        return FLUTE_OK;
    case OPT_REPEATS:
        return parse_int("--repeats", text, 1, 1000, &o->repeats, err);
    case OPT_DEVICE:
        return cli_parse_device(text, &o->model.device, err);
    case OPT_KERNELS:
        return cli_parse_kernels(text, &o->model.kernels, err);
    case OPT_NO_VERIFY:
        o->model.no_verify = true;
        return FLUTE_OK;
    case OPT_JSON:
        *json = true;
        return FLUTE_OK;
    default:
        return fail(err, FLUTE_EINVAL, "see flute-bench --help");
    }
}

static int bench_model(const bench_options *options, const char *what, FILE *out, yyjson_mut_doc *doc,
                       yyjson_mut_val *results, flute_error *err) {
    flute_model *model = NULL;
    int code = flute_model_open(&model, options->model_path, &options->model, err);
    if (code) return code;
    flute_model_info info;
    flute_model_get_info(model, &info);
    double bandwidth = flute_model_measure_bandwidth(model);
    yyjson_mut_obj_add_strcpy(doc, results, "model", info.name);
    yyjson_mut_obj_add_strcpy(doc, results, "weights", info.weights);
    yyjson_mut_obj_add_int(doc, results, "group", info.group_size);
    yyjson_mut_obj_add_strcpy(doc, results, "device", info.device);
    yyjson_mut_obj_add_uint(doc, results, "weight_bytes", info.weight_bytes);
    yyjson_mut_obj_add_uint(doc, results, "decode_bytes", info.decode_bytes);
    yyjson_mut_obj_add_real(doc, results, "read_bandwidth", bandwidth);
    if (out)
        fprintf(
            out,
            "%s, %s, group %d, %.2f GB of weights, %.2f GB read per token\n%s\nread bandwidth %.1f GB/s\n",
            info.name, info.weights, info.group_size, (double)info.weight_bytes / 1e9,
            (double)info.decode_bytes / 1e9, info.device, bandwidth / 1e9);
    if (strcmp(what, "decode") != 0)
        code = bench_prefill(model, options, bandwidth, out, doc,
                             yyjson_mut_obj_add_arr(doc, results, "prefill"), err);
    if (!code && strcmp(what, "prefill") != 0)
        code = bench_decode(model, options, bandwidth, out, doc,
                            yyjson_mut_obj_add_arr(doc, results, "decode"), err);
    flute_model_free(model);
    return code;
}

static int run(const char *what, const bench_options *options, bool json, flute_error *err) {
    static const char *const modes[] = {"all", "prefill", "decode", "kernels"};
    int mode = 0;
    while (mode < 4 && strcmp(what, modes[mode]) != 0) mode++;
    if (mode == 4) return fail(err, FLUTE_EINVAL, "'%s' is none of all, prefill, decode, kernels", what);
    if (mode != 3 && !options->model_path) return fail(err, FLUTE_EINVAL, "which model? give -m MODEL.flt");

    FILE *out = json ? NULL : stdout;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) return fail(err, FLUTE_ENOMEM, "out of memory for the results");
    yyjson_mut_val *results = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, results);
    int code = mode == 3 ? bench_kernels(options, out, doc, results, err)
                         : bench_model(options, what, out, doc, results, err);
    if (!code && json) code = cli_put_json(doc, err);
    yyjson_mut_doc_free(doc);
    if (!code) code = cli_flush(err);
    return code;
}

int main(int argc, char **argv) {
    bench_options options = defaults;
    flute_error err = {0};
    bool json = false;
    for (int option; (option = getopt_long(argc, argv, "m:n:t:h", long_options, NULL)) != -1;) {
        if (option == 'h') return fputs(usage, stdout) < 0;
        if (option == OPT_VERSION) return printf("flute-bench %s\n", flute_version()) < 0;
        if (parse_option(option, optarg, &options, &json, &err)) return cli_fail("flute-bench", &err, true);
    }
    if (argc - optind > 1) {
        fail(&err, FLUTE_EINVAL, "'%s' is one argument too many; see flute-bench --help", argv[optind + 1]);
        return cli_fail("flute-bench", &err, true);
    }
    int code = run(optind < argc ? argv[optind] : "all", &options, json, &err);
    return code ? cli_fail("flute-bench", &err, code == FLUTE_EINVAL) : CLI_OK;
}
