// What attention of decode steps and of prompts share: tiles of queries and keys on tensor cores.
//
// Tiles. The query heads of a KV head see the same keys: a tile has 16 rows, a row is (token, head). Keys
// come in tiles of 32 tokens. S = Q · Kᵀ is 16 × 32, four mma columns tiles of eight tokens; O += P · V is 16
// × head_dim.
//
// Orders. Which channel (or token) an mma calls k does not matter as long as both operands agree. A lane t
// takes eight adjacent channels 8t … 8t + 7 of a run of 32 as its operands of two mma, so that it reads Q and
// K 16 bytes at a time. Column c of column tile q stands for token 8·⌊c / 2⌋ + 2q + c mod 2: then what a lane
// holds of S is what it needs as the A operand of P · V, and the tokens 8t … 8t + 7 of a channel are 16
// adjacent bytes of the cache (elementwise.h).
#ifndef FLUTE_CUDA_ATTENTION_TILES_CUH
#define FLUTE_CUDA_ATTENTION_TILES_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/cuda/rotate.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP, TILE_ROWS = 16, BLOCK_ROWS = WARPS * TILE_ROWS };
enum { MANY_WARPS = 6 };                       // decode: two blocks on an SM of 228 KB, for heads of 128
enum { FEW_WARPS = 2, FEW_STAGES = 2 };        // decode, prefill: where shared memory is small
enum { MAX_SPLITS = 32, SPLIT_TILES = WARPS }; // a split has at least a tile for each warp
enum { EXACT_ROWS = 8 };                       // decode: what models have, or less
enum { MAX_CLUSTER = 8 };                      // every GPU with clusters allows as many blocks
enum { STAGES = 3 };

struct attention_params {
    cuda_rows rows;
    rotate_params rotation; // decode
    const uint16_t *q;      // prefill
    uint16_t *out;
    lut_order order;       // of out
    int window, n_queries; // query heads of a KV head
    float softcap;
    const attention_run *runs;
    int n_splits;       // decode: splits of the context, a multiple of those of a cluster
    int cluster_shift;  // a cluster: 1 << cluster_shift
    int head_groups;    // pieces of 16 query heads
    float *partials;    // (row, KV head, head group, cluster, 16) parts
    uint32_t *counters; // (row, KV head, head group) blocks that have finished
};

// The word of two channels of a row of `out`; column: of all heads.
__device__ __forceinline__ uint32_t *out_word(const attention_params &p, int row, int column) {
    return order_word(p.out, p.order, p.rows.n_heads * p.rows.head_dim * 2, row, column);
}

// ---- Tiles

// The cached keys and values of one sequence and KV head. EXACT: heads of D channels in blocks of KV_TILE
// tokens, which is what models and the engine have; the compiler then knows every offset.
template <int D, bool EXACT> struct keys_of {
    const uint16_t *cache;
    const int32_t *table;
    int64_t block_stride;
    int tokens, padded_tokens, channels; // of a block; of a head

    __device__ __forceinline__ keys_of(const cuda_rows &r, int row, int kv_head)
        : cache(r.cache + (int64_t)kv_head * 2 * r.head_dim * r.tile_tokens),
          table(r.tables + (int64_t)r.sequences[row] * r.max_blocks), block_stride(r.block_stride),
          tokens(r.block_tokens), padded_tokens(r.tile_tokens), channels(r.head_dim) {}
    __device__ __forceinline__ int head_dim() const { return EXACT ? D : channels; }
    __device__ __forceinline__ int block_tokens() const { return EXACT ? (int)KV_TILE : tokens; }
    __device__ __forceinline__ int tile_tokens() const { return EXACT ? (int)KV_TILE : padded_tokens; }
    __device__ __forceinline__ int block_tiles() const { return tile_tokens() / KV_TILE; }
    // The key tile that holds a token, and the tokens of a tile: slot s is first_token + s, if that is in its
    // block.
    __device__ __forceinline__ int tile_of(int token) const {
        return token / block_tokens() * block_tiles() + token % block_tokens() / KV_TILE;
    }
    __device__ __forceinline__ int first_token(int tile) const {
        return tile / block_tiles() * block_tokens() + tile % block_tiles() * KV_TILE;
    }
    __device__ __forceinline__ int end_token(int tile) const { // of its block
        return (tile / block_tiles() + 1) * block_tokens();
    }
    __device__ __forceinline__ const uint16_t *keys(int tile) const { // (KV_TILE, head_dim)
        return cache + table[tile / block_tiles()] * block_stride +
               tile % block_tiles() * KV_TILE * head_dim();
    }
    // (head_dim, KV_TILE), from channel to channel tile_tokens apart.
    __device__ __forceinline__ const uint16_t *values(int tile) const {
        return cache + table[tile / block_tiles()] * block_stride + head_dim() * tile_tokens() +
               tile % block_tiles() * KV_TILE;
    }
};

