// y = x · Wᵀ for many tokens on Hopper: prompts, and batches from 5 tokens on.
//
// Work. A tile is 8 to 128 tokens × 64 rows for each of two to four warpgroups, which multiply with wgmma,
// weights as the A operand from registers: a warp's 16 rows are a panel, and the packed order is the order in
// which wgmma wants them. Tokens are the B operand, in shared memory. Every SM runs one block of threads.
// Blocks take whole tiles in waves, neighbours at the same time, so that W and x are shared through L2; the
// stages of K of the last tiles, one to two for each block, are divided evenly, and blocks that meet in a
// tile add up their sums. Four warpgroups need the fewest bytes and clocks for a product; with fewer there
// are more and smaller tiles, less often shared, by fewer blocks: lut_gemm.cu estimates which costs least.
//
// 128 tokens: two blocks, a cluster, have tiles one below the other and share x beyond that: each copies half
// of every stage into the shared memory of both (1 to 5 % at 2048 tokens).
//
// The stream. Two or three more warps fill a ring, another finds out with whom tiles are shared. A stage is
// 128 columns (256 for few tokens): codes and scales of the tile's panels, a bulk copy each, and one for the
// activations, which lut_arrange has laid out as they lie in shared memory. The first weights are under way
// before the kernels ahead have finished.
//
// Sums. Up to 64 tokens a group's fp32 sums are multiplied by its scale, as in the other kernels, and results
// are exact to fp32. Beyond, four warpgroups have no 64 more registers a thread: the scale, and the table
// value times it, are rounded to bf16, with fewer warpgroups as well, so that accuracy does not depend on the
// tile. (The scale as a sum of two bf16 would be exact, and costs 8 % of the time.)
//
// Roofline on an H200, four warpgroups, clocks of an SM for 64 × 16 weights at 4 bits, group 128:
//
//   tokens         DRAM  tensor cores  shared memory: table + codes in and out + B out and (of a fourth) in
//   16             29      8           16 + 8 + 4 + 1 = 29
//   32             29     16           16 + 8 + 8 + 2 = 34
//   64             29     32           16 + 8 + 16 + 4 = 44
//   128            15     64           16 + 8 + 32 + 8 = 64
//
// DRAM counts for one tile of tokens (two at 128). Shared memory is the limit up to 64 tokens and a tie with
// the tensor cores beyond, where three warpgroups (B in: 11) take 67 and two (16) 72. It is busy for four
// fifths of the time of the stages: at 256 tokens a kernel without lookups takes 5 % less, without copies
// 10 %, and without both its tensor cores never wait. A wgmma takes 13 clocks at least. Codes at 2 and 3
// bits: 4 and 6 instead of 8; at 8 bits the table takes 32 and codes 16. A taller tile would leave no
// registers for sums; a wider one (128 × 256) saves 4 of the 64 clocks and asks L2 for half as many bytes
// again. Instructions of 128 columns and a warp at 4 bits: 111 with 8 tokens, 123 with 32, of 464 issue slots
// that DRAM leaves it; the warp that copies takes some of these.
#ifndef FLUTE_CUDA_LUT_WIDE_CUH
#define FLUTE_CUDA_LUT_WIDE_CUH

#include <utility>

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/lut_wide_sums.cuh"

