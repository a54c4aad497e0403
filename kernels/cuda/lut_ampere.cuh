// y = x · Wᵀ on GPUs of compute capability 8.x (Ampere, Ada), 1 to 32 tokens: cp.async and mma.sync.
//
// Work. As lut_tile: a block of threads, one on each SM, owns whole panels, its warps are a grid of pairs of
// panels × slices of K, and a warp keeps its sums in registers through all of K. No block waits for another,
// and sums are added in a fixed order. There is no producer: eight to sixteen warps multiply, and all of
// them copy.
//
// The stream. A stage holds one unit of K for each slice: of every panel its codes and scales, which the warp
// copies that will multiply them, and the activations that all panels share, of which each thread copies
// some. Two to four stages, as many as fit, are a ring. One barrier for each stage says that everyone's
// copies of it have landed and that everyone is done with the slot that is filled next. Up to seven tokens
// take the room of seven rows of activations, not of eight: the columns of an mma that are left read the last
// token again, and nobody stores what they give.
//
// Shared memory is what these GPUs lack: 163 KB for a block at 8.0, 99 KB at 8.6 and 8.9, of which the table
// takes 64. What is left holds 16 units of 4 bits twice at 8.6; there 32 tokens go in two pieces.
//
// Roofline, clocks of an SM for 16 × 128 weights at 4 bits, group 128 (1088 bytes). What memory delivers to
// an SM in a clock: A100 80 GB 13.4 bytes (2039 GB/s, 108 SMs, 1.41 GHz), A100 40 GB 10.2, RTX 3090 6.7 (936,
// 82, 1.70), RTX 4090 3.1 (1008, 128, 2.52).
//
//                    A100 80 GB   40 GB   3090   4090
//   DRAM             81           107     162    351
//   shared memory    57           57      57     57    table 32, codes in and out 17, activations out 8
//   tensor cores     16           16      64     64    for each eight tokens
//   instructions     40           40      40     40    90 to multiply, 70 to copy and wait; four schedulers
//
// So memory is the limit up to 16 tokens (two tiles of eight: shared memory 65, tensor cores 128 at most).
// What keeps it from 100 % are starts and ends: the table and the first stage, 2 to 3 µs of 61 for 57344 ×
// 4096 on an A100 80 GB, the barriers, and SMs without work where panels do not divide evenly (28672 rows: 17
// panels for each of 106 SMs of 108; 4096 rows: three for each of 86). lut_tile, the same loop behind another
// way of copying, takes 13.5 bytes a clock from memory on an H200 at 8 tokens (57344 × 8192), as many as an
// A100 has. Expected: 70 to 85 % of the bandwidth on matrices of 100 MB and more, 40 to 60 % at 4096 × 4096.
// None of this was measured: no such card was at hand.
#ifndef FLUTE_CUDA_LUT_AMPERE_CUH
#define FLUTE_CUDA_LUT_AMPERE_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/lut_multiply.cuh"

// Which stage of the panels of a block comes next: passes over K, stages of one, slots of the ring.
struct ampere_walk {
    int first = 0, n = 0, slot = 0; // the pass's first panel of the block, its n-th stage

    __device__ __forceinline__ void next(const lut_params &p, int panel_stages) {
        if (++slot == p.stages) slot = 0;
        if (++n == panel_stages) n = 0, first += p.tile_panels;
    }
};

// Where the copies of a thread begin and how they go on, 16 bytes of a token's activations each: a stage has
// `chunks` for each token.
struct ampere_chunks {
    int chunks, token, chunk, tokens_on, chunks_on;

    __device__ __forceinline__ ampere_chunks(int per_token, int threads)
        : chunks(per_token), token(threadIdx.x / per_token), chunk(threadIdx.x % per_token),
          tokens_on(threads / per_token), chunks_on(threads % per_token) {}
};

// Waits for the oldest of p.stages − 1 groups of copies.
__device__ __forceinline__ void ampere_wait(int stages) {
    if (stages == 2)
        copies_wait<0>();
    else if (stages == 3)
        copies_wait<1>();
    else
        copies_wait<AMPERE_STAGES - 2>();
}

// This thread's copies of a unit: codes and scales of one panel.
template <int BYTES> __device__ __forceinline__ void ampere_copy_unit(uint32_t to, const uint8_t *from) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int at = 0; at < BYTES; at += WARP * 16)
        if (at + WARP * 16 <= BYTES || at + lane * 16 < BYTES)
            copy_weights16(to + at + lane * 16, from + at + lane * 16);
}

