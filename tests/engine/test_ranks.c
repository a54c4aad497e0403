// Tensor parallelism end to end: processes that share a model compute what one alone does. For a checkpoint
// at every width, with both CPU backends and 2, 3, 4, 5 and 8 ranks: logits of a prompt, of decoding several
// sequences, of a fork; sampled tokens.
//
//   test_ranks FLUTE_QUANTIZE CHECKPOINT_DIR
//   test_ranks odd                    a random model whose sizes divide by nothing
//   test_ranks cuda MODEL.flt...      on GPUs, two and three ranks
//   test_ranks local MODEL.flt...     on GPUs by way of the host, two and four ranks, which may share one
//   test_ranks launched MODEL.flt     the ranks are there already: mpirun -n 4 test_ranks launched …
//   test_ranks launched-cuda MODEL.flt
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/json.h"
#include "engine/flt.h"
#include "engine/flute.h"

enum { N = 70, CONTEXT = 100, N_SESSIONS = 3, N_DRAWN = 12 };

// Ranks end with this; there is no cmocka here, because a test is several processes.
static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "# ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    _exit(1);
}

static void check(int code, const flute_error *err) {
    if (code < 0) die("%s", err->message);
}

static void on_failure(const flute_error *cause) {
    if (cause) die("%s", cause->message);
    _exit(1);
}

// What a model says: logits of every position of a prompt, after each step of some sequences, and tokens.
typedef struct transcript {
    int n_vocab;
    size_t n; // floats so far
    float *logits;
    int32_t drawn[N_DRAWN];
    bool trained; // the model knows what it wants to say: tiny ones, which have no tokenizer, do not
} transcript;

static void keep(transcript *t, const float *logits) {
    if (!logits) die("no logits");
    memcpy(t->logits + t->n, logits, (size_t)t->n_vocab * sizeof *logits);
    t->n += (size_t)t->n_vocab;
}

static int keep_row(void *user, size_t i, const float *logits) {
    (void)i;
    keep(user, logits);
    return 0;
}

static flute_session *create(flute_model *model) {
    flute_session *session;
    flute_error err;
    check(flute_session_create(&session, model,
                               &(flute_session_options){.context = CONTEXT, .batch_rows = 16}, &err),
          &err);
    return session;
}

static transcript listen(flute_model *model, const int32_t *ids) {
    flute_error err;
    flute_model_info info;
    flute_model_get_info(model, &info);
    transcript t = {.n_vocab = info.n_vocab, .trained = info.has_tokenizer};
    t.logits = calloc((size_t)(N + 5 * N_SESSIONS + 8) * (size_t)info.n_vocab, sizeof *t.logits);
    if (!t.logits) die("out of memory");
    flute_session *sessions[N_SESSIONS];
    sessions[0] = create(model);
    check(flute_session_score(sessions[0], ids, N, keep_row, &t, &err), &err);
    for (int i = 1; i < N_SESSIONS; i++) { // each makes the cache grow
        sessions[i] = create(model);
        check(flute_session_prefill(sessions[i], ids + i, (size_t)(20 * i), &err), &err);
        keep(&t, flute_session_logits(sessions[i]));
    }
    for (int step = 0; step < 3; step++) {
        check(flute_sessions_decode(sessions, ids + N_SESSIONS * step, N_SESSIONS, &err), &err);
        for (int i = 0; i < N_SESSIONS; i++) keep(&t, flute_session_logits(sessions[i]));
    }
    flute_session *fork; // shares its last block until one of them goes on
    check(flute_session_fork(&fork, sessions[1], &err), &err);
    check(flute_session_decode(fork, ids[5], &err), &err);
    check(flute_session_decode(sessions[1], ids[6], &err), &err);
    keep(&t, flute_session_logits(fork));
    keep(&t, flute_session_logits(sessions[1]));
    check(flute_session_rewind(fork, 10, &err), &err);
    flute_sampling sampling = flute_sampling_default();
    sampling.seed = 7;
    t.drawn[0] = ids[0];
    for (int i = 1; i < N_DRAWN; i++)
        check(flute_session_step(fork, t.drawn[i - 1], &sampling, &t.drawn[i], &err), &err);
    flute_session_free(fork);
    for (int i = 0; i < N_SESSIONS; i++) flute_session_free(sessions[i]);
    return t;
}

// One all-reduce of few and of many bytes: what flute-bench sums measures.
static void measure_sums(flute_model *model, bool alone) {
    static const size_t sizes[] = {4, 1 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        double seconds = -1;
        flute_error err;
        check(flute_model_measure_all_reduce(model, sizes[i], &seconds, &err), &err);
        if (alone ? seconds != 0 : !(seconds > 0)) die("a sum of %g s", seconds);
    }
}