// Stages of a tile, in blocks of 128 columns and bytes.
template <int BITS, int GROUP, int TILE> struct wide_shape {
    using layout = unit_layout<BITS, GROUP>;
    static constexpr wide_tile tile = wide_tiles[TILE];
    static constexpr wide_stage stage = wide_stage_of(BITS, GROUP, tile);
    enum { TOKENS = tile.tokens, TEAM = tile.team, WARPS = tile.warps(), CONSUMERS = tile.consumers() };
    enum { block_x = 128 * TOKENS * 2, units = stage.blocks / layout::blocks }; // units: 0 is half a unit
    // Warps that copy weights. What they issue the consumers on their scheduler cannot: 8 instructions a
    // copy, 16 copies a stage, which is short from 64 tokens on.
    enum { COPIERS = TOKENS < 64 ? 1 : 2 };
    // Arrivals that free a slot: one of each warp of the team. In a cluster racecheck follows but the
    // arriving lane, so that there all lanes of the block arrive as well, while their last wgmma still runs.
    enum { ARRIVALS = WARPS * TEAM + (TEAM > 1 ? (int)CONSUMERS : 0) };
    using walk = wide_walk<TILE>;
    using team = wide_team<TILE>;

    // Blocks of stage n: the last of a tile may have fewer.
    static __device__ __forceinline__ int blocks(const lut_params &p, int n) {
        return min((int)stage.blocks, p.panel_units * layout::blocks - n * stage.blocks);
    }
    // The first panel of this block in a tile of its team.
    static __device__ __forceinline__ int panel(const lut_params &p, const wide_segment &s) {
        return (s.tile / p.token_tiles * TEAM + team::rank()) * WARPS;
    }
};

// A position in the ring, and which phase of its slot this is.
struct wide_ring {
    int slot = 0;
    uint32_t parity;

    __device__ __forceinline__ explicit wide_ring(uint32_t parity) : parity(parity) {}
    __device__ __forceinline__ void advance(const lut_params &p) {
        if (++slot == p.stages) slot = 0, parity ^= 1;
    }
};

// All threads of the team meet, behind the setup of its barriers.
template <int TEAM> __device__ __forceinline__ void wide_meet() {
    if (TEAM == 1) return __syncthreads();
    cluster_arrive();
    cluster_wait();
}

// For each segment of this block fill = start(segment), and fill(stage, slot) for each of its stages when the
// slot is free, in the whole team.
template <int TILE, typename F>
__device__ __forceinline__ wide_ring wide_fill(const lut_params &p, uint32_t empty, F start) {
    wide_ring at(1); // the phase before the first
    wide_segment s;
    for (wide_walk<TILE> walk(p); walk.next(p, s);) {
        const auto fill = start(s);
        for (int stage = s.first; stage < s.last; stage++, at.advance(p)) {
            barrier_wait(empty + at.slot * 8, at.parity);
            fill(stage, at.slot);
        }
    }
    return at;
}

// A warp copies codes and scales of its share of the panels, a lane a panel: a single thread would issue the
// copies one after the other. Where other tiles need the same weights they stay in L2.
template <int BITS, int GROUP, int TILE>
__device__ __forceinline__ void wide_produce_weights(const lut_params &p, int copier, uint32_t ring,
                                                     uint32_t full, uint32_t empty) {
    using shape = wide_shape<BITS, GROUP, TILE>;
    using layout = typename shape::layout;
    enum { SHARE = shape::WARPS / shape::COPIERS };
    const int lane = threadIdx.x % WARP;
    const size_t panel_bytes = (size_t)p.panel_units * layout::bytes;
    ring += (copier * SHARE + lane) * shape::stage.panel_bytes;
    // What all lanes have, in a uniform register, or each copy puts it there anew. (Two copiers: ptxas
    // spills.)
    auto same = [](uint32_t v) { return shape::COPIERS == 1 ? warp_uniform(v) : v; };
    auto copy = [&](uint32_t to, const uint8_t *from, uint32_t bytes, uint32_t barrier) {
        if (p.token_tiles > 1)
            copy_shared_by_many(to, from, bytes, barrier);
        else
            copy_weights(to, from, bytes, barrier);
    };
    wide_fill<TILE>(p, empty, [&](const wide_segment &s) {
        const int first = shape::panel(p, s) + copier * SHARE,
                  panels = max(0, min((int)SHARE, p.n_panels - first));
        const uint8_t *from = p.weights + (first + lane) * panel_bytes;
        return [=, &p, &copy, &same](int stage, int slot) {
            const uint32_t bytes =
                same(shape::units > 0 ? shape::blocks(p, stage) / layout::blocks * layout::bytes
                                      : layout::block_bytes + 32);
            const uint32_t to = ring + slot * shape::stage.bytes, barrier = same(full + slot * 8);
            if (lane == 0) barrier_expect(barrier, panels * bytes);
            __syncwarp();
            if (lane >= panels) return;
            if (shape::units > 0) {
                copy(to, from + (size_t)stage * shape::units * layout::bytes, bytes, barrier);
            } else {
                const uint8_t *unit = from + (size_t)(stage / 2) * layout::bytes;
                copy(to, unit + stage % 2 * layout::block_bytes, layout::block_bytes, barrier);
                copy(to + layout::block_bytes, unit + layout::scales_at, 32, barrier);
            }
        };
    });
}

