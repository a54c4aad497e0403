// The kernels in 512-bit vectors with products of bf16 pairs. Lookups give 16-bit values: 32 weights at once.
#include <immintrin.h>

#define VECTOR_FLOATS 16
#define TILE_ROWS 4
#define DENSE_ROWS 4
#define LUT_ROW_PAIRS 2
#define LOAD_F16(p) ((vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define VBROADCAST4(p) ((vfloat)_mm512_broadcast_f32x4(_mm_loadu_ps(p)))

enum { LUT_VECTORS = 4 };
typedef __m512i lut_vector;

// LUT2: the 16 pairs of values that two codes side by side stand for, as 32-bit lanes. Otherwise values as
// 16-bit lanes, repeated, so that bits beside a code do not matter; second: of the odd columns of LUT3
// (index: third bit at 1, low bits at 2 and 3), of the low nibbles of INT8.
typedef struct lut_tables {
    __m512i first, second;
} lut_tables;

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/lut.h"

INLINE lut_tables lut_tables_make(const weight *w) {
    const int n = w->type == WEIGHT_INT8 ? 16 : 1 << weight_type_bits(w->type);
    uint16_t first[32], second[32];
    for (int i = 0; i < 32; i++) {
        first[i] = w->type == WEIGHT_INT8   ? bf16_from_float((float)(16 * (i % 16 - 8)))
                   : w->type == WEIGHT_LUT2 ? w->table[i % 2 ? i / 8 : i / 2 % 4]
                                            : w->table[i % n];
        second[i] =
            w->type == WEIGHT_LUT3 ? w->table[i / 4 % 4 + i / 2 % 2 * 4] : bf16_from_float((float)(i % 16));
    }
    return (lut_tables){_mm512_loadu_si512(first), _mm512_loadu_si512(second)};
}

// INT8 is two 4-bit planes, each with its own products.
INLINE int lut_vectors(weight_type type) {
    return type == WEIGHT_INT8 ? 2 * LUT_VECTORS : LUT_VECTORS;
}

INLINE bool lut_halves(weight_type type) {
    return type == WEIGHT_LUT3;
}

// Vector j pairs columns j and j + 4 of an octet where codes have four bits (they lie in the two halves of a
// lane), columns 2j and 2j + 1 where they have two. Where they have three, half vectors serve both rows: half
// j pairs column 2j of two octets, half 4 + j column 2j + 1.
INLINE void lut_order(weight_type type, const float *x, lut_vector *out) {
    const bool nibbles = type == WEIGHT_LUT4 || type == WEIGHT_INT8;
    bf16 ordered[BLOCK_COLS];
    for (int octet = 0; octet < 16; octet++)
        for (int i = 0; i < 8; i++) {
            const int t = octet / 4, u = octet % 4;
            const int at = type == WEIGHT_LUT3 ? (i % 2 * 4 + i / 2) * 16 + (t / 2 * 4 + u) * 2 + t % 2
                           : nibbles           ? i % 4 * 32 + 2 * octet + i / 4
                                               : i / 2 * 32 + 2 * octet + i % 2;
            ordered[at] = bf16_from_float(x[u * RUN_COLS + t * 8 + i]);
        }
    for (int v = 0; v < LUT_VECTORS; v++) out[v] = _mm512_loadu_si512(ordered + v * 32);
}

