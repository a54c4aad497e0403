// flute-perplexity: how well a model predicts a text, and how far it is from another model.
//
// The text is tokenized without BOS and cut into consecutive pieces of c − 1 tokens, a short last one
// dropped. Each piece is scored on its own after a BOS token. The perplexity is exp of the mean negative log
// likelihood of all tokens. With --base, every token also counts KL(base ‖ model) of the two distributions,
// and whether both have the same likeliest token.
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "tools/ranks.h"

enum { DEFAULT_CONTEXT = 512, MAX_ALSO = 15 };

static const char usage[] =
    "Usage: flute-perplexity [-m MODEL.flt] -f TEXT [--base DENSE.flt] [options]\n"
    "\n"
    "Scores a text in pieces, each after a BOS token.\n"
    "\n"
    "  -m, --model FILE     the model; without it, the small one that comes with flute\n"
    "  -f, --file FILE      the text; - reads standard input\n"
    "  -c, --context N      tokens of a piece with its BOS (default 512)\n"
    "      --base FILE      also compares with this model: mean KL divergence per token, and the share of\n"
    "                       tokens where both have the same likeliest one\n"
    "      --also FILE      another model of the same checkpoint, scored on the same pieces, so that the "
    "base is\n"
    "                       computed once for all; can be repeated, and each gets a report of its own\n"
    "      --limit N        scores the first N pieces only\n"
    "  -t, --threads N      CPU threads (default: all)\n"
    "      --device NAME    auto, cpu or cuda (default auto)\n"
    "      --kernels NAME   auto or ref, the slow reference (default auto)\n"
    "      --no-verify      do not check the checksums of the models\n" RANKS_USAGE
    "      --json           prints one object: perplexity, stderr, tokens, kl and top1 (null without "
    "--base),\n"
    "                       and more\n"
    "  -h, --help           this text\n"
    "      --version        the version\n";

typedef struct perplexity_options {
    const char *model_path, *base_path, *text_path, *also_paths[MAX_ALSO];
    int n_also;
    flute_model_options model;
    ranks_options ranks;
    int64_t context, limit; // 0: not given
    bool json;
} perplexity_options;

// Mean and its standard error of a stream of numbers (Welford).
typedef struct running_mean {
    int64_t n;
    double mean, squares;
} running_mean;

static void running_add(running_mean *r, double value) {
    const double delta = value - r->mean;
    r->n++;
    r->mean += delta / (double)r->n;
    r->squares += delta * (value - r->mean);
}

static double running_error(const running_mean *r) {
    return r->n > 1 ? sqrt(r->squares / (double)(r->n - 1) / (double)r->n) : 0;
}

typedef struct base_row {
    double norm; // log Σ exp(logits)
    int top;     // the likeliest token
} base_row;

typedef struct scorer {
    flute_model *model, *base;
    flute_session *session, *base_session; // base: NULL without --base
    int n_vocab;
    float *base_logits;     // (piece, n_vocab) of the base model for one piece
    base_row *base_rows;    // (piece)
    const int32_t *targets; // of the piece in work
    running_mean nll, kl;
    int64_t same_top;
    struct scorer *also; // the next model on the same pieces, with the same base
} scorer;

// log Σ exp(logits), and where the largest stands.
static double log_sum(const float *logits, int n, int *top) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    double sum = 0;
    for (int i = 0; i < n; i++) sum += expf(logits[i] - logits[best]);
    if (top) *top = best;
    return (double)logits[best] + log(sum);
}

static int keep_row(void *user, size_t i, const float *logits) {
    scorer *s = user;
    s->base_rows[i].norm = log_sum(logits, s->n_vocab, &s->base_rows[i].top);
    memcpy(s->base_logits + i * (size_t)s->n_vocab, logits, (size_t)s->n_vocab * sizeof *logits);
    return 0;
}

