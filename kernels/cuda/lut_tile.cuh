// y = x · Wᵀ for 5 to 32 tokens: small batches, where lut_wide does not run.
//
// Work. A block of threads, one on each SM, owns whole panels (16 rows × K). Its fifteen consumer warps form
// a grid of pairs of panels × slices of K: as many pairs at a time as there are warps, and where a block owns
// fewer, the warps that are left split K. A warp keeps the sums of its two panels for all tokens in registers
// through all of K; slices meet once, at the end, in shared memory.
//
// The stream. A sixteenth warp fills a ring. A stage holds one unit of K for each slice: of every panel its
// codes and scales, by bulk copies, and of every token its activations, which all panels share, by 16-byte
// ones (which write zeros where K ends). Weights of the first stages are under way before the kernel ahead
// has finished. Activations are read from L2 once by each block: M·K·2 bytes for each of 132, as much as the
// weights themselves for 4096 × 4096 and 8 tokens.
//
// Roofline on an H200, 16 × 128 weights at 4 bits, group 128 (1088 bytes, 57 clocks of an SM): shared memory
// works 49 clocks for the weights as in lut_gemv.cuh and 8 for each eight tokens, the limit from 16 tokens
// on; the tensor cores work 13 to 16 clocks for each eight tokens.
#ifndef FLUTE_CUDA_LUT_TILE_CUH
#define FLUTE_CUDA_LUT_TILE_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/lut_multiply.cuh"

enum { TILE_CONSUMERS = TILE_WARPS * WARP, TILE_THREADS = TILE_CONSUMERS + WARP };

// The producer: for each pass over K with p.tile_panels panels, stage by stage.
template <int BITS, int GROUP>
__device__ __forceinline__ void tile_produce(const lut_params &p, uint8_t *smem, int panel0, int panels) {
    using layout = unit_layout<BITS, GROUP>;
    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const int panel_stages = (p.panel_units + p.k_slices - 1) / p.k_slices;
    const int passes = (panels + p.tile_panels - 1) / p.tile_panels, n_stages = passes * panel_stages;
    const size_t panel_bytes = (size_t)p.panel_units * layout::bytes;
    const uint8_t *from = p.weights + panel0 * panel_bytes;

    const int lane = threadIdx.x % WARP;

    // One lane a panel: issued by a single thread, a copy takes 135 clocks, and copies would be the limit.
    auto issue_weights = [&](int n, int slot) {
        const int pass = n / panel_stages, unit = tile_stage(n % panel_stages, panel_stages) * p.k_slices;
        const int units = min(p.k_slices, p.panel_units - unit), first = pass * p.tile_panels;
        const int here = min(p.tile_panels, panels - first);
        if (lane == 0) barrier_expect(full + slot * 8, here * units * layout::bytes);
        __syncwarp();
        if (lane < here)
            copy_weights(ring + slot * p.stage_bytes + lane * p.k_slices * layout::bytes,
                         from + (first + lane) * panel_bytes + (size_t)unit * layout::bytes,
                         units * layout::bytes, full + slot * 8);
    };
    auto issue_activations = [&](int n, int slot) {
        const int column = tile_stage(n % panel_stages, panel_stages) * p.k_slices * layout::cols;
        const uint32_t to = ring + slot * p.stage_bytes + p.tile_panels * p.k_slices * layout::bytes;
        for (int c = lane; c < p.k_slices * layout::cols / 8; c += WARP) {
            const bool inside = column + c * 8 < p.n_cols;
            const uint8_t *x = p.x + (inside ? (size_t)(column + c * 8) * 2 : 0);
            for (int m = 0; m < p.n_tokens; m++)
                copy_activations(to + m * p.x_row_bytes + c * 16, x + m * p.x_stride, inside);
        }
        barrier_arrive_after_copies(full + slot * 8);
    };

    const int ahead = min(p.stages, n_stages);
    if (lane == 0) {
        for (int s = 0; s < p.stages; s++)
            barrier_init(full + s * 8, 1 + WARP), barrier_init(empty + s * 8, TILE_WARPS * WARP);
        barrier_init_fence();
    }
    __syncwarp();
    for (int n = 0; n < ahead; n++) issue_weights(n, n);
    if (p.releases) dependents_launch();
    if (p.overlap) dependency_wait();
    __syncthreads();
    for (int n = 0; n < ahead; n++) issue_activations(n, n);
    uint32_t parity = 0;
    for (int n = ahead, slot = 0; n < n_stages; n++) {
        barrier_wait(empty + slot * 8, parity);
        issue_weights(n, slot);
        issue_activations(n, slot);
        if (++slot == p.stages) slot = 0, parity ^= 1;
    }
}

