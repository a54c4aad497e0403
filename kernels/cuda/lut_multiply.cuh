// Pairs of panels times tiles of eight tokens that lie in shared memory with the weights: what a warp of
// lut_tile and of lut_ampere does with a stage, and where it leaves its sums.
#ifndef FLUTE_CUDA_LUT_MULTIPLY_CUH
#define FLUTE_CUDA_LUT_MULTIPLY_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"

// The stage that comes n-th. Blocks start at different ones, or all of them would ask L2 for the same
// activations at the same time.
__device__ __forceinline__ int tile_stage(int n, int panel_stages) {
    const int stage = n + (int)((int64_t)blockIdx.x * panel_stages / gridDim.x);
    return stage < panel_stages ? stage : stage - panel_stages;
}

// One unit of PANELS panels: sums (panel, n-tile, 16 × 8 fragment) += W · xᵀ. The panels share what is read
// of the activations. x_at: shared address of the lane's token and columns.
template <int BITS, int GROUP, int N_TILES, int PANELS>
__device__ __forceinline__ void
tile_multiply_add(uint32_t unit_at, uint32_t panel_bytes, uint32_t x_at, uint32_t x_row_bytes,
                  const uint8_t *table, uint32_t lane_offset, int lane, float (&sums)[2][N_TILES][4]) {
    using layout = unit_layout<BITS, GROUP>;
    enum { SCALE_RUNS = GROUP >= 128 ? RUNS : GROUP / 32, SCALES = GROUP >= 128 ? 1 : 128 / GROUP };
#pragma unroll
    for (int b = 0; b < layout::blocks; b++) {
        block_codes<BITS> codes[PANELS];
#pragma unroll
        for (int i = 0; i < PANELS; i++) {
            const uint32_t at = unit_at + i * panel_bytes + b * layout::block_bytes;
            codes[i].load(at + lane * 16, at + lane * 8);
        }
#pragma unroll
        for (int s = 0; s < SCALES; s++) {
            float d[PANELS][N_TILES][4] = {};
#pragma unroll
            for (int run = s * SCALE_RUNS; run < (s + 1) * SCALE_RUNS; run++) {
                uint4 x[N_TILES];
#pragma unroll
                for (int n = 0; n < N_TILES; n++)
                    x[n] = load_shared4(x_at + n * 8 * x_row_bytes + (b * 128 + run * 32) * 2);
#pragma unroll
                for (int i = 0; i < PANELS * (BITS == 8 ? 2 : 1); i++) {
                    uint32_t a[8];
                    decode_run<BITS>(codes[i % PANELS], run, i / PANELS, table_reader{table, lane_offset}, a);
#pragma unroll
                    for (int n = 0; n < N_TILES; n++) {
                        mma(d[i % PANELS][n], a[0], a[1], a[2], a[3], x[n].x, x[n].y);
                        mma(d[i % PANELS][n], a[4], a[5], a[6], a[7], x[n].z, x[n].w);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < PANELS; i++) {
                const uint32_t bits =
                    load_shared(unit_at + i * panel_bytes + layout::scales_at + s * 32 + lane / 4 * 4);
                const float2 scale = __half22float2(*(const __half2 *)&bits);
#pragma unroll
                for (int n = 0; n < N_TILES; n++) {
                    sums[i][n][0] += scale.x * d[i][n][0], sums[i][n][1] += scale.x * d[i][n][1];
                    sums[i][n][2] += scale.y * d[i][n][2], sums[i][n][3] += scale.y * d[i][n][3];
                }
            }
        }
    }
}

// Stores the sums of a warp whose slice of K is all of K; leaves those of others in shared memory, as
// store_panels reads them. first: the panel of the matrix that is panel 0 of this pass.
template <int N_TILES>
__device__ __forceinline__ void tile_leave_sums(const lut_params &p, int first, int my_panel, int slice,
                                                int mine, int lane, const float (&sums)[2][N_TILES][4],
                                                float *sums_to) {
    enum { TOKENS = N_TILES * 8 };
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i >= mine) break;
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            const float(&v)[4] = sums[i][n];
            const int g = lane / 4, token = n * 8 + lane % 4 * 2;
            if (p.k_slices == 1) {
                store_pair(p, first + my_panel + i, g, token, v[0], v[2]);
                store_pair(p, first + my_panel + i, g, token + 1, v[1], v[3]);
            } else {
                float *to = sums_to + (((my_panel + i) * p.k_slices + slice) * 16 + g) * TOKENS + token;
                *(float2 *)to = make_float2(v[0], v[1]);
                *(float2 *)(to + 8 * TOKENS) = make_float2(v[2], v[3]);
            }
        }
    }
}

#endif
