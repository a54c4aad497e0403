// Sampling in four launches, whatever the rows ask for:
//
//   prepare  logits with penalties, and the best token of what each block reads
//   weigh    how many tokens, of what weight, lie how far below the best: a histogram of each row; where
//            nothing is drawn, the best is the token
//   gather   the histogram tells in which bins top-k and top-p cut; tokens before them are summed by chunk,
//            those in them are listed
//   choose   one block for each row: the cut inside the list, the chunk in which the draw falls, the token
//            in it
//
// A block of threads reads chunks one after the other, as many as leave BLOCKS blocks: more would have to
// take turns. Nothing is sorted. A greedy row is read once, by prepare, and what follows leaves it alone;
// others are read three times, from L2 after the first, and are copied only if they have penalties. Weights
// are integers, so that the order in which atomics add them does not matter.
#include "kernels/cuda/sample.h"

#include <cuda_runtime.h>
#include <math.h>

#include "engine/base/fail.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"

namespace {

using u64 = unsigned long long; // what atomicAdd and the shuffles take

enum {
    THREADS = 1024,
    IDS = 4, // tokens of a thread in a chunk
    CHUNK_TOKENS = IDS * THREADS,
    BLOCKS = 256,      // two for each SM of a large GPU
    BINS = THREADS,    // one for each thread
    BINS_PER_NAT = 32, // the last bin ends at exp(−32), which is less than 2^−46
    HALF_BITS = 19,    // of a weight: the halves of a chunk's 4096 add up to less than 2^32
    MAX_CHUNKS = THREADS,
};

struct sample_job {
    const float *logits;
    int64_t stride;
    int n_vocab, n_chunks;
    int n_blocks, block_chunks; // of a row; of a block, but for the last
    const cuda_sample_row *rows;
    const int32_t *histories;
    int32_t *tokens;
    u64 *best;           // (n_rows, n_blocks) rank of the best token
    u64 *stays;          // (n_rows, n_chunks) weight of the tokens that surely stay
    u64 *bin_weights;    // (n_rows, BINS)
    u64 *list;           // (n_rows, n_vocab) ranks of the tokens near a cut, in any order
    uint32_t *bin_sizes; // (n_rows, BINS)
    uint32_t *n_listed;  // (n_rows)
    float *penalised;    // (n_rows, n_vocab), of rows that have penalties and are drawn from
};

// ---- Ranks: the larger is the better token; logits in order, the lower id first among equals.

const u64 RANK_NAN = ~0ull;

__device__ u64 rank_of(float logit, int id) {
    if (isnan(logit)) return RANK_NAN;
    const uint32_t bits = __float_as_uint(logit + 0.0f); // −0 equals 0
    const uint32_t key = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)key << 32 | (uint32_t)~id;
}

__device__ int rank_id(u64 rank) {
    return (int)~(uint32_t)rank;
}

