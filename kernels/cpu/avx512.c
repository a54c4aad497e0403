// The kernels in 512-bit vectors, for processors without bf16 products. A 16-entry table of floats is one
// register, and one permutation looks sixteen codes up.
#include <immintrin.h>

#define VECTOR_FLOATS 16
#define TILE_ROWS 6
#define DENSE_ROWS 4
#define LOAD_F16(p) ((vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p))))

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"

const cpu_kernels cpu_kernels_avx512 = {
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
