// out = softmax(softcap(q · kᵀ)) · v: which kernel, how many splits, how much shared memory.
#include "kernels/cuda/attention.h"

#include <cuda_runtime.h>

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/launch.cuh"

typedef void (*attention_kernel)(attention_params);

// Kernels for head sizes up to 64, 128 and 256, and those for exactly these. Heads of 256 want 145 KB for
// four warps; compute capability 8.6 and 8.9 have 99 (and no exact kernels for these heads: they would
// spill). Of a context that is not split, more warps keep more bytes under way: alone_decode.
struct attention_kernels {
    int head_dim, n_warps, n_alone, n_stages; // warps of decode, of alone_decode; stages of prefill
    attention_kernel decode, prefill, exact_decode, exact_prefill, alone_decode;
};
#define KERNELS(D, N_WARPS, N_ALONE, N_STAGES, EXACT)                                                        \
    {                                                                                                        \
        D, N_WARPS, N_ALONE, N_STAGES, attend_decode<D, false, N_WARPS>, attend_prefill<D, false, N_STAGES>, \
            attend_decode<D, EXACT, N_WARPS>, attend_prefill<D, EXACT, N_STAGES>,                            \
            attend_decode<D, EXACT, N_ALONE>                                                                 \
    }
static const attention_kernels kernels[] = {
    KERNELS(64, WARPS, MANY_WARPS, STAGES, true), KERNELS(128, WARPS, MANY_WARPS, STAGES, true),
    KERNELS(256, WARPS, WARPS, STAGES, true), KERNELS(256, FEW_WARPS, FEW_WARPS, FEW_STAGES, false)};
#undef KERNELS

// Parts lie where the stages were, but in a cluster: other blocks leave theirs at any time. n_rows: query
// heads of a block.
static int decode_shared(const attention_kernels *k, int n_warps, int head_dim, int n_rows, int cluster) {
    int parts = 0; // the most that any number of blocks of the cluster leaves with an owner
    for (int blocks = 1, owners = 1; blocks <= cluster && cluster > 1; blocks++) {
        if (owners * 2 <= blocks) owners *= 2;
        const int left = (n_rows + owners - 1) / owners * blocks * n_warps;
        if (left > parts) parts = left;
    }
    return (TILE_ROWS + 2) * k->head_dim * 2 + n_warps * stage_bytes(head_dim) + 16 +
           parts * part_floats(head_dim) * (int)sizeof(float);
}

static int prefill_shared(const attention_kernels *k, int head_dim) {
    return k->n_stages * stage_bytes(head_dim);
}

static bool fits(const attention_kernels *k, int shared) {
    return decode_shared(k, k->n_warps, k->head_dim, TILE_ROWS, 1) <= shared &&
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
        const int decode = shared, prefill = prefill_shared(&k, k.head_dim);
        if (code == cudaSuccess) code = allow_shared(k.decode, decode);
        if (code == cudaSuccess) code = allow_shared(k.exact_decode, decode);
        if (code == cudaSuccess) code = allow_shared(k.alone_decode, decode);
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
           decode_shared(k, k->n_warps, head_dim, n_rows, cluster * 2) <= args->shared)
        cluster *= 2, p->cluster_shift++;
    p->n_splits = p->n_splits / cluster * cluster;
}

// Whether an SM holds two blocks of alone_decode. A block costs 1 KB more than it asks for; `shared` leaves
// that of one out.
static bool two_fit(const attention_kernels *k, int n_rows, int shared) {
    return 2 * (decode_shared(k, k->n_alone, k->head_dim, n_rows, 1) + 1024) <= shared + 1024;
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
    const bool exact = is_exact(k, rows) && p.n_queries <= EXACT_ROWS,
               alone = exact && p.n_splits == 1 && two_fit(k, n_rows, args->shared);
    const int n_warps = alone ? k->n_alone : k->n_warps, cluster = 1 << p.cluster_shift;
    return cuda_launch_clusters(alone   ? k->alone_decode
                                : exact ? k->exact_decode
                                        : k->decode,
                                grid, cluster, n_warps * WARP,
                                (size_t)decode_shared(k, n_warps, rows->head_dim, n_rows, cluster), stream,
                                true, p);
}
