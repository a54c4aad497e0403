// y = x · Wᵀ for many tokens on Hopper: prompts, and batches from 5 tokens on.
//
// Work. A tile is 256 rows × 8 to 128 tokens. Four warpgroups take 64 rows of it each with wgmma, weights as
// the A operand from registers: a warp's 16 rows are a panel, and the packed order is the order in which
// wgmma wants them. Tokens are the B operand, in shared memory. Every SM runs one block of threads. Blocks
// take whole tiles in waves, neighbours at the same time, so that W and x are shared through L2; the stages
// of K of the last tiles, one to two for each block, are divided evenly, and blocks that meet in a tile add
// up their sums.
//
// The stream. Two more warps fill a ring. A stage is 128 columns (256 for few tokens): codes and scales of 16
// panels, a bulk copy each, and one for the activations, which lut_arrange has laid out as they lie in shared
// memory. The first weights are under way before the kernels ahead have finished.
//
// Sums. Up to 64 tokens a group's fp32 sums are multiplied by its scale, as in the other kernels, and results
// are exact to fp32. Beyond, 64 more registers a thread are not to be had: the scale, and the table value
// times it, are rounded to bf16. (The scale as a sum of two bf16 would be exact, and costs 8 % of the time.)
//
// Roofline on an H200, clocks of an SM for 64 × 16 weights at 4 bits, group 128:
//
//   tokens         DRAM  tensor cores  shared memory: table + codes in and out + B out and (of a fourth) in
//   16             29      8           16 + 8 + 4 + 1 = 29
//   32             29     16           16 + 8 + 8 + 2 = 34
//   64             29     32           16 + 8 + 16 + 4 = 44
//   128            15     64           16 + 8 + 32 + 8 = 64
//
// DRAM counts for one tile of tokens (two at 128). Shared memory is the limit up to 64 tokens and a tie with
// the tensor cores beyond; there a kernel without lookups was no faster. Codes at 2 and 3 bits: 4 and 6
// instead of 8; at 8 bits the table takes 32 and codes 16. A taller tile would leave no registers for sums; a
// wider one (128 × 256) saves 4 of the 64 clocks and asks L2 for half as many bytes again (36 a clock instead
// of 24). Instructions of 128 columns and a warp at 4 bits: 115 to 32 tokens, of 464 issue slots that DRAM
// leaves it.
#ifndef FLUTE_CUDA_LUT_WIDE_CUH
#define FLUTE_CUDA_LUT_WIDE_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/lut_wide_sums.cuh"

// Five warps on each quarter of an SM: 96 registers a thread, of which the producer's needs few.
enum { WIDE_PRODUCER_REGISTERS = 32, WIDE_CONSUMER_REGISTERS = 112 };

// Stages of a tile, in blocks of 128 columns and bytes.
template <int BITS, int GROUP, int TOKENS> struct wide_shape {
    using layout = unit_layout<BITS, GROUP>;
    static constexpr wide_stage stage = wide_stage_of(BITS, GROUP, TOKENS);
    enum { block_x = 128 * TOKENS * 2, units = stage.blocks / layout::blocks }; // units: 0 is half a unit

    // Blocks of stage n: the last of a tile may have fewer.
    static __device__ __forceinline__ int blocks(const lut_params &p, int n) {
        return min((int)stage.blocks, p.panel_units * layout::blocks - n * stage.blocks);
    }
};

// Calls fill(segment, slot) for each stage of this block when its slot is free; s.first is the stage.
template <typename F> __device__ __forceinline__ void wide_fill(const lut_params &p, uint32_t empty, F fill) {
    int slot = 0;
    uint32_t parity = 1; // of the phase before the first
    wide_segment s;
    for (wide_walk walk(p); walk.next(p, s);)
        for (; s.first < s.last; s.first++) {
            barrier_wait(empty + slot * 8, parity);
            fill(s, slot);
            if (++slot == p.stages) slot = 0, parity ^= 1;
        }
}

