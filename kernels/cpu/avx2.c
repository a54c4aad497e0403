// The kernels in 256-bit vectors (Haswell, Excavator and everything since). A table of 16 floats is two
// registers; both are asked, and the code's high bit chooses.
#include <immintrin.h>

#define VECTOR_FLOATS 8
#define TILE_ROWS 4
#define DENSE_ROWS 2
#define LUT_ROW_PAIRS 1
#define LOAD_F16(p) ((vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define VBROADCAST4(p) ((vfloat)_mm256_broadcast_ps((const __m128 *)(const void *)(p)))
#define VLOAD_TWICE(p)                                                                                       \
    ((vuint)_mm256_permutevar8x32_epi32(                                                                     \
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(p))),                         \
        _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)))

typedef struct lut_floats {
    __m256 low, high;
} lut_floats;
#define LUT_FLOATS(values) ((lut_floats){_mm256_loadu_ps(values), _mm256_loadu_ps((values) + 8)})
#define LUT_LOOKUP8(table, codes) ((vfloat)_mm256_permutevar8x32_ps((table).low, (__m256i)(codes)))
#define LUT_LOOKUP16(table, codes)                                                                           \
    ((vfloat)_mm256_blendv_ps(_mm256_permutevar8x32_ps((table).low, (__m256i)(codes)),                       \
                              _mm256_permutevar8x32_ps((table).high, (__m256i)(codes)),                      \
                              (__m256)((codes) << 28)))

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/lut_float.h"

const cpu_kernels cpu_kernels_avx2 = {
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
