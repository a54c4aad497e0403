// Attention of prompts: a block for each KV head and run of rows; four warps share the key tiles through a
// ring in shared memory.
//
// Roofline: 16 × 32 × head_dim takes 64 mma (head_dim 128) and, in 32 loads of 512 bytes, 128 clocks of
// shared memory a warp: shared memory is the limit, at about half the rate of mma.sync.
#ifndef FLUTE_CUDA_ATTENTION_PREFILL_CUH
#define FLUTE_CUDA_ATTENTION_PREFILL_CUH

#include "kernels/cuda/attention_tiles.cuh"

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
        copy_keys<THREADS>(kv, kv.keys(tile), KV_TILE, stage, threadIdx.x);
        copy_values<THREADS>(kv, kv.values(tile), KV_TILE, stage + KV_TILE * key_stride(head_dim),
                             threadIdx.x);
    };
    row_tile<D> rows;
    rows.clear();
    for (int n = 0; n < N_STAGES - 1; n++) {
        if (n < n_tiles) copy_tile(begin + n, ring + n * stage_bytes(head_dim));
        copies_commit();
    }
    for (int n = 0; n < n_tiles; n++) {
        copies_wait<N_STAGES - 2>();
        __syncthreads(); // everyone's copies are there, and everyone is done with the stage that is filled
                         // next
        const int next = n + N_STAGES - 1;
        if (next < n_tiles) copy_tile(begin + next, ring + next % N_STAGES * stage_bytes(head_dim));
        copies_commit();
        const int tile = begin + n, token = kv.first_token(tile), block_end = kv.end_token(tile);
        const uint32_t stage = ring + n % N_STAGES * stage_bytes(head_dim);
        float s[4][4];
        score_tile<D>(
            stage, head_dim, [&](int u, int half) { return q_rows[half][u]; }, s);
        rows.soften(s, p.softcap, [&](int half, int i) {
            return token + i >= first[half] && token + i < min(end[half], block_end);
        });
        weigh_tile(stage + KV_TILE * key_stride(head_dim), head_dim, s, rows);
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

#endif
