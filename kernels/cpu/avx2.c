// The kernels in 256-bit vectors (Haswell, Excavator and everything since).

#include <immintrin.h>

#define VECTOR_FLOATS 8
#define TILE_ROWS 6
#define DENSE_ROWS 2
#define LOAD_F16(p) ((vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p))))

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"

const cpu_kernels cpu_kernels_avx2 = {
    .tile_rows = TILE_ROWS,
    .prepared_bytes = prepared_bytes,
    .prepare = prepare_floats,
    .gemm = gemm_floats,
    .rms_norm = rms_norm,
    .activate = activate,
    .add = add,
    .softcap = softcap,
    .rotate = rotate,
    .attention = attention,
};
