// out = softmax(softcap(q · kᵀ)) · v, with the tensor cores, K and V read once.
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
//
// Decode: what rotates queries and appends to the cache is done here, too, which saves a kernel. A block for
// each row, KV head and split of the context; four warps take its key tiles in turn, straight from memory to
// registers. Up to eight splits are a cluster: every warp leaves its part of a row, (O, max, sum), in the
// shared memory of the block of the cluster that owns the row, which adds the parts up when all are there.
// Where a context is longer than a cluster takes at once, or there are no clusters (before Hopper), the sums
// of clusters go through device memory to the last of them that finishes, which adds them up in order.
// Prefill: a block for each KV head and run of rows; four warps share the key tiles through a ring in shared
// memory.
//
// Roofline on an H200: decode reads 4·head_dim bytes a token and KV head, 18.6 bytes a clock of an SM; 64 mma
// of 1 to 2 clocks for 16 KB (head_dim 128) leave the tensor cores nearly idle. Prefill: 16 × 32 × head_dim
// takes 64 mma and, in 32 loads of 512 bytes, 128 clocks of shared memory a warp: shared memory is the limit,
// at about half the rate of mma.sync.
#include "kernels/cuda/attention.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/order.cuh"
#include "kernels/cuda/rotate.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP, TILE_ROWS = 16, BLOCK_ROWS = WARPS * TILE_ROWS };
enum { FEW_WARPS = 2, FEW_STAGES = 2 };        // decode, prefill: where shared memory is small
enum { MAX_SPLITS = 32, SPLIT_TILES = WARPS }; // a split has at least a tile for each warp
enum { MAX_CLUSTER = 8 };                      // every GPU with clusters allows as many blocks
enum { STAGES = 3 };
enum { OWN_SHARED = 1024 }; // static, up to where dynamic shared memory is aligned

struct attention_params {
    cuda_rows rows;
    rotate_params rotation; // decode
    const uint16_t *q;      // prefill
    uint16_t *out;
    lut_order order;       // of out
    int window, n_queries; // query heads of a KV head
    float softcap;
    const attention_run *runs;
    int n_splits;                // decode: splits of the context, a multiple of those of a cluster
    int cluster_shift;           // a cluster: 1 << cluster_shift
    int head_groups;             // pieces of 16 query heads
    float *partials;             // (row, KV head, head group, cluster, 16) parts
    uint32_t *counters;          // (row, KV head, head group) blocks that have finished
    int key_stride, stage_bytes; // bytes from key to key, and of a stage in shared memory
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

// What a warp holds of 16 rows: lane 4g + t has rows g and g + 8.
template <int D> struct row_tile {
    float o[D / 8][4]; // column tiles of eight channels: rows g (two channels), g + 8
    float max[2], sum[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < D / 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.0f;
        max[0] = max[1] = -INFINITY, sum[0] = sum[1] = 0.0f;
    }

    // From scores to probabilities, in place; allowed(half, slot) says which tokens the row sees.
    template <typename Allowed>
    __device__ __forceinline__ void soften(float (&s)[4][4], float cap, Allowed allowed) {
        const int t = threadIdx.x % 4;
        float next[2] = {max[0], max[1]}, reference[2];
        if (cap != 0.0f) cap_scores(s, cap);
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (!allowed(i / 2, t * 8 + q * 2 + i % 2)) s[q][i] = -INFINITY;
                next[i / 2] = fmaxf(next[i / 2], s[q][i]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
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
            for (int i = 0; i < 4; i++) {
                s[q][i] = __expf(s[q][i] - reference[i / 2]);
                sum[i / 2] += s[q][i];
            }
    }

    // Sums of a row lie in four lanes until the end.
    __device__ __forceinline__ void finish_sums() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
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

__device__ __forceinline__ void pack_probabilities(const float (&s)[4][4], uint32_t (&p)[8]) {
#pragma unroll
    for (int q = 0; q < 4; q++) {
        p[q * 2] = to_bf16x2(s[q][0], s[q][1]);
        p[q * 2 + 1] = to_bf16x2(s[q][2], s[q][3]);
    }
}

__device__ __forceinline__ uint4 zero4() {
    return make_uint4(0, 0, 0, 0);
}

// ---- Key tiles in shared memory: keys (32, key_stride bytes), then values (head_dim, 64 bytes)

// Queues the copies, by n_threads threads of which this is number `thread`.
template <typename keys>
__device__ __forceinline__ void copy_keys(const keys &kv, int tile, uint32_t to, int key_stride, int thread,
                                          int n_threads) {
    const int chunks = kv.head_dim() / 8;
    const uint16_t *from = kv.keys(tile);
    for (int i = thread; i < KV_TILE * chunks; i += n_threads)
        copy_activations(to + i / chunks * key_stride + i % chunks * 16, from + i * 8, true);
}

template <typename keys>
__device__ __forceinline__ void copy_values(const keys &kv, int tile, uint32_t to, int thread,
                                            int n_threads) {
    const uint16_t *from = kv.values(tile);
    for (int i = thread; i < kv.head_dim() * 4; i += n_threads)
        copy_activations(to + i * 16, from + i / 4 * kv.tile_tokens() + i % 4 * 8, true);
}

// S = Q · Kᵀ; query(u, half) is what the lane has of run u of row g + 8 · half.
template <int D, typename Query>
__device__ __forceinline__ void score_tile(uint32_t keys_at, int key_stride, int head_dim, Query query,
                                           float (&s)[4][4]) {
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
                inside ? load_shared4(keys_at + slot_of(q, g) * key_stride + u * 64 + t * 16) : zero4();
            multiply_keys(s[q], q0, q8, k);
        }
    }
}

// O += P · V
template <int D>
__device__ __forceinline__ void weigh_tile(uint32_t values_at, int head_dim, const float (&s)[4][4],
                                           row_tile<D> &rows) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t packed[8];
    pack_probabilities(s, packed);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        if (j * 8 >= head_dim) break;
        multiply_values(rows.o[j], packed, load_shared4(values_at + g * 64 + t * 16 + j * 512));
    }
}

