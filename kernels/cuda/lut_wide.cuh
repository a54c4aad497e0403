// y = x · Wᵀ for many tokens on Hopper: prompts, and batches that lut_tile is too narrow for.
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
// are exact to fp32. Beyond, 64 more registers a thread are not to be had: table value × scale is rounded to
// bf16 once, as a dense bf16 model's weights are.
//
// A tile shared by several blocks. Whoever goes on to another tile leaves all its sums in global memory; the
// others divide the tokens among themselves, leave what is not theirs, and add to their own sums those of the
// others, in the order of the blocks, as they arrive: a place is empty until its sums are there, and whoever
// takes them leaves it empty for the next kernel. Nobody waits before its last tile, and all blocks of a grid
// are resident.
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
// the tensor cores beyond. Codes at 2 and 3 bits: 4 and 6 instead of 8; at 8 bits the table takes 32 and
// codes
// 16. A taller tile would leave no registers for sums; a wider one (128 × 256) saves 4 of the 64 clocks and
// asks L2 for half as many bytes again (36 a clock instead of 24). Instructions: 28 for a step of k = 16 and
// a warp at 128 tokens, 112 of the 256 issue slots of its quarter of the SM.
#ifndef FLUTE_CUDA_LUT_WIDE_CUH
#define FLUTE_CUDA_LUT_WIDE_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"

// Five warps on each quarter of an SM: 96 registers a thread, of which the producer's needs few.
enum { WIDE_PRODUCER_REGISTERS = 32, WIDE_CONSUMER_REGISTERS = 112 };

// Stages [first, last) of a tile.
struct wide_segment {
    int tile, first, last;
};

// The segments of a block, in order: whole tiles in waves, then its share of the rest.
struct wide_walk {
    int wave = 0, at, end; // at, end: stages of the rest

    // The first stage of the rest that is block `cta`'s: blocks have rest_each stages, the first rest_more of
    // them one more.
    static __device__ __forceinline__ int start(const lut_params &p, int cta) {
        return cta * p.rest_each + min(cta, p.rest_more);
    }
    // Whose stage of the rest this is.
    static __device__ __forceinline__ int owner(const lut_params &p, int stage) {
        const int more = p.rest_more * (p.rest_each + 1);
        return stage < more ? stage / (p.rest_each + 1) : p.rest_more + (stage - more) / p.rest_each;
    }

    __device__ __forceinline__ explicit wide_walk(const lut_params &p)
        : at(start(p, blockIdx.x)), end(start(p, blockIdx.x + 1)) {}

    __device__ __forceinline__ bool next(const lut_params &p, wide_segment &s) {
        if (wave < p.waves) {
            s.tile = wave++ * gridDim.x + blockIdx.x, s.first = 0, s.last = p.tile_stages;
            return true;
        }
        if (at >= end) return false;
        s.tile = p.waves * gridDim.x + at / p.tile_stages, s.first = at % p.tile_stages;
        s.last = min(p.tile_stages, s.first + end - at);
        at += s.last - s.first;
        return true;
    }
};

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

// Tensor cores read A from registers that change again when the wgmma after the next one has been prepared.
enum { WIDE_AHEAD = 3 };

