// y = x · Wᵀ for up to four tokens: the decode step of small batches, where reading W is all there is.
//
// Work. A block of threads owns whole panels (16 rows × K) and leaves no sums to others. Its eight consumer
// warps share the columns: a stage of the ring holds 8 × U units of one panel, U to each warp. With two
// blocks on each SM, 8·2 warps keep the SM busy.
//
// Or two blocks, a pair, own panels together and have half of the columns each: one of 4096 × 14336 then
// loads activations for half of K and two panels, not for all of K and one. Each first multiplies the panels
// that the other stores, whose sums arrive there, by distributed shared memory, while it multiplies its own.
//
// The stream. A ninth warp copies the panels, which lie one after the other in memory, through a ring in
// shared memory, 4 to 17 KB a copy. It starts before anything else happens, and before the kernel ahead has
// finished: weights depend on nothing.
//
// Activations. A warp meets the same four units of columns in every panel, so their activations stay in
// registers: the whole K in "chunks" of 8 × 4 units, every chunk over all panels of a group, partial sums of
// a (panel, warp) in shared memory. The last panel of a group loads those of the next chunk, stage by stage.
// Columns of an mma that would idle with less than eight tokens carry other activations of the same token.
//
// Roofline on an H200, 16 × 128 weights at 4 bits, group 128: 1088 bytes arrive in 57 clocks of an SM. Shared
// memory works 32 clocks for the table, 8 to read the codes and 8 to 17 while they are written: the tightest
// resource. 109 instructions take 27 clocks of issue. At 3 and 2 bits bytes arrive in 42 and 29 clocks, and
// shared memory (45 and 42 clocks) is the limit; 113 and 67 instructions take 28 and 17.
#ifndef FLUTE_CUDA_LUT_GEMV_CUH
#define FLUTE_CUDA_LUT_GEMV_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"

enum { GEMV_CONSUMERS = GEMV_WARPS * WARP, GEMV_THREADS = GEMV_CONSUMERS + WARP };

// Which of a block's activations the eight columns of the B operand carry: columns 2m and 2m + 1 are sides 0
// and 1 of token m (with fewer than four tokens there are copies), and lane t holds both in its sums.
//   3, 4, 8 bits: side 0 has runs 0 and 1, side 1 runs 2 and 3. The mma of runs r and 2 + r take the same B,
//     and what comes out in the columns of the other side is not used.
//   2 bits: an entry of the table fills two registers that follow each other, weights 0, 1 and 2, 3 of one
//     row. In an A operand such registers are two rows, so both rows are made of one row's weights: side 0
//     has the activations of the upper, side 1 of the lower, and each row of a panel has an mma of its own.
template <int TOKENS> struct columns {
    static __device__ __forceinline__ int token(int lane) { return lane / 8 % TOKENS; }
    static __device__ __forceinline__ int side(int lane) { return lane / 4 % 2; }
};

// One lane's share of a unit: codes, and the scales of rows g and g + 8.
template <int BITS, int GROUP> struct lane_unit {
    using layout = unit_layout<BITS, GROUP>;
    block_codes<BITS> codes[layout::blocks];
    uint32_t scales[layout::groups];

    static __device__ __forceinline__ uint32_t scales_at(int lane) {
        return layout::scales_at + lane / 4 * 4;
    }

    __device__ __forceinline__ void load(uint32_t at, uint32_t at8, uint32_t scale_at) {
#pragma unroll
        for (int b = 0; b < layout::blocks; b++)
            codes[b].load(at + b * layout::block_bytes, at8 + b * layout::block_bytes);
#pragma unroll
        for (int i = 0; i < layout::groups; i++) scales[i] = load_shared(scale_at + i * 32);
    }
};

// Where codes are looked up.
struct gemv_tables {
    table_reader in_shared;
    register_table in_registers; // of 2 bits, with four tokens
};

