// The GPU's sampler against sample_token: every combination of parameters on random logits with ties,
// forbidden tokens and penalties, several rows at a time, with and without overlapped launches. The tokens
// must be equal, but where rounding decides between two; whether it may have is worked out in double. Prints
// TAP, whose plan says SKIP where there is no device.
//
//     check_sample_cuda [SEED [BATCHES]]     (batches of large vocabularies; small ones get ten times as
//     many)
//     check_sample_cuda --bench [TOKENS]     (what a step takes instead; a vocabulary of 128256)
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/sample.h"
#include "kernels/sample.h"
#include "tests/kernels/cuda_check.h"

enum { FEW_ROWS = 5, MANY_ROWS = 100, MAX_ROWS = MANY_ROWS, MAX_HISTORY = 300, PADDING = 3, POISON = 0xff };

#define RANDOM_OF(list) ((list)[random_below((int)(sizeof(list) / sizeof *(list)))])

static void *device_memory(size_t size) {
    void *memory = NULL;
    check(cudaMalloc(&memory, size), "cudaMalloc");
    return memory;
}

// ---- Random rows

typedef struct batch {
    int n_rows, n_vocab;
    int64_t stride;
    float *logits; // (n_rows, stride)
    int32_t histories[MAX_ROWS * MAX_HISTORY];
    sample_args args[MAX_ROWS];
} batch;

// About normal, with a standard deviation of 0.82.
static float random_bell(void) {
    float sum = -4;
    for (int k = 0; k < 8; k++) sum += (float)random_bits() * 0x1p-32f;
    return sum;
}

static void random_logits(float *logits, int n) {
    static const float spreads[] = {0.1f, 1, 3, 3, 3, 20};
    const float spread = RANDOM_OF(spreads);
    const int kind = random_below(5);
    for (int i = 0; i < n; i++) {
        logits[i] = spread * random_bell();
        if (kind == 1) logits[i] = rintf(logits[i]); // ties, zeros of both signs
        if (kind == 2 && random_below(3) == 0) logits[i] = -INFINITY;
        if (kind == 3) logits[i] = 2.5f;
    }
    if (kind == 2) logits[random_below(n)] = 1; // at least one
}

static void random_args(sample_args *args, int32_t *history, int n_vocab) {
    static const float temperatures[] = {0, 0.2f, 0.8f, 1, 3, 100, 1e-30f},
                       top_p[] = {1, 1, 0.95f, 0.5f, 0.01f, 0}, min_p[] = {0, 0, 0.05f, 0.9f, 1.5f},
                       repeat[] = {1, 1.3f, 0.5f, 0}, penalty[] = {0, 0.4f, -0.7f};
    const int top_k[] = {0, 0, 1, 2, 40, 1000, n_vocab / 2, n_vocab, n_vocab + 1};
    *args = (sample_args){.temperature = RANDOM_OF(temperatures),
                          .top_k = RANDOM_OF(top_k),
                          .top_p = RANDOM_OF(top_p),
                          .min_p = RANDOM_OF(min_p),
                          .repeat_penalty = RANDOM_OF(repeat),
                          .presence_penalty = RANDOM_OF(penalty),
                          .frequency_penalty = RANDOM_OF(penalty),
                          .seed = random_bits(),
                          .position = random_bits(),
                          .history = history,
                          .n_history = random_below(3) ? random_below(MAX_HISTORY + 1) : 0};
    const int few = n_vocab < 50 ? n_vocab : 50; // so that tokens occur several times
    for (int i = 0; i < args->n_history; i++)
        history[i] = random_below(20) == 0 ? -1 - random_below(2) * random_below(9)
                     : i % 2               ? random_below(few)
                                           : random_below(n_vocab + n_vocab / 8 + 1);
}

// The logits are malloc'd.
static void batch_random(batch *b, int n_rows, int n_vocab) {
    *b = (batch){.n_rows = n_rows, .n_vocab = n_vocab, .stride = n_vocab + PADDING};
    const size_t size = (size_t)(b->n_rows * b->stride) * sizeof *b->logits;
    b->logits = host_memory(size);
    memset(b->logits, POISON, size); // NaN between the rows
    for (int i = 0; i < b->n_rows; i++) {
        random_logits(b->logits + i * b->stride, n_vocab);
        random_args(&b->args[i], b->histories + (ptrdiff_t)i * MAX_HISTORY, n_vocab);
    }
}

// ---- On the device

typedef struct device_batch {
    float *logits;
    cuda_sample_row *rows;
    int32_t *histories, *tokens;
    void *scratch;
} device_batch;