// ---- Decode

// Keys [first, last] of the row that this split takes, as tiles [begin, end).
struct split_tiles {
    int first, last, begin, end, n_splits; // n_splits: those that have any
    template <typename keys>
    __device__ __forceinline__ split_tiles(const attention_params &p, const keys &kv, int position,
                                           int split) {
        first = p.window > 0 && position >= p.window ? position - p.window + 1 : 0, last = position;
        const int from = kv.tile_of(first), n = kv.tile_of(last) + 1 - from;
        int each = SPLIT_TILES; // divisions are for long contexts
        n_splits = (n + SPLIT_TILES - 1) / SPLIT_TILES;
        if (n_splits > p.n_splits) {
            each = (n + p.n_splits - 1) / p.n_splits;
            n_splits = (n + each - 1) / each;
        }
        begin = from + split * each, end = min(begin + each, from + n);
    }
};

// A part of a row: O (head_dim), the largest score, the sum of probabilities. Parts of warps lie in shared
// memory, those of clusters in device memory.
__host__ __device__ static inline int part_floats(int head_dim) {
    return head_dim + 4;
}

template <bool SHARED> __device__ __forceinline__ float4 load_part(const float *at) {
    return SHARED ? *(const float4 *)at : __ldcg((const float4 *)at);
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, step));
    return v;
}

// n parts of a row, at most a warp's width, `stride` floats apart, added up by a warp: a lane has channels
// 4·lane and 128 + 4·lane, and the three behind each. Every load is independent of the others: one after the
// other, four splits took an H200 9 µs.
struct row_sum {
    float4 o[2];
    float max, sum;