// A warp copies codes and scales, a lane a panel: a single thread would issue the copies one after the other.
// Where other tiles need the same weights they stay in L2.
template <int BITS, int GROUP, int TOKENS>
__device__ __forceinline__ void wide_produce_weights(const lut_params &p, uint32_t ring, uint32_t full,
                                                     uint32_t empty) {
    using shape = wide_shape<BITS, GROUP, TOKENS>;
    using layout = typename shape::layout;
    const int lane = threadIdx.x % WARP;
    const size_t panel_bytes = (size_t)p.panel_units * layout::bytes;
    auto copy = [&](uint32_t to, const uint8_t *from, uint32_t bytes, uint32_t barrier) {
        if (p.token_tiles > 1)
            copy_shared_by_many(to, from, bytes, barrier);
        else
            copy_weights(to, from, bytes, barrier);
    };
    wide_fill(p, empty, [&](const wide_segment &s, int slot) {
        const int first = s.tile / p.token_tiles * WIDE_PANELS,
                  panels = min((int)WIDE_PANELS, p.n_panels - first);
        const uint32_t bytes = shape::units > 0 ? shape::blocks(p, s.first) / layout::blocks * layout::bytes
                                                : layout::block_bytes + 32;
        const uint32_t to = ring + slot * shape::stage.bytes + lane * shape::stage.panel_bytes;
        const uint32_t barrier = full + slot * 8;
        if (lane == 0) barrier_expect(barrier, panels * bytes);
        __syncwarp();
        if (lane >= panels) return;
        const uint8_t *from = p.weights + (first + lane) * panel_bytes;
        if (shape::units > 0) {
            copy(to, from + (size_t)s.first * shape::units * layout::bytes, bytes, barrier);
        } else {
            from += (size_t)(s.first / 2) * layout::bytes;
            copy(to, from + s.first % 2 * layout::block_bytes, layout::block_bytes, barrier);
            copy(to + layout::block_bytes, from + layout::scales_at, 32, barrier);
        }
    });
}

// A thread copies activations: one piece a stage.
template <int BITS, int GROUP, int TOKENS>
__device__ __forceinline__ void wide_produce_activations(const lut_params &p, uint32_t ring, uint32_t full,
                                                         uint32_t empty) {
    using shape = wide_shape<BITS, GROUP, TOKENS>;
    const size_t tile_blocks = (size_t)p.panel_units * shape::layout::blocks;
    wide_fill(p, empty, [&](const wide_segment &s, int slot) {
        const uint32_t bytes = shape::blocks(p, s.first) * shape::block_x;
        barrier_expect(full + slot * 8, bytes);
        copy_shared_by_many(ring + slot * shape::stage.bytes + shape::stage.x_at,
                            p.x + (s.tile % p.token_tiles * tile_blocks + s.first * shape::stage.blocks) *
                                      shape::block_x,
                            bytes, full + slot * 8);
    });
}

template <int BITS, int GROUP, int TOKENS>
__device__ __forceinline__ void wide_produce(const lut_params &p, uint8_t *smem) {
    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const uint32_t ring = shared_address(smem + p.ring_at);
    if (threadIdx.x == WIDE_CONSUMERS) {
        for (int s = 0; s < p.stages; s++)
            barrier_init(full + s * 8, 2), barrier_init(empty + s * 8, WIDE_WARPS);
        barrier_init_fence();
    }
    __syncthreads();
    if (p.releases) dependents_launch();
    if (threadIdx.x / WARP == WIDE_WARPS) wide_produce_weights<BITS, GROUP, TOKENS>(p, ring, full, empty);
    if (threadIdx.x != WIDE_CONSUMERS + WARP) return;
    dependency_wait();
    wide_produce_activations<BITS, GROUP, TOKENS>(p, ring, full, empty);
}

// What a lane needs to turn codes into operands.
struct wide_lane {
    table_reader_fixed table;
    int lane;
};

template <int BITS>
__device__ __forceinline__ void wide_decode(const wide_lane &l, const block_codes<BITS> &codes, int run,
                                            uint32_t (&a)[8]) {
    decode_run<BITS>(codes, run, 0, l.table, a);
    if (BITS == 8) { // 16 · high + low is a whole number below 256: exact in bf16
        uint32_t low[8];
        decode_run<BITS>(codes, run, 1, l.table, low);
#pragma unroll
        for (int i = 0; i < 8; i++) a[i] = bf16x2_add(a[i], low[i]);
    }
}

