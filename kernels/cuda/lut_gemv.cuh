// y = x · Wᵀ for up to four tokens: the decode step of small batches, where reading W is all there is.
//
// Work. A block of threads owns whole panels (16 rows × K) and leaves no sums to others. Its eight consumer
// warps share the columns: a stage of the ring holds 8 × U units of one panel, U to each warp. With two
// blocks on each SM, 8·2 warps keep the SM busy.
//
// The stream. A ninth warp copies the panels, which lie one after the other in memory, through a ring in
// shared memory, 4 to 17 KB a copy. It starts before anything else happens, and before the kernel ahead has
// finished: weights depend on nothing.
//
// Activations. A warp meets the same four units of columns in every panel, so their activations stay in
// registers: the whole K in "chunks" of 8 × 4 units, every chunk over all panels of a group, partial sums of
// a (panel, warp) in shared memory. With one token seven of the eight columns of an mma would idle: instead
// column r carries run r of the block, each run gets accumulators of its own, and a lane picks the sums of
// the runs whose column it holds. Two and four tokens share the columns the same way.
//
// Roofline on an H200, 16 × 128 weights at 4 bits, group 128: 1088 bytes arrive in 57 clocks of an SM. Shared
// memory works 32 clocks for the table, 8 to read the codes and 8 to 17 while they are written: the tightest
// resource. About 100 instructions take 25 clocks of issue. At 3 and 2 bits bytes arrive in 42 and 29 clocks
// and shared memory (45 and 42 clocks) is the limit.
#ifndef FLUTE_CUDA_LUT_GEMV_CUH
#define FLUTE_CUDA_LUT_GEMV_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"

enum { GEMV_CONSUMERS = GEMV_WARPS * WARP, GEMV_THREADS = GEMV_CONSUMERS + WARP, CHUNK_BLOCKS = 4 };

// How tokens and runs share the eight columns of the B operand. A lane holds columns 2t and 2t + 1.
//   1 token:  column r (and r + 4) is run r: lane t holds runs 2(t % 2) and 2(t % 2) + 1
//   2 tokens: column 2r + m is token m of run r: lane t holds run t
//   4 tokens: column 4h + m is token m of run h (first operand) or 2 + h (second): lane t holds h = t / 2
template <int TOKENS> struct columns {
    enum { operands = TOKENS == 4 ? 2 : 1, sums = TOKENS == 1 ? 2 : 4 };

    static __device__ __forceinline__ int token(int lane) { return lane / 4 % TOKENS; }
    // Which run of a block a lane loads for operand i.
    static __device__ __forceinline__ int run(int lane, int i) {
        return TOKENS == 1 ? lane / 4 % 4 : TOKENS == 2 ? lane / 8 : 2 * i + lane / 16;
    }
};

// One lane's share of a unit: codes, and the scales of the runs whose sums it picks, rows g and g + 8.
template <int BITS, int GROUP, int TOKENS> struct lane_unit {
    using layout = unit_layout<BITS, GROUP>;
    enum { n_scales = TOKENS == 2 || GROUP >= 128 || (TOKENS == 1 && GROUP == 64) ? 1 : 2 };
    block_codes<BITS> codes[layout::blocks];
    uint32_t scales[n_scales];

    // Offset of the first scale in a unit; the second, if any, stands second_scale further.
    static __device__ __forceinline__ uint32_t scales_at(int lane) {
        const int t = lane % 4;
        const int run = TOKENS == 1 ? 2 * (t % 2) : TOKENS == 2 ? t : t / 2;
        return layout::scales_at + (GROUP < 128 ? run * 32 / GROUP * 32 : 0) + lane / 4 * 4;
    }
    enum { second_scale = TOKENS == 4 ? 64 / GROUP * 32 : 32 };

    __device__ __forceinline__ void load(uint32_t at, uint32_t at8, uint32_t scale_at) {
#pragma unroll
        for (int b = 0; b < layout::blocks; b++)
            codes[b].load(at + b * layout::block_bytes, at8 + b * layout::block_bytes);
#pragma unroll
        for (int i = 0; i < n_scales; i++) scales[i] = load_shared(scale_at + i * second_scale);
    }
};