    template <bool SHARED>
    __device__ __forceinline__ void add(const float *parts, int n, int stride, int head_dim) {
        const int lane = threadIdx.x % WARP;
        float4 ends = make_float4(-INFINITY, 0.0f, 0.0f, 0.0f);
        if (lane < n) ends = load_part<SHARED>(parts + lane * stride + head_dim);
        const float own_max = ends.x, own_sum = ends.y;
        max = warp_max(own_max);
        const float factor = own_sum > 0.0f ? __expf(own_max - max) : 0.0f;
        sum = warp_sum(factor * own_sum);
        o[0] = o[1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
        for (int i = 0; i < n; i++) {
            const float f = __shfl_sync(~0u, factor, i);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int d = half * 128 + lane * 4;
                if (d >= head_dim) continue;
                const float4 v = load_part<SHARED>(parts + i * stride + d);
                o[half].x += f * v.x, o[half].y += f * v.y, o[half].z += f * v.z, o[half].w += f * v.w;
            }
        }
    }
    __device__ __forceinline__ void store_part(float *part, int head_dim) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (half * 128 + lane * 4 < head_dim) *(float4 *)(part + half * 128 + lane * 4) = o[half];
        if (lane == 0) *(float4 *)(part + head_dim) = make_float4(max, sum, 0.0f, 0.0f);
    }
    // To columns column .. column + head_dim of a row of out.
    __device__ __forceinline__ void store(const attention_params &p, int row, int column,
                                          int head_dim) const {
        const float f = 1.0f / sum;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int d = half * 128 + threadIdx.x % WARP * 4;
            if (d >= head_dim) continue;
            *out_word(p, row, column + d) = to_bf16x2(o[half].x * f, o[half].y * f);
            *out_word(p, row, column + d + 2) = to_bf16x2(o[half].z * f, o[half].w * f);
        }
    }
};

// Whether all other splits have finished; the same answer in every thread. The counter is zero again
// afterwards.
__device__ __forceinline__ bool last_of_splits(uint32_t *counter, uint32_t n) {
    __shared__ bool last;
    __syncthreads(); // all stores of the block, which the fence of one thread then makes visible
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1) == n - 1;
        if (last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// The blocks of a cluster that have keys, and which rows each adds up: the first ones, a power of two of
// them.
struct row_owners {
    int cluster, rank; // of this block
    int n_parts;       // of a row: a warp of a block with keys leaves one
    int shift, n;      // owners: 1 << shift

    __device__ __forceinline__ row_owners(const attention_params &p, int n_splits, int n_warps)
        : cluster(blockIdx.x >> p.cluster_shift), rank(blockIdx.x - (cluster << p.cluster_shift)) {
        const int blocks = min(1 << p.cluster_shift, n_splits - (cluster << p.cluster_shift));
        n_parts = blocks * n_warps, shift = 31 - __clz(blocks), n = 1 << shift;
    }
    // Rows that this block adds up are rank, rank + n, …
    __device__ __forceinline__ int owner(int row) const { return row & (n - 1); }
    __device__ __forceinline__ int own_rows(int n_rows) const {
        return rank < n ? (n_rows - rank + n - 1) >> shift : 0;
    }
    // The first part of a row with its owner, in parts.
    __device__ __forceinline__ int first_part(int row) const { return (row >> shift) * n_parts; }
};

// Leaves what this warp has of each row with the owner of the row; parts_at: shared address of the parts;
// left: the barrier, in a cluster, that counts their bytes.
template <int D, int N_WARPS>
__device__ __forceinline__ void leave_rows(const row_tile<D> &rows, const row_owners &owners, bool clustered,
                                           uint32_t parts_at, uint32_t left, int head_dim, int n_rows) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int mine = owners.rank * N_WARPS + threadIdx.x / WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = g + half * 8, owner = owners.owner(row);
        if (row >= n_rows) continue;
        const uint32_t at = parts_at + (owners.first_part(row) + mine) * part_floats(head_dim) * 4;
        const uint32_t to = clustered ? cluster_address(at, owner) : at;
        const uint32_t counts = clustered ? cluster_address(left, owner) : 0;
        auto store = [&](int offset, float x, float y) {
            if (clustered)
                store_cluster(to + offset * 4, make_float2(x, y), counts);
            else
                store_shared2(to + offset * 4, make_float2(x, y));
        };
        if (t == 0) store(head_dim, rows.max[half], rows.sum[half]);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            if (j * 8 < head_dim) store(j * 8 + t * 2, rows.o[j][half * 2], rows.o[j][half * 2 + 1]);
    }
}