static flute_device device = FLUTE_DEVICE_CPU;
static flute_comm communication = FLUTE_COMM_AUTO;

static transcript transcript_of(const char *path, flute_kernels kernels, flute_ranks *ranks, bool scatter,
                                const int32_t *ids) {
    flute_model *model;
    flute_error err;
    const flute_model_options options = {.device = device,
                                         .kernels = kernels,
                                         .n_threads = 1,
                                         .ranks = ranks,
                                         .comm = communication,
                                         .scatter = scatter};
    check(flute_model_open(&model, path, &options, &err), &err);
    flute_model_info info;
    flute_model_get_info(model, &info);
    if (ranks && !scatter) printf("# %s\n", info.device);
    measure_sums(model, !ranks);
    flute_model_time_collectives(model, scatter); // which must not matter
    const double before = flute_model_collective_seconds(model);
    transcript t = listen(model, ids);
    const bool timed = flute_model_collective_seconds(model) > before;
    if (timed != (ranks && (scatter || device == FLUTE_DEVICE_CPU)))
        die("collectives were %stimed", timed ? "" : "not ");
    flute_model_free(model);
    return t;
}

// The largest difference, in standard deviations of the logits.
static double difference(const transcript *a, const transcript *b) {
    double worst = 0, sum = 0, squares = 0;
    if (a->n != b->n) die("%zu and %zu logits", a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        const double d = fabs((double)a->logits[i] - (double)b->logits[i]);
        if (!(d <= worst)) worst = d; // a NaN counts
        sum += a->logits[i];
        squares += (double)a->logits[i] * (double)a->logits[i];
    }
    const double mean = sum / (double)a->n;
    return worst / sqrt(squares / (double)a->n - mean * mean);
}

// Below it no activation was rounded to another bf16, and even an untrained model must say the same.
#define NOTHING_TIPPED 1e-4

// Float sums in another order; and on the fast backend activations that are rounded to bf16 (8 bits) after
// them, so that a last bit may tip over.
static const struct {
    flute_kernels kernels;
    const char *name;
    double tolerance;
} backends[] = {{FLUTE_KERNELS_REF, "ref", NOTHING_TIPPED}, {FLUTE_KERNELS_AUTO, "auto", 0.05}};

static void compare(const char *path, flute_ranks *ranks) {
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = 3 + i * 37 % 450;
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        if (device == FLUTE_DEVICE_CUDA && backends[i].kernels == FLUTE_KERNELS_REF) continue;
        transcript alone = transcript_of(path, backends[i].kernels, NULL, false, ids);
        // Scattered, too, but where that says nothing new and takes long.
        const bool both =
            device == FLUTE_DEVICE_CUDA ? !alone.trained : backends[i].kernels == FLUTE_KERNELS_REF;
        for (int scatter = 0; scatter <= both; scatter++) {
            transcript shared = transcript_of(path, backends[i].kernels, ranks, scatter, ids);
            const double d = difference(&alone, &shared);
            printf("# %s%s: largest difference %.2g standard deviations\n", backends[i].name,
                   scatter ? ", scattered" : "", d);
            if (!(d <= backends[i].tolerance)) die("more than %g", backends[i].tolerance);
            const bool same_text = memcmp(alone.drawn, shared.drawn, sizeof alone.drawn) == 0;
            if (!same_text && (d <= NOTHING_TIPPED || alone.trained)) die("other tokens were drawn");
            free(shared.logits);
        }
        free(alone.logits);
    }
}

// One model on n ranks (0: as many as were launched); true when every rank has ended well.
static bool run(const char *path, int n) {
    const flute_ranks_options options = {.n = n, .on_failure = on_failure};
    flute_ranks *ranks = NULL;
    flute_error err;
    int status;
    check(flute_ranks_start(&ranks, &options, &status, &err), &err);
    if (status >= 0) return status == 0;
    if (!ranks) die("there is only one rank");
    int code = FLUTE_OK;
    if (flute_ranks_rank(ranks) > 0)
        code = flute_ranks_follow(ranks, &err);
    else
        compare(path, ranks);
    flute_ranks_free(ranks);
    exit(code ? 1 : 0);
}

static int n_tests;
static bool all_passed = true;

static void test_model(const char *path, const char *name) {
    static const int all[] = {2, 3, 4, 5, 8}, shared[] = {2, 4};
    const int *sizes = communication == FLUTE_COMM_LOCAL ? shared : all;
    const size_t n_sizes = device == FLUTE_DEVICE_CUDA ? 2 : sizeof all / sizeof *all;
    for (size_t i = 0; i < n_sizes; i++) {
        const bool passed = run(path, sizes[i]);
        printf("%s %d - %s on %d ranks\n", passed ? "ok" : "not ok", ++n_tests, name, sizes[i]);
        all_passed = all_passed && passed;
    }
}

