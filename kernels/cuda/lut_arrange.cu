// Activations for lut_wide: rows of x become images of shared memory (see lut_kernels.h), so that one bulk
// copy fetches a stage and wgmma finds k in the order that packed weights have. In a run of 32 columns lane t
// of a weight fragment holds columns 8t..8t + 7; of B, wgmma gives it words t of four 16-byte chunks. So a
// run is four chunks of four words, transposed.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/lut_kernels.h"

enum { ARRANGE_WARPS = 8 };

// A warp takes four tokens × 64 columns, a lane one chunk.
static __global__ void __launch_bounds__(ARRANGE_WARPS *WARP)
    arrange(const __grid_constant__ arrange_params p) {
#if __CUDA_ARCH__ >= 900
    __shared__ uint4 pieces[ARRANGE_WARPS][WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = lane % 8;
    const int64_t n_images = p.n_blocks * 2, piece = (int64_t)blockIdx.x * ARRANGE_WARPS + warp;
    const int image = (int)(piece % n_images), token = (int)(piece / n_images) * 4 + lane / 8;
    const int column = image * 64 + chunk * 8;
    dependents_launch();
    if (p.overlap) dependency_wait();
    if (piece >= n_images * p.n_tiles * p.tile_tokens / 4) return;
    pieces[warp][lane] = token < p.n_tokens && column < p.n_cols
                             ? load_global4(p.x + token * p.x_stride + (int64_t)column * 2)
                             : make_uint4(0, 0, 0, 0);
    __syncwarp();
    const uint32_t *words = (const uint32_t *)&pieces[warp][lane / 4 * 4] + chunk % 4;
    const int tile = token / p.tile_tokens, row = token % p.tile_tokens;
    uint8_t *to = p.out + (tile * n_images + image) * p.tile_tokens * 128 + row * 128;
    *(uint4 *)(to + (chunk ^ row % 8) * 16) = make_uint4(words[0], words[4], words[8], words[12]);
#endif
}

cudaError_t lut_arrange(const arrange_params &p, cudaStream_t stream) {
    const int64_t pieces = (int64_t)p.n_blocks * 2 * p.n_tiles * p.tile_tokens / 4;
    return cuda_launch(arrange, dim3((unsigned)((pieces + ARRANGE_WARPS - 1) / ARRANGE_WARPS)),
                       ARRANGE_WARPS * WARP, 0, stream, p.overlap, p);
}
