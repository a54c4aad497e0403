// What a block of threads of the sampler does together: the largest, running sums, the place where these
// reach an amount, sums by bin. Every thread calls, every thread gets the result.
//
// Warps do the same once for their lanes and once for all warps: a loop over these took every thread 160
// instructions or more.
#ifndef FLUTE_CUDA_SAMPLE_BLOCK_CUH
#define FLUTE_CUDA_SAMPLE_BLOCK_CUH

#include "kernels/cuda/device.cuh"

using u64 = unsigned long long; // what atomicAdd and the shuffles take

enum {
    THREADS = 1024,
    BIN_BITS = 10,
    BINS = 1 << BIN_BITS, // one for each thread
    HALF_BITS = 19,       // of a weight
    MANY_LANES = 8,       // in one bin
};

static_assert(BINS == THREADS, "a thread for each bin");
static_assert(THREADS / WARP == WARP, "a lane for each warp");

__device__ inline u64 lane_max(u64 own) {
    for (int step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_xor_sync(~0u, own, step);
        own = other > own ? other : own;
    }
    return own;
}

__device__ inline u64 block_max(u64 own) {
    __shared__ u64 warps[WARP];
    own = lane_max(own);
    __syncthreads(); // the last call has been read
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = own;
    __syncthreads();
    return lane_max(warps[threadIdx.x % WARP]);
}

// A number of tokens, and their weight: integers, 2^38 for the best token, so that sums have no order.
struct tally {
    u64 weight;
    uint32_t size;
};

__device__ inline tally operator+(const tally &a, const tally &b) {
    return {a.weight + b.weight, a.size + b.size};
}

__device__ inline tally operator-(const tally &a, const tally &b) {
    return {a.weight - b.weight, a.size - b.size};
}

// What a tally amounts to for a filter.
struct amount {
    bool by_weight;

    __device__ u64 operator()(const tally &t) const { return by_weight ? t.weight : t.size; }
};

// Running sums over the threads of a block.
struct running {
    tally before, own, all;
};

__device__ inline tally of_lane(const tally &t, int lane) {
    return {__shfl_sync(~0u, t.weight, lane), __shfl_sync(~0u, t.size, lane)};
}

// The sums of all lanes up to each.
__device__ inline tally lane_sums(tally upto) {
    for (int step = 1; step < WARP; step *= 2) {
        const tally other = {__shfl_up_sync(~0u, upto.weight, step), __shfl_up_sync(~0u, upto.size, step)};
        if ((int)threadIdx.x % WARP >= step) upto = upto + other;
    }
    return upto;
}

// ahead: what comes before the first thread.
__device__ inline running block_scan(const tally &own, const tally &ahead = {0, 0}) {
    __shared__ tally warps[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const tally upto = lane_sums(own);
    __syncthreads();
    if (lane == WARP - 1) warps[warp] = upto;
    __syncthreads();
    const tally warps_upto = lane_sums(warps[lane]), before_warp = of_lane(warps_upto, warp) - warps[warp];
    return {ahead + before_warp + upto - own, own, ahead + of_lane(warps_upto, WARP - 1)};
}

// The thread at which the running sum reaches an amount.
struct place {
    int at;
    tally before, own;
};

// of(tally): its amount, which grows with it; need: more than there is ahead of the first thread, and at most
// all.
template <typename F> __device__ inline place block_find(const running &sums, u64 need, const F &of) {
    __shared__ place found;
    if (of(sums.before) < need && of(sums.before + sums.own) >= need)
        found = {(int)threadIdx.x, sums.before, sums.own};
    __syncthreads();
    const place result = found;
    __syncthreads(); // before the next call changes it
    return result;
}

// The sum of the weights of all lanes, each at most 2^38: halves, because the hardware adds up 32 bits.
__device__ inline u64 lane_total(u64 weight) {
    const uint32_t low = __reduce_add_sync(~0u, (uint32_t)weight & ((1u << HALF_BITS) - 1));
    return ((u64)__reduce_add_sync(~0u, (uint32_t)(weight >> HALF_BITS)) << HALF_BITS) + low;
}

// Sums by bin, in shared memory, which adds words of 32 bits by itself; for longer ones threads would try
// again until nobody else came between.
struct bin_sums {
    uint32_t low[BINS], high[BINS], sizes[BINS];

    // Barriers before and behind it are the caller's.
    __device__ void clear() { low[threadIdx.x] = high[threadIdx.x] = sizes[threadIdx.x] = 0; }

    // A token of each lane of a warp, which call together; bin BINS: none. Lanes with the bin of the first
    // one add theirs up where they are many, as those of one address take turns.
    __device__ void add(int bin, u64 weight) {
        const int lane = threadIdx.x % WARP;
        const bool same = bin == __shfl_sync(~0u, bin, 0);
        uint32_t size = 1;
        const uint32_t n_same = (uint32_t)__popc(__ballot_sync(~0u, same));
        if (n_same >= MANY_LANES) {
            const u64 total = lane_total(same ? weight : 0);
            if (same) weight = total, size = lane == 0 ? n_same : 0;
        }
        if (bin >= BINS || size == 0) return;
        const uint32_t word = (uint32_t)weight, carry = atomicAdd(&low[bin], word) + word < word;
        const uint32_t above = (uint32_t)(weight >> 32) + carry;
        if (above > 0) atomicAdd(&high[bin], above);
        atomicAdd(&sizes[bin], size);
    }

    __device__ tally own() const {
        return {(u64)high[threadIdx.x] << 32 | low[threadIdx.x], sizes[threadIdx.x]};
    }
};

#endif
