// The kernels in 512-bit vectors, for processors without bf16 products. A 16-entry table of floats is one
// register, and one permutation looks sixteen codes up.
#include <immintrin.h>

#define VECTOR_FLOATS 16
#define TILE_ROWS 4
#define DENSE_ROWS 4
#define LUT_ROW_PAIRS 1
#define LOAD_F16(p) ((vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define VBROADCAST4(p) ((vfloat)_mm512_broadcast_f32x4(_mm_loadu_ps(p)))
#define VLOAD_TWICE(p)                                                                                       \
    ((vuint)_mm512_permutexvar_epi32(                                                                        \
        _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),                                   \
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(p)))))

typedef __m512 lut_floats;
#define LUT_FLOATS(values) _mm512_loadu_ps(values)
#define LUT_LOOKUP16(table, codes) ((vfloat)_mm512_permutexvar_ps((__m512i)(codes), table))
#define LUT_LOOKUP8 LUT_LOOKUP16

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/lut_float.h"

const cpu_kernels cpu_kernels_avx512 = {
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
