// Norms, activations, soft-caps, rotation, adds and attention against their twins.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/layout.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/check_cpu.h"

// Compares n numbers; prints the first that is off. allowed: (n), or NULL for equality.
static bool compare(const char *what, const float *got, const float *expected, const float *allowed, int n) {
    for (int i = 0; i < n; i++) {
        const double bound = allowed ? (double)allowed[i] : 1e-300;
        if (check_error((double)got[i], (double)expected[i], bound) <= 1) continue;
        printf("# %s: element %d of %d is %.9g instead of %.9g, %.2g allowed\n", what, i, n, (double)got[i],
               (double)expected[i], bound);
        return false;
    }
    return true;
}

static bool check_norm(const cpu_kernels *kernels) {
    static const weight_type types[] = {WEIGHT_F32, WEIGHT_F16, WEIGHT_BF16};
    for (int i = 0; i < 300; i++) {
        const int width = 1 + check_below(i < 200 ? 100 : 3000);
        const weight_type type = types[i % 3];
        check_memory x, gains, out = check_allocate((size_t)width * sizeof(float), sizeof(float));
        const float *from = check_floats(&x, width);
        const size_t bytes = (size_t)weight_type_bits(type) / 8;
        gains = check_allocate((size_t)width * bytes, bytes);
        for (int j = 0; j < width; j++) {
            const float value = check_float(2);
            const uint16_t half = type == WEIGHT_F16 ? f16_from_float(value) : bf16_from_float(value);
            memcpy((char *)gains.data + (size_t)j * bytes, bytes == 4 ? (const void *)&value : &half, bytes);
        }
        const weight w = {.type = type, .n_rows = 1, .n_cols = width, .data = gains.data};
        const norm_args norm = {.weight = &w, .eps = 1e-5f, .offset = (float)(i & 1)};
        float *expected = malloc(2 * (size_t)width * sizeof *expected), *allowed = expected + width;
        ref_rms_norm(&norm, from, width, expected);
        for (int j = 0; j < width; j++) allowed[j] = 1e-5f * fabsf(expected[j]) + 1e-12f;
        kernels->rms_norm(&norm, from, width, out.data);
        bool good = compare("rms_norm", out.data, expected, allowed, width);
        kernels->rms_norm(&norm, from, width, x.data); // in place
        good = compare("rms_norm in place", x.data, out.data, NULL, width) && good;
        free(expected);
        check_free(&x);
        check_free(&gains);
        check_free(&out);
        if (!good) return false;
    }
    return true;
}

static bool check_activate(const cpu_kernels *kernels) {
    for (int i = 0; i < 400; i++) {
        const int n = 8 * (1 + check_below(i < 300 ? 9 : 200));
        const activation act = i & 1 ? ACT_GELU_TANH : ACT_SILU;
        check_memory in, out = check_allocate((size_t)n * sizeof(float), sizeof(float));
        float *pairs = check_floats(&in, 2 * n);
        for (int j = 0; j < 2 * n; j++)
            pairs[j] *= check_below(30) ? 8.0f : 200.0f; // far into saturation too
        float *expected = malloc(2 * (size_t)n * sizeof *expected), *allowed = expected + n;
        ref_activation(act, pairs, n, expected);
        for (int j = 0; j < n; j++) {
            const float gate = pairs[j / 8 * 16 + j % 8], up = pairs[j / 8 * 16 + 8 + j % 8];
            allowed[j] = 2e-6f * fabsf(gate * up) + 1e-20f;
        }
        kernels->activate(act, pairs, n, out.data);
        const bool good = compare(act == ACT_SILU ? "silu" : "gelu", out.data, expected, allowed, n);
        free(expected);
        check_free(&in);
        check_free(&out);
        if (!good) return false;
    }
    return true;
}

static bool check_softcap(const cpu_kernels *kernels) {
    for (int i = 0; i < 300; i++) {
        const int n = 1 + check_below(100);
        const float cap = i & 1 ? 30.0f : 50.0f;
        check_memory x;
        float *values = check_floats(&x, n), expected[100], allowed[100];
        for (int j = 0; j < n; j++) {
            values[j] *= check_below(4) ? 60.0f : check_below(2) ? 0.01f : 1e4f;
            expected[j] = ref_softcap(values[j], cap);
            allowed[j] = 1e-6f * fabsf(expected[j]);
        }
        kernels->softcap(values, n, cap);
        const bool good = compare("softcap", values, expected, allowed, n);
        check_free(&x);
        if (!good) return false;
    }
    return true;
}