template <int BITS, int GROUP, int N_TILES>
__global__ void __launch_bounds__(TILE_THREADS, 1) lut_tile(const __grid_constant__ lut_params p) {
#if __CUDA_ARCH__ >= 900
    using layout = unit_layout<BITS, GROUP>;
    enum { TOKENS = N_TILES * 8 };
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int panel0 = blockIdx.x * p.cta_panels, panels = min(p.cta_panels, p.n_panels - panel0);
    if (warp == TILE_WARPS) return tile_produce<BITS, GROUP>(p, smem, panel0, panels);

    if (p.releases) dependents_launch();
    table_build<BITS>(smem, p.table, TILE_WARPS);
    if (p.overlap) dependency_wait(); // for y, which the epilogue may read
    __syncthreads();

    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const int pairs = (p.tile_panels + 1) / 2, my_panel = warp % pairs * 2, slice = warp / pairs;
    const int panel_stages = (p.panel_units + p.k_slices - 1) / p.k_slices;
    const uint32_t panel_bytes = p.k_slices * layout::bytes;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const uint32_t codes_at = keep_in_register(ring + my_panel * panel_bytes + slice * layout::bytes);
    const uint32_t x_at = keep_in_register(ring + p.tile_panels * panel_bytes + lane / 4 * p.x_row_bytes +
                                           (slice * layout::cols + lane % 4 * 8) * 2);
    const uint32_t lane_offset = keep_in_register(table_lane_offset<BITS>(lane));
    float *sums_to = (float *)(smem + p.sums_at);
    int slot = 0;
    uint32_t parity = 0;

    for (int first = 0; first < panels; first += p.tile_panels) {
        const int here = min(p.tile_panels, panels - first);
        const int mine =
            slice < p.k_slices ? min(2, here - my_panel) : 0; // panels of this warp, 0 or less: none
        float sums[2][N_TILES][4] = {};
        for (int n = 0; n < panel_stages; n++) {
            const int unit = tile_stage(n, panel_stages) * p.k_slices + slice;
            barrier_wait(full + slot * 8, parity);
            const uint32_t at = slot * p.stage_bytes;
            if (mine == 2 && unit < p.panel_units)
                tile_multiply_add<BITS, GROUP, N_TILES, 2>(codes_at + at, panel_bytes, x_at + at,
                                                           p.x_row_bytes, smem, lane_offset, lane, sums);
            else if (mine == 1 && unit < p.panel_units)
                tile_multiply_add<BITS, GROUP, N_TILES, 1>(codes_at + at, panel_bytes, x_at + at,
                                                           p.x_row_bytes, smem, lane_offset, lane, sums);
            uint32_t used = 0;
#pragma unroll
            for (int i = 0; i < 2 * N_TILES; i++) used |= __float_as_uint(sums[i / N_TILES][i % N_TILES][0]);
            barrier_arrive_after(empty + slot * 8, used & p.always_zero);
            if (++slot == p.stages) slot = 0, parity ^= 1;
        }
        tile_leave_sums<N_TILES>(p, panel0 + first, my_panel, slice, mine, lane, sums, sums_to);
        if (p.k_slices == 1) continue;
        barrier_sync(1, TILE_CONSUMERS);
        store_panels<TOKENS>(p, sums_to, p.k_slices, panel0 + first, here, TILE_CONSUMERS, NULL);
        barrier_sync(1, TILE_CONSUMERS);
    }
#endif
}

template <int BITS, int GROUP> lut_kernel lut_tile_pick(int n_tiles) {
    return n_tiles == 1   ? lut_tile<BITS, GROUP, 1>
           : n_tiles == 2 ? lut_tile<BITS, GROUP, 2>
                          : lut_tile<BITS, GROUP, 4>;
}

#endif
