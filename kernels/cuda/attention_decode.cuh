// Attention of decode steps. What rotates queries and appends to the cache is done here, too, which saves a
// kernel. A block for each row, KV head and split of the context; its four warps (six where nothing is split)
// take the key tiles in turn, each through a tile of shared memory of its own. Up to eight splits are a
// cluster: every warp leaves its part of a row, (O, max, sum), in the shared memory of the block of the
// cluster that owns the row, which adds the parts up when all are there. Where a context is longer than a
// cluster takes at once, or there are no clusters (before Hopper), the sums of clusters go through device
// memory to the last of them that finishes, which adds them up in order.
//
// Roofline on an H200: decode reads 4·head_dim bytes a token and KV head, 18.6 bytes a clock of an SM; 64 mma
// of 1 to 2 clocks for 16 KB (head_dim 128) leave the tensor cores nearly idle.
#ifndef FLUTE_CUDA_ATTENTION_DECODE_CUH
#define FLUTE_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_tiles.cuh"

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
    bool last = false;
    __syncthreads(); // all stores of the block, which the fence of one thread then makes visible
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1) == n - 1;
        if (last) *counter = 0;
        __threadfence();
    }
    return __syncthreads_or(last);
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

// What a lane has of a row: store(offset, …) of two floats of its part.
template <int D, int HALVES, typename Store>
__device__ __forceinline__ void leave_row(const row_tile<D, HALVES> &rows, int half, int head_dim,
                                          Store store) {
    const int t = threadIdx.x % 4;
    if (t == 0) store(head_dim, make_float2(rows.max[half], rows.sum[half]));
#pragma unroll
    for (int j = 0; j < D / 8; j++)
        if (j * 8 < head_dim) store(j * 8 + t * 2, make_float2(rows.o[j][half * 2], rows.o[j][half * 2 + 1]));
}

// Leaves what this warp has of each row with the owner of the row; parts_at: shared address of the parts;
// left: the barrier, in a cluster, that counts their bytes.
template <int N_WARPS, int D, int HALVES>
__device__ __forceinline__ void leave_rows(const row_tile<D, HALVES> &rows, const row_owners &owners,
                                           bool clustered, uint32_t parts_at, uint32_t left, int head_dim,
                                           int n_rows) {
    const int g = threadIdx.x % WARP / 4, mine = owners.rank * N_WARPS + threadIdx.x / WARP;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int row = g + half * 8, owner = owners.owner(row);
        if (row >= n_rows) continue;
        const uint32_t at = parts_at + (owners.first_part(row) + mine) * part_floats(head_dim) * 4;
        if (clustered) {
            const uint32_t to = cluster_address(at, owner), counts = cluster_address(left, owner);
            leave_row(rows, half, head_dim,
                      [&](int offset, float2 v) { store_cluster(to + offset * 4, v, counts); });
        } else {
            leave_row(rows, half, head_dim, [&](int offset, float2 v) { store_shared2(at + offset * 4, v); });
        }
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

// EXACT: as keys_of, and not more than EXACT_ROWS query heads of a KV head.
template <int D, bool EXACT, int N_WARPS>
static __global__ void __launch_bounds__(N_WARPS *WARP, 2)
    attend_decode(const __grid_constant__ attention_params p) {
    enum { N_THREADS = N_WARPS * WARP, HALVES = EXACT ? EXACT_ROWS / 8 : 2 };
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
    uint8_t *stages = smem + (TILE_ROWS + 2) * D * 2, *stage = stages + warp * stage_bytes(head_dim);
    uint8_t *left_barrier = stages + N_WARPS * stage_bytes(head_dim);
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
    const int stride = key_stride(head_dim);
    const uint32_t keys_at = shared_address(stage), values_at = keys_at + KV_TILE * stride;
    int tile = tiles.begin + warp;
    // The new token is not in the cache yet.
    const auto n_cached = [&](int of) { return position - kv.first_token(of); };
    if (tile < tiles.end) copy_keys<WARP>(kv, kv.keys(tile), n_cached(tile), keys_at, lane);
    copies_commit();
    if (tile < tiles.end) copy_values<WARP>(kv, kv.values(tile), n_cached(tile), values_at, lane);
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

    row_tile<D, HALVES> rows;
    rows.clear();
    for (; tile < tiles.end; tile += N_WARPS) {
        const int next = tile + N_WARPS, token = kv.first_token(tile);
        const int end = min(position + 1, kv.end_token(tile));
        copies_wait<1>();
        __syncwarp();
        if (tile == last_tile) { // it was copied without the new token
            for (int d = lane; d < head_dim; d += WARP)
                *(uint16_t *)(stage + slot * stride + d * 2) = new_key[d];
            __syncwarp();
        }
        float s[4][4];
        score_tile<D>(
            keys_at, head_dim,
            [&](int u, int half) {
                return half < HALVES ? ((const uint4 *)q_rows)[(g + half * 8) * (D / 8) + u * 4 + t]
                                     : zero4();
            },
            s);
        __syncwarp();
        if (next < tiles.end) copy_keys<WARP>(kv, kv.keys(next), n_cached(next), keys_at, lane);
        copies_commit();
        rows.soften(s, p.softcap, [&](int, int i) { return token + i >= tiles.first && token + i < end; });
        copies_wait<1>();
        __syncwarp();
        if (tile == last_tile) {
            uint16_t *values = (uint16_t *)(stage + KV_TILE * stride) + slot;
            for (int d = lane; d < head_dim; d += WARP) values[d * KV_TILE] = new_value[d];
            __syncwarp();
        }
        weigh_tile(values_at, head_dim, s, rows);
        __syncwarp();
        if (next < tiles.end) copy_values<WARP>(kv, kv.values(next), n_cached(next), values_at, lane);
        copies_commit();
    }
    rows.finish_sums();

    const row_owners owners(p, tiles.n_splits, N_WARPS);
    if (clustered)
        cluster_wait(); // the owners have begun
    else
        __syncthreads(); // the stages have been used
    leave_rows<N_WARPS>(rows, owners, clustered, shared_address(parts), left, head_dim, n_rows);
    if (clustered)
        barrier_wait(left, 0);
    else
        __syncthreads();
    decode_finish<N_WARPS>(p, owners, parts, head_dim, n_rows, tiles.n_splits, first_head * head_dim);
}

#endif
