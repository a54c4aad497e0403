// Attention of a few query heads over the cached tokens of their KV head, block by block with a running
// maximum (Milakov and Gimelshein 2018; "flash attention"). A key or value is converted once for all heads.
//
// A 512-token context of Llama-3.2-1B is 16.8 MB of cache: 2 % of what a token reads.
#ifndef FLUTE_KERNELS_CPU_ATTENTION_H
#define FLUTE_KERNELS_CPU_ATTENTION_H

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector.h"

enum {
    ATTENTION_CHUNK = 64,    // tokens between two looks at the running maximum
    ATTENTION_MAX_DIM = 256, // head_dim
};

typedef struct attention_run {
    float scores[CPU_ATTENTION_HEADS][ATTENTION_CHUNK];
    float max[CPU_ATTENTION_HEADS], sum[CPU_ATTENTION_HEADS];
} attention_run;

// Scores of n tokens from `token` of a block; computes whole vectors, so up to VECTOR_FLOATS − 1 more.
INLINE void attention_scores(const cpu_kv *kv, const bf16 *keys, int token, int n, const float *q,
                             const int n_heads, attention_run *run) {
    for (int t = 0; t < n; t += VECTOR_FLOATS) {
        const bf16 *at = keys + 2 * (token + t);
        vfloat sums[CPU_ATTENTION_HEADS] = {0};
        for (int d = 0; d < kv->head_dim; d += 2, at += 2 * kv->padded_tokens) {
            vuint pairs = vload_pairs(at);
            vfloat low = vlow(pairs), high = vhigh(pairs);
            for (int h = 0; h < n_heads; h++) {
                sums[h] += q[h * kv->head_dim + d] * low;
                sums[h] += q[h * kv->head_dim + d + 1] * high;
            }
        }
        for (int h = 0; h < n_heads; h++) vstore(&run->scores[h][t], sums[h]);
    }
}

// Turns scores [first, n) of one head into weights, all others into 0, and rescales what was summed so far.
static void attention_weigh(attention_run *run, int h, int first, int n, float cap, int head_dim,
                            float *out) {
    float *scores = run->scores[h];
    const int padded = (n + VECTOR_FLOATS - 1) / VECTOR_FLOATS * VECTOR_FLOATS;
    vfloat largest = vset(-INFINITY);
    for (int t = 0; t < padded; t += VECTOR_FLOATS) {
        vfloat s = vload(scores + t);
        vstore(scores + t, cap != 0 ? cap * vtanh(s / cap) : s);
    }
    for (int t = 0; t < first; t++) scores[t] = -INFINITY;
    for (int t = n; t < padded; t++) scores[t] = -INFINITY;
    for (int t = 0; t < padded; t += VECTOR_FLOATS) largest = vmax(vload(scores + t), largest);
    float max = run->max[h];
    for (int i = 0; i < VECTOR_FLOATS; i++) max = largest[i] > max ? largest[i] : max;
    vfloat sum = {0};
    for (int t = 0; t < padded; t += VECTOR_FLOATS) {
        vfloat p = vexp(vload(scores + t) - max);
        vstore(scores + t, p);
        sum += p;
    }
    const float shrink = expf(run->max[h] - max); // 0 the first time, when the old maximum is −∞
    run->sum[h] = run->sum[h] * shrink + vsum(sum);
    run->max[h] = max;
    if (shrink != 1.0f)
        for (int d = 0; d < head_dim; d += VECTOR_FLOATS) vstore(out + d, vload(out + d) * shrink);
}

// out += weights · values over tokens [first, n) of the chunk that starts at the even `token` of a block.
// Cached tokens outside of that range may be anything: their half of a pair is masked away.
INLINE void attention_sum(const cpu_kv *kv, const bf16 *values, int token, int first, int n,
                          const attention_run *run, const int n_heads, float *out) {
    const int head_dim = kv->head_dim;
    for (int d = 0; d < head_dim; d += VECTOR_FLOATS) {
        vfloat sums[CPU_ATTENTION_HEADS];
        for (int h = 0; h < n_heads; h++) sums[h] = vload(out + h * head_dim + d);
        for (int t = first & ~1; t < n; t += 2) {
            vuint pairs = vload_pairs(values + (int64_t)(token + t) * head_dim + 2 * d);
            if (t < first) pairs &= 0xffff0000u;
            if (t + 1 >= n) pairs &= 0x0000ffffu;
            vfloat low = vlow(pairs), high = vhigh(pairs);
            for (int h = 0; h < n_heads; h++) {
                sums[h] += run->scores[h][t] * low;
                sums[h] += run->scores[h][t + 1] * high;
            }
        }
        for (int h = 0; h < n_heads; h++) vstore(out + h * head_dim + d, sums[h]);
    }
}

INLINE void attention_heads(const cpu_kv *kv, const float *q, const int n_heads, int first, int last,
                            float cap, float *out) {
    attention_run run;
    memset(out, 0, (size_t)(n_heads * kv->head_dim) * sizeof *out);
    for (int h = 0; h < n_heads; h++) {
        run.max[h] = -INFINITY;
        run.sum[h] = 0;
    }
    for (int token = first; token <= last;) {
        const bf16 *keys = kv->data + kv->blocks[token / kv->block_tokens] * kv->block_stride;
        const bf16 *values = keys + (int64_t)kv->head_dim * kv->padded_tokens;
        const int in_block = token % kv->block_tokens, start = in_block & ~(CPU_KV_TOKENS - 1);
        int end = kv->block_tokens < in_block + (last - token + 1) ? kv->block_tokens
                                                                   : in_block + (last - token + 1);
        if (end > start + ATTENTION_CHUNK) end = start + ATTENTION_CHUNK;
        attention_scores(kv, keys, start, end - start, q, n_heads, &run);
        for (int h = 0; h < n_heads; h++)
            attention_weigh(&run, h, in_block - start, end - start, cap, kv->head_dim,
                            out + h * kv->head_dim);
        attention_sum(kv, values, start, in_block - start, end - start, &run, n_heads, out);
        token += end - in_block;
    }
    for (int h = 0; h < n_heads; h++)
        for (int d = 0; d < kv->head_dim; d += VECTOR_FLOATS)
            vstore(out + h * kv->head_dim + d, vload(out + h * kv->head_dim + d) / run.sum[h]);
}

static void attention(const cpu_kv *kv, const float *q, int n_heads, int first, int last, float cap,
                      float *out) {
    switch (n_heads) { // constants, so that the sums of all heads stay in registers
    case 1:
        attention_heads(kv, q, 1, first, last, cap, out);
        break;
    case 2:
        attention_heads(kv, q, 2, first, last, cap, out);
        break;
    case 3:
        attention_heads(kv, q, 3, first, last, cap, out);
        break;
    default:
        attention_heads(kv, q, 4, first, last, cap, out);
    }
}

#endif