static bool check_add(const cpu_kernels *kernels) {
    for (int i = 0; i < 200; i++) {
        const int n = 1 + check_below(200);
        check_memory x, y;
        float *to = check_floats(&x, n), *from = check_floats(&y, n), expected[200];
        for (int j = 0; j < n; j++) expected[j] = to[j] + from[j];
        kernels->add(to, from, n);
        const bool good = compare("add", to, expected, NULL, n);
        check_free(&x);
        check_free(&y);
        if (!good) return false;
    }
    return true;
}

static bool check_rotate(const cpu_kernels *kernels) {
    for (int head_dim = 32; head_dim <= 256; head_dim += 16) {
        float inv_freq[128], cosines[128], sines[128], expected[256], allowed[256];
        const int position = check_below(100000);
        const float scale = head_dim % 32 ? 1.0f : 0.125f;
        check_memory x;
        float *head = check_floats(&x, head_dim);
        for (int i = 0; i < head_dim / 2; i++) {
            inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)head_dim);
            cosines[i] = cosf((float)position * inv_freq[i]);
            sines[i] = sinf((float)position * inv_freq[i]);
        }
        memcpy(expected, head, (size_t)head_dim * sizeof *head);
        ref_rope(expected, head_dim, inv_freq, position);
        for (int i = 0; i < head_dim; i++) {
            expected[i] *= scale;
            allowed[i] = 5e-7f * scale;
        }
        kernels->rotate(head, head_dim, cosines, sines, scale);
        const bool good = compare("rotate", head, expected, allowed, head_dim);
        check_free(&x);
        if (!good) return false;
    }
    return true;
}

// ---- Attention

typedef struct attention_case {
    int head_dim, n_tokens, block_tokens, n_blocks;
    int32_t *blocks; // a random order
    check_memory cache;
    cpu_kv kv;
    float *keys, *values; // (n_tokens, head_dim) rounded to bf16
} attention_case;

static attention_case attention_create(int head_dim, int n_tokens, int block_tokens) {
    attention_case c = {
        head_dim, n_tokens,     block_tokens, (n_tokens + block_tokens - 1) / block_tokens + 1,
        NULL,     {NULL, NULL}, {0},          NULL,
        NULL};
    const int padded = (int)round_up(block_tokens, CPU_KV_TOKENS);
    const int64_t stride = 2 * head_dim * padded;
    c.blocks = malloc((size_t)c.n_blocks * sizeof *c.blocks);
    for (int i = 0; i < c.n_blocks; i++) {
        const int other = check_below(i + 1);
        c.blocks[i] = c.blocks[other];
        c.blocks[other] = i;
    }
    c.cache = check_allocate((size_t)(c.n_blocks * stride) * sizeof(bf16), sizeof(bf16));
    c.kv = (cpu_kv){.data = c.cache.data,
                    .block_stride = stride,
                    .blocks = c.blocks,
                    .block_tokens = block_tokens,
                    .padded_tokens = padded,
                    .head_dim = head_dim};
    c.keys = malloc(2 * (size_t)(n_tokens * head_dim) * sizeof *c.keys);
    c.values = c.keys + n_tokens * head_dim;
    for (int i = 0; i < 2 * n_tokens * head_dim; i++)
        c.keys[i] = bf16_to_float(bf16_from_float(check_float(2)));
    for (int t = 0; t < n_tokens; t++)
        cpu_kv_append(&c.kv, t, c.keys + t * head_dim, c.values + t * head_dim);
    return c;
}

static void attention_free(attention_case *c) {
    free(c->blocks);
    free(c->keys);
    check_free(&c->cache);
}

// The twin has its keys the other way round, in one block.
static void attention_twin(const attention_case *c, const float *q, int n_heads, int first, int last,
                           float cap, float *out) {
    float *transposed = malloc((size_t)(c->n_tokens * c->head_dim) * sizeof *transposed);
    const int32_t block = 0;
    for (int t = 0; t < c->n_tokens; t++)
        for (int d = 0; d < c->head_dim; d++) transposed[d * c->n_tokens + t] = c->keys[t * c->head_dim + d];
    const ref_kv kv = {.keys = transposed,
                       .values = c->values,
                       .blocks = &block,
                       .block_tokens = c->n_tokens,
                       .head_dim = c->head_dim};
    for (int h = 0; h < n_heads; h++)
        ref_attention(q + h * c->head_dim, &kv, first, last, cap, out + h * c->head_dim);
    free(transposed);
}