static size_t logits_bytes(const batch *b) {
    return (size_t)(b->n_rows * b->stride) * sizeof(float);
}

static device_batch device_create(const batch *b) {
    const size_t scratch_size = cuda_sample_scratch_bytes(b->n_rows, b->n_vocab);
    const device_batch d = {.logits = device_memory(logits_bytes(b)),
                            .rows = device_memory(sizeof(cuda_sample_row) * MAX_ROWS),
                            .histories = device_memory(sizeof b->histories),
                            .tokens = device_memory(sizeof(int32_t) * MAX_ROWS),
                            .scratch = device_memory(scratch_size)};
    check(cudaMemset(d.scratch, POISON, scratch_size), "cudaMemset");
    return d;
}

static void device_free(device_batch *d) {
    cudaFree(d->logits);
    cudaFree(d->rows);
    cudaFree(d->histories);
    cudaFree(d->tokens);
    cudaFree(d->scratch);
}

static void device_fill(const device_batch *d, const batch *b) {
    cuda_sample_row rows[MAX_ROWS] = {0};
    for (int i = 0; i < b->n_rows; i++) {
        const sample_args *a = &b->args[i];
        rows[i] = (cuda_sample_row){.temperature = a->temperature,
                                    .top_p = a->top_p,
                                    .min_p = a->min_p,
                                    .repeat_penalty = a->repeat_penalty,
                                    .presence_penalty = a->presence_penalty,
                                    .frequency_penalty = a->frequency_penalty,
                                    .top_k = a->top_k,
                                    .n_history = a->n_history,
                                    .history_at = (int64_t)i * MAX_HISTORY,
                                    .uniform = sample_uniform(a->seed, a->position)};
    }
    check(cudaMemcpy(d->logits, b->logits, logits_bytes(b), cudaMemcpyHostToDevice), "copy of the logits");
    check(cudaMemcpy(d->rows, rows, sizeof rows, cudaMemcpyHostToDevice), "copy of the rows");
    check(cudaMemcpy(d->histories, b->histories, sizeof b->histories, cudaMemcpyHostToDevice),
          "copy of the histories");
    check(cudaMemset(d->tokens, POISON, sizeof(int32_t) * MAX_ROWS), "cudaMemset");
}

static void device_sample(const device_batch *d, const batch *b, bool overlap, cudaStream_t stream) {
    flute_error err = {0};
    if (cuda_sample(d->logits, b->stride, b->n_vocab, b->n_rows, d->rows, d->histories, d->scratch, d->tokens,
                    overlap, stream, &err) == FLUTE_OK)
        return;
    printf("Bail out! %s\n", err.message);
    exit(1);
}

// A graph of n_steps steps, recorded on the stream.
static cudaGraphExec_t record_steps(const device_batch *d, const batch *b, int n_steps, cudaStream_t stream) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    for (int i = 0; i < n_steps; i++) device_sample(d, b, true, stream);
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    return replay;
}

// Waits, and reads the tokens; also that the logits are what they were.
static void device_read(const device_batch *d, const batch *b, int32_t *tokens) {
    float *after = host_memory(logits_bytes(b));
    check(cudaDeviceSynchronize(), "cuda_sample");
    check(cudaMemcpy(tokens, d->tokens, sizeof *tokens * (size_t)b->n_rows, cudaMemcpyDeviceToHost),
          "copy of the tokens");
    check(cudaMemcpy(after, d->logits, logits_bytes(b), cudaMemcpyDeviceToHost), "copy of the logits");
    if (memcmp(after, b->logits, logits_bytes(b)) != 0) tokens[0] = -99; // no token is that: the row fails
    free(after);
}

static void batch_run(const batch *b, bool overlap, int32_t *tokens) {
    device_batch d = device_create(b);
    device_fill(&d, b);
    device_sample(&d, b, overlap, NULL);
    device_read(&d, b, tokens);
    device_free(&d);
}

// ---- What rounding may decide

typedef struct ranked {
    int32_t id;
    float logit;
    double weight;
} ranked;