// Values of the codes at the foot of each 16-bit half, then four bits higher, and so on.
INLINE void lookup_halves(__m512i codes, __m512i table, lut_vector *out) {
    out[0] = _mm512_permutexvar_epi16(codes, table);
    out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    out[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
    out[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
}

INLINE void decode_nibbles(const uint8_t *plane, int g, __m512i table, lut_vector *row, lut_vector *row8) {
    const __m512 even = _mm512_loadu_ps((const float *)(const void *)(plane + 64 * g));
    const __m512 odd = _mm512_loadu_ps((const float *)(const void *)(plane + 64 * g + 512));
    lookup_halves(_mm512_castps_si512(_mm512_shuffle_ps(even, odd, 0x88)), table, row);
    lookup_halves(_mm512_castps_si512(_mm512_shuffle_ps(even, odd, 0xdd)), table, row8);
}

INLINE void decode_pairs(const uint8_t *block, int g, __m512i table, lut_vector rows[2][LUT_MAX_VECTORS]) {
    const __m512i codes = _mm512_loadu_si512(block + 64 * g);
    for (int i = 0; i < 8; i++)
        rows[i / 4][i % 4] = _mm512_permutexvar_epi32(_mm512_srli_epi32(codes, (unsigned)(4 * i)), table);
}

// Both rows share a vector: its lane 8h + 4p + u takes the octets t = 2p and 2p + 1 of run u and row g + 8h
// as its two halves. Even columns get their third bits above the two low ones, odd columns one place below
// them: so neither moves, and each has a table to suit.
INLINE void decode_triples(const uint8_t *block, int g, const lut_tables *tables,
                           lut_vector rows[2][LUT_MAX_VECTORS]) {
    uint16_t pick[32], pick_third[32], up[32], down[32];
    for (int i = 0; i < 32; i++) {
        const int h = i / 16, t = i / 8 % 2 * 2 + i % 2, u = i / 2 % 4;
        pick[i] = (uint16_t)(8 * t + 2 * u + h);
        pick_third[i] = (uint16_t)(4 * t + u / 2 * 2 + h);
        up[i] = u % 2 ? 2 : 0; // third bits of runs 1 and 3 lie two lower
        down[i] = u % 2 ? 0 : 2;
    }
    const __m512i low = _mm512_set1_epi32(0x33333333);
    const __m512i codes =
        _mm512_permutexvar_epi16(_mm512_loadu_si512(pick), _mm512_loadu_si512(block + 64 * g));
    const __m512i packed =
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(block + 512 + 32 * g)));
    const __m512i thirds = _mm512_permutexvar_epi16(_mm512_loadu_si512(pick_third), packed);
    // The first operand is overwritten: it is not the constant, which would have to be copied.
    const __m512i even = _mm512_ternarylogic_epi32(_mm512_sllv_epi16(thirds, _mm512_loadu_si512(up)), codes,
                                                   low, 0xd8); // low ? codes : thirds
    const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srlv_epi16(thirds, _mm512_loadu_si512(down)), codes,
                                                  low, 0xe4); // low ? thirds : codes
    lookup_halves(even, tables->first, rows[0]);
    lookup_halves(odd, tables->second, rows[1]);
}

INLINE void lut_decode(weight_type type, const lut_tables *tables, const uint8_t *block, int g,
                       lut_vector rows[2][LUT_MAX_VECTORS]) {
    if (type == WEIGHT_LUT2)
        decode_pairs(block, g, tables->first, rows);
    else if (type == WEIGHT_LUT3)
        decode_triples(block, g, tables, rows);
    else
        decode_nibbles(block, g, tables->first, rows[0], rows[1]);
    if (type == WEIGHT_INT8)
        decode_nibbles(block + 1024, g, tables->second, rows[0] + LUT_VECTORS, rows[1] + LUT_VECTORS);
}

INLINE lut_vector lut_load(weight_type type, const uint8_t *x, int r, int v) {
    if (type != WEIGHT_LUT3) return _mm512_loadu_si512(x + v % LUT_VECTORS * 64);
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(x + (4 * r + v) * 32)));
}

INLINE vfloat lut_dot(vfloat sums, lut_vector weights, lut_vector x) {
    return (vfloat)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)x);
}

const cpu_kernels cpu_kernels_avx512_bf16 = {
    .tile_rows = TILE_ROWS,
    .prepared_bytes = prepared_bytes,
    .prepare = prepare,
    .gemm = gemm,
    .rms_norm = rms_norm,
    .activate = activate,
    .add = add,
    .softcap = softcap,
    .rotate = rotate,
    .attention = attention,
};