// Which token of a tile column g of column tile q stands for.
__device__ __forceinline__ int slot_of(int q, int g) {
    return g / 2 * 8 + q * 2 + g % 2;
}

__device__ __forceinline__ void cap_scores(float (&s)[4][4], float cap) {
    const float twice = 2.0f / cap;
    // tanh(z) = 1 − 2 / (1 + exp(2z)), without overflow for large z
#pragma unroll
    for (int q = 0; q < 4; q++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[q][i] = cap * (1.0f - __fdividef(2.0f, 1.0f + __expf(fminf(s[q][i] * twice, 80.0f))));
}

// What a warp holds of 16 rows: lane 4g + t has rows g and g + 8. HALVES: 1 where rows from 8 on are not
// used. Probabilities of theirs are zero then, which saves a fifth of the instructions of a tile.
template <int D, int HALVES = 2> struct row_tile {
    float o[D / 8][4]; // column tiles of eight channels: rows g (two channels), g + 8
    float max[HALVES], sum[HALVES];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < D / 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.0f;
#pragma unroll
        for (int half = 0; half < HALVES; half++) max[half] = -INFINITY, sum[half] = 0.0f;
    }

    // From scores to probabilities, in place; allowed(half, slot) says which tokens the row sees.
    template <typename Allowed>
    __device__ __forceinline__ void soften(float (&s)[4][4], float cap, Allowed allowed) {
        const int t = threadIdx.x % 4;
        float next[HALVES], reference[HALVES];
#pragma unroll
        for (int half = 0; half < HALVES; half++) next[half] = max[half];
        if (cap != 0.0f) cap_scores(s, cap);
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int i = 0; i < HALVES * 2; i++) {
                if (!allowed(i / 2, t * 8 + q * 2 + i % 2)) s[q][i] = -INFINITY;
                next[i / 2] = fmaxf(next[i / 2], s[q][i]);
            }
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            next[half] = fmaxf(next[half], __shfl_xor_sync(~0u, next[half], 1));
            next[half] = fmaxf(next[half], __shfl_xor_sync(~0u, next[half], 2));
            // As long as nothing was seen, exp() must not meet the difference of two infinities.
            reference[half] = next[half] == -INFINITY ? 0.0f : next[half];
            const float factor = __expf(max[half] - reference[half]);
            max[half] = next[half], sum[half] *= factor;
#pragma unroll
            for (int j = 0; j < D / 8; j++) o[j][half * 2] *= factor, o[j][half * 2 + 1] *= factor;
        }
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int i = 0; i < HALVES * 2; i++) {
                s[q][i] = __expf(s[q][i] - reference[i / 2]);
                sum[i / 2] += s[q][i];
            }
    }

    // Sums of a row lie in four lanes until the end.
    __device__ __forceinline__ void finish_sums() {
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
            sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        }
    }
};

// S += Q · Kᵀ for one run of 32 channels and one column tile.
__device__ __forceinline__ void multiply_keys(float (&s)[4], const uint4 &q, const uint4 &q8,
                                              const uint4 &k) {
    mma(s, q.x, q8.x, q.y, q8.y, k.x, k.y);
    mma(s, q.z, q8.z, q.w, q8.w, k.z, k.w);
}

// O += P · V for one column tile of channels: v has tokens 8t … 8t + 7 of the lane's channel.
__device__ __forceinline__ void multiply_values(float (&o)[4], const uint32_t (&p)[8], const uint4 &v) {
    mma(o, p[0], p[1], p[2], p[3], v.x, v.y);
    mma(o, p[4], p[5], p[6], p[7], v.z, v.w);
}