static int compare_ranked(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

// All tokens by rank, with their penalties and weights.
static ranked *rank_tokens(const sample_args *args, const float *logits, int n) {
    ranked *all = host_memory((size_t)n * sizeof *all);
    int *counts = calloc((size_t)n, sizeof *counts);
    if (!counts) exit(1);
    for (int i = 0; i < args->n_history; i++)
        if (args->history[i] >= 0 && args->history[i] < n) counts[args->history[i]]++;
    const float repeat = args->repeat_penalty > 0 ? args->repeat_penalty : 1;
    for (int i = 0; i < n; i++) {
        float logit = logits[i];
        if (counts[i] > 0) {
            logit = logit > 0 ? logit / repeat : logit * repeat;
            logit = logit - args->presence_penalty - (float)counts[i] * args->frequency_penalty;
        }
        all[i] = (ranked){.id = i, .logit = logit};
    }
    free(counts);
    qsort(all, (size_t)n, sizeof *all, compare_ranked);
    for (int i = n - 1; i >= 0; i--)
        all[i].weight = exp((double)(all[i].logit - all[0].logit) / args->temperature);
    return all;
}

// Whether the token is right if every sum is off by as much as a millionth of the whole.
static bool may_be(const sample_args *args, const float *logits, int n, int32_t token) {
    const double off = 1e-6;
    ranked *all = rank_tokens(args, logits, n);
    const int n_best = args->top_k > 0 && args->top_k < n ? args->top_k : n;
    double whole = 0, held = 0, surely = 0, maybe = 0, surely_before = 0, maybe_before = 0, own = -1;
    for (int i = 0; i < n_best; i++) whole += all[i].weight;
    for (int i = 0; i < n_best; i++) { // `held` by those that rank before
        const double least = fmin((double)args->min_p, 1), w = all[i].weight;
        const bool surely_kept = (i == 0 || args->top_p >= 1 || held < (args->top_p - off) * whole) &&
                                 w >= least * (1 + off),
                   maybe_kept = i == 0 || ((args->top_p >= 1 || held < (args->top_p + off) * whole) &&
                                           w >= least * (1 - off));
        held += w;
        if (surely_kept) surely += w;
        if (maybe_kept) maybe += w;
        if (surely_kept && all[i].id < token) surely_before += w;
        if (maybe_kept && all[i].id < token) maybe_before += w;
        if (maybe_kept && all[i].id == token) own = w;
    }
    const double u = sample_uniform(args->seed, args->position);
    const bool right = args->temperature > 0 ? own >= 0 && u >= surely_before / fmax(maybe, 1) - off &&
                                                   u <= (maybe_before + own) / fmax(surely, 1) + off
                                             : token == all[0].id;
    free(all);
    return right;
}

// Compares a batch; *n_near counts the tokens that differ, but may.
static bool batch_check(const batch *b, const int32_t *tokens, void *scratch, int *n_near) {
    bool good = true;
    for (int i = 0; i < b->n_rows; i++) {
        const sample_args *a = &b->args[i];
        const float *logits = b->logits + i * b->stride;
        int32_t expected = -1;
        flute_error err = {0};
        sample_token(a, logits, b->n_vocab, scratch, &expected, &err);
        if (tokens[i] == expected) continue;
        if (expected >= 0 && may_be(a, logits, b->n_vocab, tokens[i])) {
            ++*n_near;
            continue;
        }
        good = false;
        printf("# row %d of %d, %d tokens: %d instead of %d at temperature %g, top-k %d, top-p %g, min-p %g, "
               "penalties %g "
               "%g %g over %d, u %.9f\n",
               i, b->n_rows, b->n_vocab, tokens[i], expected, (double)a->temperature, a->top_k,
               (double)a->top_p, (double)a->min_p, (double)a->repeat_penalty, (double)a->presence_penalty,
               (double)a->frequency_penalty, a->n_history, sample_uniform(a->seed, a->position));
    }
    return good;
}

// n_rows: of a batch; 0: a few.
static bool check_vocabulary(int n_rows, int n_vocab, int n_batches) {
    void *scratch = host_memory(sample_scratch_bytes(n_vocab));
    int n_near = 0, n_all = 0;
    bool good = true;
    for (int i = 0; i < n_batches; i++) {
        batch b;
        batch_random(&b, n_rows ? n_rows : 1 + random_below(FEW_ROWS), n_vocab);
        int32_t tokens[MAX_ROWS], again[MAX_ROWS];
        batch_run(&b, i % 2, tokens);
        good = batch_check(&b, tokens, scratch, &n_near) && good;
        n_all += b.n_rows;
        if (i % 4 == 0) {
            batch_run(&b, i % 8 == 0, again);
            if (memcmp(tokens, again, sizeof *tokens * (size_t)b.n_rows) != 0) {
                printf("# two runs differ\n");
                good = false;
            }
        }
        free(b.logits);
    }
    printf("# %d tokens, %d of them decided by rounding\n", n_all, n_near);
    free(scratch);
    return good && n_near <= 1 + n_all / 100;
}

// Nearly all tokens weigh the same, so that the filters cut among thousands: all logits equal, normal ones,
// few values, and one far above the others, which are then in few bins of the sampler.
enum { FLAT_EQUAL, FLAT_NORMAL, FLAT_ROUNDED, FLAT_BELOW_ONE, N_FLAT };

static void flat_logits(float *logits, int n, int kind) {
    for (int i = 0; i < n; i++) {
        logits[i] = kind == FLAT_EQUAL ? 0.7f : 0.06f * random_bell();
        if (kind == FLAT_ROUNDED) logits[i] = rintf(logits[i] * 64) / 64;
    }
    if (kind == FLAT_BELOW_ONE) logits[random_below(n)] = 6;
}

static bool check_flat(int n_vocab) {
    const sample_args filters[] = {{.top_p = 0.9f},
                                   {.top_p = 1, .top_k = n_vocab / 3},
                                   {.top_p = 1, .min_p = 0.93f},
                                   {.top_p = 0.7f, .top_k = n_vocab / 2, .min_p = 0.8f}};
    enum { N_FILTERS = sizeof filters / sizeof *filters };
    batch b = {.n_rows = N_FLAT * N_FILTERS, .n_vocab = n_vocab, .stride = n_vocab};
    void *scratch = host_memory(sample_scratch_bytes(n_vocab));
    int32_t tokens[MAX_ROWS];
    int n_near = 0;
    b.logits = host_memory(logits_bytes(&b));
    for (int i = 0; i < b.n_rows; i++) {
        flat_logits(b.logits + i * b.stride, n_vocab, i / N_FILTERS);
        b.args[i] = filters[i % N_FILTERS];
        b.args[i].temperature = 1;
        b.args[i].seed = random_bits();
    }
    batch_run(&b, true, tokens);
    const bool good = batch_check(&b, tokens, scratch, &n_near) && n_near <= 1;
    free(b.logits);
    free(scratch);
    return good;
}

// A captured graph, replayed with other arguments, gives what a call with these gives.
static bool check_replay(int n_vocab, int n_replays) {
    void *scratch = host_memory(sample_scratch_bytes(n_vocab));
    batch b;
    int32_t tokens[MAX_ROWS];
    cudaStream_t stream;
    int n_near = 0;
    bool good = true;
    batch_random(&b, FEW_ROWS, n_vocab);
    device_batch d = device_create(&b);
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    cudaGraphExec_t replay = record_steps(&d, &b, 1, stream);
    for (int i = 0; i < n_replays; i++) {
        for (int row = 0; row < b.n_rows; row++)
            random_args(&b.args[row], b.histories + (ptrdiff_t)row * MAX_HISTORY, n_vocab);
        device_fill(&d, &b);
        check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
        device_read(&d, &b, tokens);
        good = batch_check(&b, tokens, scratch, &n_near) && good;
    }
    cudaGraphExecDestroy(replay);
    cudaStreamDestroy(stream);
    device_free(&d);
    free(b.logits);
    free(scratch);
    return good && n_near <= 1;
}

// Rows without an answer say so, and leave the others alone.
static bool check_not_finite(void) {
    enum { N = 4100 }; // the second chunk has four tokens
    batch b = {.n_rows = 5, .n_vocab = N, .stride = N};
    int32_t tokens[MAX_ROWS];
    bool good = true;
    b.logits = host_memory(sizeof(float) * N * 5);
    for (int greedy = 0; greedy < 2; greedy++) {
        for (int i = 0; i < 5 * N; i++) b.logits[i] = i / N == 2 ? -INFINITY : (float)(i % 7);
        b.logits[0 * N + 4098] = NAN;
        b.logits[1 * N + 3] = INFINITY;
        b.logits[3 * N + 17] = -NAN;
        b.logits[4 * N + 4099] = 50;
        for (int i = 0; i < 5; i++)
            b.args[i] = (sample_args){.temperature = greedy ? 0 : 1, .top_p = 0.9f, .top_k = 3};
        batch_run(&b, false, tokens);
        for (int i = 0; i < 5; i++) good = good && tokens[i] == (i == 4 ? 4099 : -1);
    }
    free(b.logits);
    return good;
}

static bool check_refusals(void) {
    flute_error err = {0};
    const int shapes[][2] = {{0, 5}, {1, 0}, {1, 5 << 20}};
    bool good = true;
    for (int i = 0; i < 3; i++)
        good = good &&
               cuda_sample(NULL, 6 << 20, shapes[i][1], shapes[i][0], NULL, NULL, NULL, NULL, false, NULL,
                           &err) == FLUTE_EINVAL &&
               strstr(err.message, "not possible");
    return good && cuda_sample(NULL, 4, 5, 1, NULL, NULL, NULL, NULL, false, NULL, &err) == FLUTE_EINVAL;
}

static int compare_floats(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Microseconds of a step: the median of seven replays of a graph of STEPS that overlap.
static float time_step(const batch *b) {
    enum { STEPS = 20, REPLAYS = 7 };
    float times[REPLAYS];
    cudaStream_t stream;
    cudaEvent_t ends[2];
    device_batch d = device_create(b);
    device_fill(&d, b);
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    cudaGraphExec_t replay = record_steps(&d, b, STEPS, stream);
    for (int i = 0; i < 2; i++) check(cudaEventCreate(&ends[i]), "cudaEventCreate");
    for (int i = -1; i < REPLAYS; i++) { // the first, uncounted, warms up
        float ms;
        check(cudaEventRecord(ends[0], stream), "cudaEventRecord");
        check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
        check(cudaEventRecord(ends[1], stream), "cudaEventRecord");
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        check(cudaEventElapsedTime(&ms, ends[0], ends[1]), "cudaEventElapsedTime");
        if (i >= 0) times[i] = ms * 1000 / STEPS;
    }
    for (int i = 0; i < 2; i++) cudaEventDestroy(ends[i]);
    cudaGraphExecDestroy(replay);
    cudaStreamDestroy(stream);
    device_free(&d);
    qsort(times, REPLAYS, sizeof *times, compare_floats);
    return times[REPLAYS / 2];
}

static void bench(int n_vocab) {
    static const struct {
        const char *name;
        float temperature, spread, peak; // peak: the first token's logit, unless 0
    } kinds[] = {{"greedy", 0, 3, 0},
                 {"top-p 0.9, sigma 3, one at 15", 1, 3, 15},
                 {"top-p 0.9, sigma 1", 1, 1, 0},
                 {"top-p 0.9, sigma 0.05", 1, 0.05f, 0},
                 {"top-p 0.9, sigma 1e-6", 1, 1e-6f, 0},
                 {"top-p 0.9, all equal", 1, 0, 0}};
    printf("%d tokens, us a step\n%-32s %8s %8s\n", n_vocab, "logits", "1 row", "32 rows");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        float us[2];
        for (int many = 0; many < 2; many++) {
            batch b = {.n_rows = many ? 32 : 1, .n_vocab = n_vocab, .stride = n_vocab};
            b.logits = host_memory(logits_bytes(&b));
            for (int64_t i = 0; i < b.n_rows * b.stride; i++)
                b.logits[i] = i % b.stride == 0 && kinds[k].peak > 0
                                  ? kinds[k].peak
                                  : kinds[k].spread / 0.82f * random_bell();
            for (int row = 0; row < b.n_rows; row++)
                b.args[row] =
                    (sample_args){.temperature = kinds[k].temperature, .top_p = 0.9f, .seed = random_bits()};
            us[many] = time_step(&b);
            free(b.logits);
        }
        printf("%-32s %8.1f %8.1f\n", kinds[k].name, (double)us[0], (double)us[1]);
    }
}

static int report(int test, bool good, const char *what, int n) {
    printf("%sok %d - %s %d\n", good ? "" : "not ", test, what, n);
    fflush(stdout);
    return !good;
}

int main(int argc, char **argv) {
    static const int vocabularies[] = {1, 7, 777, 32000, 128256};
    enum { N = sizeof vocabularies / sizeof *vocabularies };
    int n_devices = 0, failed = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("1..0 # SKIP no CUDA device\n");
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        random_state = 1;
        bench(argc > 2 ? atoi(argv[2]) : 128256);
        return 0;
    }
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20261125;
    const int n_batches = argc > 2 ? atoi(argv[2]) : 60;
    random_state = seed * 2 + 1;
    printf("1..%d\n# seed %llu\n", N + 5, (unsigned long long)seed);
    for (int i = 0; i < N; i++) {
        const int n = vocabularies[i] < 10000 ? 10 * n_batches : n_batches;
        failed += report(i + 1, check_vocabulary(0, vocabularies[i], n), "vocabulary of", vocabularies[i]);
    }
    // Five chunks of tokens: a block of threads takes three of them, another the other two.
    failed += report(N + 1, check_vocabulary(MANY_ROWS, 20000, (n_batches + 9) / 10),
                     "vocabulary of 20000, rows:", MANY_ROWS);
    failed += report(N + 2, check_flat(128256), "flat logits, vocabulary of", 128256);
    failed += report(N + 3, check_replay(5000, 2 * n_batches), "replays of a graph:", 2 * n_batches);
    failed += report(N + 4, check_not_finite(), "logits that are not finite, rows:", 5);
    failed += report(N + 5, check_refusals(), "refusals:", 4);
    return failed > 0;
}