__device__ float rank_logit(u64 rank) {
    const uint32_t key = (uint32_t)(rank >> 32);
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// ---- What a block of threads does together. Every thread calls, every thread gets the result. Warps do the
// same once for their lanes and once for all warps: a loop over these took every thread 160 instructions or
// more.

static_assert(THREADS / WARP == WARP, "a lane for each warp");

__device__ u64 lane_max(u64 own) {
    for (int step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_xor_sync(~0u, own, step);
        own = other > own ? other : own;
    }
    return own;
}

__device__ u64 block_max(u64 own) {
    __shared__ u64 warps[WARP];
    own = lane_max(own);
    __syncthreads(); // the last call has been read
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = own;
    __syncthreads();
    return lane_max(warps[threadIdx.x % WARP]);
}

// A number of tokens, and their weight.
struct tally {
    u64 weight;
    u64 size;
};

__device__ tally operator+(const tally &a, const tally &b) {
    return {a.weight + b.weight, a.size + b.size};
}

__device__ u64 amount(const tally &t, bool by_weight) {
    return by_weight ? t.weight : t.size;
}

// Running sums over the threads of a block.
struct running {
    tally before, own, all;
};

__device__ tally operator-(const tally &a, const tally &b) {
    return {a.weight - b.weight, a.size - b.size};
}

__device__ tally of_lane(const tally &t, int lane) {
    return {__shfl_sync(~0u, t.weight, lane), __shfl_sync(~0u, t.size, lane)};
}

// The sums of all lanes up to each.
__device__ tally lane_sums(tally upto) {
    for (int step = 1; step < WARP; step *= 2) {
        const tally other = {__shfl_up_sync(~0u, upto.weight, step), __shfl_up_sync(~0u, upto.size, step)};
        if ((int)threadIdx.x % WARP >= step) upto = upto + other;
    }
    return upto;
}

__device__ running block_scan(const tally &own) {
    __shared__ tally warps[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const tally upto = lane_sums(own);
    __syncthreads();
    if (lane == WARP - 1) warps[warp] = upto;
    __syncthreads();
    const tally warps_upto = lane_sums(warps[lane]);
    return {of_lane(warps_upto, warp) - warps[warp] + upto - own, own, of_lane(warps_upto, WARP - 1)};
}

// The thread at which the running sum reaches `need`, 1 to all of it.
struct place {
    int at;
    tally before, own;
};

__device__ place block_find(const running &sums, u64 need, bool by_weight) {
    __shared__ place found;
    const u64 before = amount(sums.before, by_weight), own = amount(sums.own, by_weight);
    if (before < need && before + own >= need) found = {(int)threadIdx.x, sums.before, sums.own};
    __syncthreads();
    const place result = found;
    __syncthreads(); // before the next call changes it
    return result;
}

// ---- Weights

struct token_weight {
    int bin;      // BINS: its weight rounds to nothing
    float weight; // 1 for the best
    u64 rounded;  // 2^38 for the best
};

struct weigher {
    float best, temperature;

    __device__ token_weight operator()(float logit) const {
        const float below = (logit - best) / temperature, bin = -below * BINS_PER_NAT;
        if (!(bin < BINS)) return {BINS, 0.0f, 0};
        const float weight = expf(below);
        return {(int)bin, weight, (u64)llrintf(weight * 0x1p38f)};
    }
};

// The best token of a row.
__device__ u64 row_best(const sample_job &job, int row) {
    const int i = threadIdx.x;
    return block_max(i < job.n_blocks ? job.best[(int64_t)row * job.n_blocks + i] : 0);
}

__device__ bool has_answer(u64 best) {
    return best != RANK_NAN && isfinite(rank_logit(best));
}

__device__ bool is_greedy(const cuda_sample_row &args) {
    return !(args.temperature > 0);
}

__device__ bool is_draw(const cuda_sample_row &args, u64 best) {
    return !is_greedy(args) && has_answer(best);
}

__device__ bool has_cut(const cuda_sample_row &args) {
    return args.top_k > 0 || args.top_p < 1;
}

__device__ float least_weight(const cuda_sample_row &args) {
    return fminf(args.min_p, 1.0f); // the best has 1
}

// ---- Where top-k and top-p cut

// What top-p must collect of a weight: at least the best token.
__device__ u64 likely_share(const cuda_sample_row &args, u64 weight) {
    const double share = ceil(fmax((double)args.top_p, 0.0) * (double)weight);
    const u64 rounded = share < (double)weight ? (u64)share : weight;
    return rounded > 1 ? rounded : 1;
}

// As far as the histogram tells. Top-p takes its share of what top-k leaves, which is known up to the weight
// of one bin, so that it may cut in several.
struct cut_bins {
    int first, last; // bins in which the last token that stays may lie; BINS, −1: all tokens stay
    place top_k;     // the bin in which top-k cuts; at: −1 if it does not
};

__device__ running row_bins(const sample_job &job, int row) {
    const int64_t bin = (int64_t)row * BINS + threadIdx.x;
    return block_scan({job.bin_weights[bin], job.bin_sizes[bin]});
}

__device__ cut_bins find_cut_bins(const cuda_sample_row &args, const running &bins) {
    cut_bins cut = {BINS, -1, {-1, {0, 0}, {0, 0}}};
    u64 least = bins.all.weight, most = least;
    if (args.top_k > 0 && (u64)args.top_k < bins.all.size) {
        cut.top_k = block_find(bins, args.top_k, false);
        cut.first = cut.last = cut.top_k.at;
        least = cut.top_k.before.weight, most = least + cut.top_k.own.weight;
    }
    if (args.top_p < 1) {
        cut.first = block_find(bins, likely_share(args, least), true).at;
        cut.last = block_find(bins, likely_share(args, most), true).at;
    }
    return cut;
}

// The tokens of the list that are in one bin.
struct listed_bin {
    const u64 *list;
    int n;
    weigher weigh;
    int bin;
};

// The rank of the last of them that stays when the best are to hold `need` together; *held: what they hold.
// Each round divides the range of ranks that is left into BINS parts and goes on with the one that the cut is
// in.
__device__ u64 find_cut(const listed_bin &from, u64 need, bool by_weight, tally *held) {
    __shared__ u64 weights[BINS];
    __shared__ uint32_t sizes[BINS];
    u64 high = 0, low = ~0ull;
    for (int i = threadIdx.x; i < from.n; i += THREADS) {
        if (from.weigh(rank_logit(from.list[i])).bin != from.bin) continue;
        high = from.list[i] > high ? from.list[i] : high;
        low = from.list[i] < low ? from.list[i] : low;
    }
    high = block_max(high);
    low = ~block_max(~low);
    *held = {0, 0};
    for (;;) {
        const int bits = 64 - __clzll((long long)(high - low)), shift = bits > 10 ? bits - 10 : 0;
        weights[threadIdx.x] = 0;
        sizes[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < from.n; i += THREADS) {
            const u64 rank = from.list[i];
            if (rank < low || rank > high) continue;
            atomicAdd(&weights[(high - rank) >> shift], from.weigh(rank_logit(rank)).rounded);
            atomicAdd(&sizes[(high - rank) >> shift], 1u);
        }
        __syncthreads();
        const running parts = block_scan({weights[threadIdx.x], sizes[threadIdx.x]});
        const place part = block_find(parts, need, by_weight);
        need -= amount(part.before, by_weight);
        *held = *held + part.before;
        high -= (u64)part.at << shift;
        if ((high - low) >> shift > 0) low = high - ((1ull << shift) - 1);
        if (part.own.size > 1 && need < amount(part.own, by_weight)) continue;
        *held = *held + part.own;
        return low;
    }
}

// ---- The kernels. Rows were there before the kernel ahead began: which of them are greedy need not wait.

__device__ bool has_penalties(const cuda_sample_row &args) {
    return args.n_history > 0 && ((args.repeat_penalty > 0 && args.repeat_penalty != 1) ||
                                  args.presence_penalty != 0 || args.frequency_penalty != 0);
}

// What weigh and later kernels read.
__device__ const float *row_logits(const sample_job &job, int64_t row, const cuda_sample_row &args) {
    return has_penalties(args) ? job.penalised + row * job.n_vocab : job.logits + row * job.stride;
}

// The chunks of this block.
struct chunk_run {
    int first, end;

    __device__ explicit chunk_run(const sample_job &job)
        : first((int)blockIdx.x * job.block_chunks), end(min(first + job.block_chunks, job.n_chunks)) {}
};

// A thread's tokens of a chunk, THREADS apart.
__device__ int token_id(int chunk, int k) {
    return chunk * CHUNK_TOKENS + k * THREADS + threadIdx.x;
}

// −infinity, which counts for nothing, where there are no tokens. All loads come before the first use: each
// is a trip to L2.
__device__ void load_chunk(const sample_job &job, const float *logits, int chunk, float (&loaded)[IDS]) {
#pragma unroll
    for (int k = 0; k < IDS; k++) {
        const int id = token_id(chunk, k);
        loaded[k] = id < job.n_vocab ? logits[id] : -INFINITY;
    }
}

// How often the tokens of a chunk occur in the history. A thread empties what it alone reads.
__device__ void count_history(const sample_job &job, const cuda_sample_row &args, int chunk,
                              uint32_t *counts) {
    const int32_t *history = job.histories + args.history_at;
    const uint32_t first = chunk * CHUNK_TOKENS;
    for (int i = threadIdx.x; i < CHUNK_TOKENS; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < args.n_history; i += THREADS) {
        const uint32_t at = (uint32_t)history[i] - first;
        if (at < CHUNK_TOKENS) atomicAdd(&counts[at], 1u);
    }
    __syncthreads();
}

// Rounded as on the CPU, which does not fuse the product into the difference.
__device__ float penalise(const cuda_sample_row &args, float logit, uint32_t count) {
    const float repeat = args.repeat_penalty > 0 ? args.repeat_penalty : 1;
    logit = logit > 0 ? logit / repeat : logit * repeat;
    return logit - args.presence_penalty - __fmul_rn((float)count, args.frequency_penalty);
}

__device__ void penalise_chunk(const sample_job &job, int64_t row, const cuda_sample_row &args, int chunk,
                               uint32_t *counts, float (&logits)[IDS]) {
    count_history(job, args, chunk, counts);
    for (int k = 0; k < IDS; k++) {
        const int id = token_id(chunk, k);
        const uint32_t count = counts[k * THREADS + threadIdx.x];
        if (count > 0) logits[k] = penalise(args, logits[k], count);
        if (!is_greedy(args) && id < job.n_vocab) job.penalised[row * job.n_vocab + id] = logits[k];
    }
}

__global__ void __launch_bounds__(THREADS, 2) prepare(const sample_job job) {
    __shared__ uint32_t counts[CHUNK_TOKENS];
    dependents_launch();
    const int64_t row = blockIdx.y;
    const cuda_sample_row args = job.rows[row];
    const bool penalties = has_penalties(args);
    const chunk_run chunks(job);
    u64 best = 0;
    dependency_wait();
    for (int chunk = chunks.first; chunk < chunks.end; chunk++) {
        float logits[IDS];
        load_chunk(job, job.logits + row * job.stride, chunk, logits);
        if (penalties) penalise_chunk(job, row, args, chunk, counts, logits);
#pragma unroll
        for (int k = 0; k < IDS; k++) {
            const u64 rank = rank_of(logits[k], token_id(chunk, k));
            best = rank > best ? rank : best;
        }
    }
    best = block_max(best);
    if (threadIdx.x == 0) job.best[row * job.n_blocks + blockIdx.x] = best;
    if (blockIdx.x > 0 || is_greedy(args)) return;
    job.bin_weights[row * BINS + threadIdx.x] = 0;
    job.bin_sizes[row * BINS + threadIdx.x] = 0;
    if (threadIdx.x == 0) job.n_listed[row] = 0;
}

__global__ void __launch_bounds__(THREADS, 2) weigh(const sample_job job) {
    // Shared memory adds words of 32 bits by itself; for longer ones threads would have to take turns.
    __shared__ uint32_t low[BINS], high[BINS], sizes[BINS];
    const int bin = threadIdx.x;
    dependents_launch();
    const int64_t row = blockIdx.y;
    const cuda_sample_row args = job.rows[row];
    low[bin] = high[bin] = sizes[bin] = 0;
    dependency_wait();
    if (is_greedy(args) && blockIdx.x > 0) return;
    const u64 best = row_best(job, row);
    if (!is_draw(args, best)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) job.tokens[row] = has_answer(best) ? rank_id(best) : -1;
        return;
    }
    if (!has_cut(args)) return;
    const weigher weigh = {rank_logit(best), args.temperature};
    const chunk_run chunks(job);
    tally own = {0, 0}; // of this thread's bin
    for (int chunk = chunks.first; chunk < chunks.end; chunk++) {
        float logits[IDS];
        load_chunk(job, row_logits(job, row, args), chunk, logits);
        for (int k = 0; k < IDS; k++) {
            const token_weight token = weigh(logits[k]);
            if (token.bin == BINS) continue;
            atomicAdd(&low[token.bin], (uint32_t)token.rounded & ((1u << HALF_BITS) - 1));
            atomicAdd(&high[token.bin], (uint32_t)(token.rounded >> HALF_BITS));
            atomicAdd(&sizes[token.bin], 1u);
        }
        __syncthreads();
        own = own + tally{((u64)high[bin] << HALF_BITS) + low[bin], sizes[bin]};
        low[bin] = high[bin] = sizes[bin] = 0;
        __syncthreads();
    }
    if (own.size == 0) return;
    atomicAdd(&job.bin_weights[row * BINS + bin], own.weight);
    atomicAdd(&job.bin_sizes[row * BINS + bin], (uint32_t)own.size);
}

// The weight of the chunk's tokens ahead of every cut; those near one are listed.
__device__ u64 gather_chunk(const sample_job &job, int64_t row, const cuda_sample_row &args, int chunk,
                            const weigher &weigh, const cut_bins &cut) {
    float logits[IDS];
    tally stays = {0, 0};
    load_chunk(job, row_logits(job, row, args), chunk, logits);
    for (int k = 0; k < IDS; k++) {
        const token_weight token = weigh(logits[k]);
        if (token.bin < cut.first) {
            if (token.weight >= least_weight(args)) stays.weight += token.rounded;
        } else if (token.bin <= cut.last || token.bin == cut.top_k.at) {
            job.list[row * job.n_vocab + atomicAdd(&job.n_listed[row], 1u)] =
                rank_of(logits[k], token_id(chunk, k));
        }
    }
    return block_scan(stays).all.weight;
}

__global__ void __launch_bounds__(THREADS, 1) gather(const sample_job job) {
    dependents_launch();
    const int64_t row = blockIdx.y;
    const cuda_sample_row args = job.rows[row];
    dependency_wait();
    if (is_greedy(args)) return;
    const u64 best = row_best(job, row);
    if (!is_draw(args, best)) return;
    const weigher weigh = {rank_logit(best), args.temperature};
    const cut_bins cut = find_cut_bins(args, row_bins(job, row));
    const chunk_run chunks(job);
    for (int chunk = chunks.first; chunk < chunks.end; chunk++) {
        const u64 weight = gather_chunk(job, row, args, chunk, weigh, cut);
        if (threadIdx.x == 0) job.stays[row * job.n_chunks + chunk] = weight;
    }
}

// The rank of the last token that top-k and top-p keep; 0 if they keep all.
__device__ u64 row_cut(const sample_job &job, int64_t row, const cuda_sample_row &args, const weigher &weigh,
                       int n_listed) {
    if (!has_cut(args)) return 0;
    const running bins = row_bins(job, row);
    const cut_bins cut = find_cut_bins(args, bins);
    const u64 *list = job.list + row * job.n_vocab;
    u64 rank = 0, weight = bins.all.weight;
    tally held;
    if (cut.top_k.at >= 0) {
        rank =
            find_cut({list, n_listed, weigh, cut.top_k.at}, args.top_k - cut.top_k.before.size, false, &held);
        weight = cut.top_k.before.weight + held.weight;
    }
    if (args.top_p < 1) {
        const u64 need = likely_share(args, weight);
        const place bin = block_find(bins, need, true);
        rank = find_cut({list, n_listed, weigh, bin.at}, need - bin.before.weight, true, &held);
    }
    return rank;
}

// A row's kept tokens: their weights, 0 for others.
struct kept {
    u64 cut;
    float least;
    weigher weigh;

    __device__ u64 operator()(u64 rank) const {
        const token_weight token = weigh(rank_logit(rank));
        return rank >= cut && token.weight >= least ? token.rounded : 0;
    }
};

// Which token of a chunk the draw hits that goes `need` into its weight: the ids of a thread are adjacent.
__device__ void draw_in_chunk(const sample_job &job, int64_t row, const float *logits, int chunk,
                              const kept &weight, u64 need) {
    const int first = chunk * CHUNK_TOKENS + threadIdx.x * IDS;
    u64 weights[IDS];
    tally own = {0, 0};
    for (int i = 0; i < IDS; i++) {
        weights[i] = 0;
        if (first + i < job.n_vocab) weights[i] = weight(rank_of(logits[first + i], first + i));
        own.weight += weights[i];
    }
    const place hit = block_find(block_scan(own), need, true);
    if (hit.at != (int)threadIdx.x) return;
    u64 sum = hit.before.weight;
    for (int i = 0; i < IDS; i++) {
        sum += weights[i];
        if (sum < need) continue;
        job.tokens[row] = first + i;
        return;
    }
}

__global__ void __launch_bounds__(THREADS) choose(const sample_job job) {
    __shared__ u64 chunks[MAX_CHUNKS];
    dependents_launch();
    const int64_t row = blockIdx.x;
    const cuda_sample_row args = job.rows[row];
    dependency_wait();
    if (is_greedy(args)) return;
    const u64 best = row_best(job, row);
    if (!is_draw(args, best)) return;
    const weigher weigh = {rank_logit(best), args.temperature};
    const int n_listed = job.n_listed[row];
    const kept weight = {row_cut(job, row, args, weigh, n_listed), least_weight(args), weigh};

    const int i = threadIdx.x;
    chunks[i] = i < job.n_chunks ? job.stays[row * job.n_chunks + i] : 0;
    __syncthreads();
    for (int item = i; item < n_listed; item += THREADS) {
        const u64 rank = job.list[row * job.n_vocab + item];
        atomicAdd(&chunks[rank_id(rank) / CHUNK_TOKENS], weight(rank));
    }
    __syncthreads();
    const running sums = block_scan({chunks[i], 0});
    const u64 target = (u64)(args.uniform * (double)sums.all.weight);
    const u64 need = target < sums.all.weight ? target + 1 : target; // the product may have been rounded up
    const place chunk = block_find(sums, need, true);
    draw_in_chunk(job, row, row_logits(job, row, args), chunk.at, weight, need - chunk.before.weight);
}

// ---- Launch

int divide_up(int n, int by) {
    return (n + by - 1) / by;
}

sample_job describe_job(int n_rows, int n_vocab) {
    sample_job job = {};
    job.n_vocab = n_vocab, job.n_chunks = divide_up(n_vocab, CHUNK_TOKENS);
    const int most = BLOCKS / n_rows; // blocks of a row
    job.block_chunks = most > 0 ? divide_up(job.n_chunks, most) : job.n_chunks;
    job.n_blocks = divide_up(job.n_chunks, job.block_chunks);
    return job;
}

// Divides the scratch memory, wide words first; returns its size.
size_t divide_scratch(sample_job *job, void *scratch, int n_rows) {
    const size_t rows = (size_t)n_rows, vocab = (size_t)job->n_vocab, chunks = (size_t)job->n_chunks;
    uint8_t *at = (uint8_t *)scratch;
    const auto take = [&](auto **array, size_t n) {
        *array = (decltype(*array))at;
        at += rows * n * sizeof **array;
    };
    take(&job->best, chunks); // at least n_blocks
    take(&job->stays, chunks);
    take(&job->bin_weights, BINS);
    take(&job->list, vocab);
    take(&job->bin_sizes, BINS);
    take(&job->n_listed, 1);
    take(&job->penalised, vocab);
    return (size_t)(at - (uint8_t *)scratch);
}

} // namespace