template <int HALVES>
__device__ __forceinline__ void pack_probabilities(const float (&s)[4][4], uint32_t (&p)[8]) {
#pragma unroll
    for (int q = 0; q < 4; q++) {
        p[q * 2] = to_bf16x2(s[q][0], s[q][1]);
        p[q * 2 + 1] = HALVES == 2 ? to_bf16x2(s[q][2], s[q][3]) : 0;
    }
}

__device__ __forceinline__ uint4 zero4() {
    return make_uint4(0, 0, 0, 0);
}

// ---- Key tiles in shared memory: keys (32, key_stride bytes), then values (head_dim, 64 bytes)

// Two neighbouring keys in different halves of the 32 banks: 64 bytes modulo 128.
__host__ __device__ static constexpr int key_stride(int head_dim) {
    return (head_dim * 2 + 63) / 128 * 128 + 64;
}

__host__ __device__ static constexpr int stage_bytes(int head_dim) {
    return KV_TILE * key_stride(head_dim) + head_dim * KV_TILE * 2;
}

// These queue copies of a tile, by N_THREADS threads of which this is number `thread`: of its first n_tokens
// tokens, and zeros in place of the others, which meet probabilities of zero. From trip to trip, a thread's
// addresses are a constant apart.
template <int N_THREADS, int D, bool EXACT>
__device__ __forceinline__ void copy_keys(const keys_of<D, EXACT> &kv, const uint16_t *from, int n_tokens,
                                          uint32_t to, int thread) {
    enum { CHUNKS = D / 8, KEYS = N_THREADS / CHUNKS };
    const int token = thread / CHUNKS, chunk = thread % CHUNKS, left = n_tokens - token,
              stride = key_stride(kv.head_dim());
    from = keep_in_register(from + token * kv.head_dim() + chunk * 8), to += token * stride + chunk * 16;
    if (chunk * 8 >= kv.head_dim()) return;
        // A whole tile is known as such when the caller of a prompt is compiled: no comparisons.
#pragma unroll
    for (int first = 0; first < KV_TILE; first += KEYS)
        copy_activations(to + first * stride, from + first * kv.head_dim(),
                         n_tokens == KV_TILE || first < left);
}

template <int N_THREADS, int D, bool EXACT>
__device__ __forceinline__ void copy_values(const keys_of<D, EXACT> &kv, const uint16_t *from, int n_tokens,
                                            uint32_t to, int thread) {
    enum { CHUNKS = KV_TILE / 8, CHANNELS = N_THREADS / CHUNKS };
    const int channel = thread / CHUNKS, token = thread % CHUNKS * 8;
    from = keep_in_register(from + channel * kv.tile_tokens() + token), to += thread * 16;
#pragma unroll
    for (int first = 0; first < D; first += CHANNELS)
        if (EXACT || first + channel < kv.head_dim())
            copy_activations(to + first * CHUNKS * 16, from + first * kv.tile_tokens(), token < n_tokens);
}

// S = Q · Kᵀ; query(u, half) is what the lane has of run u of row g + 8 · half.
template <int D, typename Query>
__device__ __forceinline__ void score_tile(uint32_t keys_at, int head_dim, Query query, float (&s)[4][4]) {
    const int stride = key_stride(head_dim);
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int q = 0; q < 4; q++) s[q][0] = s[q][1] = s[q][2] = s[q][3] = 0.0f;
#pragma unroll
    for (int u = 0; u < D / 32; u++) {
        if (u * 32 >= head_dim) break;
        const bool inside = u * 32 + t * 8 < head_dim;
        const uint4 q0 = query(u, 0), q8 = query(u, 1);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint4 k =
                inside ? load_shared4(keys_at + slot_of(q, g) * stride + u * 64 + t * 16) : zero4();
            multiply_keys(s[q], q0, q8, k);
        }
    }
}

// O += P · V
template <int D, int HALVES>
__device__ __forceinline__ void weigh_tile(uint32_t values_at, int head_dim, const float (&s)[4][4],
                                           row_tile<D, HALVES> &rows) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t packed[8];
    pack_probabilities<HALVES>(s, packed);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        if (j * 8 >= head_dim) break;
        multiply_values(rows.o[j], packed, load_shared4(values_at + g * 64 + t * 16 + j * 512));
    }
}

#endif