// One lane's activations of a unit, and the product with its weights.
template <int BITS, int GROUP, int TOKENS> struct lane_activations {
    using layout = unit_layout<BITS, GROUP>;
    using unit_t = lane_unit<BITS, GROUP>;
    enum { SCALES = layout::groups, SCALE_RUNS = RUNS / SCALES };
    uint32_t b[layout::blocks][8];

    // At 2 bits a lane wants eight pieces of four bytes, and loads just these. With four tokens each would
    // take as long as one of 16: there a lane loads both sides of two runs, and exchanges one of them with
    // the lane of the other side, which has the other two runs. Shuffles, loads and lookups then keep shared
    // memory busy for longer than at 3 bits, so that one run of four is looked up in registers.
    enum { IN_PLACES = BITS == 2 && TOKENS < 4, IN_HALVES = BITS == 2 && !IN_PLACES };

    // The first of a lane's columns in a unit, and its first byte in the row of a token.
    static __device__ __forceinline__ int first_column(int side, int t) {
        return t * 8 + (IN_PLACES ? 0 : side * 64);
    }
    static __device__ __forceinline__ int first_byte(int side, int t) {
        return first_column(side, t) * 2 + (IN_PLACES ? side * 4 : 0);
    }

    // x: the first byte of the unit. left: the columns from there to the end, beyond which are zeros, which
    // keeps padding codes without effect; ALL: more than there are in the unit.
    template <bool ALL> __device__ __forceinline__ void load(const uint8_t *x, int left) {
#pragma unroll
        for (int k = 0; k < layout::blocks; k++)
#pragma unroll
            for (int i = 0; i < (IN_PLACES ? 4 : 2); i++) {
                const int column = k * 128 + i * 32;
                const uint8_t *const at = x + column * 2;
                const bool inside = ALL || column < left;
                if (IN_PLACES) {
                    b[k][i * 2] = load_global_if(inside, at);
                    b[k][i * 2 + 1] = load_global_if(inside, at + 8);
                    continue;
                }
                const uint4 v = load_global4_if(inside, at);
                b[k][i * 4] = v.x, b[k][i * 4 + 1] = v.y, b[k][i * 4 + 2] = v.z, b[k][i * 4 + 3] = v.w;
            }
    }

    // What is to be done once they are there, before the first product.
    __device__ __forceinline__ void settle(int side) {
#pragma unroll
        for (int k = 0; k < layout::blocks && IN_HALVES; k++) {
            uint32_t own[4], other[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                own[i] = side ? b[k][i * 2 + 1] : b[k][i * 2];
                other[i] = __shfl_xor_sync(~0u, side ? b[k][i * 2] : b[k][i * 2 + 1], 4);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                b[k][i] = side ? other[i] : own[i], b[k][4 + i] = side ? own[i] : other[i];
        }
    }

    // sums: of rows g and g + 8
    __device__ __forceinline__ void multiply_add(const unit_t &unit, const gemv_tables &tables,
                                                 float (&sums)[2]) const {
#pragma unroll
        for (int i = 0; i < SCALES; i++) {
            float d[2][4] = {}; // of the two rows at 2 bits, else of the sides that the scale has a part in
#pragma unroll
            for (int k = 0; k < layout::blocks; k++)
#pragma unroll
                for (int run = i * SCALE_RUNS; run < (i + 1) * SCALE_RUNS; run++)
                    multiply_run(unit.codes[k], b[k], run, tables, d);
            const float2 scale = __half22float2(*(const __half2 *)&unit.scales[i]);
            sums[0] += scale.x * products(d, 0, i), sums[1] += scale.y * products(d, 1, i);
        }
    }

    static __device__ __forceinline__ void multiply_run(const block_codes<BITS> &codes,
                                                        const uint32_t (&b)[8], int run,
                                                        const gemv_tables &tables, float (&d)[2][4]) {
#pragma unroll
        for (int plane = 0; plane < (BITS == 8 ? 2 : 1); plane++) {
            uint32_t a[8];
            if (IN_HALVES && run == RUNS - 1)
                decode_run_in_registers(codes.word[run], tables.in_registers, a);
            else
                decode_run<BITS>(codes, run, plane, tables.in_shared, a);
            if (BITS == 2) {
                mma(d[0], a[0], a[2], a[4], a[6], b[run * 2], b[run * 2 + 1]);
                mma(d[1], a[1], a[3], a[5], a[7], b[run * 2], b[run * 2 + 1]);
            } else {
                float(&sum)[4] = d[SCALES == 1 ? run / 2 : 0];
                const uint32_t *x = b + run % 2 * 4;
                mma(sum, a[0], a[1], a[2], a[3], x[0], x[1]);
                mma(sum, a[4], a[5], a[6], a[7], x[2], x[3]);
            }
        }
    }

    // What d says of row g (half 0) or g + 8 under scale i.
    static __device__ __forceinline__ float products(const float (&d)[2][4], int half, int i) {
        if (BITS == 2) return d[half][0] + d[half][3];
        if (SCALES == 1) return d[0][half * 2] + d[1][half * 2 + 1];
        return d[0][half * 2 + i * 2 / SCALES];
    }
};

// Stores a warp's sums of a panel at `to`, (row, token) from the lane's row g and token on, or adds them to
// those of the chunks before.
template <int TOKENS>
__device__ __forceinline__ void sums_flush(const float (&sums)[2], float *to, bool first) {
    if (threadIdx.x % 4 >= TOKENS) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float *at = to + half * 8 * TOKENS;
        *at = first ? sums[half] : *at + sums[half];
    }
}