// One lane's activations of a unit, and the product with its weights.
template <int BITS, int GROUP, int TOKENS> struct lane_activations {
    using layout = unit_layout<BITS, GROUP>;
    using unit_t = lane_unit<BITS, GROUP, TOKENS>;
    using cols = columns<TOKENS>;
    uint4 b[layout::blocks][cols::operands];

    // x: the lane's token. Columns past the end are zero, which keeps their padding codes without effect.
    __device__ __forceinline__ void load(const uint8_t *x, int n_cols, int unit, int lane) {
#pragma unroll
        for (int k = 0; k < layout::blocks; k++)
#pragma unroll
            for (int i = 0; i < cols::operands; i++) {
                const int column = (unit * layout::blocks + k) * 128 + cols::run(lane, i) * 32 + lane % 4 * 8;
                b[k][i] = column < n_cols ? load_global4(x + (size_t)column * 2) : make_uint4(0, 0, 0, 0);
            }
    }

    __device__ __forceinline__ void multiply_add(const unit_t &unit, const uint8_t *table,
                                                 uint32_t lane_offset, int t,
                                                 float (&sums)[cols::sums]) const {
#pragma unroll
        for (int k = 0; k < layout::blocks; k++) {
            float d[RUNS][4] = {};
#pragma unroll
            for (int run = 0; run < RUNS; run++) {
                const uint4 &x = b[k][TOKENS == 4 ? run / 2 : 0];
#pragma unroll
                for (int plane = 0; plane < (BITS == 8 ? 2 : 1); plane++) {
                    uint32_t a[8];
                    decode_run<BITS>(unit.codes[k], run, plane, table_reader{table, lane_offset}, a);
                    mma(d[run], a[0], a[1], a[2], a[3], x.x, x.y);
                    mma(d[run], a[4], a[5], a[6], a[7], x.z, x.w);
                }
            }
            pick(d, unit, t, sums);
        }
    }

    // Adds the sums that belong to the lane, times their scales.
    static __device__ __forceinline__ void pick(const float (&d)[RUNS][4], const unit_t &unit, int t,
                                                float (&sums)[cols::sums]) {
        const float2 s0 = __half22float2(*(const __half2 *)&unit.scales[0]);
        const float2 s1 = __half22float2(*(const __half2 *)&unit.scales[unit_t::n_scales - 1]);
        if (TOKENS == 1) {
            const bool odd = t & 1;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float first = odd ? d[2][2 * half] : d[0][2 * half];
                const float second = odd ? d[3][2 * half + 1] : d[1][2 * half + 1];
                const float scale0 = half ? s0.y : s0.x, scale1 = half ? s1.y : s1.x;
                if (unit_t::n_scales == 1)
                    sums[half] += scale0 * (first + second);
                else
                    sums[half] += scale0 * first + scale1 * second;
            }
        } else if (TOKENS == 2) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float v = t & 2 ? (t & 1 ? d[3][i] : d[2][i]) : (t & 1 ? d[1][i] : d[0][i]);
                sums[i] += (i < 2 ? s0.x : s0.y) * v;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float first = t & 2 ? d[1][i] : d[0][i], second = t & 2 ? d[3][i] : d[2][i];
                const float scale0 = i < 2 ? s0.x : s0.y, scale1 = i < 2 ? s1.x : s1.y;
                if (unit_t::n_scales == 1)
                    sums[i] += scale0 * (first + second);
                else
                    sums[i] += scale0 * first + scale1 * second;
            }
        }
    }
};

// Adds a warp's sums of a panel up over its lanes and into (row, token) of `to`, which belongs to this warp
// and panel. first: store instead of adding.
template <int TOKENS, int N>
__device__ __forceinline__ void sums_flush(float (&sums)[N], float *to, bool first) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (TOKENS != 4) sums[i] += __shfl_xor_sync(~0u, sums[i], 1);
        if (TOKENS != 1) sums[i] += __shfl_xor_sync(~0u, sums[i], 2);
    }
    if (TOKENS == 1) { // lane 0 of four stores row g, lane 1 row g + 8
        float *at = to + t * 8 + g;
        const float v = t == 0 ? sums[0] : sums[1];
        if (t < 2) *at = first ? v : *at + v;
    } else if (TOKENS == 2) { // one of the four sums each
        float *at = to + (t / 2 * 8 + g) * 2 + t % 2;
        const float v = t & 2 ? (t & 1 ? sums[N - 1] : sums[N - 2]) : (t & 1 ? sums[1] : sums[0]);
        *at = first ? v : *at + v;
    } else { // lanes 0 and 1 row g, lanes 2 and 3 row g + 8, two tokens each
        float2 *at = (float2 *)(to + (t / 2 * 8 + g) * 4 + t % 2 * 2);
        float2 v = t & 2 ? make_float2(sums[N - 2], sums[N - 1]) : make_float2(sums[0], sums[1]);
        if (!first) v.x += at->x, v.y += at->y;
        *at = v;
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

// The squares of what this block has stored, for the next norm. A thread has had one token only.
template <int TOKENS>
__device__ __forceinline__ void gemv_store_squares(const lut_params &p, float squares, float *shared) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2)
        if (step < 8 || step >= 8 * TOKENS) squares += __shfl_xor_sync(~0u, squares, step);
    if (lane % 8 == 0 && lane / 8 < TOKENS) shared[warp * TOKENS + lane / 8] = squares;
    barrier_sync(1, GEMV_CONSUMERS);
    if ((int)threadIdx.x >= min((int)TOKENS, p.n_tokens)) return;
    float sum = 0.0f;
    for (int i = 0; i < GEMV_WARPS; i++) sum += shared[i * TOKENS + threadIdx.x];
    p.next.squares[threadIdx.x * LUT_MAX_PARTS + blockIdx.x] = sum;
}

