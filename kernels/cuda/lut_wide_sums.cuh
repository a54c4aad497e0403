// The sums of a tile of lut_wide: which block has which stages, how blocks that share a tile add up, and the
// results.
//
// A tile shared by several blocks. Whoever goes on to another tile leaves all its sums in global memory; the
// others divide the tokens among themselves, leave what is not theirs, and add to their own sums those of the
// others, in the order of the blocks, as they arrive. Nobody waits before its last tile, and all blocks of a
// grid are resident.
//
// Sums are their own flags: the last bit of each is a tag, and when the tag is the next one they are there.
// Whoever takes the sums of a warp and eight tokens turns their tag for the next kernel.
#ifndef FLUTE_CUDA_LUT_WIDE_SUMS_CUH
#define FLUTE_CUDA_LUT_WIDE_SUMS_CUH

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/order.cuh"

// Blocks of a team have their tiles one below the other and walk through them together: what is said of
// blocks below holds for those of the same rank in their teams.
template <int TILE> struct wide_team {
    enum { TEAM = wide_tiles[TILE].team };
    static __device__ __forceinline__ int number() { return blockIdx.x / TEAM; }
    static __device__ __forceinline__ uint32_t count() { return gridDim.x / TEAM; }
    static __device__ __forceinline__ int rank() { return blockIdx.x % TEAM; }
};

// Stages [first, last) of a tile.
struct wide_segment {
    int tile, first, last;
};

// The segments of a team, in order: whole tiles in waves, then its share of the rest.
template <int TILE> struct wide_walk {
    using team = wide_team<TILE>;
    int wave = 0, at, end; // at, end: stages of the rest

    // The first stage of the rest that is the team's. Where teams are a multiple of its tiles, none has two.
    static __device__ __forceinline__ int start(const lut_params &p, uint32_t number) {
        return (int)(number * p.rest_stages / team::count());
    }
    // Whose stage of the rest this is: the last one that starts at it or before.
    static __device__ __forceinline__ int owner(const lut_params &p, uint32_t stage) {
        return (int)(((stage + 1) * team::count() - 1) / p.rest_stages);
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

// Where a block of the tile leaves its sums.
template <int TILE> __device__ __forceinline__ int wide_place(const wide_share &share, int block) {
    return (share.first_block + block * wide_team<TILE>::TEAM) * WIDE_PLACES + (block < share.n_stay);
}

// A warp works out with whom its block shares the tile of a segment, and loads the tags before any of these
// leaves sums.
template <int TILE>
__device__ __forceinline__ void wide_find_share(const lut_params &p, int tile, wide_shared *found) {
    using walk = wide_walk<TILE>;
    using team = wide_team<TILE>;
    enum { EIGHTS = wide_tiles[TILE].tokens / 8 };
    const int lane = threadIdx.x % WARP;
    const int begin = (tile - p.waves * team::count()) * p.tile_stages, end = begin + p.tile_stages;
    const int first_team = walk::owner(p, begin), last_team = walk::owner(p, end - 1);
    wide_share share;
    share.first_block = first_team * team::TEAM + team::rank();
    share.me = team::number() - first_team, share.n_blocks = last_team - first_team + 1;
    share.n_stay = share.n_blocks - (walk::start(p, last_team + 1) > end);
    const bool stays = share.me < share.n_stay;
    share.first = stays ? share.me * EIGHTS / share.n_stay : 0;
    share.last = stays ? (share.me + 1) * EIGHTS / share.n_stay : 0;
    if (lane == 0) found->share = share;
    if (lane >= share.n_blocks) return;
    const uint4 *from = (const uint4 *)(p.tags + wide_place<TILE>(share, lane) * WIDE_MAX_WARPS);
#pragma unroll
    for (int i = 0; i < WIDE_MAX_WARPS / 4; i++) ((uint4 *)found->tags[lane])[i] = __ldcg(from + i);
}

// The shares of a block, of which there are at most two: of a tile that it enters in the midst, and of one
// that it enters at its beginning and does not finish. Every lane arrives at `found`.
template <int TILE>
__device__ __forceinline__ void wide_find_shares(const lut_params &p, wide_shared *shares, uint32_t found) {
    wide_segment s;
    for (wide_walk<TILE> walk(p); walk.next(p, s);)
        if (s.last - s.first < p.tile_stages) wide_find_share<TILE>(p, s.tile, shares + (s.first == 0));
    barrier_arrive(found);
}

// The partial sums of this thread that a block of the tile leaves: one float4 for each eight tokens,
// WIDE_EIGHT from one to the next, those of neighbouring threads adjacent.
enum { WIDE_EIGHT = WIDE_MAX_WARPS * WARP };
template <int TILE>
__device__ __forceinline__ float4 *wide_partials(const lut_params &p, const wide_share &share, int block,
                                                 int thread) {
    return p.partials + (size_t)wide_place<TILE>(share, block) * (WIDE_MAX_EIGHTS * WIDE_EIGHT) + thread;
}

// Leaves the sums that are not this block's to store.
template <int TILE, int N>
__device__ __forceinline__ void wide_leave(const lut_params &p, const wide_share &share,
                                           const wide_tags &tags, int thread, const float (&sums)[N]) {
    float4 *to = wide_partials<TILE>(p, share, share.me, thread);
    const uint32_t mine = tags[share.me][thread / WARP];
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        if (i < share.first || i >= share.last)
            leave_partial(to + i * WIDE_EIGHT,
                          make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]),
                          mine >> i & 1);
}