// The same with the sums of a panel that the other block of a pair stores. to: there, where `barrier` counts
// bytes. mine: those of the chunks before, unless `first`.
template <int TOKENS>
__device__ __forceinline__ void sums_hand_over(const float (&sums)[2], const float *mine, uint32_t to,
                                               uint32_t barrier, bool first) {
    if (threadIdx.x % 4 >= TOKENS) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int at = half * 8 * TOKENS;
        store_cluster(to + at * 4, first ? sums[half] : mine[at] + sums[half], barrier);
    }
}

// The norm of x, whose weight is in x already: 1 / sqrt(mean(x²) + eps) of each token, from the squares that
// the blocks of the kernel ahead have left. One warp a token.
template <int TOKENS> __device__ __forceinline__ void gemv_norm_factors(const lut_params &p, float *factors) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (warp >= TOKENS) return;
    float sum = 0.0f;
    for (int part = lane; part < p.norm.n_parts; part += WARP)
        sum += p.norm.squares[warp * LUT_MAX_PARTS + part];
    sum = warp_sum(sum);
    if (lane == 0) factors[warp] = rsqrtf(sum / p.n_cols + p.norm.eps);
}

// The squares of what this block has stored of a group, for the next norm. A thread has had one token only.
// first: the first group.
template <int TOKENS>
__device__ __forceinline__ void gemv_store_squares(const lut_params &p, float squares, float *shared,
                                                   bool first) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2)
        if (step < 8 || step >= 8 * TOKENS) squares += __shfl_xor_sync(~0u, squares, step);
    if (lane % 8 == 0 && lane / 8 < TOKENS) shared[warp * TOKENS + lane / 8] = squares;
    barrier_sync(1, GEMV_CONSUMERS);
    if ((int)threadIdx.x >= min((int)TOKENS, p.n_tokens)) return;
    float sum = 0.0f;
    for (int i = 0; i < GEMV_WARPS; i++) sum += shared[i * TOKENS + threadIdx.x];
    float *const to = p.next.squares + threadIdx.x * LUT_MAX_PARTS + blockIdx.x;
    *to = first ? sum : *to + sum;
}

// What a block has of the matrix: of `panels` panels from first_panel on the stages from first_stage on. Two
// blocks, a pair, have the same panels. Each stores half of them, and walks them behind the n_other of the
// other, whose sums it hands over. Of an odd number of stages the one in the middle, the last of the first
// block and the first of the second, is of the block that stores; the other leaves it out.
template <int TEAM> struct gemv_share {
    int first_panel, panels, first_stage, stages, n_other;
    int odd; // 1 if it is

    static __device__ __forceinline__ int rank() { return TEAM == 1 ? 0 : (int)(blockIdx.x % TEAM); }

    __device__ __forceinline__ gemv_share(const lut_params &p, int stage_units) {
        const int all = (p.panel_units + stage_units - 1) / stage_units;
        first_panel = (int)(blockIdx.x / TEAM) * p.cta_panels;
        panels = min(p.cta_panels, p.n_panels - first_panel);
        first_stage = 0, stages = all, n_other = 0, odd = 0;
        if (TEAM == 1) return;
        first_stage = rank() * (all / 2), stages = (all + 1) / 2, odd = all % 2;
        n_other = rank() ? panels - panels / 2 : panels / 2;
    }
    // The panel that is walked i-th, and the first that is stored, from first_panel on.
    __device__ __forceinline__ int panel(int i) const {
        return TEAM == 1 || rank() ? i : i < n_other ? panels - n_other + i : i - n_other;
    }
    __device__ __forceinline__ int first_stored() const { return rank() ? n_other : 0; }
    // The stages of the panel that is walked i-th: of those from first_stage on.
    __device__ __forceinline__ int first(int i) const { return i < n_other && rank() == 1 ? odd : 0; }
    __device__ __forceinline__ int last(int i) const {
        return stages - (i < n_other && rank() == 0 ? odd : 0);
    }
};