// The order in which a block walks its stages: groups of panels, chunks of columns, panels, stages.
struct gemv_walk {
    int n_panels, group_panels, panel_stages, chunk_stages;
    int group = 0, chunk = 0, panel = 0, stage = 0;

    __device__ __forceinline__ int group_end() const { return min(group + group_panels, n_panels); }
    __device__ __forceinline__ bool done() const { return group >= n_panels; }
    __device__ __forceinline__ void next() {
        if (++stage < min(chunk + chunk_stages, panel_stages)) return;
        if (++panel == group_end()) {
            chunk += chunk_stages;
            if (chunk >= panel_stages) chunk = 0, group += group_panels;
            panel = group;
        }
        stage = chunk;
    }
};

template <int BITS, int GROUP, int TOKENS>
__device__ __forceinline__ void gemv_produce(const lut_params &p, uint8_t *smem, int panel0, int panels) {
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
    const uint8_t *from = p.weights + panel0 * panel_bytes;
    const int panel_stages = (p.panel_units + STAGE_UNITS - 1) / STAGE_UNITS;
    gemv_walk walk = {panels, p.group_panels, panel_stages, CHUNK_BLOCKS / layout::blocks / U};
    int slot = 0;
    auto issue = [&]() {
        const uint32_t bytes =
            min((int)STAGE_UNITS, p.panel_units - walk.stage * STAGE_UNITS) * layout::bytes;
        barrier_expect(full + slot * 8, bytes);
        copy_weights(ring + slot * STAGE_BYTES,
                     from + walk.panel * panel_bytes + (size_t)walk.stage * STAGE_BYTES, bytes,
                     full + slot * 8);
        slot++;
        walk.next();
    };
    if (leader) {
        for (int s = 0; s < p.stages; s++)
            barrier_init(full + s * 8, 1), barrier_init(empty + s * 8, GEMV_WARPS * WARP);
        barrier_init_fence();
        while (slot < p.stages && !walk.done()) issue();
    }
    __syncwarp();
    if (p.releases) dependents_launch();
    __syncthreads();
    if (!leader) return;
    for (uint32_t parity = 0; !walk.done(); parity ^= 1)
        for (slot = 0; slot < p.stages && !walk.done();) {
            barrier_wait(empty + slot * 8, parity);
            issue();
        }
}

