// Norms, activations, soft-caps and rotation, for whatever VECTOR_FLOATS says.
#ifndef FLUTE_KERNELS_CPU_ELEMENTWISE_H
#define FLUTE_KERNELS_CPU_ELEMENTWISE_H

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector.h"
#include "kernels/layout.h"

// Sums in four vectors, so that additions of one chain do not wait for each other.
static float sum_of_squares(const float *x, int n) {
    vfloat sums[4] = {0};
    int i = 0;
    for (; i + 4 * VECTOR_FLOATS <= n; i += 4 * VECTOR_FLOATS)
        for (int j = 0; j < 4; j++) {
            vfloat v = vload(x + i + j * VECTOR_FLOATS);
            sums[j] += v * v;
        }
    for (; i + VECTOR_FLOATS <= n; i += VECTOR_FLOATS) sums[0] += vload(x + i) * vload(x + i);
    float sum = vsum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < n; i++) sum += x[i] * x[i];
    return sum;
}

static void rms_norm(const norm_args *norm, const float *x, int width, float *out) {
    const float factor = 1.0f / sqrtf(sum_of_squares(x, width) / (float)width + norm->eps);
    const weight *w = norm->weight;
    int i = 0;
    if (w->type == WEIGHT_F32)
        for (; i + VECTOR_FLOATS <= width; i += VECTOR_FLOATS)
            vstore(out + i, vload(x + i) * factor * (vload((const float *)w->data + i) + norm->offset));
    else if (w->type == WEIGHT_BF16)
        for (; i + VECTOR_FLOATS <= width; i += VECTOR_FLOATS)
            vstore(out + i, vload(x + i) * factor * (vload_bf16((const bf16 *)w->data + i) + norm->offset));
    for (; i < width; i++) out[i] = x[i] * factor * (norm->offset + weight_value(w, 0, i));
}

// silu(x) = x · σ(x), and gelu_tanh(x) = x · σ(2u) with u = sqrt(2/π) · (x + 0.044715 x³): since
// (1 + tanh u) / 2 = σ(2u), one exponential serves both.
INLINE vfloat activation_of(activation act, vfloat x) {
    const float two_sqrt_2_over_pi = 1.59576912160573071176f;
    vfloat z = act == ACT_SILU ? x : two_sqrt_2_over_pi * x * (1.0f + 0.044715f * x * x);
    return x / (1.0f + vexp(-z));
}

// Runs of eight gate and eight up values: two, one or half a vector each.
static void activate(activation act, const float *gate_up, int64_t n, float *out) {
    int64_t i = 0;
#if VECTOR_FLOATS > 8
    for (; i + 16 <= n; i += 16) {
        float gate[16], up[16];
        for (int half = 0; half < 2; half++) {
            memcpy(gate + 8 * half, gate_up + 2 * i + 16 * half, 8 * sizeof(float));
            memcpy(up + 8 * half, gate_up + 2 * i + 16 * half + 8, 8 * sizeof(float));
        }
        vstore(out + i, activation_of(act, vload(gate)) * vload(up));
    }
    for (; i < n; i += 8) {
        float gate[16] = {0}, result[16];
        memcpy(gate, gate_up + 2 * i, 8 * sizeof(float));
        vstore(result, activation_of(act, vload(gate)));
        for (int j = 0; j < 8; j++) out[i + j] = result[j] * gate_up[2 * i + 8 + j];
    }
#else
    for (; i < n; i += 8)
        for (int j = 0; j < 8; j += VECTOR_FLOATS)
            vstore(out + i + j,
                   activation_of(act, vload(gate_up + 2 * i + j)) * vload(gate_up + 2 * i + 8 + j));
#endif
}

static void add(float *x, const float *y, int64_t n) {
    int64_t i = 0;
    for (; i + VECTOR_FLOATS <= n; i += VECTOR_FLOATS) vstore(x + i, vload(x + i) + vload(y + i));
    for (; i < n; i++) x[i] += y[i];
}

static void softcap(float *x, int64_t n, float cap) {
    int64_t i = 0;
    for (; i + VECTOR_FLOATS <= n; i += VECTOR_FLOATS) vstore(x + i, cap * vtanh(vload(x + i) / cap));
    if (i < n) {
        float rest[VECTOR_FLOATS] = {0};
        memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
        vstore(rest, cap * vtanh(vload(rest) / cap));
        memcpy(x + i, rest, (size_t)(n - i) * sizeof *x);
    }
}

static void rotate(float *x, int head_dim, const float *cosines, const float *sines, float scale) {
    for (int run = 0; run < head_dim / 16; run++, x += 16, cosines += 8, sines += 8)
        for (int i = 0; i < 8; i++) {
            const float a = x[i], b = x[8 + i];
            x[i] = (a * cosines[i] - b * sines[i]) * scale;
            x[8 + i] = (b * cosines[i] + a * sines[i]) * scale;
        }
}

#endif