static int score_row(void *user, size_t i, const float *logits) {
    scorer *s = user;
    int top;
    const double norm = log_sum(logits, s->n_vocab, &top);
    running_add(&s->nll, norm - (double)logits[s->targets[i]]);
    if (!s->base) return 0;
    const float *base = s->base_logits + i * (size_t)s->n_vocab;
    double kl = 0;
    for (int v = 0; v < s->n_vocab; v++) {
        const double log_base = (double)base[v] - s->base_rows[i].norm;
        kl += (double)expf((float)log_base) * (log_base - ((double)logits[v] - norm));
    }
    running_add(&s->kl, kl);
    s->same_top += top == s->base_rows[i].top;
    return 0;
}

// ids: BOS and then the piece; row i of n predicts ids[i + 1].
static int score_piece(scorer *s, const int32_t *ids, int n, flute_error *err) {
    int code = FLUTE_OK;
    if (s->base) code = flute_session_score(s->base_session, ids, (size_t)n, keep_row, s, err);
    for (; s && !code; s = s->also) {
        s->targets = ids + 1;
        code = flute_session_score(s->session, ids, (size_t)n, score_row, s, err);
    }
    return code;
}

// The base model must read the same tokens as the model, or the distributions do not compare.
static int check_base(const scorer *s, const perplexity_options *o, const char *text, size_t size,
                      const int32_t *ids, size_t n, flute_error *err) {
    flute_model_info info;
    flute_model_get_info(s->base, &info);
    int32_t *base_ids = NULL;
    size_t n_base = 0;
    int code = cli_tokenize(s->base, o->text_path, text, size, 0, &base_ids, &n_base, err);
    if (!code &&
        (info.n_vocab != s->n_vocab || n_base != n || flute_token_bos(s->base) != flute_token_bos(s->model) ||
         memcmp(base_ids, ids, n * sizeof *ids) != 0))
        code = fail(err, FLUTE_ESHAPE,
                    "%s: its vocabulary is not that of %s; --base takes the same checkpoint at 16 bits",
                    o->base_path, o->model_path);
    free(base_ids);
    return code;
}

static void print_progress(const scorer *s, int64_t piece, int64_t n_pieces, double seconds) {
    fprintf(stderr, "\rpiece %" PRId64 " of %" PRId64 ", perplexity %.4f, %.0f tokens/s ", piece, n_pieces,
            exp(s->nll.mean), (double)s->nll.n / seconds);
}

static int score_text(scorer *s, const perplexity_options *o, const int32_t *ids, size_t n, int context,
                      double *seconds, flute_error *err) {
    const int piece = context - 1;
    int64_t n_pieces = (int64_t)n / piece;
    if (n_pieces == 0)
        return fail(err, FLUTE_ERANGE,
                    "%s: its %zu tokens are fewer than one piece of %d; give a longer text or a smaller -c",
                    o->text_path, n, piece);
    if (o->limit && o->limit < n_pieces) n_pieces = o->limit;
    int32_t *row_ids = malloc((size_t)context * sizeof *row_ids);
    if (!row_ids) return fail_memory(err, (size_t)context * sizeof *row_ids, "a piece");
    row_ids[0] = flute_token_bos(s->model);
    const bool progress = isatty(STDERR_FILENO);
    const double start = seconds_now();
    int code = FLUTE_OK;
    for (int64_t i = 0; !code && i < n_pieces; i++) {
        memcpy(row_ids + 1, ids + i * piece, (size_t)piece * sizeof *row_ids);
        code = score_piece(s, row_ids, piece, err);
        if (progress && !code) print_progress(s, i + 1, n_pieces, seconds_now() - start);
    }
    if (progress) fputc('\n', stderr);
    *seconds = seconds_now() - start;
    free(row_ids);
    return code;
}

static int open_model(flute_model **model, flute_session **session, const char *path, int *context,
                      const perplexity_options *o, flute_error *err) {
    int code = cli_open_model(model, path, &o->model, NULL, err);
    if (code) return code;
    flute_model_info info;
    flute_model_get_info(*model, &info);
    if (flute_token_bos(*model) < 0)
        return fail(err, FLUTE_EUNSUPPORTED, "%s: the model has no BOS token to put before each piece", path);
    if (*context == 0) *context = info.max_context < DEFAULT_CONTEXT ? info.max_context : DEFAULT_CONTEXT;
    return flute_session_create(session, *model, &(flute_session_options){.context = *context}, err);
}