static void test_checkpoint(const char *quantize, const char *folder) {
    static const char *const widths[] = {"16", "8", "4", "3", "2"};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        char path[64], command[3 * PATH_MAX], name[64];
        // Groups of 128 make units that heads of 32 and 64 do not fill; smaller ones more scales a unit.
        const int group = i % 2 ? 128 : 32;
        snprintf(path, sizeof path, "test_ranks.%d.flt", (int)getpid());
        snprintf(name, sizeof name, "%s bits", widths[i]);
        snprintf(command, sizeof command, "'%s' --quiet --bits %s --group %d -o '%s' '%s'", quantize,
                 widths[i], group, path, folder);
        if (system(command) != 0) die("flute-quantize failed");
        test_model(path, name);
        unlink(path);
    }
}

// ---- A model of odd sizes

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":192,\"intermediate_size\":1376,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":3,\"head_dim\":48,"
    "\"vocab_size\":777,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
    "\"bos_token_id\":1,\"eos_token_id\":2}";

static void write_tensor(flt_writer *writer, int index, const arch_tensor *tensor) {
    flute_error err;
    weight w = {.type = WEIGHT_F32, .n_rows = tensor->n_rows, .n_cols = tensor->n_cols};
    if (tensor->role != ROLE_NORM) {
        w.type = index % 2 ? WEIGHT_LUT3 : WEIGHT_LUT4;
        w.group_size = tensor->n_cols % 64 == 0 ? 64 : 32;
        for (int i = 0; i < 1 << weight_type_bits(w.type); i++)
            w.table[i] = bf16_from_float(((float)i + 0.5f) * 2 / (float)(1 << weight_type_bits(w.type)) - 1);
        w.size = layout_matrix_bytes(w.type, w.n_rows, w.n_cols, w.group_size);
    } else {
        w.size = (size_t)w.n_cols * sizeof(float);
    }
    uint8_t *bytes = malloc(w.size);
    if (!bytes) die("out of memory");
    if (tensor->role == ROLE_NORM)
        for (int64_t i = 0; i < w.n_cols; i++) ((float *)(void *)bytes)[i] = 1;
    else
        layout_random_panels(w.type, w.n_cols, w.group_size, 0, layout_padded_rows(w.n_rows) / PANEL_ROWS,
                             (uint64_t)index, 0.1f, bytes);
    check(flt_writer_begin(writer, index, &w, &err), &err);
    check(flt_writer_append(writer, bytes, w.size, &err), &err);
    check(flt_writer_end(writer, &err), &err);
    free(bytes);
}

static void test_odd(void) {
    char path[64];
    arch a;
    flute_error err;
    flt_writer *writer;
    yyjson_doc *doc = json_parse(config, sizeof config - 1, "config", &err);
    check(arch_from_config(&a, yyjson_doc_get_root(doc), NULL, "config", &err), &err);
    yyjson_doc_free(doc);
    snprintf(path, sizeof path, "test_ranks.%d.flt", (int)getpid());
    check(flt_writer_create(&writer, path,
                            &(flt_writer_options){.arch = &a, .name = "odd", .generator = "test_ranks"},
                            &err),
          &err);
    for (int i = 0; i < arch_n_tensors(&a); i++) {
        arch_tensor tensor;
        arch_tensor_at(&a, i, &tensor);
        if (tensor.role != ROLE_ABSENT) write_tensor(writer, i, &tensor);
    }
    check(flt_writer_commit(writer, &err), &err);
    test_model(path, "odd sizes");
    unlink(path);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && strcmp(argv[1], "odd") == 0) {
        test_odd();
    } else if (argc > 2 && (strcmp(argv[1], "cuda") == 0 || strcmp(argv[1], "local") == 0)) {
        device = FLUTE_DEVICE_CUDA;
        if (strcmp(argv[1], "local") == 0) communication = FLUTE_COMM_LOCAL;
        for (int i = 2; i < argc; i++) test_model(argv[i], argv[i]);
    } else if (argc == 3 && strncmp(argv[1], "launched", strlen("launched")) == 0) {
        if (strcmp(argv[1], "launched-cuda") == 0) device = FLUTE_DEVICE_CUDA;
        return run(argv[2], 0) ? 0 : 1; // not reached: run ends the ranks
    } else if (argc == 3) {
        test_checkpoint(argv[1], argv[2]);
    } else {
        return 2;
    }
    printf("1..%d\n", n_tests);
    return all_passed ? 0 : 1;
}