size_t cuda_sample_scratch_bytes(int n_rows, int n_vocab) {
    sample_job job = describe_job(n_rows, n_vocab);
    return divide_scratch(&job, NULL, n_rows);
}

int cuda_sample(const float *logits, int64_t stride, int n_vocab, int n_rows, const cuda_sample_row *rows,
                const int32_t *histories, void *scratch, int32_t *tokens, bool overlap,
                struct CUstream_st *stream, flute_error *err) {
    if (n_rows < 1 || n_vocab < 1 || n_vocab > MAX_CHUNKS * CHUNK_TOKENS || stride < n_vocab)
        return fail(err, FLUTE_EINVAL, "cuda_sample: %d rows of %d logits, %lld apart, are not possible",
                    n_rows, n_vocab, (long long)stride);
    sample_job job = describe_job(n_rows, n_vocab);
    job.logits = logits, job.stride = stride;
    job.rows = rows, job.histories = histories, job.tokens = tokens;
    divide_scratch(&job, scratch, n_rows);

    const dim3 blocks((unsigned)job.n_blocks, (unsigned)n_rows);
    cudaError_t code = cuda_launch(prepare, blocks, THREADS, 0, stream, overlap, job);
    if (code == cudaSuccess) code = cuda_launch(weigh, blocks, THREADS, 0, stream, overlap, job);
    if (code == cudaSuccess) code = cuda_launch(gather, blocks, THREADS, 0, stream, overlap, job);
    if (code == cudaSuccess)
        code = cuda_launch(choose, dim3((unsigned)n_rows), THREADS, 0, stream, overlap, job);
    if (code == cudaSuccess) return FLUTE_OK;
    return fail(err, FLUTE_EDEVICE, "CUDA: launching the sampler: %s", cudaGetErrorString(code));
}
