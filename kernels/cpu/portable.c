// The kernels in vectors of 128 bits, which every 64-bit processor has (SSE2, NEON).
#define VECTOR_FLOATS 4
#define TILE_ROWS 2
#define DENSE_ROWS 2

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"

const cpu_kernels cpu_kernels_portable = {
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