// Adds up the parts that warps have left here, and the clusters', a warp a row: n_rows heads of head_dim from
// column first_column of out on.
template <int N_WARPS>
__device__ __forceinline__ void decode_finish(const attention_params &p, const row_owners &owners,
                                              const float *parts, int head_dim, int n_rows, int n_splits,
                                              int first_column) {
    const int warp = threadIdx.x / WARP, part = part_floats(head_dim);
    const int n_clusters = (n_splits + (1 << p.cluster_shift) - 1) >> p.cluster_shift;
    const int64_t unit = (int64_t)blockIdx.z * gridDim.y + blockIdx.y;
    float *all = p.partials + unit * (p.n_splits >> p.cluster_shift) * TILE_ROWS * part;
    for (int i = warp; i < owners.own_rows(n_rows); i += N_WARPS) {
        const int row = owners.rank + (i << owners.shift);
        row_sum sum;
        sum.add<true>(parts + i * owners.n_parts * part, owners.n_parts, part, head_dim);
        if (n_clusters == 1)
            sum.store(p, blockIdx.z, first_column + row * head_dim, head_dim);
        else
            sum.store_part(all + (owners.cluster * TILE_ROWS + row) * part, head_dim);
    }
    if (n_clusters == 1 || !last_of_splits(p.counters + unit, n_splits)) return;
    for (int row = warp; row < n_rows; row += N_WARPS) {
        row_sum sum;
        sum.add<false>(all + row * part, n_clusters, TILE_ROWS * part, head_dim);
        sum.store(p, blockIdx.z, first_column + row * head_dim, head_dim);
    }
}

// Heads of the row, a warp each: n_rows queries and, if wanted, the new key and value. A warp loads two heads
// before it works on the first: each load is a trip to L2.
template <int N_WARPS, int PAIRS>
__device__ __forceinline__ void rotate_heads(const rotate_params &p, int row, int kv_head, int first_query,
                                             int n_rows, bool appends, const lane_rotation<PAIRS> &rotation,
                                             uint16_t *q_rows, int q_stride, uint16_t *new_key,
                                             uint16_t *new_value) {
    const int n_queries = p.n_queries, head_dim = p.rows.head_dim, n = n_rows + 2 * appends;
    for (int first = threadIdx.x / WARP; first < n; first += 2 * N_WARPS) {
        lane_pairs<PAIRS> pairs[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int i = first + k * N_WARPS, head = i < n_rows ? first_query + i : n_queries + i - n_rows;
            if (i < n) pairs[k].load(head_of_row(p, row, kv_head, head), head_dim);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int i = first + k * N_WARPS;
            if (i < n_rows)
                rotate_query(p, rotation, pairs[k], q_rows + i * q_stride);
            else if (i == n_rows && appends)
                rotate_key(p, rotation, pairs[k], new_key);
            else if (i < n)
                pairs[k].store(head_dim, new_value, 1);
        }
    }
}