// Where a lane finds its part of a stage in shared memory.
template <int BITS, int GROUP, int TOKENS> struct wide_slot {
    using shape = wide_shape<BITS, GROUP, TOKENS>;
    using layout = typename shape::layout;
    enum { SCALES_AT = shape::units > 0 ? layout::scales_at : layout::block_bytes };
    uint32_t codes_at, scales_at, x; // of block 0; x: a wgmma_base

    // The same of block `block`.
    static __device__ __forceinline__ int unit(int block) { return block / layout::blocks * layout::bytes; }
    __device__ __forceinline__ uint32_t codes(int block) const {
        return codes_at + unit(block) + block % layout::blocks * layout::block_bytes;
    }
    __device__ __forceinline__ uint32_t scales(int block) const { return scales_at + unit(block); }
    // The activations of one of its eight steps of k = 16: 32 bytes after the last, or in the next image.
    __device__ __forceinline__ uint64_t activations(int block, int step) const {
        return wgmma_descriptor(x, block * TOKENS * 256 + step / 4 * TOKENS * 128 + step % 4 * 32);
    }
};

// How many wgmma ahead operands are looked up: two where registers are left for it. Those of the wgmma before
// are still being read by then.
template <int TOKENS> struct wide_ahead {
    enum { runs = TOKENS <= 32 ? 2 : 1, buffers = runs + 2 };
};

// sums += BLOCKS blocks, exactly: the sums of each group of columns in d, then times its scale.
template <int BITS, int GROUP, int TOKENS, int BLOCKS, int N>
__device__ __forceinline__ void wide_add_exact(const wide_lane &l, const wide_slot<BITS, GROUP, TOKENS> &slot,
                                               float (&sums)[N]) {
    enum { GROUP_RUNS = GROUP >= 128 ? RUNS : GROUP / 32, ALL_RUNS = BLOCKS * RUNS };
    using ahead = wide_ahead<TOKENS>;
    block_codes<BITS> codes;
    uint32_t a[ahead::buffers][8];
    float d[N];
    auto prepare = [&](int run) {
        const uint32_t at = slot.codes(run / RUNS);
        if (run % RUNS == 0) codes.load(at, at - l.lane * 8);
        wide_decode<BITS>(l, codes, run % RUNS, a[run % ahead::buffers]);
    };
#pragma unroll
    for (int run = 0; run < ahead::runs; run++) prepare(run);
#pragma unroll
    for (int run = 0; run < ALL_RUNS; run++) {
        const uint32_t(&now)[8] = a[run % ahead::buffers];
        const int block = run / RUNS, step = run % RUNS * 2;
        wgmma_fence();
        wgmma(d, now[0], now[1], now[2], now[3], slot.activations(block, step), run % GROUP_RUNS > 0);
        wgmma(d, now[4], now[5], now[6], now[7], slot.activations(block, step + 1), 1);
        wgmma_commit();
        if (run + ahead::runs < ALL_RUNS) prepare(run + ahead::runs);
        if (run % GROUP_RUNS < GROUP_RUNS - 1) {
            wgmma_wait<1>();
            continue;
        }
        wgmma_wait<0>();
        wgmma_settle(d);
        const uint32_t bits = load_shared(slot.scales(block) + run % RUNS / GROUP_RUNS * 32);
        const float2 scale = __half22float2(*(const __half2 *)&bits);
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] += (i % 4 < 2 ? scale.x : scale.y) * d[i];
    }
}

// The scales of rows g and g + 8 in bf16, twice each.
struct wide_scale {
    uint32_t twice[2];

    __device__ __forceinline__ void load(uint32_t at) {
        const uint32_t bits = load_shared(at);
        const float2 scale = __half22float2(*(const __half2 *)&bits);
        twice[0] = bf16_pair(scale.x, scale.x), twice[1] = bf16_pair(scale.y, scale.y);
    }
};