// sums += BLOCKS blocks, exactly: the sums of each group of columns in d, then times its scale.
template <int BITS, int GROUP, int TOKENS, int BLOCKS, int N>
__device__ __forceinline__ void wide_add_exact(const wide_lane &l, const wide_slot<BITS, GROUP, TOKENS> &slot,
                                               float (&sums)[N]) {
    enum { GROUP_RUNS = GROUP >= 128 ? RUNS : GROUP / 32, ALL_RUNS = BLOCKS * RUNS };
    block_codes<BITS> codes;
    uint32_t a[WIDE_AHEAD][8];
    float d[N];
    auto prepare = [&](int run) {
        const uint32_t at = slot.codes(run / RUNS);
        if (run % RUNS == 0) codes.load(at, at - l.lane * 8);
        wide_decode<BITS>(l, codes, run % RUNS, a[run % WIDE_AHEAD]);
    };
    prepare(0);
#pragma unroll
    for (int run = 0; run < ALL_RUNS; run++) {
        const uint32_t(&now)[8] = a[run % WIDE_AHEAD];
        const int block = run / RUNS, step = run % RUNS * 2;
        wgmma_fence();
        wgmma(d, now[0], now[1], now[2], now[3], slot.activations(block, step), run % GROUP_RUNS > 0);
        wgmma(d, now[4], now[5], now[6], now[7], slot.activations(block, step + 1), 1);
        wgmma_commit();
        if (run + 1 < ALL_RUNS) prepare(run + 1);
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

// A scale as the sum of two bf16, twice each, for rows g and g + 8.
struct wide_scale {
    uint32_t high[2], low[2];

    __device__ __forceinline__ void load(uint32_t at) {
        const uint32_t bits = load_shared(at);
        const float2 scale = __half22float2(*(const __half2 *)&bits);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float v = half ? scale.y : scale.x;
            const __nv_bfloat16 h = __float2bfloat16_rn(v),
                                rest = __float2bfloat16_rn(v - __bfloat162float(h));
            high[half] = __bfloat16_as_ushort(h) * 0x10001u,
            low[half] = __bfloat16_as_ushort(rest) * 0x10001u;
        }
    }

    // Two weights times the scale of row g + 8·half; rounds once, but for a rounding of the last of 16 bits.
    __device__ __forceinline__ uint32_t apply(uint32_t a, int half) const {
        return bf16x2_fma(a, high[half], bf16x2_mul(a, low[half]));
    }
};

// sums += one block, weights times scales. add: 0 starts anew. Steps of k = 16, because sums leave few
// registers.
template <int BITS, int GROUP, int TOKENS, int N>
__device__ __forceinline__ void
wide_add_scaled(const wide_lane &l, const wide_slot<BITS, GROUP, TOKENS> &slot, int add, float (&sums)[N]) {
    enum { GROUP_STEPS = GROUP >= 128 ? 2 * RUNS : GROUP / 16 };
    block_codes<BITS> codes;
    wide_scale scale;
    uint32_t a[WIDE_AHEAD][4];
    codes.load(slot.codes(0), slot.codes(0) - l.lane * 8);
    auto prepare = [&](int step) {
        if (step % GROUP_STEPS == 0) scale.load(slot.scales(0) + step / GROUP_STEPS * 32);
        uint32_t both[8];
        wide_decode<BITS>(l, codes, step / 2, both); // the half that is not used costs nothing
#pragma unroll
        for (int i = 0; i < 4; i++) a[step % WIDE_AHEAD][i] = scale.apply(both[step % 2 * 4 + i], i % 2);
    };
    prepare(0);
#pragma unroll
    for (int step = 0; step < 2 * RUNS; step++) {
        const uint32_t(&now)[4] = a[step % WIDE_AHEAD];
        wgmma_fence();
        wgmma(sums, now[0], now[1], now[2], now[3], slot.activations(0, step), step > 0 ? 1 : add);
        wgmma_commit();
        if (step + 1 == 2 * RUNS) break;
        prepare(step + 1);
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
}

// Which blocks share a tile of the rest, and which tokens are left to this one.
struct wide_share {
    int first_cta, n_ctas, n_stay; // that have stages of it; the first n_stay have no tile after it
    int first, last;               // eights of tokens that this block stores
    bool stays;

    __device__ __forceinline__ wide_share(const lut_params &p, int tile, int n_eights) {
        const int begin = (tile - p.waves * (int)gridDim.x) * p.tile_stages, end = begin + p.tile_stages;
        first_cta = wide_walk::owner(p, begin);
        const int last_cta = wide_walk::owner(p, end - 1), me = blockIdx.x - first_cta;
        n_ctas = last_cta - first_cta + 1;
        n_stay = n_ctas - (wide_walk::start(p, last_cta + 1) > end);
        stays = me < n_stay;
        first = stays ? me * n_eights / n_stay : 0, last = stays ? (me + 1) * n_eights / n_stay : 0;
    }
};

// The partial sums of a thread: one float4 for each eight tokens, those of neighbouring threads adjacent. A
// block has two tiles to leave: one that it goes on from and one that it stays with.
template <int TOKENS>
__device__ __forceinline__ float4 *wide_partials(const lut_params &p, int cta, bool stays) {
    return p.partials + (size_t)(cta * 2 + stays) * (TOKENS / 8) * WIDE_CONSUMERS + threadIdx.x;
}

// Leaves the sums that are not this block's to store.
template <int N>
__device__ __forceinline__ void wide_leave(const lut_params &p, const wide_share &share,
                                           const float (&sums)[N]) {
    float4 *to = wide_partials<2 * N>(p, blockIdx.x, share.stays);
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        if (i < share.first || i >= share.last)
            leave_partial(to + i * WIDE_CONSUMERS,
                          make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
}

// Waits until the other blocks have left their sums, as far as the last of them tells that each stores: a
// lane looks at one block's. Looking at all of them again and again would hold the stores up.
template <int TOKENS>
__device__ __forceinline__ void wide_await(const lut_params &p, const wide_share &share) {
    for (int i = threadIdx.x % WARP; i < share.n_ctas; i += WARP) {
        const int cta = share.first_cta + i;
        if (cta == (int)blockIdx.x) continue;
        const float4 *last =
            wide_partials<TOKENS>(p, cta, i < share.n_stay) + (share.last - 1) * WIDE_CONSUMERS;
        float4 v = load_partial(last);
        await_partial(last, v);
    }
    __syncwarp();
}

// Adds what the other blocks leave of the tokens that are this block's to store, in the order of the blocks.
// Nobody else takes it. A load takes most of a microsecond: those of EIGHTS eights and OTHERS blocks are
// under way together, as many as registers are left for.
template <int N>
__device__ __forceinline__ void wide_collect(const lut_params &p, const wide_share &share, float (&sums)[N]) {
    enum { EIGHTS = N > 32 ? 2 : 1, OTHERS = N > 32 ? 1 : 4 };
    const int me = blockIdx.x - share.first_cta, n_others = share.n_ctas - 1;
    wide_await<2 * N>(p, share);
#pragma unroll
    for (int e = 0; e < N / 4; e += EIGHTS) {
        if (e + EIGHTS <= share.first || e >= share.last) continue;
#pragma unroll 1
        for (int other = 0; other < n_others; other += OTHERS) {
            float4 v[OTHERS][EIGHTS] = {};
            auto for_each = [&](auto what) {
#pragma unroll
                for (int i = 0; i < OTHERS; i++) {
                    const int cta = other + i + (other + i >= me);
                    float4 *from = wide_partials<2 * N>(p, share.first_cta + cta, cta < share.n_stay);
#pragma unroll
                    for (int k = 0; k < EIGHTS; k++)
                        if (other + i < n_others && e + k >= share.first && e + k < share.last)
                            what(from + (e + k) * WIDE_CONSUMERS, v[i][k], sums + (e + k) * 4);
                }
            };
            for_each([](float4 *from, float4 &v, float *) { v = load_partial(from); });
            for_each([](float4 *from, float4 &v, float *to) {
                take_partial(from, v);
                to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
            });
        }
    }
}

// Stores eights [first, last) of the tokens of this warp's panel. An eight goes through shared memory, so
// that a lane holds four rows of one token; token to token WIDE_PITCH floats, which meet no bank twice.
template <int N>
__device__ __forceinline__ void wide_store(const lut_params &p, uint8_t *smem, int panel, int token,
                                           int first, int last, const float (&sums)[N]) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    float *const eight = (float *)(smem + p.sums_at) + threadIdx.x / WARP * 8 * WIDE_PITCH;
    if (panel >= p.n_panels) return;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        if (i < first || i >= last) continue;
        float *const to = eight + 2 * t * WIDE_PITCH + g;
        to[0] = sums[4 * i], to[WIDE_PITCH] = sums[4 * i + 1];
        to[8] = sums[4 * i + 2], to[WIDE_PITCH + 8] = sums[4 * i + 3];
        __syncwarp();
        store_quarter(p, panel, token + i * 8 + g, t, eight + g * WIDE_PITCH);
        __syncwarp();
    }
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
            else if (shape::blocks(p, n) == stage.blocks)
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

// All kernels of one width.
#define LUT_WIDE_INSTANTIATE(BITS)                                                                           \
    lut_kernel lut_wide_w##BITS(int group, int tokens) {                                                     \
        switch (group) {                                                                                     \
        case 32:                                                                                             \
            return lut_wide_pick<BITS, 32>(tokens);                                                          \
        case 64:                                                                                             \
            return lut_wide_pick<BITS, 64>(tokens);                                                          \
        case 128:                                                                                            \
            return lut_wide_pick<BITS, 128>(tokens);                                                         \
        default:                                                                                             \
            return lut_wide_pick<BITS, 256>(tokens);                                                         \
        }                                                                                                    \
    }

#endif