template <int D, bool EXACT, int N_WARPS>
static __global__ void __launch_bounds__(N_WARPS *WARP, 2)
    attend_decode(const __grid_constant__ attention_params p) {
    enum { N_THREADS = N_WARPS * WARP };
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int row = blockIdx.z, kv_head = p.head_groups == 1 ? blockIdx.y : blockIdx.y / p.head_groups,
              group = blockIdx.y - kv_head * p.head_groups;
    const int head_dim = EXACT ? D : p.rows.head_dim, first_head = kv_head * p.n_queries + group * TILE_ROWS;
    const int n_rows = min((int)TILE_ROWS, p.n_queries - group * TILE_ROWS);
    dependents_launch();
    lane_rotation<D / 64> rotation;
    rotation.load(p.rotation.inv_freq, head_dim);
    // The batch, and the cache but for this token, were there before the step: only what the kernel ahead
    // writes must wait.
    const int position = p.rows.positions[row];
    if (position < 0) {
        dependency_wait();
        for (int i = threadIdx.x * 2; blockIdx.x == 0 && i < n_rows * head_dim; i += N_THREADS * 2)
            *out_word(p, row, first_head * head_dim + i) = 0;
        return;
    }
    const keys_of<D, EXACT> kv(p.rows, row, kv_head);
    const split_tiles tiles(p, kv, position, blockIdx.x);
    if ((int)blockIdx.x >= tiles.n_splits) return dependency_wait();

    // Shared memory: queries (16, D), zero where there are none; the new key and value; a key tile for each
    // warp; the barrier that counts what is left here; parts of rows.
    uint16_t *q_rows = (uint16_t *)smem, *new_key = q_rows + TILE_ROWS * D, *new_value = new_key + D;
    uint8_t *stages = smem + (TILE_ROWS + 2) * D * 2, *stage = stages + warp * p.stage_bytes;
    uint8_t *left_barrier = stages + N_WARPS * p.stage_bytes;
    const bool clustered = HAS_CLUSTERS && p.cluster_shift > 0;
    float *parts = (float *)(clustered ? left_barrier + 16 : stages);
    const uint32_t left = shared_address(left_barrier);
    if (clustered) {
        if (threadIdx.x == 0) {
            barrier_init(left, 1);
            barrier_init_fence();
            const row_owners owners(p, tiles.n_splits, N_WARPS);
            barrier_expect(left, owners.own_rows(n_rows) * owners.n_parts * (head_dim + 2) * 4);
        }
        cluster_arrive();
    }
    const uint32_t keys_at = shared_address(stage), values_at = keys_at + KV_TILE * p.key_stride;
    int tile = tiles.begin + warp;
    if (tile < tiles.end) copy_keys(kv, tile, keys_at, p.key_stride, lane, WARP);
    copies_commit();
    if (tile < tiles.end) copy_values(kv, tile, values_at, lane, WARP);
    copies_commit();
    rotation.turn(position);
    for (int i = threadIdx.x; i < TILE_ROWS * (D / 8); i += N_THREADS) ((uint4 *)q_rows)[i] = zero4();
    __syncthreads();
    dependency_wait();

    const bool appends = (int)blockIdx.x == tiles.n_splits - 1; // the last split has this token's tile
    rotate_heads<N_WARPS>(p.rotation, row, kv_head, group * TILE_ROWS, n_rows, appends, rotation, q_rows, D,
                          new_key, new_value);
    __syncthreads();
    const int last_tile = kv.tile_of(position), slot = position - kv.first_token(last_tile);
    if (appends) {
        uint16_t *keys = (uint16_t *)kv.keys(last_tile) + slot * head_dim,
                 *values = (uint16_t *)kv.values(last_tile) + slot;
        for (int d = threadIdx.x; d < head_dim; d += N_THREADS)
            keys[d] = new_key[d], values[d * kv.tile_tokens()] = new_value[d];
    }

    row_tile<D> rows;
    rows.clear();
    for (; tile < tiles.end; tile += N_WARPS) {
        const int next = tile + N_WARPS, token = kv.first_token(tile);
        const int end = min(position + 1, kv.end_token(tile));
        copies_wait<1>();
        __syncwarp();
        if (tile == last_tile) { // it was copied without the new token
            for (int d = lane; d < head_dim; d += WARP)
                *(uint16_t *)(stage + slot * p.key_stride + d * 2) = new_key[d];
            __syncwarp();
        }
        float s[4][4];
        score_tile<D>(
            keys_at, p.key_stride, head_dim,
            [&](int u, int half) { return ((const uint4 *)q_rows)[(g + half * 8) * (D / 8) + u * 4 + t]; },
            s);
        __syncwarp();
        if (next < tiles.end) copy_keys(kv, next, keys_at, p.key_stride, lane, WARP);
        copies_commit();
        rows.soften(s, p.softcap, [&](int, int i) { return token + i >= tiles.first && token + i < end; });
        copies_wait<1>();
        __syncwarp();
        if (tile == last_tile) {
            uint16_t *values = (uint16_t *)(stage + KV_TILE * p.key_stride) + slot;
            for (int d = lane; d < head_dim; d += WARP) values[d * KV_TILE] = new_value[d];
            __syncwarp();
        }
        weigh_tile<D>(values_at, head_dim, s, rows);
        __syncwarp();
        if (next < tiles.end) copy_values(kv, next, values_at, lane, WARP);
        copies_commit();
    }
    rows.finish_sums();

    const row_owners owners(p, tiles.n_splits, N_WARPS);
    if (clustered)
        cluster_wait(); // the owners have begun
    else
        __syncthreads(); // the stages have been used
    leave_rows<D, N_WARPS>(rows, owners, clustered, shared_address(parts), left, head_dim, n_rows);
    if (clustered)
        barrier_wait(left, 0);
    else
        __syncthreads();
    decode_finish<N_WARPS>(p, owners, parts, head_dim, n_rows, tiles.n_splits, first_head * head_dim);
}