// A thread copies activations: one piece a stage, of which each block of a team copies a part for all.
template <int BITS, int GROUP, int TILE>
__device__ __forceinline__ void wide_produce_activations(const lut_params &p, uint32_t ring, uint32_t full,
                                                         uint32_t empty) {
    using shape = wide_shape<BITS, GROUP, TILE>;
    const size_t tile_blocks = (size_t)p.panel_units * shape::layout::blocks;
    wide_ring at = wide_fill<TILE>(p, empty, [&](const wide_segment &s) {
        const uint8_t *const tile = p.x + s.tile % p.token_tiles * tile_blocks * shape::block_x;
        return [=, &p](int stage, int slot) {
            const uint32_t bytes = shape::blocks(p, stage) * shape::block_x, part = bytes / shape::TEAM,
                           to = ring + slot * shape::stage.bytes + shape::stage.x_at,
                           barrier = full + slot * 8;
            const uint8_t *from = tile + (size_t)stage * shape::stage.blocks * shape::block_x;
            barrier_expect(barrier, bytes);
            if (shape::TEAM == 1) return copy_shared_by_many(to, from, bytes, barrier);
            const uint32_t skip = shape::team::rank() * part;
            copy_to_cluster(to + skip, from + skip, part, barrier, (1 << shape::TEAM) - 1);
        };
    });
    // A block must not end while others of its team still arrive at its barriers.
    for (int i = 0; i < p.stages && shape::TEAM > 1; i++, at.advance(p))
        barrier_wait(empty + at.slot * 8, at.parity);
}

template <int BITS, int GROUP, int TILE>
__device__ __forceinline__ void wide_produce(const lut_params &p, uint8_t *smem) {
    using shape = wide_shape<BITS, GROUP, TILE>;
    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8,
                   found = empty + p.stages * 8;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const int role = (threadIdx.x - shape::CONSUMERS) / WARP;
    if (threadIdx.x == shape::CONSUMERS) {
        for (int s = 0; s < p.stages; s++)
            barrier_init(full + s * 8, shape::COPIERS + 1), barrier_init(empty + s * 8, shape::ARRIVALS);
        barrier_init(found, WARP);
        barrier_init_fence();
    }
    wide_meet<shape::TEAM>();
    if (p.releases) dependents_launch();
    if (role < shape::COPIERS) return wide_produce_weights<BITS, GROUP, TILE>(p, role, ring, full, empty);
    dependency_wait();
    if (role == shape::COPIERS && threadIdx.x % WARP == 0)
        wide_produce_activations<BITS, GROUP, TILE>(p, ring, full, empty);
    if (role == shape::COPIERS + 1) wide_find_shares<TILE>(p, (wide_shared *)(smem + p.more_at), found);
}

// Where a lane finds its part of a stage in shared memory.
template <int BITS, int GROUP, int TILE> struct wide_slot {
    using shape = wide_shape<BITS, GROUP, TILE>;
    using layout = typename shape::layout;
    enum { TOKENS = shape::TOKENS, SCALES_AT = shape::units > 0 ? layout::scales_at : layout::block_bytes };
    uint32_t codes_at, codes8_at, scales_at, x; // of block 0; codes8_at: third bits; x: a wgmma_base

    // The same of block `block`.
    static __device__ __forceinline__ int unit(int block) { return block / layout::blocks * layout::bytes; }
    static __device__ __forceinline__ int codes(int block) {
        return unit(block) + block % layout::blocks * layout::block_bytes;
    }
    __device__ __forceinline__ uint32_t scales(int block) const { return scales_at + unit(block); }
    // The activations of one of its eight steps of k = 16: 32 bytes after the last, or in the next image.
    __device__ __forceinline__ uint64_t activations(int block, int step) const {
        return wgmma_descriptor(x, block * TOKENS * 256 + step / 4 * TOKENS * 128 + step % 4 * 32);
    }
};