// Waits until the other blocks have left their sums, as far as the last of them tells that each stores: a
// lane looks at one block's. Looking at all of them again and again would hold the stores up.
template <int TILE>
__device__ __forceinline__ void wide_await(const lut_params &p, const wide_share &share,
                                           const wide_tags &tags, int thread) {
    const int lane = thread % WARP;
    if (lane < share.n_blocks && lane != share.me) {
        const float4 *last = wide_partials<TILE>(p, share, lane, thread) + (share.last - 1) * WIDE_EIGHT;
        float4 v = load_partial(last);
        await_partial(last, v, tags[lane][thread / WARP] >> (share.last - 1) & 1);
    }
    __syncwarp();
}

// Adds what the other blocks leave of the tokens that are this block's to store, in the order of the blocks:
// EIGHTS eights of OTHERS blocks at a time.
template <int TILE, int EIGHTS, int OTHERS, int N>
__device__ __forceinline__ void wide_add_others(const lut_params &p, const wide_share &share,
                                                const wide_tags &tags, int thread, float (&sums)[N]) {
    const int n_others = share.n_blocks - 1;
#pragma unroll
    for (int e = 0; e < N / 4; e += EIGHTS) {
        if (e + EIGHTS <= share.first || e >= share.last) continue;
#pragma unroll 1
        for (int other = 0; other < n_others; other += OTHERS) {
            float4 v[OTHERS][EIGHTS] = {};
            auto for_each = [&](auto what) {
#pragma unroll
                for (int i = 0; i < OTHERS; i++) {
                    const int block = other + i + (other + i >= share.me);
                    const float4 *from = wide_partials<TILE>(p, share, block, thread);
                    const uint32_t block_tags = tags[block][thread / WARP];
#pragma unroll
                    for (int k = 0; k < EIGHTS && e + k < N / 4; k++)
                        if (other + i < n_others && e + k >= share.first && e + k < share.last)
                            what(from + (e + k) * WIDE_EIGHT, v[i][k], block_tags >> (e + k) & 1,
                                 sums + (e + k) * 4);
                }
            };
            for_each([](const float4 *from, float4 &v, uint32_t, float *) { v = load_partial(from); });
            for_each([](const float4 *from, float4 &v, uint32_t tag, float *to) {
                await_partial(from, v, tag);
                to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
            });
        }
    }
}

