// The sums of a tile of lut_wide: which block has which stages, how blocks that share a tile add up, and the
// results.
//
// A tile shared by several blocks. Whoever goes on to another tile leaves all its sums in global memory; the
// others divide the tokens among themselves, leave what is not theirs, and add to their own sums those of the
// others, in the order of the blocks, as they arrive: a place is empty until its sums are there, and whoever
// takes them leaves it empty for the next kernel. Nobody waits before its last tile, and all blocks of a grid
// are resident.
#ifndef FLUTE_CUDA_LUT_WIDE_SUMS_CUH
#define FLUTE_CUDA_LUT_WIDE_SUMS_CUH

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/order.cuh"

// Blocks of a team have their tiles one below the other and walk through them together: what is said of
// blocks below holds for those of the same rank in their teams.
template <int TEAM> struct wide_team {
    static __device__ __forceinline__ int number() { return blockIdx.x / TEAM; }
    static __device__ __forceinline__ int count() { return gridDim.x / TEAM; }
    static __device__ __forceinline__ int rank() { return blockIdx.x % TEAM; }
};

// Stages [first, last) of a tile.
struct wide_segment {
    int tile, first, last;
};

// The segments of a team, in order: whole tiles in waves, then its share of the rest.
template <int TEAM> struct wide_walk {
    using team = wide_team<TEAM>;
    int wave = 0, at, end; // at, end: stages of the rest

    // The first stage of the rest that is the team's: teams have rest_each stages, the first rest_more of
    // them one more.
    static __device__ __forceinline__ int start(const lut_params &p, int number) {
        return number * p.rest_each + min(number, p.rest_more);
    }
    // Whose stage of the rest this is.
    static __device__ __forceinline__ int owner(const lut_params &p, int stage) {
        const int more = p.rest_more * (p.rest_each + 1);
        return stage < more ? stage / (p.rest_each + 1) : p.rest_more + (stage - more) / p.rest_each;
    }

    __device__ __forceinline__ explicit wide_walk(const lut_params &p)
        : at(start(p, team::number())), end(start(p, team::number() + 1)) {}

    __device__ __forceinline__ bool next(const lut_params &p, wide_segment &s) {
        if (wave < p.waves) {
            s.tile = wave++ * team::count() + team::number(), s.first = 0, s.last = p.tile_stages;
            return true;
        }
        if (at >= end) return false;
        s.tile = p.waves * team::count() + at / p.tile_stages, s.first = at % p.tile_stages;
        s.last = min(p.tile_stages, s.first + end - at);
        at += s.last - s.first;
        return true;
    }
};

// Which blocks share a tile of the rest, and which tokens are left to this one.
template <int TEAM> struct wide_share {
    using walk = wide_walk<TEAM>;
    using team = wide_team<TEAM>;
    int first_team, n_ctas, n_stay; // that have stages of it; the first n_stay have no tile after it
    int me;                         // of them
    int first, last;                // eights of tokens that this block stores
    bool stays;

    __device__ __forceinline__ wide_share(const lut_params &p, int tile, int n_eights) {
        const int begin = (tile - p.waves * team::count()) * p.tile_stages, end = begin + p.tile_stages;
        first_team = walk::owner(p, begin);
        const int last_team = walk::owner(p, end - 1);
        me = team::number() - first_team;
        n_ctas = last_team - first_team + 1;
        n_stay = n_ctas - (walk::start(p, last_team + 1) > end);
        stays = me < n_stay;
        first = stays ? me * n_eights / n_stay : 0, last = stays ? (me + 1) * n_eights / n_stay : 0;
    }
};

// The partial sums of a thread, N for each block: one float4 for each eight tokens, those of neighbouring
// threads adjacent. A block has two tiles to leave: one that it goes on from and one that it stays with.
template <int N, int TEAM>
__device__ __forceinline__ float4 *wide_partials(const lut_params &p, const wide_share<TEAM> &share,
                                                 int cta) {
    const int block = (share.first_team + cta) * TEAM + wide_team<TEAM>::rank();
    return p.partials + (size_t)(block * 2 + (cta < share.n_stay)) * (N / 4) * WIDE_CONSUMERS + threadIdx.x;
}