// The scales of rows g and g + 8 in bf16, twice each.
struct wide_scale {
    uint32_t twice[2];

    __device__ __forceinline__ void load(uint32_t at) {
        const uint32_t bits = load_shared(at);
        const float2 scale = __half22float2(*(const __half2 *)&bits);
        twice[0] = bf16_pair(scale.x, scale.x), twice[1] = bf16_pair(scale.y, scale.y);
    }
};

// A operands. A part is what is multiplied at a time: 32 columns of weights, at 2 bits and few tokens 64, or,
// where sums leave few registers, 16 of weights times their scales.
template <int BITS, int GROUP, int TILE> struct wide_operands {
    using slot_t = wide_slot<BITS, GROUP, TILE>;
    enum { TOKENS = slot_t::TOKENS, EXACT = (int)TOKENS <= (int)LUT_EXACT_TOKENS };
    enum { PART_COLS = BITS == 2 && TOKENS <= 16 && GROUP >= 64 ? 64 : EXACT ? 32 : 16 };
    enum { BLOCK_PARTS = 128 / PART_COLS, STEPS = PART_COLS / 16 }; // of a part: one wgmma each
    enum { GROUP_PARTS = (GROUP < 128 ? GROUP : 128) / PART_COLS };
    // While a part is being multiplied, and the one before may still be, the AHEAD parts that follow are
    // looked up, as many as registers are left for. A stage begins with the first FIRST of them and gains one
    // with each part. Where two warpgroups have long stages to themselves, a part more or less here is up to
    // 8 % of the time: measured, not understood.
    enum { AHEAD = TOKENS <= 32 ? 2 : wide_tiles[TILE].warpgroups == 4 ? 1 : 4, BUFFERS = AHEAD + 2 };
    enum { FIRST = EXACT || AHEAD < 4 || BITS == 2 ? (int)AHEAD : BITS == 3 ? 1 : 2 };
    table_reader_fixed table;
    block_codes<BITS> codes;
    wide_scale scale;
    uint32_t a[BUFFERS][STEPS][4];

    // Of PARTS parts those that are looked up before part `next` is waited for.
    static __host__ __device__ constexpr int ready(int next, int parts) {
        const int gained = FIRST + 2 * next, most = next + AHEAD < parts ? next + AHEAD : parts;
        return gained < most ? gained : most;
    }

    // Looks part `part` of a stage up; parts come in order.
    __device__ __forceinline__ void prepare(const slot_t &slot, int part) {
        const int block = part / BLOCK_PARTS, of_block = part % BLOCK_PARTS;
        uint32_t(&to)[STEPS][4] = a[part % BUFFERS];
        if (of_block == 0) codes.load(slot.codes_at + slot.codes(block), slot.codes8_at + slot.codes(block));
        if constexpr (EXACT) {
#pragma unroll
            for (int i = 0; i < STEPS; i += 2) { // two make a run
                uint32_t both[8];
                decode((of_block * STEPS + i) / 2, both);
#pragma unroll
                for (int j = 0; j < 8; j++) to[i + j / 4][j % 4] = both[j];
            }
        } else {
            if (of_block % GROUP_PARTS == 0) scale.load(slot.scales(0) + of_block / GROUP_PARTS * 32);
            uint32_t both[8];
            decode(of_block / 2, both); // the half that is not used costs nothing
#pragma unroll
            for (int i = 0; i < 4; i++) to[0][i] = bf16x2_mul(both[of_block % 2 * 4 + i], scale.twice[i % 2]);
        }
    }

  private:
    __device__ __forceinline__ void decode(int run, uint32_t (&to)[8]) const {
        decode_run<BITS>(codes, run, 0, table, to);
        if (BITS == 8) { // 16 · high + low is a whole number below 256: exact in bf16
            uint32_t low[8];
            decode_run<BITS>(codes, run, 1, table, low);
#pragma unroll
            for (int i = 0; i < 8; i++) to[i] = bf16x2_add(to[i], low[i]);
        }
    }
};

