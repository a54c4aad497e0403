// Vectors of floats in GNU C, as wide as the including file says (VECTOR_FLOATS: 4, 8 or 16), and the
// elementary functions on them. One source thus serves every instruction set; only what the language cannot
// say (table lookups, 16-bit products) is written in intrinsics.
#ifndef FLUTE_KERNELS_CPU_VECTOR_H
#define FLUTE_KERNELS_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>

#include "engine/base/numeric.h"

#define INLINE static inline __attribute__((always_inline))

typedef float vfloat __attribute__((vector_size(4 * VECTOR_FLOATS)));
typedef int32_t vint __attribute__((vector_size(4 * VECTOR_FLOATS)));
typedef uint32_t vuint __attribute__((vector_size(4 * VECTOR_FLOATS)));
typedef uint16_t vhalf __attribute__((vector_size(2 * VECTOR_FLOATS)));

INLINE vfloat vload(const float *p) {
    vfloat v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vstore(float *p, vfloat v) {
    memcpy(p, &v, sizeof v);
}

// Elements a, b, c, d of every run of four lanes: 0 to 3 of x, 4 to 7 of y. Constants only.
#define VSHUFFLE_AT(run, i) ((i) % 4 + 4 * (run) + ((i) < 4 ? 0 : VECTOR_FLOATS))
#define VSHUFFLE_RUN(run, a, b, c, d)                                                                        \
    VSHUFFLE_AT(run, a), VSHUFFLE_AT(run, b), VSHUFFLE_AT(run, c), VSHUFFLE_AT(run, d)
#if VECTOR_FLOATS == 16
#define VSHUFFLE_LANES(a, b, c, d)                                                                           \
    VSHUFFLE_RUN(0, a, b, c, d), VSHUFFLE_RUN(1, a, b, c, d), VSHUFFLE_RUN(2, a, b, c, d),                   \
        VSHUFFLE_RUN(3, a, b, c, d)
#elif VECTOR_FLOATS == 8
#define VSHUFFLE_LANES(a, b, c, d) VSHUFFLE_RUN(0, a, b, c, d), VSHUFFLE_RUN(1, a, b, c, d)
#else
#define VSHUFFLE_LANES(a, b, c, d) VSHUFFLE_RUN(0, a, b, c, d)
#endif
#define VSHUFFLE(x, y, a, b, c, d) __builtin_shufflevector(x, y, VSHUFFLE_LANES(a, b, c, d))

INLINE vfloat vset(float value) {
    return value - (vfloat){0};
}

// mask ? a : b, mask all ones or all zeros in every lane.
INLINE vfloat vselect(vint mask, vfloat a, vfloat b) {
    return (vfloat)(((vint)a & mask) | ((vint)b & ~mask));
}

// The lower half of a and the upper half of b.
INLINE vfloat vhalves(vfloat a, vfloat b) {
    vint lower = {0};
    for (int i = 0; i < VECTOR_FLOATS / 2; i++) lower[i] = -1;
    return vselect(lower, a, b);
}

// The larger one; b where a is NaN.
INLINE vfloat vmax(vfloat a, vfloat b) {
    return vselect(a > b, a, b);
}

INLINE vfloat vmin(vfloat a, vfloat b) {
    return vselect(a < b, a, b);
}

INLINE float vsum(vfloat v) {
    float lanes[VECTOR_FLOATS];
    memcpy(lanes, &v, sizeof v);
    for (int half = VECTOR_FLOATS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Two bf16 in a 32-bit lane: the low and the high one as floats.
INLINE vfloat vlow(vuint pairs) {
    return (vfloat)(pairs << 16);
}

INLINE vfloat vhigh(vuint pairs) {
    return (vfloat)(pairs & 0xffff0000u);
}

INLINE vuint vload_pairs(const bf16 *p) {
    vuint v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE vfloat vload_bf16(const bf16 *p) {
    vhalf v;
    memcpy(&v, p, sizeof v);
    return (vfloat)(__builtin_convertvector(v, vuint) << 16);
}

// x rounded to the nearest bf16, ties to even, still as floats; NaN stays NaN.
INLINE vfloat vround_bf16(vfloat x) {
    vuint bits = (vuint)x;
    vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return vselect(x == x, (vfloat)rounded, x);
}

// e^x − 1 = 2^n · (1 + q) − 1 with x = n · ln 2 + r, |r| <= ln 2 / 2, q = e^r − 1 by its Taylor series: the
// first term left out, r^9 / 9!, is below 2e-10. x in [−87, 88].
typedef struct vexp_parts {
    vfloat power; // 2^n
    vfloat q;
} vexp_parts;

INLINE vexp_parts vexp_split(vfloat x) {
    const float rounder = 12582912.0f; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
    vfloat shifted = x * 1.44269504088896340736f + rounder;
    vfloat n = shifted - rounder;
    vfloat r = x - n * 0.693145751953125f; // ln 2 in two parts, the first short enough to be exact times n
    r = r - n * 1.42860682030941723212e-6f;
    vfloat q = r * (1.0f / 40320) + 1.0f / 5040;
    q = q * r + 1.0f / 720;
    q = q * r + 1.0f / 120;
    q = q * r + 1.0f / 24;
    q = q * r + 1.0f / 6;
    q = q * r + 0.5f;
    q = q * r * r + r;
    vint exponent = ((vint)shifted - (int32_t)0x4b400000) + 127;
    return (vexp_parts){(vfloat)(exponent << 23), q};
}

// e^x, 0 below −87 and at most e^88. Relative error below 2e-7.
INLINE vfloat vexp(vfloat x) {
    vexp_parts parts = vexp_split(vmin(vmax(x, vset(-87.0f)), vset(88.0f)));
    return (vfloat)((vint)(parts.power * parts.q + parts.power) & (vint)(x >= -87.0f));
}

// Relative error below 4e-7, also near 0: (e^2x − 1) / (e^2x + 1).
INLINE vfloat vtanh(vfloat x) {
    vexp_parts parts = vexp_split(2.0f * vmin(vmax(x, vset(-10.0f)), vset(10.0f)));
    vfloat e = parts.power * parts.q + (parts.power - 1.0f);
    return vselect(x == x, e / (e + 2.0f), x);
}

#endif