// sums += one block, weights times scales. add: 0 starts anew. Steps of k = 16, because sums leave few
// registers.
template <int BITS, int GROUP, int TOKENS, int N>
__device__ __forceinline__ void
wide_add_scaled(const wide_lane &l, const wide_slot<BITS, GROUP, TOKENS> &slot, int add, float (&sums)[N]) {
    enum { GROUP_STEPS = GROUP >= 128 ? 2 * RUNS : GROUP / 16 };
    using ahead = wide_ahead<TOKENS>;
    block_codes<BITS> codes;
    wide_scale scale;
    uint32_t a[ahead::buffers][4];
    codes.load(slot.codes(0), slot.codes(0) - l.lane * 8);
    auto prepare = [&](int step) {
        if (step % GROUP_STEPS == 0) scale.load(slot.scales(0) + step / GROUP_STEPS * 32);
        uint32_t both[8];
        wide_decode<BITS>(l, codes, step / 2, both); // the half that is not used costs nothing
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[step % ahead::buffers][i] = bf16x2_mul(both[step % 2 * 4 + i], scale.twice[i % 2]);
    };
#pragma unroll
    for (int step = 0; step < ahead::runs; step++) prepare(step);
#pragma unroll
    for (int step = 0; step < 2 * RUNS; step++) {
        const uint32_t(&now)[4] = a[step % ahead::buffers];
        wgmma_fence();
        wgmma(sums, now[0], now[1], now[2], now[3], slot.activations(0, step), step > 0 ? 1 : add);
        wgmma_commit();
        if (step + ahead::runs < 2 * RUNS) prepare(step + ahead::runs);
        if (step + 1 < 2 * RUNS) wgmma_wait<1>();
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
}

template <int BITS, int GROUP, int TOKENS>
__device__ __forceinline__ void wide_consume(const lut_params &p, uint8_t *smem) {
    using shape = wide_shape<BITS, GROUP, TOKENS>;
    using slot_t = wide_slot<BITS, GROUP, TOKENS>;
    constexpr wide_stage stage = shape::stage;
    enum { N = TOKENS / 2, EXACT = TOKENS <= LUT_EXACT_TOKENS };
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    __syncthreads(); // the barriers are there
    if (p.releases) dependents_launch();
    table_build<BITS>(smem, p.table, WIDE_WARPS);
    dependency_wait(); // for y, which the epilogue may read, and for the partial sums
    barrier_sync(1, WIDE_CONSUMERS);

    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const wide_lane l = {{keep_in_register(shared_window(smem) | table_lane_offset<BITS>(lane))}, lane};
    const uint32_t codes_at = keep_in_register(warp * stage.panel_bytes + lane * 16),
                   scales_at = keep_in_register(warp * stage.panel_bytes + slot_t::SCALES_AT + lane / 4 * 4);
    float sums[N];
    int slot = 0;
    uint32_t parity = 0;
    wide_segment s;
    for (wide_walk walk(p); walk.next(p, s);) {
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] = 0.0f;
        for (int n = s.first; n < s.last; n++) {
            const uint32_t at = warp_uniform(ring + slot * stage.bytes);
            const slot_t in = {at + codes_at, at + scales_at, wgmma_base(at + stage.x_at)};
            barrier_wait(full + slot * 8, parity);
            if (!EXACT)
                wide_add_scaled(l, in, n > s.first, sums);
            else if (stage.blocks == 1 || shape::blocks(p, n) == stage.blocks)
                wide_add_exact<BITS, GROUP, TOKENS, stage.blocks>(l, in, sums);
            else // the last of a tile
                wide_add_exact<BITS, GROUP, TOKENS, 1>(l, in, sums);
            __syncwarp();
            if (lane == 0) barrier_arrive(empty + slot * 8);
            if (++slot == p.stages) slot = 0, parity ^= 1;
        }
        const int panel = s.tile / p.token_tiles * WIDE_PANELS + warp,
                  token = s.tile % p.token_tiles * TOKENS;
        int first = 0, last = TOKENS / 8;
        if (s.last - s.first < p.tile_stages) {
            const wide_share share(p, s.tile, TOKENS / 8);
            wide_leave(p, share, sums);
            first = share.first, last = share.last;
            if (first < last) wide_collect(p, share, sums);
        }
        wide_store(p, smem, panel, token, first, last, sums);
    }
}

template <int BITS, int GROUP, int TOKENS>
__global__ void __launch_bounds__(WIDE_THREADS, 1) lut_wide(const __grid_constant__ lut_params p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t smem[];
    if (threadIdx.x >= WIDE_CONSUMERS) {
        registers_give_up<WIDE_PRODUCER_REGISTERS>();
        wide_produce<BITS, GROUP, TOKENS>(p, smem);
    } else {
        registers_take<WIDE_CONSUMER_REGISTERS>();
        wide_consume<BITS, GROUP, TOKENS>(p, smem);
    }
#endif
}

template <int BITS, int GROUP> lut_kernel lut_wide_pick(int tokens) {
    return tokens == 8    ? lut_wide<BITS, GROUP, 8>
           : tokens == 16 ? lut_wide<BITS, GROUP, 16>
           : tokens == 32 ? lut_wide<BITS, GROUP, 32>
           : tokens == 64 ? lut_wide<BITS, GROUP, 64>
                          : lut_wide<BITS, GROUP, 128>;
}

#endif