// Head sizes, windows, soft-caps, one to four query heads, blocks in any order; what the cache holds outside
// of the window is NaN.
static bool check_attention(const cpu_kernels *kernels) {
    static const int block_sizes[] = {16, 32, 64, 5, 100, 256};
    for (int i = 0; i < 180; i++) {
        const int head_dim = 32 + i % 15 * 16, n_heads = 1 + check_below(CPU_ATTENTION_HEADS);
        const int n_tokens = 1 + check_below(i % 3 ? 60 : 600), last = n_tokens - 1;
        const int first = i & 1 ? check_below(n_tokens) : 0, n = n_heads * head_dim;
        const float cap = i % 4 < 2 ? 0 : 20;
        attention_case c = attention_create(head_dim, n_tokens, block_sizes[check_below(6)]);
        float nothing[256];
        check_memory queries, out = check_allocate((size_t)n * sizeof(float), sizeof(float));
        float *q = check_floats(&queries, n), expected[4 * 256], allowed[4 * 256];
        for (int j = 0; j < n; j++) q[j] *= 8 / sqrtf((float)head_dim);
        for (int j = 0; j < head_dim; j++) nothing[j] = NAN;
        attention_twin(&c, q, n_heads, first, last, cap, expected);
        for (int t = 0; t < first; t++) cpu_kv_append(&c.kv, t, nothing, nothing);
        // A weighted mean of values up to 2. Scores are sums of head_dim terms, up to about 20: 1e-5 is some
        // ulps of them, and what a weight is off by, relatively.
        for (int j = 0; j < n; j++) allowed[j] = 2e-5f;
        kernels->attention(&c.kv, q, n_heads, first, last, cap, out.data);
        const bool good = compare("attention", out.data, expected, allowed, n);
        if (!good)
            printf("# head_dim %d, %d heads, tokens %d to %d, soft-cap %g, blocks of %d\n", head_dim, n_heads,
                   first, last, (double)cap, c.block_tokens);
        check_free(&queries);
        check_free(&out);
        attention_free(&c);
        if (!good) return false;
    }
    return true;
}

const struct check_entry check_entries[] = {
    {"rms_norm", check_norm}, {"activate", check_activate}, {"softcap", check_softcap},
    {"add", check_add},       {"rotate", check_rotate},     {"attention", check_attention},
};
const int check_n_entries = sizeof check_entries / sizeof check_entries[0];

// ---- Times

static void print_time(cpu_isa isa, const char *what, double seconds, double bytes) {
    printf("# %-12s %-22s %9.2f us %7.2f GB/s\n", cpu_isa_name(isa), what, 1e6 * seconds,
           1e-9 * bytes / seconds);
}

#define BENCH(isa, what, bytes, call)                                                                        \
    do {                                                                                                     \
        double best = INFINITY;                                                                              \
        for (int pass = 0; pass < 5; pass++) {                                                               \
            const double start = check_seconds();                                                            \
            for (int i = 0; i < 200; i++) call;                                                              \
            best = fmin(best, (check_seconds() - start) / 200);                                              \
        }                                                                                                    \
        print_time(isa, what, best, (double)(bytes));                                                        \
    } while (0)

// Widths of Llama-3.2-1B, in the first-level cache; attention over 512 tokens with four query heads.
void bench_vectors(cpu_isa isa) {
    enum { WIDTH = 2048, TOKENS = 512 };
    const cpu_kernels *kernels = cpu_kernels_of(isa);
    static float x[2 * WIDTH], y[2 * WIDTH], out[WIDTH], q[4 * 64];
    static bf16 gains[WIDTH];
    for (int i = 0; i < 2 * WIDTH; i++) x[i] = y[i] = check_float(1);
    for (int i = 0; i < 4 * 64; i++) q[i] = check_float(1);
    for (int i = 0; i < WIDTH; i++) gains[i] = bf16_from_float(check_float(1));
    const weight w = {.type = WEIGHT_BF16, .n_rows = 1, .n_cols = WIDTH, .data = gains};
    const norm_args norm = {.weight = &w, .eps = 1e-5f};
    attention_case c = attention_create(64, TOKENS, 64);
    BENCH(isa, "rms_norm 2048", 10 * WIDTH, kernels->rms_norm(&norm, x, WIDTH, out));
    BENCH(isa, "activate 2048", 12 * WIDTH, kernels->activate(ACT_SILU, x, WIDTH, out));
    BENCH(isa, "softcap 2048", 8 * WIDTH, kernels->softcap(x, WIDTH, 30));
    BENCH(isa, "add 2048", 12 * WIDTH, kernels->add(out, y, WIDTH));
    BENCH(isa, "rotate 64", 8 * 64, kernels->rotate(q, 64, x, y, 1));
    BENCH(isa, "attention 4x64x512", 4 * 64 * TOKENS, kernels->attention(&c.kv, q, 4, 0, TOKENS - 1, 0, out));
    attention_free(&c);
}