static int open_base(scorer *s, const perplexity_options *o, int context, flute_error *err) {
    int code = open_model(&s->base, &s->base_session, o->base_path, &context, o, err);
    if (code) return code;
    const size_t bytes = (size_t)context * (size_t)s->n_vocab * sizeof(float);
    s->base_logits = malloc(bytes);
    s->base_rows = malloc((size_t)context * sizeof *s->base_rows);
    return s->base_logits && s->base_rows
               ? FLUTE_OK
               : fail_memory(err, bytes, "the logits of a piece; choose a smaller -c");
}

// The models after the first, which has been opened with its base.
static int open_also(scorer *s, const perplexity_options *o, int context, flute_error *err) {
    int code = FLUTE_OK;
    for (int i = 0; i < o->n_also && !code; i++, s = s->also) {
        flute_model_info info;
        if (!(s->also = malloc(sizeof *s->also))) return fail_memory(err, sizeof *s, "a model");
        *s->also = (scorer){
            .base = s->base, .n_vocab = s->n_vocab, .base_logits = s->base_logits, .base_rows = s->base_rows};
        code = open_model(&s->also->model, &s->also->session, o->also_paths[i], &context, o, err);
        if (code) return code;
        flute_model_get_info(s->also->model, &info);
        if (info.n_vocab != s->n_vocab)
            code = fail(err, FLUTE_ESHAPE,
                        "%s: its vocabulary is not that of %s; --also takes models of the same checkpoint",
                        o->also_paths[i], o->model_path);
    }
    return code;
}

static void free_also(scorer *s) {
    while (s) {
        scorer *next = s->also;
        flute_session_free(s->session);
        flute_model_free(s->model);
        free(s);
        s = next;
    }
}

static int report(const scorer *s, const perplexity_options *o, int context, double seconds,
                  flute_error *err) {
    const double perplexity = exp(s->nll.mean);
    const double top1 = (double)s->same_top / (double)s->nll.n;
    if (!o->json) {
        printf("perplexity %.5f ± %.5f over %" PRId64 " tokens in pieces of %d, %.0f tokens/s\n", perplexity,
               perplexity * running_error(&s->nll), s->nll.n, context - 1, (double)s->nll.n / seconds);
        if (s->base)
            printf("KL divergence from the base %.6f ± %.6f per token, same likeliest token %.2f %%\n",
                   s->kl.mean, running_error(&s->kl), 100 * top1);
        return cli_flush(err);
    }
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) return fail(err, FLUTE_ENOMEM, "out of memory for the JSON output");
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_real(doc, root, "perplexity", perplexity);
    yyjson_mut_obj_add_real(doc, root, "stderr", perplexity * running_error(&s->nll));
    yyjson_mut_obj_add_int(doc, root, "tokens", s->nll.n);
    if (s->base) {
        yyjson_mut_obj_add_real(doc, root, "kl", s->kl.mean);
        yyjson_mut_obj_add_real(doc, root, "kl_stderr", running_error(&s->kl));
        yyjson_mut_obj_add_real(doc, root, "top1", top1);
    } else {
        yyjson_mut_obj_add_null(doc, root, "kl");
        yyjson_mut_obj_add_null(doc, root, "kl_stderr");
        yyjson_mut_obj_add_null(doc, root, "top1");
    }
    yyjson_mut_obj_add_int(doc, root, "context", context);
    yyjson_mut_obj_add_real(doc, root, "tokens_per_second", (double)s->nll.n / seconds);
    int code = cli_put_json(doc, err);
    yyjson_mut_doc_free(doc);
    return code;
}