// sums += the BLOCKS blocks of a stage. (To look up what the next stage begins with before this one's slot is
// free cost 4 to 5 %, with few tokens and with many.) weights_read: called when its codes and scales have
// been read, where results are not exact; x is being read still.
template <int BLOCKS, int BITS, int GROUP, int TILE, int N, typename F>
__device__ __forceinline__ void wide_add(wide_operands<BITS, GROUP, TILE> &operands,
                                         const wide_slot<BITS, GROUP, TILE> &slot, float (&sums)[N],
                                         F weights_read) {
    using operands_t = wide_operands<BITS, GROUP, TILE>;
    enum { EXACT = operands_t::EXACT, PARTS = BLOCKS * operands_t::BLOCK_PARTS };
    float group[EXACT ? N : 1]; // sums of a group of columns, not yet times its scale
#pragma unroll
    for (int part = 0; part < operands_t::FIRST; part++) operands.prepare(slot, part);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const auto &a = operands.a[part % operands_t::BUFFERS];
        const int block = part / operands_t::BLOCK_PARTS, of_block = part % operands_t::BLOCK_PARTS,
                  of_group = of_block % operands_t::GROUP_PARTS;
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < operands_t::STEPS; i++) {
            const uint64_t x = slot.activations(block, of_block * operands_t::STEPS + i);
            if constexpr (EXACT)
                wgmma(group, a[i][0], a[i][1], a[i][2], a[i][3], x, of_group + i > 0);
            else
                wgmma(sums, a[i][0], a[i][1], a[i][2], a[i][3], x, 1);
        }
        wgmma_commit();
#pragma unroll
        for (int i = operands_t::ready(part, PARTS); i < operands_t::ready(part + 1, PARTS); i++)
            operands.prepare(slot, i);
        if (EXACT ? of_group + 1 < operands_t::GROUP_PARTS : part + 1 < PARTS) {
            wgmma_wait<1>();
            continue;
        }
        if constexpr (EXACT) {
            const uint32_t bits = load_shared(slot.scales(block) + of_block / operands_t::GROUP_PARTS * 32);
            wgmma_wait<0>();
            wgmma_settle(group);
            const float2 scale = __half22float2(*(const __half2 *)&bits);
#pragma unroll
            for (int i = 0; i < N; i++) sums[i] += (i % 4 < 2 ? scale.x : scale.y) * group[i];
        } else {
            weights_read();
            wgmma_wait<0>();
            wgmma_settle(sums);
        }
    }
}