template <int BITS, int GROUP, int TOKENS>
__global__ void __launch_bounds__(GEMV_THREADS, 2) lut_gemv(const __grid_constant__ lut_params p) {
#if __CUDA_ARCH__ >= 900
    using layout = unit_layout<BITS, GROUP>;
    using unit_t = lane_unit<BITS, GROUP, TOKENS>;
    using activations = lane_activations<BITS, GROUP, TOKENS>;
    enum {
        U = gemv_warp<BITS>::units,
        STAGE_UNITS = GEMV_WARPS * U,
        STAGE_BYTES = STAGE_UNITS * layout::bytes
    };
    enum { CHUNK_STAGES = CHUNK_BLOCKS / layout::blocks / U, CHUNK_UNITS = CHUNK_STAGES * U };
    enum { PREFETCH = TOKENS < 4 }; // the next chunk's activations, while registers last
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, t = lane % 4;
    const int panel0 = blockIdx.x * p.cta_panels, panels = min(p.cta_panels, p.n_panels - panel0);
    if (warp == GEMV_WARPS) return gemv_produce<BITS, GROUP, TOKENS>(p, smem, panel0, panels);

    if (p.releases) dependents_launch();
    table_build<BITS>(smem, p.table, GEMV_WARPS);
    if (p.overlap) dependency_wait();

    const int panel_stages = (p.panel_units + STAGE_UNITS - 1) / STAGE_UNITS;
    const uint8_t *x_row = p.x + min(columns<TOKENS>::token(lane), p.n_tokens - 1) * p.x_stride;
    auto unit_of = [&](int stage, int j) { return stage * STAGE_UNITS + warp * U + j; };
    activations x[CHUNK_UNITS], x_next[PREFETCH ? CHUNK_UNITS : 1];
    auto load_chunk = [&](activations *to, int stage) {
#pragma unroll
        for (int i = 0; i < CHUNK_UNITS; i++)
            to[i].load(x_row, p.n_cols, unit_of(stage + i / U, i % U), lane);
    };
    if (PREFETCH) load_chunk(x_next, 0);
    float *factors = (float *)(smem + p.factors_at); // (TOKENS), and behind them (warp, token)
    if (p.norm.squares) gemv_norm_factors<TOKENS>(p, factors);
    __syncthreads(); // the table and the barriers are there

    const uint32_t full = shared_address(smem + p.barriers_at), empty = full + p.stages * 8;
    const uint32_t mine = shared_address(smem + p.ring_at) + warp * U * layout::bytes;
    const uint32_t codes_at = keep_in_register(mine + lane * 16);
    const uint32_t codes_at8 = BITS == 3 ? keep_in_register(mine + lane * 8) : 0;
    const uint32_t scales_at = keep_in_register(mine + unit_t::scales_at(lane));
    const uint32_t lane_offset = keep_in_register(table_lane_offset<BITS>(lane));
    float *sums = (float *)(smem + p.sums_at); // (group panel, warp, row, token)
    float squares = 0.0f;
    int slot = 0;
    uint32_t parity = 0;

    for (int group = 0; group < panels; group += p.group_panels) {
        const int group_panels = min(p.group_panels, panels - group);
        for (int chunk = 0; chunk < panel_stages; chunk += CHUNK_STAGES) {
            if (PREFETCH) {
#pragma unroll
                for (int i = 0; i < CHUNK_UNITS; i++) x[i] = x_next[i];
                load_chunk(x_next, chunk + CHUNK_STAGES < panel_stages ? chunk + CHUNK_STAGES : 0);
            } else
                load_chunk(x, chunk);
            for (int panel = 0; panel < group_panels; panel++) {
                float sum[columns<TOKENS>::sums] = {};
#pragma unroll
                for (int s = 0; s < CHUNK_STAGES; s++) {
                    if (chunk + s >= panel_stages) continue;
                    unit_t unit[U];
                    barrier_wait(full + slot * 8, parity);
#pragma unroll
                    for (int j = 0; j < U; j++) {
                        const uint32_t at = slot * STAGE_BYTES + j * layout::bytes;
                        unit[j].load(codes_at + at, codes_at8 + at, scales_at + at);
                    }
#pragma unroll
                    for (int j = 0; j < U; j++)
                        if (unit_of(chunk + s, j) < p.panel_units)
                            x[s * U + j].multiply_add(unit[j], smem, lane_offset, t, sum);
                    uint32_t used = 0;
#pragma unroll
                    for (int i = 0; i < columns<TOKENS>::sums; i++) used |= __float_as_uint(sum[i]);
                    barrier_arrive_after(empty + slot * 8, used & p.always_zero);
                    if (++slot == p.stages) slot = 0, parity ^= 1;
                }
                sums_flush<TOKENS>(sum, sums + (panel * GEMV_WARPS + warp) * (16 * TOKENS), chunk == 0);
            }
        }
        barrier_sync(1, GEMV_CONSUMERS);
        squares += store_panels<TOKENS>(p, sums, GEMV_WARPS, panel0 + group, group_panels, GEMV_CONSUMERS,
                                        p.norm.squares ? factors : NULL);
        barrier_sync(1, GEMV_CONSUMERS);
    }
    if (p.next.squares) gemv_store_squares<TOKENS>(p, squares, factors + TOKENS);
#endif
}

template <int BITS, int GROUP> lut_kernel lut_gemv_pick(int tokens) {
    return tokens == 1   ? lut_gemv<BITS, GROUP, 1>
           : tokens == 2 ? lut_gemv<BITS, GROUP, 2>
                         : lut_gemv<BITS, GROUP, 4>;
}

// All kernels of one width.
#define LUT_GEMV_INSTANTIATE(BITS)                                                                           \
    lut_kernel lut_gemv_w##BITS(int group, int tokens) {                                                     \
        switch (group) {                                                                                     \
        case 32:                                                                                             \
            return lut_gemv_pick<BITS, 32>(tokens);                                                          \
        case 64:                                                                                             \
            return lut_gemv_pick<BITS, 64>(tokens);                                                          \
        case 128:                                                                                            \
            return lut_gemv_pick<BITS, 128>(tokens);                                                         \
        default:                                                                                             \
            return lut_gemv_pick<BITS, 256>(tokens);                                                         \
        }                                                                                                    \
    }

#endif