// The order in which a block walks its stages: groups of panels, chunks of columns, panels, stages.
template <int TEAM> struct gemv_walk {
    const gemv_share<TEAM> &share;
    const int group_panels, chunk_stages;
    int group = 0, chunk = 0, panel = 0, stage;

    __device__ __forceinline__ gemv_walk(const gemv_share<TEAM> &share, int group_panels, int chunk_stages)
        : share(share), group_panels(group_panels), chunk_stages(chunk_stages), stage(share.first(0)) {
        if (TEAM > 1) seek();
    }
    __device__ __forceinline__ int group_end() const { return min(group + group_panels, share.panels); }
    __device__ __forceinline__ bool done() const { return group >= share.panels; }
    __device__ __forceinline__ void next() { stage++, seek(); }

  private:
    // Goes on where the panel has no more stages of the chunk.
    __device__ __forceinline__ void seek() {
        while (stage >= min(chunk + chunk_stages, share.last(panel))) {
            if (++panel == group_end()) {
                chunk += chunk_stages;
                if (chunk >= share.stages) chunk = 0, group += group_panels;
                panel = group;
            }
            stage = max(chunk, share.first(panel));
            if (TEAM == 1 || done()) return;
        }
    }
};

template <int BITS, int GROUP, int TEAM>
__device__ __forceinline__ void gemv_produce(const lut_params &p, uint8_t *smem,
                                             const gemv_share<TEAM> &share) {
    using layout = unit_layout<BITS, GROUP>;
    enum {
        U = gemv_warp<BITS>::units,
        STAGE_UNITS = GEMV_WARPS * U,
        STAGE_BYTES = STAGE_UNITS * layout::bytes
    };
    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const uint32_t ring = shared_address(smem + p.ring_at);
    const bool leader = threadIdx.x % WARP == 0;
    const size_t panel_bytes = (size_t)p.panel_units * layout::bytes;
    const uint8_t *from = p.weights + share.first_panel * panel_bytes;
    gemv_walk<TEAM> walk(share, p.group_panels, CHUNK_BLOCKS / layout::blocks / U);
    int slot = 0;
    auto issue = [&]() {
        const int stage = share.first_stage + walk.stage;
        const uint32_t bytes = min((int)STAGE_UNITS, p.panel_units - stage * STAGE_UNITS) * layout::bytes;
        barrier_expect(full + slot * 8, bytes);
        copy_weights(ring + slot * STAGE_BYTES,
                     from + share.panel(walk.panel) * panel_bytes + (size_t)stage * STAGE_BYTES, bytes,
                     full + slot * 8);
        slot++;
        walk.next();
    };
    if (TEAM > 1) { // first what all wait for: the other block may hand over
        if (leader) barrier_init(empty + p.stages * 8, 1), barrier_init_fence();
        cluster_arrive();
    }
    if (leader) {
        for (int s = 0; s < p.stages; s++)
            barrier_init(full + s * 8, 1), barrier_init(empty + s * 8, GEMV_WARPS * WARP);
        barrier_init_fence();
    }
    while (leader && slot < p.stages && !walk.done()) issue();
    __syncwarp();
    if (p.releases) dependents_launch();
    if (TEAM > 1) cluster_wait();
    __syncthreads();
    if (!leader) return;
    for (uint32_t parity = 0; !walk.done(); parity ^= 1)
        for (slot = 0; slot < p.stages && !walk.done();) {
            barrier_wait(empty + slot * 8, parity);
            issue();
        }
}