template <int BITS, int GROUP, int TILE>
__device__ __forceinline__ void wide_consume(const lut_params &p, uint8_t *smem) {
    using shape = wide_shape<BITS, GROUP, TILE>;
    using slot_t = wide_slot<BITS, GROUP, TILE>;
    constexpr wide_stage stage = shape::stage;
    enum { TOKENS = shape::TOKENS, TEAM = shape::TEAM, N = TOKENS / 2 };
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    wide_meet<TEAM>();
    if (p.releases) dependents_launch();
    table_build<BITS>(smem, p.table, shape::WARPS);
    dependency_wait(); // for y, which the epilogue may read, and for the partial sums
    barrier_sync(1, shape::CONSUMERS);

    // What every stage needs in registers, where there are any left, or ptxas puts it together each time.
    auto keep = [](uint32_t v) { return TOKENS <= 32 ? keep_in_register(v) : v; };
    const uint32_t full = keep(shared_address(smem + p.barriers_at)), empty = full + p.stages * 8,
                   found = empty + p.stages * 8;
    const uint32_t ring = keep(shared_address(smem + p.ring_at));
    const int short_stage = keep(p.panel_units * shape::layout::blocks / stage.blocks); // if a tile has one
    const uint32_t codes_at = keep_in_register(warp * stage.panel_bytes + lane * 16),
                   codes8_at = BITS == 3 ? keep_in_register(warp * stage.panel_bytes + lane * 8) : 0,
                   scales_at = keep_in_register(warp * stage.panel_bytes + slot_t::SCALES_AT + lane / 4 * 4),
                   frees = keep(TEAM > 1 ? cluster_address(empty, lane % TEAM) : empty); // of block `lane`
    wide_operands<BITS, GROUP, TILE> operands;
    operands.table = {keep_in_register(shared_window(smem) | table_lane_offset<BITS>(lane))};
    wide_ring at(0);
    wide_segment s;
    for (typename shape::walk walk(p); walk.next(p, s);) {
        float sums[N];
#pragma unroll
        for (int i = 0; i < N; i++) sums[i] = 0.0f;
        for (int n = s.first; n < s.last; n++, at.advance(p)) {
            const uint32_t slot = warp_uniform(ring + at.slot * stage.bytes);
            const slot_t in = {slot + codes_at, slot + codes8_at, slot + scales_at,
                               wgmma_base(slot + stage.x_at)};
            const auto weights_read = [&] {
                if (TEAM > 1) barrier_arrive(empty + at.slot * 8);
            };
            barrier_wait(full + at.slot * 8, at.parity);
            if (stage.blocks == 1 || n < short_stage)
                wide_add<stage.blocks>(operands, in, sums, weights_read);
            else // the last of a tile
                wide_add<1>(operands, in, sums, weights_read);
            __syncwarp();
            if (TEAM == 1 && lane == 0) barrier_arrive(frees + at.slot * 8);
            if (TEAM > 1 && lane < TEAM) barrier_arrive_cluster(frees + at.slot * 8);
        }
        // From here on nothing that ptxas could work out ahead, and keep in registers through the stages.
        const int thread = (int)keep_in_register(threadIdx.x);
        int first = 0, last = TOKENS / 8;
        if (s.last - s.first < p.tile_stages) {
            const wide_shared &shared = ((const wide_shared *)(smem + p.more_at))[s.first == 0];
            barrier_wait(found, 0);
            const wide_share share = shared.share;
            wide_leave<TILE>(p, share, shared.tags, thread, sums);
            first = share.first, last = share.last;
            if (first < last) wide_collect<TILE>(p, share, shared.tags, thread, sums);
        }
        wide_store<shape::tile.results()>(
            p, (float *)(smem + p.sums_at + thread / WARP * shape::tile.result_bytes()), thread % WARP,
            shape::panel(p, s) + thread / WARP, s.tile % p.token_tiles * TOKENS, first, last, sums);
    }
}

template <int BITS, int GROUP, int TILE>
__global__ void __launch_bounds__(wide_tiles[TILE].threads(), 1)
    lut_wide(const __grid_constant__ lut_params p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t smem[];
    constexpr wide_tile tile = wide_tiles[TILE];
    if (threadIdx.x >= tile.consumers()) {
        registers_give_up<tile.producer_registers()>();
        wide_produce<BITS, GROUP, TILE>(p, smem);
    } else {
        registers_take<tile.consumer_registers()>();
        wide_consume<BITS, GROUP, TILE>(p, smem);
    }
#endif
}

template <int BITS, int GROUP, int... TILES>
lut_kernel lut_wide_of(std::integer_sequence<int, TILES...>, int tile) {
    static const lut_kernel kernels[] = {lut_wide<BITS, GROUP, TILES>...};
    return kernels[tile];
}

template <int BITS, int GROUP> lut_kernel lut_wide_pick(int tile) {
    return lut_wide_of<BITS, GROUP>(std::make_integer_sequence<int, WIDE_TILES>(), tile);
}

#endif