// ---- Prefill

template <int D, bool EXACT, int N_STAGES>
static __global__ void __launch_bounds__(THREADS, 2)
    attend_prefill(const __grid_constant__ attention_params p) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int kv_head = blockIdx.y, head_dim = EXACT ? D : p.rows.head_dim;
    dependents_launch();
    dependency_wait();
    const attention_run run = p.runs[gridDim.x - 1 - blockIdx.x]; // the longest contexts first
    const keys_of<D, EXACT> kv(p.rows, run.first_row, kv_head);
    const int first_position = p.rows.positions[run.first_row],
              last_position = first_position + run.n_rows - 1;

    // Rows g and g + 8 of this warp: which query, and which tokens [first, end) it sees.
    int at[2], row_of[2], first[2], end[2]; // at: column
    uint4 q_rows[2][D / 32];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = warp * TILE_ROWS + half * 8 + g, token = r / p.n_queries,
                  position = first_position + token;
        const bool there = token < run.n_rows;
        at[half] = there ? (kv_head * p.n_queries + r % p.n_queries) * head_dim : -1;
        row_of[half] = run.first_row + token;
        first[half] = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
        end[half] = there ? position + 1 : 0;
#pragma unroll
        for (int u = 0; u < D / 32; u++) {
            const int channel = u * 32 + t * 8;
            q_rows[half][u] =
                there && channel < head_dim
                    ? load_global4(p.q + row_of[half] * (p.rows.n_heads * head_dim) + at[half] + channel)
                    : zero4();
        }
    }

    const int oldest = p.window > 0 && first_position >= p.window ? first_position - p.window + 1 : 0;
    const int begin = kv.tile_of(oldest), n_tiles = kv.tile_of(last_position) + 1 - begin;
    const uint32_t ring = shared_address(smem);
    auto copy_tile = [&](int tile, uint32_t stage) {
        copy_keys(kv, tile, stage, p.key_stride, threadIdx.x, THREADS);
        copy_values(kv, tile, stage + KV_TILE * p.key_stride, threadIdx.x, THREADS);
    };
    row_tile<D> rows;
    rows.clear();
    for (int n = 0; n < N_STAGES - 1; n++) {
        if (n < n_tiles) copy_tile(begin + n, ring + n * p.stage_bytes);
        copies_commit();
    }
    for (int n = 0; n < n_tiles; n++) {
        copies_wait<N_STAGES - 2>();
        __syncthreads(); // everyone's copies are there, and everyone is done with the stage that is filled
                         // next
        const int next = n + N_STAGES - 1;
        if (next < n_tiles) copy_tile(begin + next, ring + next % N_STAGES * p.stage_bytes);
        copies_commit();
        const int tile = begin + n, token = kv.first_token(tile), block_end = kv.end_token(tile);
        const uint32_t stage = ring + n % N_STAGES * p.stage_bytes;
        float s[4][4];
        score_tile<D>(
            stage, p.key_stride, head_dim, [&](int u, int half) { return q_rows[half][u]; }, s);
        rows.soften(s, p.softcap, [&](int half, int i) {
            return token + i >= first[half] && token + i < min(end[half], block_end);
        });
        weigh_tile<D>(stage + KV_TILE * p.key_stride, head_dim, s, rows);
    }
    rows.finish_sums();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (at[half] < 0) continue;
        const float factor = 1.0f / rows.sum[half];
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            if (j * 8 < head_dim)
                *out_word(p, row_of[half], at[half] + j * 8 + t * 2) =
                    to_bf16x2(rows.o[j][half * 2] * factor, rows.o[j][half * 2 + 1] * factor);
    }
}

