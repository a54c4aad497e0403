// The GPU's attention and rotation against their scalar twins: every kind of head, window and soft-cap,
// contexts from one token to many key tiles (split over blocks of threads, in clusters of several sizes),
// ragged blocks of the cache, decode and prefill, the same bits twice. Prints TAP; the plan says SKIP where
// there is no device.
//
//     check_attention_cuda [SEED]
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.h"
#include "kernels/layout.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/cuda_check.h"
#ifdef EMULATED_SMS
#include "tests/simt/control.h"
#endif

static void *host_zeros(size_t n, size_t size) {
    return memset(host_memory(n * size), 0, n * size);
}

static void *to_device(const void *data, size_t bytes) {
    void *memory = NULL;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    check(cudaMemcpy(memory, data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return memory;
}

enum { MAX_ROWS = 160, MAX_SEQUENCES = 3 };

typedef struct shape {
    int n_heads, n_kv_heads, head_dim, block_tokens, window;
    float softcap;
    bool norms, arranged; // arranged: the result
    int n_sequences, positions[MAX_SEQUENCES],
        lengths[MAX_SEQUENCES]; // rows of a sequence: positions from the first on
} shape;

// The sequences, their keys and values in float (as the reference reads them) and the queries of the rows.
typedef struct scene {
    shape s;
    int n_rows, max_blocks, n_blocks;
    int32_t positions[MAX_ROWS], sequences[MAX_ROWS];
    int32_t *tables;
    float *qkv;           // (n_rows, (n_heads + 2·n_kv_heads)·head_dim)
    float *keys, *values; // (sequence, KV head, position, head_dim), in stored order
    float inv_freq[128], q_gain[256], k_gain[256];
    bf16 *cache;     // as elementwise.h has it
    float *expected; // (n_rows, n_heads, head_dim)
} scene;

static int context_of(const scene *c, int sequence) {
    return c->s.positions[sequence] + c->s.lengths[sequence];
}

static float *history(const scene *c, float *of, int sequence, int kv_head, int position) {
    const int longest = c->max_blocks * c->s.block_tokens;
    return of + (((size_t)sequence * (size_t)c->s.n_kv_heads + (size_t)kv_head) * (size_t)longest +
                 (size_t)position) *
                    (size_t)c->s.head_dim;
}

static int64_t head_elements(const scene *c) {
    return 2 * (int64_t)c->s.head_dim * round_up(c->s.block_tokens, KV_TILE);
}

// Where token `position` of a KV head begins in the cache, and its channel stride for values.
static bf16 *cached(const scene *c, int sequence, int kv_head, int position, bool values, int d) {
    const int64_t tile_tokens = round_up(c->s.block_tokens, KV_TILE);
    const int token = position % c->s.block_tokens;
    bf16 *head = c->cache +
                 c->tables[sequence * c->max_blocks + position / c->s.block_tokens] * head_elements(c) *
                     c->s.n_kv_heads +
                 kv_head * head_elements(c);
    return values ? head + c->s.head_dim * tile_tokens + d * tile_tokens + token
                  : head + token * c->s.head_dim + d;
}

static norm_args norm_with(const weight *w, float eps) {
    return (norm_args){.weight = w, .eps = eps, .offset = 1};
}

static float rounded(float v) {
    return bf16_to_float(bf16_from_float(v));
}

static const float Q_SCALE = 0.3f, EPS = 1e-5f;

// Queries, keys and values of the rows as they should come out, and attention over all.
static void compute_expected(scene *c) {
    const shape *s = &c->s;
    const int n_queries = s->n_heads / s->n_kv_heads, d = s->head_dim;
    const weight q_weight = {.type = WEIGHT_F32, .n_rows = 1, .n_cols = d, .data = c->q_gain};
    const weight k_weight = {.type = WEIGHT_F32, .n_rows = 1, .n_cols = d, .data = c->k_gain};
    const norm_args q_norm = norm_with(&q_weight, EPS), k_norm = norm_with(&k_weight, EPS);
    float *head = host_zeros((size_t)d, sizeof *head);
    for (int pass = 0; pass < 2; pass++) // first all keys, then the queries that see them
        for (int row = 0; row < c->n_rows; row++)
            for (int i = 0; i < s->n_kv_heads * (n_queries + 2); i++) {
                const int kv_head = i / (n_queries + 2), h = i % (n_queries + 2),
                          position = c->positions[row];
                memcpy(head, c->qkv + ((int64_t)row * s->n_kv_heads * (n_queries + 2) + i) * d,
                       (size_t)d * sizeof *head);
                if (h <= n_queries && s->norms) ref_head_norm(h < n_queries ? &q_norm : &k_norm, head, d);
                if (h <= n_queries) ref_rope(head, d, c->inv_freq, position);
                if ((h >= n_queries) != (pass == 0)) continue;
                if (h >= n_queries) {
                    float *to = history(c, h == n_queries ? c->keys : c->values, c->sequences[row], kv_head,
                                        position);
                    for (int k = 0; k < d; k++) to[k] = rounded(head[k]);
                    continue;
                }
                for (int k = 0; k < d; k++) head[k] = rounded(head[k] * Q_SCALE);
                // The twin wants keys (head_dim, tokens).
                const int n = position + 1,
                          first = s->window > 0 && position >= s->window ? n - s->window : 0;
                float *transposed = host_zeros((size_t)n * (size_t)d, sizeof *transposed);
                const float *keys = history(c, c->keys, c->sequences[row], kv_head, 0);
                for (int t = 0; t < n; t++)
                    for (int k = 0; k < d; k++) transposed[k * n + t] = keys[t * d + k];
                const int32_t zero = 0;
                const ref_kv kv = {
                    transposed, history(c, c->values, c->sequences[row], kv_head, 0), &zero, n, 0, d};
                ref_attention(head, &kv, first, position, s->softcap,
                              c->expected + ((int64_t)row * s->n_heads + kv_head * n_queries + h) * d);
                free(transposed);
            }
    free(head);
}

static scene *scene_create(const shape *s) {
    scene *c = host_zeros(1, sizeof *c);
    c->s = *s;
    int longest = 0;
    for (int i = 0; i < s->n_sequences; i++) {
        if (context_of(c, i) > longest) longest = context_of(c, i);
        for (int k = 0; k < s->lengths[i]; k++)
            c->positions[c->n_rows] = s->positions[i] + k, c->sequences[c->n_rows++] = i;
    }
    c->max_blocks = (longest + s->block_tokens - 1) / s->block_tokens,
    c->n_blocks = c->max_blocks * s->n_sequences;
    c->tables = host_zeros((size_t)c->n_blocks, sizeof *c->tables);
    for (int i = 0; i < c->n_blocks; i++) c->tables[i] = (i * 7 + 3) % c->n_blocks;
    for (int i = 0; i < c->n_blocks && c->n_blocks % 7 == 0; i++) c->tables[i] = c->n_blocks - 1 - i;
    const size_t width = (size_t)(s->n_heads + 2 * s->n_kv_heads) * (size_t)s->head_dim,
                 n_rows = (size_t)c->n_rows;
    const size_t n_history = (size_t)s->n_sequences * (size_t)s->n_kv_heads * (size_t)c->max_blocks *
                             (size_t)s->block_tokens * (size_t)s->head_dim;
    c->qkv = host_zeros(n_rows * width, sizeof(float));
    c->keys = host_zeros(n_history, sizeof(float)), c->values = host_zeros(n_history, sizeof(float));
    c->cache = host_zeros((size_t)(c->n_blocks * s->n_kv_heads) * (size_t)head_elements(c), sizeof(bf16));
    c->expected = host_zeros(n_rows * (size_t)(s->n_heads * s->head_dim), sizeof(float));
    for (size_t i = 0; i < n_rows * width; i++) c->qkv[i] = 3 * random_float();
    for (int i = 0; i < s->head_dim; i++) c->q_gain[i] = random_float(), c->k_gain[i] = random_float();
    for (int i = 0; i < s->head_dim / 2; i++)
        c->inv_freq[i] = powf(10000, -2.0f * (float)i / (float)s->head_dim);
    for (int q = 0; q < s->n_sequences; q++)
        for (int h = 0; h < s->n_kv_heads; h++)
            for (int p = 0; p < s->positions[q]; p++)
                for (int d = 0; d < s->head_dim; d++) {
                    const float k = rounded(2 * random_float()), v = rounded(2 * random_float());
                    history(c, c->keys, q, h, p)[d] = k, history(c, c->values, q, h, p)[d] = v;
                    *cached(c, q, h, p, false, d) = bf16_from_float(k),
                                               *cached(c, q, h, p, true, d) = bf16_from_float(v);
                }
    compute_expected(c);
    return c;
}

static void scene_free(scene *c) {
    free(c->tables), free(c->qkv), free(c->keys), free(c->values), free(c->cache), free(c->expected);
    free(c);
}

// Runs of at most what a block takes.
static int cut_runs(const scene *c, attention_run *runs) {
    const int most = cuda_attention_run_rows(c->s.n_heads, c->s.n_kv_heads);
    int n = 0, row = 0;
    for (int q = 0; q < c->s.n_sequences; q++)
        for (int k = 0; k < c->s.lengths[q]; k += runs[n].n_rows, row += runs[n++].n_rows)
            runs[n] = (attention_run){row, c->s.lengths[q] - k < most ? c->s.lengths[q] - k : most};
    return n;
}

// Runs the scene; out: (n_rows, n_heads, head_dim).
static void scene_run(const scene *c, bool decode, int n_sms, int cluster, int shared, bf16 *out) {
    const shape *s = &c->s;
    const int64_t out_width = s->n_heads * s->head_dim;
    const lut_order order = {s->arranged ? 32 : 0, (int)(out_width + 127) / 128};
    const size_t n_out = s->arranged ? lut_order_bytes(c->n_rows, order.n_blocks * 128)
                                     : (size_t)(c->n_rows * out_width) * sizeof(bf16);
    const size_t width = (size_t)(s->n_heads + 2 * s->n_kv_heads) * (size_t)s->head_dim;
    attention_run runs[MAX_ROWS];
    void *memory[16];
    int n = 0;
#define DEVICE(data, bytes) (memory[n++] = to_device(data, bytes))
    cuda_rows rows = {.n_rows = c->n_rows,
                      .max_blocks = c->max_blocks,
                      .n_heads = s->n_heads,
                      .n_kv_heads = s->n_kv_heads,
                      .head_dim = s->head_dim,
                      .block_tokens = s->block_tokens,
                      .tile_tokens = (int)round_up(s->block_tokens, KV_TILE),
                      .block_stride = head_elements(c) * s->n_kv_heads};
    rows.positions = DEVICE(c->positions, (size_t)c->n_rows * 4);
    rows.sequences = DEVICE(c->sequences, (size_t)c->n_rows * 4);
    rows.tables = DEVICE(c->tables, (size_t)c->n_blocks * 4);
    rows.cache = DEVICE(c->cache, (size_t)c->n_blocks * (size_t)rows.block_stride * sizeof(bf16));
    weight q_weight = {.type = WEIGHT_F32, .n_rows = 1, .n_cols = s->head_dim}, k_weight = q_weight;
    q_weight.data = DEVICE(c->q_gain, sizeof c->q_gain), k_weight.data = DEVICE(c->k_gain, sizeof c->k_gain);
    rotate_args rotation = {.rows = &rows, .q_scale = Q_SCALE};
    if (s->norms) rotation.q_norm = norm_with(&q_weight, EPS), rotation.k_norm = norm_with(&k_weight, EPS);
    rotation.qkv = DEVICE(c->qkv, (size_t)c->n_rows * width * sizeof(float));
    rotation.inv_freq = DEVICE(c->inv_freq, sizeof c->inv_freq);
    const size_t counters = cuda_attention_counters_bytes(c->n_rows, s->n_heads, s->n_kv_heads);
    const size_t partials =
        cuda_attention_partials_bytes(c->n_rows, s->n_heads, s->n_kv_heads, s->head_dim, n_sms);
    void *zeros = host_zeros(counters, 1),
         *poison = memset(host_zeros(n_out + partials, 1), 0xff, n_out + partials);
    attention_args args = {.rows = &rows,
                           .order = order,
                           .window = s->window,
                           .softcap = s->softcap,
                           .n_sms = n_sms,
                           .most_cluster = cluster,
                           .shared = shared};
    args.out = DEVICE(poison, n_out);
    if (decode) {
        args.rotation = &rotation, args.counters = DEVICE(zeros, counters),
        args.partials = DEVICE(poison, partials);
    } else {
        bf16 *q = DEVICE(poison, (size_t)(c->n_rows * out_width) * sizeof(bf16));
        args.n_runs = cut_runs(c, runs), args.runs = DEVICE(runs, sizeof runs), args.q = q;
        check(cuda_rotate(&rotation, q, NULL), "cuda_rotate");
    }
    check(cuda_attention(&args, NULL), "cuda_attention");
    check(cudaDeviceSynchronize(), "attention");
    bf16 *result = host_memory(n_out);
    check(cudaMemcpy(result, args.out, n_out, cudaMemcpyDeviceToHost), "the result");
    for (int64_t i = 0; i < c->n_rows * out_width; i++)
        out[i] = result[s->arranged ? order_element(order, i / out_width, i % out_width) : (size_t)i];
    free(result);
    for (int i = 0; i < n; i++) cudaFree(memory[i]);
    free(zeros), free(poison);
#undef DEVICE
}

// The largest error, in units of what bf16 probabilities, keys and outputs allow: |v| ≤ 3.
static double scene_error(const scene *c, const bf16 *out) {
    double worst = 0;
    for (int64_t i = 0; i < (int64_t)c->n_rows * c->s.n_heads * c->s.head_dim; i++) {
        const double got = (double)bf16_to_float(out[i]);
        worst = fmax(worst, isfinite(got) ? fabs(got - c->expected[i]) / 0.04 : INFINITY);
    }
    return worst;
}

static bool check_shape(const shape *s, bool decode, int n_sms, int cluster, int shared) {
    scene *c = scene_create(s);
    const size_t bytes = (size_t)c->n_rows * (size_t)(s->n_heads * s->head_dim) * sizeof(bf16);
    bf16 *out = host_zeros(bytes, 1), *again = host_zeros(bytes, 1);
    scene_run(c, decode, n_sms, cluster, shared, out);
    scene_run(c, decode, n_sms, cluster, shared, again);
    const double error = scene_error(c, out);
    const bool same = memcmp(out, again, bytes) == 0;
    if (error > 1 || !same)
        printf("# %s: %d heads of %d, %d KV heads, blocks of %d, window %d, cap %g%s, context %d + %d, "
               "%d SMs, clusters of %d: %s (error %.3g)\n",
               decode ? "decode" : "prefill", s->n_heads, s->head_dim, s->n_kv_heads, s->block_tokens,
               s->window, (double)s->softcap, s->norms ? ", norms" : "", s->positions[0], s->lengths[0],
               n_sms, cluster, same ? "wrong sums" : "two runs differ", error);
    free(out), free(again);
    scene_free(c);
    return error <= 1 && same;
}

static shape random_shape(int head_dim, int n_queries, bool decode) {
    static const int blocks[] = {32, 32, 8, 40, 64};
    shape s = {
        .head_dim = head_dim, .n_kv_heads = 1 + random_below(3), .block_tokens = blocks[random_below(5)]};
    s.n_heads = s.n_kv_heads * n_queries;
    s.window = random_below(2) ? 0 : 1 + random_below(200);
    s.softcap = random_below(2) ? 0 : 2.0f;
    s.norms = random_below(2), s.arranged = random_below(2);
    s.n_sequences = 1 + random_below(MAX_SEQUENCES);
    for (int i = 0; i < s.n_sequences; i++) {
        s.lengths[i] = decode ? 1 : 1 + random_below(50);
        s.positions[i] = random_below(4) == 0 ? 0 : random_below(decode ? 700 : 150);
    }
    return s;
}

int main(int argc, char **argv) {
    static const int head_dims[] = {32, 48, 64, 80, 128, 144, 256}, queries[] = {1, 3, 4, 8, 20};
    static const int sms[] = {1, 4, 132, 132}; // contexts are not split, a few are, all are, in clusters
    enum { N_DIMS = 7, N_QUERIES = 5, N_SMS = 4, LITTLE_SHARED = 99 * 1024 }; // what 8.6 and 8.9 have
    int n_devices = 0, failed = 0, n = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("1..0 # SKIP no CUDA device\n");
        return 0;
    }
#ifdef EMULATED_SMS
    simt_set_sms(EMULATED_SMS);
#endif
    lut_device device;
    flute_error err;
    if (lut_device_open(&device, &err) != FLUTE_OK) {
        printf("1..0 # SKIP %s\n", err.message);
        return 0;
    }
    check(cuda_attention_open(device.shared), "cuda_attention_open");
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20261125;
    random_state = seed * 2 + 1;
    printf("1..%d\n# seed %llu\n", 2 * N_DIMS * N_QUERIES, (unsigned long long)seed);
    for (int decode = 0; decode < 2; decode++)
        for (int i = 0; i < N_DIMS * N_QUERIES; i++) {
            bool good = true;
            for (int k = 0; k < N_SMS; k++) {
                const shape s = random_shape(head_dims[i / N_QUERIES], queries[i % N_QUERIES], decode);
                const int wanted = k > 1 ? 1 << (1 + random_below(3)) : 1,
                          cluster = wanted < device.most_cluster ? wanted : device.most_cluster;
                good = check_shape(&s, decode, sms[k], cluster,
                                   k == 0 || random_below(2) ? device.shared : (int)LITTLE_SHARED) &&
                       good;
            }
            printf("%sok %d - %s, %d heads of %d for a KV head\n", good ? "" : "not ", ++n,
                   decode ? "decode" : "prefill", queries[i % N_QUERIES], head_dims[i / N_QUERIES]);
            fflush(stdout);
            failed += !good;
        }
    return failed > 0;
}
