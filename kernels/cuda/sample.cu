// Sampling in four launches, whatever the rows ask for:
//
//   prepare  logits with penalties, and the best token of what each block reads
//   weigh    how many tokens, of what weight, lie how far below the best: a histogram of each row; where
//            nothing is drawn, the best is the token
//   gather   the histogram tells in which bins top-k and top-p cut; tokens before them are summed by chunk,
//            the logits of those in them are listed
//   choose   one block for each row: the cut inside the list, the chunk in which the draw falls, the token
//            in it
//
// choose is short if the list is, which the bins see to: they are narrow near the best logit and widen with
// the distance from it, so that the spread of the logits does not matter. Of normal ones a bin holds at most
// 3 %. Only where nearly all logits are equal (or equal but for one far above) are all tokens listed.
//
// A block of threads reads chunks one after the other, as many as leave BLOCKS blocks: more would have to
// take turns. Nothing is sorted. A greedy row is read once, by prepare, and what follows leaves it alone;
// others are read three times, from L2 after the first, and are copied only if they have penalties.
#include "kernels/cuda/sample.h"

#include <cuda_runtime.h>
#include <math.h>

#include "engine/base/fail.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample_block.cuh"

namespace {

enum {
    IDS = 4, // tokens of a thread in a chunk
    CHUNK_TOKENS = IDS * THREADS,
    BLOCKS = 256, // two for each SM of a large GPU
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
    tally *chunks;       // (n_rows, n_chunks) weight of the tokens that surely stay, how many are listed
    u64 *bin_weights;    // (n_rows, BINS)
    uint32_t *bin_sizes; // (n_rows, BINS)
    float *list;         // (n_rows, n_vocab) logits near a cut; of each chunk where its tokens begin
    float *penalised;    // (n_rows, n_vocab), of rows that have penalties and are drawn from
};

// ---- Ranks: the larger is the better token; logits in order, the lower id first among equals.

const u64 RANK_NAN = ~0ull;

// Integers in the order of the logits.
__device__ uint32_t logit_key(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f); // −0 equals 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float key_logit(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ u64 rank_of(float logit, int id) {
    return isnan(logit) ? RANK_NAN : (u64)logit_key(logit) << 32 | (uint32_t)~id;
}

__device__ int rank_id(u64 rank) {
    return (int)~(uint32_t)rank;
}

__device__ float rank_logit(u64 rank) {
    return key_logit((uint32_t)(rank >> 32));
}

// ---- Weights

// Bins of the distance below the best: 64 to each doubling of distance + 2^−11 nats, from 0 to 32 nats, as
// exp(−32) is less than 2^−46. That is the upper bits of a float.
const float BIN_START = 0x1p-11f;
enum { BIN_SHIFT = 23 - 6 };

__device__ int bin_of(float below) {
    const uint32_t bin = (__float_as_uint(BIN_START - below) - __float_as_uint(BIN_START)) >> BIN_SHIFT;
    return bin < BINS ? (int)bin : BINS;
}

struct token_weight {
    int bin;      // BINS: its weight rounds to nothing
    float weight; // 1 for the best
    u64 rounded;  // 2^38 for the best
};

struct weigher {
    float best, temperature;

    __device__ token_weight operator()(float logit) const {
        const float below = (logit - best) / temperature;
        const int bin = bin_of(below);
        if (bin == BINS) return {BINS, 0.0f, 0};
        const float weight = expf(below);
        return {bin, weight, (u64)llrintf(weight * 0x1p38f)};
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

    __device__ bool may_cut(int bin) const { return (bin >= first && bin <= last) || bin == top_k.at; }
};

__device__ running row_bins(const sample_job &job, int row) {
    const int64_t bin = (int64_t)row * BINS + threadIdx.x;
    return block_scan({job.bin_weights[bin], job.bin_sizes[bin]});
}

__device__ place find_top_k_bin(const cuda_sample_row &args, const running &bins) {
    if (args.top_k <= 0 || (uint32_t)args.top_k >= bins.all.size) return {-1, {0, 0}, {0, 0}};
    return block_find(bins, args.top_k, amount{false});
}

__device__ cut_bins find_cut_bins(const cuda_sample_row &args, const running &bins) {
    cut_bins cut = {BINS, -1, find_top_k_bin(args, bins)};
    u64 least = bins.all.weight, most = least;
    if (cut.top_k.at >= 0) {
        cut.first = cut.last = cut.top_k.at;
        least = cut.top_k.before.weight, most = least + cut.top_k.own.weight;
    }
    if (args.top_p < 1) {
        cut.first = block_find(bins, likely_share(args, least), amount{true}).at;
        cut.last = block_find(bins, likely_share(args, most), amount{true}).at;
    }
    return cut;
}

// The listed logits of a row; a warp reads those of a chunk.
struct listed {
    const tally *chunks;
    const float *logits;
    int n_chunks;