template <int BITS, int GROUP, int N_TILES>
__global__ void __launch_bounds__(ampere_warps(N_TILES * 8) * WARP, 1)
    lut_ampere(const __grid_constant__ lut_params p) {
    using layout = unit_layout<BITS, GROUP>;
    enum { TOKENS = N_TILES * 8, WARPS = ampere_warps(TOKENS), THREADS = WARPS * WARP };
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int panel0 = blockIdx.x * p.cta_panels, panels = min(p.cta_panels, p.n_panels - panel0);
    const int pairs = (p.tile_panels + 1) / 2, my_panel = warp % pairs * 2, slice = warp / pairs;
    const int panel_stages = (p.panel_units + p.k_slices - 1) / p.k_slices;
    const uint32_t panel_bytes = p.k_slices * layout::bytes, x_offset = p.tile_panels * panel_bytes;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const uint32_t mine_at = keep_in_register(ring + my_panel * panel_bytes + slice * layout::bytes);
    const size_t panel_stride = (size_t)p.panel_units * layout::bytes;
    const uint8_t *const weights = p.weights + (panel0 + my_panel) * panel_stride;
    const ampere_chunks x_chunks(p.k_slices * layout::cols / 8, THREADS);
    // Panels of this warp in the pass that begins with `first`: 2, 1, or none.
    auto panels_of = [&](int first) {
        const int here = min(p.tile_panels, panels - first);
        return slice < p.k_slices ? max(0, min(2, here - my_panel)) : 0;
    };

    ampere_walk ahead;
    auto copy_stage = [&]() {
        if (ahead.first < panels) {
            const int unit0 = tile_stage(ahead.n, panel_stages) * p.k_slices, unit = unit0 + slice;
            const int mine = unit < p.panel_units ? panels_of(ahead.first) : 0;
            const uint8_t *from = weights + ahead.first * panel_stride + (size_t)unit * layout::bytes;
            const uint32_t slot_at = ahead.slot * p.stage_bytes;
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (i < mine)
                    ampere_copy_unit<layout::bytes>(mine_at + slot_at + i * panel_bytes,
                                                    from + i * panel_stride);
            const uint32_t to = ring + slot_at + x_offset;
            for (int token = x_chunks.token, chunk = x_chunks.chunk; token < p.n_tokens;) {
                const int column = unit0 * layout::cols + chunk * 8;
                const bool inside = column < p.n_cols;
                copy_activations(to + token * p.x_row_bytes + chunk * 16,
                                 p.x + token * p.x_stride + (inside ? (int64_t)column * 2 : 0), inside);
                token += x_chunks.tokens_on, chunk += x_chunks.chunks_on;
                if (chunk >= x_chunks.chunks) chunk -= x_chunks.chunks, token++;
            }
            ahead.next(p, panel_stages);
        }
        copies_commit(); // of nothing, at the end: a wait counts groups
    };

    if (p.overlap) dependents_launch(), dependency_wait();
    for (int s = 0; s < p.stages - 1; s++) copy_stage();
    table_build<BITS>(smem, p.table, WARPS);

    const uint32_t x_at = keep_in_register(ring + x_offset + min(lane / 4, p.n_tokens - 1) * p.x_row_bytes +
                                           (slice * layout::cols + lane % 4 * 8) * 2);
    const uint32_t lane_offset = keep_in_register(table_lane_offset<BITS>(lane));
    float *const sums_to = (float *)(smem + p.sums_at);
    for (ampere_walk now; now.first < panels;) {
        const int first = now.first, mine = panels_of(first);
        float sums[2][N_TILES][4] = {};
        while (now.first == first) {
            const int unit = tile_stage(now.n, panel_stages) * p.k_slices + slice;
            ampere_wait(p.stages);
            __syncthreads();
            copy_stage();
            const uint32_t at = now.slot * p.stage_bytes;
            if (mine == 2 && unit < p.panel_units)
                tile_multiply_add<BITS, GROUP, N_TILES, 2>(mine_at + at, panel_bytes, x_at + at,
                                                           p.x_row_bytes, smem, lane_offset, lane, sums);
            else if (mine == 1 && unit < p.panel_units)
                tile_multiply_add<BITS, GROUP, N_TILES, 1>(mine_at + at, panel_bytes, x_at + at,
                                                           p.x_row_bytes, smem, lane_offset, lane, sums);
            now.next(p, panel_stages);
        }
        tile_leave_sums<N_TILES>(p, panel0 + first, my_panel, slice, mine, lane, sums, sums_to);
        if (p.k_slices == 1) continue;
        __syncthreads(); // the next sums come behind the barrier of a stage
        store_panels<TOKENS>(p, sums_to, p.k_slices, panel0 + first, min(p.tile_panels, panels - first),
                             THREADS, NULL);
    }
}

template <int BITS, int GROUP> lut_kernel lut_ampere_pick(int n_tiles) {
    return n_tiles == 1   ? lut_ampere<BITS, GROUP, 1>
           : n_tiles == 2 ? lut_ampere<BITS, GROUP, 2>
                          : lut_ampere<BITS, GROUP, 4>;
}

#endif