// A load takes most of a microsecond: as many are under way together as registers are left for.
template <int TILE, int N>
__device__ __forceinline__ void wide_collect(const lut_params &p, const wide_share &share,
                                             const wide_tags &tags, int thread, float (&sums)[N]) {
    constexpr wide_tile tile = wide_tiles[TILE];
    const int lane = thread % WARP;
    wide_await<TILE>(p, share, tags, thread);
    if (tile.warpgroups < 4)
        wide_add_others<TILE, 8, 1>(p, share, tags, thread, sums);
    else if (tile.team > 1)
        wide_add_others<TILE, 2, 1>(p, share, tags, thread, sums);
    else if (share.n_blocks == 2)
        wide_add_others<TILE, 4, 1>(p, share, tags, thread, sums);
    else if (share.n_blocks == 3)
        wide_add_others<TILE, 2, 2>(p, share, tags, thread, sums);
    else
        wide_add_others<TILE, 1, 4>(p, share, tags, thread, sums);
    __syncwarp(); // all lanes have theirs
    if (lane < share.n_blocks && lane != share.me)
        atomicXor(p.tags + wide_place<TILE>(share, lane) * WIDE_MAX_WARPS + thread / WARP,
                  (1u << share.last) - (1u << share.first));
}

// Calls store(rows) for eights [first, last) of the tokens, in order. rows: the sums of a panel for the
// lane's token of the eight, g. They go through shared memory, BUFFERS eights at a time, token to token
// WIDE_PITCH floats, which meet no bank twice.
template <int BUFFERS, int N, typename F>
__device__ __forceinline__ void wide_for_eights(float *eight, int lane, int first, int last,
                                                const float (&sums)[N], F store) {
    enum { EIGHT = 8 * WIDE_PITCH };
    const int g = lane / 4, t = lane % 4;
    float *const to = eight + 2 * t * WIDE_PITCH + g;
#pragma unroll
    for (int from = 0; from < N / 4; from += BUFFERS) {
        if (from + BUFFERS <= first || from >= last) continue;
#pragma unroll
        for (int k = 0; k < BUFFERS && from + k < N / 4; k++) {
            const float *const v = sums + (from + k) * 4;
            to[k * EIGHT] = v[0], to[k * EIGHT + WIDE_PITCH] = v[1];
            to[k * EIGHT + 8] = v[2], to[k * EIGHT + WIDE_PITCH + 8] = v[3];
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < BUFFERS && from + k < N / 4; k++)
            if (from + k >= first && from + k < last) store(eight + k * EIGHT + g * WIDE_PITCH);
        __syncwarp();
    }
}

// Stores eights [first, last) of a tile of tokens, from `token` on, as the epilogue says: each lane four rows
// of its token, or two channels.
template <int BUFFERS, int N>
__device__ __forceinline__ void wide_store(const lut_params &p, float *eight, int lane, int panel, int token,
                                           int first, int last, const float (&sums)[N]) {
    const int quarter = lane % 4, row = panel * 16 + quarter * 4;
    if (panel >= p.n_panels) return;
    token += first * 8 + lane / 4;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) {
        const int channel = panel * 8 + quarter * 2;
        wide_for_eights<BUFFERS>(eight, lane, first, last, sums, [&](const float *rows) {
            rows += quarter * 2;
            if (token < p.n_tokens)
                *order_word(p.y, p.y_order, p.y_stride * 2, token, channel) =
                    bf16_pair(gated(rows[0], rows[8], p.epilogue), gated(rows[1], rows[9], p.epilogue));
            token += 8;
        });
    } else if (!p.y_aligned || panel * 16 + 16 > p.n_rows) {
        wide_for_eights<BUFFERS>(eight, lane, first, last, sums, [&](const float *rows) {
#pragma unroll 1
            for (int i = 0; i < 4 && row + i < p.n_rows && token < p.n_tokens; i++)
                store_element(p, row + i, token, rows[quarter * 4 + i]);
            token += 8;
        });
    } else if (p.epilogue == LUT_STORE_BF16) {
        __nv_bfloat16 *y = (__nv_bfloat16 *)p.y + token * p.y_stride + row;
        wide_for_eights<BUFFERS>(eight, lane, first, last, sums, [&](const float *rows) {
            const float4 v = *(const float4 *)(rows + quarter * 4);
            if (token < p.n_tokens) *(uint2 *)y = make_uint2(bf16_pair(v.x, v.y), bf16_pair(v.z, v.w));
            token += 8, y += 8 * p.y_stride;
        });
    } else {
        float *y = (float *)p.y + token * p.y_stride + row;
        wide_for_eights<BUFFERS>(eight, lane, first, last, sums, [&](const float *rows) {
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