// ---- Launching

typedef void (*attention_kernel)(attention_params);

// Kernels for head sizes up to 64, 128 and 256, and those for exactly these. Heads of 256 want 145 KB for
// four warps; compute capability 8.6 and 8.9 have 99 (and no exact kernels for these heads: they would
// spill).
struct attention_kernels {
    int head_dim, n_warps, n_stages; // of decode, of prefill
    attention_kernel decode, prefill, exact_decode, exact_prefill;
};
#define KERNELS(D, N_WARPS, N_STAGES, EXACT)                                                                 \
    {                                                                                                        \
        D, N_WARPS, N_STAGES, attend_decode<D, false, N_WARPS>, attend_prefill<D, false, N_STAGES>,          \
            attend_decode<D, EXACT, N_WARPS>, attend_prefill<D, EXACT, N_STAGES>                             \
    }
static const attention_kernels kernels[] = {
    KERNELS(64, WARPS, STAGES, true), KERNELS(128, WARPS, STAGES, true), KERNELS(256, WARPS, STAGES, true),
    KERNELS(256, FEW_WARPS, FEW_STAGES, false)};
#undef KERNELS

// Two neighbouring keys in different halves of the 32 banks: a stride of 64 bytes modulo 128.
static int key_stride(int head_dim) {
    return (head_dim * 2 + 63) / 128 * 128 + 64;
}

static int stage_bytes(int head_dim) {
    return KV_TILE * key_stride(head_dim) + head_dim * KV_TILE * 2;
}

// Parts lie where the stages were, but in a cluster: other blocks leave theirs at any time. n_rows: query
// heads of a block.
static int decode_shared(const attention_kernels *k, int head_dim, int n_rows, int cluster) {
    int parts = 0; // the most that any number of blocks of the cluster leaves with an owner
    for (int blocks = 1, owners = 1; blocks <= cluster && cluster > 1; blocks++) {
        if (owners * 2 <= blocks) owners *= 2;
        const int left = (n_rows + owners - 1) / owners * blocks * k->n_warps;
        if (left > parts) parts = left;
    }
    return (TILE_ROWS + 2) * k->head_dim * 2 + k->n_warps * stage_bytes(head_dim) + 16 +
           parts * part_floats(head_dim) * (int)sizeof(float);
}

static int prefill_shared(const attention_kernels *k, int head_dim) {
    return k->n_stages * stage_bytes(head_dim);
}

static bool fits(const attention_kernels *k, int shared) {
    return decode_shared(k, k->head_dim, TILE_ROWS, 1) <= shared - OWN_SHARED &&
           prefill_shared(k, k->head_dim) <= shared;
}

// The first that fit, the last where none does: their launch fails.
static const attention_kernels *kernels_for(int head_dim, int shared) {
    const attention_kernels *k = kernels, *last = kernels + sizeof kernels / sizeof *kernels - 1;
    while (k < last && (k->head_dim < head_dim || !fits(k, shared))) k++;
    return k;
}

static bool is_exact(const attention_kernels *k, const cuda_rows *rows) {
    return k->head_dim == rows->head_dim && rows->block_tokens == KV_TILE;
}

