// The float way to fill lut.h: a table of 16 floats, a decoded vector for every column of an octet.
//
// An including file defines, besides what lut.h and gemm.h want,
//   lut_floats                    a table of 16 floats
//   LUT_FLOATS(values)            makes one
//   LUT_LOOKUP8, LUT_LOOKUP16     (table, vuint codes): by the low three (at least) and the low four bits
//   VLOAD_TWICE(p)                half a vector of 32-bit lanes, each lane twice in a row
#ifndef FLUTE_KERNELS_CPU_LUT_FLOAT_H
#define FLUTE_KERNELS_CPU_LUT_FLOAT_H

#include "kernels/cpu/vector.h"
#include "kernels/layout.h"

enum { LUT_VECTORS = BLOCK_COLS / VECTOR_FLOATS, LUT_PARTS = 16 / VECTOR_FLOATS };
typedef vfloat lut_vector;

typedef struct lut_tables {
    lut_floats first, second; // second: of the low nibbles of INT8
} lut_tables;

#include "kernels/cpu/lut.h"

INLINE lut_tables lut_tables_make(const weight *w) {
    const int n = w->type == WEIGHT_INT8 ? 16 : 1 << weight_type_bits(w->type);
    float first[16], second[16];
    for (int i = 0; i < 16; i++) {
        first[i] = w->type == WEIGHT_INT8 ? (float)(16 * (i - 8)) : bf16_to_float(w->table[i % n]);
        second[i] = (float)i;
    }
    return (lut_tables){LUT_FLOATS(first), LUT_FLOATS(second)};
}

INLINE int lut_vectors(weight_type type) {
    (void)type;
    return LUT_VECTORS;
}

INLINE bool lut_halves(weight_type type) {
    (void)type;
    return false;
}

INLINE void lut_order(weight_type type, const float *x, lut_vector *out) {
    float ordered[BLOCK_COLS];
    (void)type;
    for (int octet = 0; octet < 16; octet++)
        for (int i = 0; i < 8; i++) ordered[i * 16 + octet] = x[octet % 4 * RUN_COLS + octet / 4 * 8 + i];
    for (int v = 0; v < LUT_VECTORS; v++) out[v] = vround_bf16(vload(ordered + v * VECTOR_FLOATS));
}

INLINE vuint load_words(const uint8_t *p) {
    vuint words;
    memcpy(&words, p, sizeof words);
    return words;
}

// The octets of rows g and g + 8 in a 4-bit plane; part: which half of them where a vector has eight lanes.
INLINE void nibble_rows(const uint8_t *plane, int g, int part, vuint rows[2]) {
    const uint8_t *at = plane + 64 * g + part * (int)sizeof(vuint);
    const vuint even = load_words(at), odd = load_words(at + 512);
    rows[0] = VSHUFFLE(even, odd, 0, 2, 4, 6);
    rows[1] = VSHUFFLE(even, odd, 1, 3, 5, 7);
}

INLINE void lut_decode(weight_type type, const lut_tables *tables, const uint8_t *block, int g,
                       lut_vector rows[2][LUT_MAX_VECTORS]) {
    const uint32_t low = 0x33333333u;
    const vuint odd_runs = ((vuint){VSHUFFLE_LANES(0, 1, 0, 1)} & 1u) << 1; // 2 where u is odd
    for (int part = 0; part < LUT_PARTS; part++) {
        vuint codes[2], lows[2];
        if (type == WEIGHT_LUT4 || type == WEIGHT_INT8) {
            nibble_rows(block, g, part, codes);
            if (type == WEIGHT_INT8) nibble_rows(block + 1024, g, part, lows);
            for (int r = 0; r < 2; r++)
                for (int i = 0; i < 8; i++) {
                    vfloat value = LUT_LOOKUP16(tables->first, codes[r] >> (4 * i));
                    if (type == WEIGHT_INT8) value += LUT_LOOKUP16(tables->second, lows[r] >> (4 * i));
                    rows[r][i * LUT_PARTS + part] = value;
                }
            continue;
        }
        const vuint pairs = load_words(block + 64 * g + part * (int)sizeof(vuint));
        if (type == WEIGHT_LUT2) {
            for (int r = 0; r < 2; r++)
                for (int i = 0; i < 8; i++)
                    rows[r][i * LUT_PARTS + part] = LUT_LOOKUP8(tables->first, pairs >> (16 * r + 2 * i));
            continue;
        }
        // Third bits move above the two low ones: of the even columns as they lie, of the odd ones one lower.
        const vuint thirds = VLOAD_TWICE(block + 512 + 32 * g + part * (int)sizeof(vuint) / 2) << odd_runs;
        const vuint even = (pairs & low) | (thirds & ~low), odd = (pairs >> 2 & low) | (thirds >> 1 & ~low);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < 8; i += 2) {
                rows[r][i * LUT_PARTS + part] = LUT_LOOKUP8(tables->first, even >> (16 * r + 2 * i));
                rows[r][(i + 1) * LUT_PARTS + part] = LUT_LOOKUP8(tables->first, odd >> (16 * r + 2 * i));
            }
    }
}

INLINE lut_vector lut_load(weight_type type, const uint8_t *x, int r, int v) {
    (void)type, (void)r;
    return vload((const float *)(const void *)x + v * VECTOR_FLOATS);
}

INLINE vfloat lut_dot(vfloat sums, lut_vector weights, lut_vector x) {
    return sums + weights * x;
}

#endif