// TEAM: blocks that have panels together: 1, or 2, a cluster.
template <int BITS, int GROUP, int TOKENS, int TEAM>
__global__ void __launch_bounds__(GEMV_THREADS, 2) lut_gemv(const __grid_constant__ lut_params p) {
#if __CUDA_ARCH__ >= 900
    using layout = unit_layout<BITS, GROUP>;
    using unit_t = lane_unit<BITS, GROUP>;
    using activations = lane_activations<BITS, GROUP, TOKENS>;
    enum {
        U = gemv_warp<BITS>::units,
        STAGE_UNITS = GEMV_WARPS * U,
        STAGE_BYTES = STAGE_UNITS * layout::bytes
    };
    enum { CHUNK_STAGES = CHUNK_BLOCKS / layout::blocks / U, CHUNK_UNITS = CHUNK_STAGES * U };
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = warp_uniform(threadIdx.x / WARP), lane = threadIdx.x % WARP, t = lane % 4;
    const gemv_share<TEAM> share(p, STAGE_UNITS);
    if (warp == GEMV_WARPS) return gemv_produce<BITS, GROUP, TEAM>(p, smem, share);

    if (TEAM > 1) cluster_arrive();
    if (p.releases) dependents_launch();
    if (TEAM > 1) cluster_wait(); // now, when no activations are in the L1 cache that it empties
    table_build<BITS>(smem, p.table, GEMV_WARPS);
    if (p.overlap) dependency_wait();

    const int side = columns<TOKENS>::side(lane);
    const int first_unit = share.first_stage * STAGE_UNITS;
    auto unit_of = [&](int stage, int j) { return first_unit + stage * STAGE_UNITS + warp * U + j; };
    activations x[CHUNK_UNITS];
    // The lane's columns of its token, from those of stage 0 on.
    const uint8_t *const x_lane = p.x + min(columns<TOKENS>::token(lane), p.n_tokens - 1) * p.x_stride +
                                  (first_unit + warp * U) * (layout::cols * 2) +
                                  activations::first_byte(side, t);
    const int n_cols =
        TEAM == 1 ? p.n_cols
                  : min(p.n_cols - first_unit * layout::cols, share.stages * (STAGE_UNITS * layout::cols));
    const int x_left = n_cols - warp * (U * layout::cols) - activations::first_column(side, t);
    // Loads the activations of stage s of a chunk, if K has it. Of one that is whole these are four or
    // sixteen instructions, from one address; else each asks whether there is something to load.
    auto load_stage = [&](int chunk, int s) {
        enum { COLS = STAGE_UNITS * layout::cols };
        const int column = (chunk + s) * COLS;
        const uint8_t *const at = x_lane + (size_t)column * 2;
        if (column + COLS <= n_cols) {
#pragma unroll
            for (int j = 0; j < U; j++) x[s * U + j].template load<true>(at + j * layout::cols * 2, 0);
        } else if (column < n_cols) {
#pragma unroll
            for (int j = 0; j < U; j++)
                x[s * U + j].template load<false>(at + j * layout::cols * 2,
                                                  x_left - column - j * layout::cols);
        }
    };
#pragma unroll
    for (int s = 0; s < CHUNK_STAGES; s++) load_stage(0, s);
    float *factors = (float *)(smem + p.more_at); // (TOKENS), and behind them (warp, token)
    if (p.norm.squares) gemv_norm_factors<TOKENS>(p, factors);
    __syncthreads(); // the table and the barriers are there

    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8,
                   handed = empty + p.stages * 8; // TEAM > 1: what the other block hands over is there
    const uint32_t mine = shared_address(smem + p.ring_at) + warp * U * layout::bytes;
    const uint32_t codes_at = keep_in_register(mine + lane * 16);
    const uint32_t codes_at8 = BITS == 3 ? keep_in_register(mine + lane * 8) : 0;
    const uint32_t scales_at = keep_in_register(mine + unit_t::scales_at(lane));
    gemv_tables tables = {{smem, keep_in_register(table_lane_offset<BITS>(lane))}, {}};
    if (activations::IN_HALVES) tables.in_registers.build(p.table);
    // Sums: (panel, warp, row, token), of the panels of a group. In a pair of those that the block stores,
    // then of the same what the other block hands over, and of the others where they have more than one
    // chunk.
    enum { PANEL_SUMS = GEMV_WARPS * 16 * TOKENS };
    float *sums = (float *)(smem + p.sums_at);
    float *const my_sums = sums + keep_in_register((warp * 16 + lane / 4) * TOKENS + t);
    if (TEAM > 1 && threadIdx.x == 0) barrier_expect(handed, (share.panels - share.n_other) * PANEL_SUMS * 4);
    int slot = 0;
    uint32_t parity = 0;

    // A panel's stages of a chunk, those from `from` to `to`. whole: the panel has all of them, with all
    // their units. A constant for each call, which makes two copies of the loop: the common one asks for
    // nothing but the barriers. next: the chunk whose activations take the place of these, or -1. first: they
    // have just been loaded.
    auto multiply_panel = [&](bool whole, int chunk, int from, int to, bool first, int next, float(&sum)[2]) {
#pragma unroll
        for (int s = 0; s < CHUNK_STAGES; s++) {
            if (!whole && (chunk + s < from || chunk + s >= to)) {
#pragma unroll
                for (int j = 0; j < U && TEAM > 1 && first; j++) x[s * U + j].settle(side);
            } else {
                unit_t unit[U];
                barrier_wait_warp(full + slot * 8, parity);
#pragma unroll
                for (int j = 0; j < U; j++) {
                    const uint32_t at = slot * STAGE_BYTES + j * layout::bytes;
                    unit[j].load(codes_at + at, codes_at8 + at, scales_at + at);
                }
#pragma unroll
                for (int j = 0; j < U && first; j++) x[s * U + j].settle(side);
#pragma unroll
                for (int j = 0; j < U; j++)
                    if (whole || unit_of(chunk + s, j) < p.panel_units)
                        x[s * U + j].multiply_add(unit[j], tables, sum);
                barrier_arrive_after(empty + slot * 8,
                                     (__float_as_uint(sum[0]) | __float_as_uint(sum[1])) & p.always_zero);
                if (++slot == p.stages) slot = 0, parity ^= 1;
            }
            // From a shuffle: ptxas then computes no address for it before the branch.
            if (next >= 0) load_stage(warp_uniform(next), s);
        }
    };

    for (int group = 0; group < share.panels; group += p.group_panels) { // a pair has one
        const int group_panels = min(p.group_panels, share.panels - group);
        for (int chunk = 0; chunk < share.stages; chunk += CHUNK_STAGES) {
            const bool full_units = (share.first_stage + chunk + CHUNK_STAGES) * STAGE_UNITS <= p.panel_units;
            const int after = chunk + CHUNK_STAGES < share.stages ? chunk + CHUNK_STAGES : 0;
            const bool more = after > chunk || (after != chunk && group + p.group_panels < share.panels);
            const bool loaded = group == 0 || share.stages > CHUNK_STAGES; // else those of the last group
            const bool last = after == 0;
            for (int panel = 0; panel < group_panels; panel++) {
                float sum[2] = {};
                const int next = panel + 1 == group_panels && more ? after : -1;
                const int from = share.first(panel), to = share.last(panel);
                if (full_units && chunk >= from && chunk + CHUNK_STAGES <= to)
                    multiply_panel(true, chunk, from, to, loaded && panel == 0, next, sum);
                else
                    multiply_panel(false, chunk, from, to, loaded && panel == 0, next, sum);
                const int half = (p.cta_panels + 1) / 2;
                if (TEAM > 1 && panel < share.n_other) {
                    float *const mine = my_sums + (2 * half + panel) * PANEL_SUMS;
                    if (last)
                        sums_hand_over<TOKENS>(
                            sum, mine,
                            cluster_address(shared_address(my_sums + (half + panel) * PANEL_SUMS),
                                            share.rank() ^ 1),
                            cluster_address(handed, share.rank() ^ 1), chunk == 0);
                    else
                        sums_flush<TOKENS>(sum, mine, chunk == 0);
                } else {
                    sums_flush<TOKENS>(sum, my_sums + (panel - share.n_other) * PANEL_SUMS, chunk == 0);
                }
            }
        }
        barrier_sync(1, GEMV_CONSUMERS);
        if (TEAM > 1 && share.n_other < share.panels) barrier_wait(handed, 0);
        const float squares = store_panels<TOKENS>(
            p, sums, GEMV_WARPS, share.first_panel + group + share.first_stored(),
            group_panels - share.n_other, GEMV_CONSUMERS, p.norm.squares ? factors : NULL,
            TEAM > 1 ? sums + (p.cta_panels + 1) / 2 * PANEL_SUMS : NULL);
        if (p.next.squares) gemv_store_squares<TOKENS>(p, squares, factors + TOKENS, group == 0);
        barrier_sync(1, GEMV_CONSUMERS);
    }
#endif
}

template <int BITS, int GROUP, int TEAM> lut_kernel lut_gemv_of(int tokens) {
    return tokens == 1   ? lut_gemv<BITS, GROUP, 1, TEAM>
           : tokens == 2 ? lut_gemv<BITS, GROUP, 2, TEAM>
                         : lut_gemv<BITS, GROUP, 4, TEAM>;
}

template <int BITS, int GROUP> lut_kernel lut_gemv_pick(int variant) {
    return variant < GEMV_PAIRS ? lut_gemv_of<BITS, GROUP, 1>(variant)
                                : lut_gemv_of<BITS, GROUP, 2>(variant - GEMV_PAIRS);
}

#endif