static int run(perplexity_options *o, flute_error *err) {
    char default_path[PATH_MAX], *text = NULL;
    size_t size = 0;
    int32_t *ids = NULL;
    size_t n = 0;
    int context = (int)o->context;
    double seconds = 0;
    scorer s = {0};
    flute_model_info info;

    int code = cli_read_text(o->text_path, &text, &size, err);
    o->text_path = cli_input_name(o->text_path); // from now on, for messages
    if (!code && !o->model_path) {
        code = cli_default_model(default_path, sizeof default_path, err);
        o->model_path = default_path;
    }
    if (!code) code = open_model(&s.model, &s.session, o->model_path, &context, o, err);
    if (code) goto done;
    flute_model_get_info(s.model, &info);
    s.n_vocab = info.n_vocab;
    code = cli_tokenize(s.model, o->text_path, text, size, 0, &ids, &n, err);
    if (!code && o->base_path) code = open_base(&s, o, context, err);
    if (!code && o->base_path) code = check_base(&s, o, text, size, ids, n, err);
    if (!code) code = open_also(&s, o, context, err);
    if (!code) code = score_text(&s, o, ids, n, context, &seconds, err);
    for (const scorer *each = &s; each && !code; each = each->also)
        code = report(each, o, context, seconds, err);
done:
    flute_session_free(s.session);
    flute_session_free(s.base_session);
    free_also(s.also);
    flute_model_free(s.model);
    flute_model_free(s.base);
    free(s.base_logits);
    free(s.base_rows);
    free(text);
    free(ids);
    return code;
}

enum { OPT_BASE = 256, OPT_ALSO, OPT_LIMIT, OPT_JSON, OPT_VERSION };

static const struct option long_options[] = {{"model", required_argument, NULL, 'm'},
                                             {"file", required_argument, NULL, 'f'},
                                             {"context", required_argument, NULL, 'c'},
                                             {"base", required_argument, NULL, OPT_BASE},
                                             {"also", required_argument, NULL, OPT_ALSO},
                                             {"limit", required_argument, NULL, OPT_LIMIT},
                                             CLI_MODEL_LONG_OPTIONS,
                                             {"json", no_argument, NULL, OPT_JSON},
                                             {"help", no_argument, NULL, 'h'},
                                             {"version", no_argument, NULL, OPT_VERSION},
                                             RANKS_LONG_OPTIONS,
                                             {0}};

static int parse_option(int option, const char *text, perplexity_options *o, flute_error *err) {
    int code = FLUTE_OK;
    if (ranks_parse_option(option, text, &o->ranks, &o->model, &code, err) ||
        cli_parse_model_option(option, text, &o->model, &code, err))
        return code;
    switch (option) {
    case 'm':
        o->model_path = text;
        return FLUTE_OK;
    case 'f':
        o->text_path = text;
        return FLUTE_OK;
    case 'c':
        return cli_parse_int("-c", text, 2, INT_MAX, &o->context, err);
    case OPT_BASE:
        o->base_path = text;
        return FLUTE_OK;
    case OPT_ALSO:
        if (o->n_also == MAX_ALSO)
            return fail(err, FLUTE_EINVAL, "--also: at most %d models besides the first", MAX_ALSO);
        o->also_paths[o->n_also++] = text;
        return FLUTE_OK;
    case OPT_LIMIT:
        return cli_parse_int("--limit", text, 1, INT_MAX, &o->limit, err);
    default: // OPT_JSON
        o->json = true;
        return FLUTE_OK;
    }
}

int main(int argc, char **argv) {
    perplexity_options options = {0};
    flute_error err = {0};
    int code = FLUTE_OK;
    cli_set_signals();
    for (int option;
         !code && (option = cli_next_option(argc, argv, ":m:f:c:t:h", long_options, &err)) != -1;) {
        if (option == '?') return cli_fail("flute-perplexity", &err, true);
        if (option == 'h' || option == OPT_VERSION) {
            if (option == 'h')
                fputs(usage, stdout);
            else
                printf("flute-perplexity %s\n", flute_version());
            return cli_flush(&err) ? cli_fail("flute-perplexity", &err, false) : CLI_OK;
        }
        code = parse_option(option, optarg, &options, &err);
    }
    if (!code && optind < argc)
        code = fail(&err, FLUTE_EINVAL, "'%s' is one argument too many", argv[optind]);
    if (!code && !options.text_path) code = fail(&err, FLUTE_EINVAL, "which text? give -f FILE");
    if (code) return cli_fail("flute-perplexity", &err, true);
    int status;
    if (!ranks_begin("flute-perplexity", &options.ranks, &options.model, &status)) return status;
    status = run(&options, &err) ? cli_fail("flute-perplexity", &err, false) : CLI_OK;
    ranks_end(&options.model);
    return status;
}