    // Calls f(logit) for those of a chunk, together for the lanes of the warp; −infinity where there is none.
    template <typename F> __device__ void each_of_chunk(int chunk, const F &f) const {
        const int n = (int)chunks[chunk].size, lane = threadIdx.x % WARP;
        const float *at = logits + chunk * CHUNK_TOKENS;
        for (int first = 0; first < n; first += IDS * WARP) {
            float loaded[IDS];
#pragma unroll
            for (int k = 0; k < IDS; k++) {
                const int i = first + k * WARP + lane;
                loaded[k] = i < n ? at[i] : -INFINITY;
            }
#pragma unroll
            for (int k = 0; k < IDS; k++)
                if (first + k * WARP < n) f(loaded[k]);
        }
    }

    template <typename F> __device__ void each(const F &f) const {
        for (int chunk = threadIdx.x / WARP; chunk < n_chunks; chunk += THREADS / WARP)
            each_of_chunk(chunk, f);
    }
};

__device__ listed row_list(const sample_job &job, int64_t row) {
    return {job.chunks + row * job.n_chunks, job.list + row * job.n_vocab, job.n_chunks};
}

// The tokens that stay: those of a larger logit than this one, and of those that have it the first `most`.
struct row_cut {
    float logit;
    uint32_t most;
    u64 weight; // of all that stay
};

// Where the best tokens amount to `need`, which is in this bin. Each round divides the range of keys that is
// left into BINS parts and goes on with the one that the cut is in.
__device__ row_cut find_cut(const listed &list, const weigher &weigh, const place &bin, u64 need,
                            const amount &of) {
    __shared__ bin_sums parts;
    uint32_t high = 0, low = ~0u;
    list.each([&](float logit) {
        if (weigh(logit).bin != bin.at) return;
        high = max(high, logit_key(logit)), low = min(low, logit_key(logit));
    });
    high = (uint32_t)block_max(high), low = ~(uint32_t)block_max(~low);
    tally held = bin.before;
    while (high > low) {
        const int bits = WARP - __clz((int)(high - low)), shift = max(bits - BIN_BITS, 0);
        parts.clear();
        __syncthreads();
        list.each([&](float logit) {
            const uint32_t key = logit_key(logit);
            const bool inside = key >= low && key <= high;
            parts.add(inside ? (int)((high - key) >> shift) : BINS, inside ? weigh(logit).rounded : 0);
        });
        __syncthreads();
        const place part = block_find(block_scan(parts.own(), held), need, of);
        const tally upto = part.before + part.own;
        held = part.before;
        high -= (uint32_t)part.at << shift;
        if ((high - low) >> shift > 0) low = high - ((1u << shift) - 1);
        if (part.own.size == 1 || of(upto) == need) return {key_logit(low), ~0u, upto.weight};
    }
    const u64 weight = weigh(key_logit(low)).rounded, each = of({weight, 1});
    const uint32_t most = (uint32_t)((need - of(held) + each - 1) / each);
    return {key_logit(low), most, held.weight + most * weight};
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
}

__global__ void __launch_bounds__(THREADS, 2) weigh(const sample_job job) {
    __shared__ bin_sums bins;
    dependents_launch();
    const int64_t row = blockIdx.y;
    const cuda_sample_row args = job.rows[row];
    bins.clear();
    dependency_wait();
    if (is_greedy(args) && blockIdx.x > 0) return;
    const u64 best = row_best(job, row); // its barriers are also those behind clear()
    if (!is_draw(args, best)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) job.tokens[row] = has_answer(best) ? rank_id(best) : -1;
        return;
    }
    if (!has_cut(args)) return;
    const weigher weigh = {rank_logit(best), args.temperature};
    const chunk_run chunks(job);
    for (int chunk = chunks.first; chunk < chunks.end; chunk++) {
        float logits[IDS];
        load_chunk(job, row_logits(job, row, args), chunk, logits);
        for (int k = 0; k < IDS; k++) {
            const token_weight token = weigh(logits[k]);
            bins.add(token.bin, token.rounded);
        }
    }
    __syncthreads();
    const tally own = bins.own();
    if (own.size == 0) return;
    atomicAdd(&job.bin_weights[row * BINS + threadIdx.x], own.weight);
    atomicAdd(&job.bin_sizes[row * BINS + threadIdx.x], own.size);
}

// Sums the chunk's tokens ahead of every cut and lists those near one.
__device__ void gather_chunk(const sample_job &job, int64_t row, const cuda_sample_row &args, int chunk,
                             const weigher &weigh, const cut_bins &cut) {
    float logits[IDS];
    bool near[IDS];
    tally own = {0, 0};
    load_chunk(job, row_logits(job, row, args), chunk, logits);
#pragma unroll
    for (int k = 0; k < IDS; k++) {
        const token_weight token = weigh(logits[k]);
        if (token.bin < cut.first && token.weight >= least_weight(args)) own.weight += token.rounded;
        near[k] = cut.may_cut(token.bin);
        own.size += near[k];
    }
    const running sums = block_scan(own);
    float *list = job.list + row * job.n_vocab + chunk * CHUNK_TOKENS + sums.before.size;
#pragma unroll
    for (int k = 0; k < IDS; k++)
        if (near[k]) *list++ = logits[k];
    if (threadIdx.x == 0) job.chunks[row * job.n_chunks + chunk] = sums.all;
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
    for (int chunk = chunks.first; chunk < chunks.end; chunk++)
        gather_chunk(job, row, args, chunk, weigh, cut);
}