// Leaves the sums that are not this block's to store.
template <int N, int TEAM>
__device__ __forceinline__ void wide_leave(const lut_params &p, const wide_share<TEAM> &share,
                                           const float (&sums)[N]) {
    float4 *to = wide_partials<N>(p, share, share.me);
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        if (i < share.first || i >= share.last)
            leave_partial(to + i * WIDE_CONSUMERS,
                          make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
}

// Waits until the other blocks have left their sums, as far as the last of them tells that each stores: a
// lane looks at one block's. Looking at all of them again and again would hold the stores up.
template <int N, int TEAM>
__device__ __forceinline__ void wide_await(const lut_params &p, const wide_share<TEAM> &share) {
    for (int i = threadIdx.x % WARP; i < share.n_ctas; i += WARP) {
        if (i == share.me) continue;
        const float4 *last = wide_partials<N>(p, share, i) + (share.last - 1) * WIDE_CONSUMERS;
        float4 v = load_partial(last);
        await_partial(last, v);
    }
    __syncwarp();
}

// Adds what the other blocks leave of the tokens that are this block's to store, in the order of the blocks.
// Nobody else takes it. A load takes most of a microsecond: those of EIGHTS eights and OTHERS blocks are
// under way together, as many as registers are left for. Many blocks share a tile of few tokens.
template <int N, int TEAM>
__device__ __forceinline__ void wide_collect(const lut_params &p, const wide_share<TEAM> &share,
                                             float (&sums)[N]) {
    enum { EIGHTS = TEAM == 1 ? 1 : N > 32 ? 2 : 4, OTHERS = TEAM == 1 ? 4 : N > 32 ? 1 : 2 };
    const int n_others = share.n_ctas - 1;
    wide_await<N>(p, share);
#pragma unroll
    for (int e = 0; e < N / 4; e += EIGHTS) {
        if (e + EIGHTS <= share.first || e >= share.last) continue;
#pragma unroll 1
        for (int other = 0; other < n_others; other += OTHERS) {
            float4 v[OTHERS][EIGHTS] = {};
            auto for_each = [&](auto what) {
#pragma unroll
                for (int i = 0; i < OTHERS; i++) {
                    float4 *from = wide_partials<N>(p, share, other + i + (other + i >= share.me));
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

// Calls store(rows) for eights [first, last) of the tokens, one after the other. rows: the sums of a panel
// for the lane's token of the eight, g. They go through shared memory, token to token WIDE_PITCH floats,
// which meet no bank twice.
template <int N, typename F>
__device__ __forceinline__ void wide_for_eights(float *eight, int first, int last, const float (&sums)[N],
                                                F store) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        if (i < first || i >= last) continue;
        float *const to = eight + 2 * t * WIDE_PITCH + g;
        to[0] = sums[4 * i], to[WIDE_PITCH] = sums[4 * i + 1];
        to[8] = sums[4 * i + 2], to[WIDE_PITCH + 8] = sums[4 * i + 3];
        __syncwarp();
        store(eight + g * WIDE_PITCH);
        __syncwarp();
    }
}

// Stores eights [first, last) of a tile of tokens, from `token` on, as the epilogue says: each lane four rows
// of its token, or two channels.
template <int N>
__device__ __forceinline__ void wide_store(const lut_params &p, float *eight, int panel, int token, int first,
                                           int last, const float (&sums)[N]) {
    const int lane = threadIdx.x % WARP, quarter = lane % 4, row = panel * 16 + quarter * 4;
    if (panel >= p.n_panels) return;
    token += first * 8 + lane / 4;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) {
        const int channel = panel * 8 + quarter * 2;
        wide_for_eights(eight, first, last, sums, [&](const float *rows) {
            rows += quarter * 2;
            if (token < p.n_tokens)
                *order_word(p.y, p.y_order, p.y_stride * 2, token, channel) =
                    bf16_pair(gated(rows[0], rows[8], p.epilogue), gated(rows[1], rows[9], p.epilogue));
            token += 8;
        });
    } else if (!p.y_aligned || panel * 16 + 16 > p.n_rows) {
        wide_for_eights(eight, first, last, sums, [&](const float *rows) {
#pragma unroll 1
            for (int i = 0; i < 4 && row + i < p.n_rows && token < p.n_tokens; i++)
                store_element(p, row + i, token, rows[quarter * 4 + i]);
            token += 8;
        });
    } else if (p.epilogue == LUT_STORE_BF16) {
        __nv_bfloat16 *y = (__nv_bfloat16 *)p.y + token * p.y_stride + row;
        wide_for_eights(eight, first, last, sums, [&](const float *rows) {
            const float4 v = *(const float4 *)(rows + quarter * 4);
            if (token < p.n_tokens) *(uint2 *)y = make_uint2(bf16_pair(v.x, v.y), bf16_pair(v.z, v.w));
            token += 8, y += 8 * p.y_stride;
        });
    } else {
        float *y = (float *)p.y + token * p.y_stride + row;
        wide_for_eights(eight, first, last, sums, [&](const float *rows) {
            const float4 v = *(const float4 *)(rows + quarter * 4);
            if (token < p.n_tokens && p.epilogue == LUT_ADD_F32)
                add_global4(y, v);
            else if (token < p.n_tokens)
                *(float4 *)y = v;
            token += 8, y += 8 * p.y_stride;
        });
    }
}

#endif