static cudaError_t allow_shared(attention_kernel kernel, int bytes) {
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

cudaError_t cuda_attention_open(int shared) {
    cudaError_t code = cudaSuccess;
    for (const attention_kernels &k : kernels) {
        if (!fits(&k, shared)) continue;
        const int decode = shared - OWN_SHARED, prefill = prefill_shared(&k, k.head_dim);
        if (code == cudaSuccess) code = allow_shared(k.decode, decode);
        if (code == cudaSuccess) code = allow_shared(k.exact_decode, decode);
        if (code == cudaSuccess) code = allow_shared(k.prefill, prefill);
        if (code == cudaSuccess) code = allow_shared(k.exact_prefill, prefill);
    }
    return code;
}

int cuda_attention_run_rows(int n_heads, int n_kv_heads) {
    const int rows = BLOCK_ROWS / (n_heads / n_kv_heads);
    return rows > 0 ? rows : 1;
}

static int head_groups(int n_heads, int n_kv_heads) {
    return (n_heads / n_kv_heads + TILE_ROWS - 1) / TILE_ROWS;
}

// Two blocks on each SM, not more: a second wave would cost as much as the first. Clusters of a power of two.
static void plan_splits(const attention_args *args, const attention_kernels *k, int units, int n_rows,
                        attention_params *p) {
    const int head_dim = args->rows->head_dim, splits = 2 * args->n_sms / units;
    p->n_splits = splits < 1 ? 1 : splits < MAX_SPLITS ? splits : (int)MAX_SPLITS;
    int cluster = 1;
    p->cluster_shift = 0;
    while (cluster * 2 <= p->n_splits && cluster * 2 <= args->most_cluster && cluster * 2 <= MAX_CLUSTER &&
           decode_shared(k, head_dim, n_rows, cluster * 2) <= args->shared - OWN_SHARED)
        cluster *= 2, p->cluster_shift++;
    p->n_splits = p->n_splits / cluster * cluster;
}

size_t cuda_attention_counters_bytes(int n_rows, int n_heads, int n_kv_heads) {
    return (size_t)n_rows * (size_t)(n_kv_heads * head_groups(n_heads, n_kv_heads)) * sizeof(uint32_t);
}

size_t cuda_attention_partials_bytes(int n_rows, int n_heads, int n_kv_heads, int head_dim, int n_sms) {
    const int units = n_rows * n_kv_heads * head_groups(n_heads, n_kv_heads);
    // Units that fill the machine are not split; fewer have at most that many parts, and one more each.
    const size_t parts = (size_t)(2 * n_sms + (units < 2 * n_sms ? units : 2 * n_sms));
    return parts * (size_t)(TILE_ROWS * part_floats(head_dim)) * sizeof(float);
}

cudaError_t cuda_attention(const attention_args *args, cudaStream_t stream) {
    const cuda_rows *rows = args->rows;
    attention_params p = {};
    p.rows = *rows, p.out = args->out, p.order = args->order, p.window = args->window,
    p.softcap = args->softcap;
    p.n_queries = rows->n_heads / rows->n_kv_heads;
    const attention_kernels *k = kernels_for(rows->head_dim, args->shared);
    p.key_stride = key_stride(rows->head_dim), p.stage_bytes = stage_bytes(rows->head_dim);
    if (args->runs) {
        p.runs = args->runs, p.q = args->q;
        return cuda_launch(is_exact(k, rows) ? k->exact_prefill : k->prefill,
                           dim3((unsigned)args->n_runs, (unsigned)rows->n_kv_heads), THREADS,
                           (size_t)prefill_shared(k, rows->head_dim), stream, true, p);
    }
    p.rotation = describe_rotation(args->rotation);
    p.head_groups = head_groups(rows->n_heads, rows->n_kv_heads);
    const int units = rows->n_rows * rows->n_kv_heads * p.head_groups;
    const int n_rows = p.n_queries < TILE_ROWS ? p.n_queries : (int)TILE_ROWS;
    plan_splits(args, k, units, n_rows, &p);
    p.counters = args->counters, p.partials = args->partials;
    const dim3 grid((unsigned)p.n_splits, (unsigned)(rows->n_kv_heads * p.head_groups),
                    (unsigned)rows->n_rows);
    return cuda_launch_clusters(
        is_exact(k, rows) ? k->exact_decode : k->decode, grid, 1 << p.cluster_shift, k->n_warps * WARP,
        (size_t)decode_shared(k, rows->head_dim, n_rows, 1 << p.cluster_shift), stream, true, p);
}