// Top-k's cut first, if there is one, then top-p's, of what that leaves: by the same code, as a kernel of one
// block waits for its instructions.
__device__ row_cut find_row_cut(const sample_job &job, int64_t row, const cuda_sample_row &args,
                                const weigher &weigh) {
    if (!has_cut(args)) return {-INFINITY, 0, 0}; // all stay
    const listed list = row_list(job, row);
    const running bins = row_bins(job, row);
    row_cut cut = {-INFINITY, 0, bins.all.weight};
    place bin = find_top_k_bin(args, bins);
    amount of = {false};
    u64 need = args.top_k;
    for (;;) {
        if (bin.at >= 0) cut = find_cut(list, weigh, bin, need, of);
        if (of.by_weight || !(args.top_p < 1)) return cut;
        of.by_weight = true;
        need = likely_share(args, cut.weight);
        bin = block_find(bins, need, of);
    }
}

// What stays of a row's tokens: a tally is of the weight before the cut, and of how many tokens are equal to
// it, of which only the first may stay.
struct kept {
    weigher weigh;
    float least;
    row_cut cut;

    __device__ u64 weight(float logit) const {
        const token_weight token = weigh(logit);
        return token.weight >= least ? token.rounded : 0;
    }

    __device__ tally operator()(float logit) const {
        return {logit > cut.logit ? weight(logit) : 0, logit == cut.logit};
    }
};

struct kept_weight {
    u64 each; // of those that are equal to the cut
    uint32_t most;

    __device__ u64 operator()(const tally &t) const { return t.weight + each * min(t.size, most); }
};

// Of each chunk, by a warp.
__device__ void sum_chunks(const listed &list, const kept &keep, tally *sums) {
    for (int chunk = threadIdx.x / WARP; chunk < list.n_chunks; chunk += THREADS / WARP) {
        tally own = {0, 0};
        list.each_of_chunk(chunk, [&](float logit) { own = own + keep(logit); });
        const tally near = lane_sums(own);
        if (threadIdx.x % WARP == WARP - 1)
            sums[chunk] = {list.chunks[chunk].weight + near.weight, near.size};
    }
}

// Which token of a chunk makes what stays weigh `need`: the ids of a thread are adjacent.
__device__ void draw_in_chunk(const sample_job &job, int64_t row, const float *logits, const place &chunk,
                              const kept &keep, const kept_weight &of, u64 need) {
    const int first = chunk.at * CHUNK_TOKENS + threadIdx.x * IDS;
    tally tokens[IDS], own = {0, 0};
#pragma unroll
    for (int i = 0; i < IDS; i++) {
        tokens[i] = keep(first + i < job.n_vocab ? logits[first + i] : -INFINITY);
        own = own + tokens[i];
    }
    const place hit = block_find(block_scan(own, chunk.before), need, of);
    if (hit.at != (int)threadIdx.x) return;
    tally upto = hit.before;
#pragma unroll
    for (int i = 0; i < IDS; i++) {
        upto = upto + tokens[i];
        if (of(upto) < need) continue;
        job.tokens[row] = first + i;
        return;
    }
}

__global__ void __launch_bounds__(THREADS) choose(const sample_job job) {
    __shared__ tally chunks[MAX_CHUNKS];
    dependents_launch();
    const int64_t row = blockIdx.x;
    const cuda_sample_row args = job.rows[row];
    dependency_wait();
    if (is_greedy(args)) return;
    const u64 best = row_best(job, row);
    if (!is_draw(args, best)) return;
    const weigher weigh = {rank_logit(best), args.temperature};
    const kept keep = {weigh, least_weight(args), find_row_cut(job, row, args, weigh)};

    chunks[threadIdx.x] = {0, 0};
    __syncthreads();
    sum_chunks(row_list(job, row), keep, chunks);
    __syncthreads();
    const running sums = block_scan(chunks[threadIdx.x]);
    const kept_weight of = {keep.weight(keep.cut.logit), keep.cut.most};
    const u64 all = of(sums.all), target = (u64)(args.uniform * (double)all);
    const u64 need = target < all ? target + 1 : target; // the product may have been rounded up
    const place chunk = block_find(sums, need, of);
    draw_in_chunk(job, row, row_logits(job, row, args), chunk, keep, of, need);
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
    take(&job->chunks, chunks);
    take(&job->bin_weights, BINS);
    take(&job->bin_sizes, BINS);
    take(&job->list, vocab);
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
