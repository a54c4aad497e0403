// Between lut_gemm.cu, which plans and launches, and the kernels.
#ifndef FLUTE_CUDA_LUT_KERNELS_H
#define FLUTE_CUDA_LUT_KERNELS_H

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/lut_gemm.h"

// By value into constant memory.
struct lut_params {
    const uint8_t *weights;
    const uint8_t *x;
    void *y;
    int64_t x_stride; // bytes
    int64_t y_stride; // elements
    int n_rows, n_cols, n_tokens;
    int n_panels;                      // of the matrix
    int panel_units;                   // units of a panel
    int cta_panels;                    // panels of a block of threads, or a pair
    int stages;                        // of the ring
    int ring_at, sums_at, barriers_at; // offsets in shared memory; the table stands at 0
    int more_at;                       // lut_gemv: factors of norms; lut_wide: two wide_shared
    int epilogue;                      // a lut_epilogue
    int overlap;
    int releases;         // lets the next kernel start early
    uint32_t always_zero; // a zero that the compiler does not know: see barrier_arrive_after
    int group_panels;     // lut_gemv: panels that a block, or a pair, adds up at a time
    // lut_tile, lut_ampere: panels of a pass; slices of K, one unit of each in a stage; bytes of a stage;
    // bytes from one token's activations to the next in it
    int tile_panels, k_slices, stage_bytes, x_row_bytes;
    // lut_wide: tiles of tokens; tiles of the matrix that teams take whole, in waves; stages of a tile, and
    // of the rest, the tiles behind the waves, which teams share evenly
    int token_tiles, waves, tile_stages;
    uint32_t rest_stages; // times the teams: below 2^32
    int y_aligned;        // rows of y can be stored four at a time
    // Where blocks leave partial sums, WIDE_PLACES times a tile's, and the tags that these will have next: a
    // word for each place and warp, a bit for each eight tokens.
    float4 *partials;
    uint32_t *tags;
    lut_order y_order;
    lut_norm norm; // lut_gemv
    lut_next next;
    uint16_t table[2][16]; // bf16; the second for the low plane of INT8
};

typedef void (*lut_kernel)(lut_params);

enum { WIDE_PITCH = 20 }; // lut_wide: floats from token to token of results in shared memory

// The tiles of lut_wide: 64 rows for each warpgroup that multiplies, 16 for each warp. Blocks of a team, a
// cluster, have neighbouring rows and the same tokens: each copies a part of the activations for all. Three
// warpgroups with 8 or 16 tokens, three or two with 32 save up to a microsecond of a product, but not of a
// step, which is shorter when its products are of fewer kernels (lessons.md).
struct wide_tile {
    int tokens, warpgroups, team;

    __host__ __device__ constexpr int warps() const { return 4 * warpgroups; } // and panels
    __host__ __device__ constexpr int consumers() const { return 128 * warpgroups; }
    __host__ __device__ constexpr int threads() const { return consumers() + 128; } // with the producers
    // Buffers for the results of eight tokens, of each warp, and bytes of all of a warp's.
    __host__ __device__ constexpr int results() const {
        return warpgroups == 4 ? 1 : warpgroups == 3 ? 2 : 4;
    }
    __host__ __device__ constexpr int result_bytes() const { return results() * 8 * WIDE_PITCH * 4; }
    // Registers of a thread. A scheduler has 512 for threads of the same place in their warps.
    __host__ __device__ constexpr int producer_registers() const { return warpgroups == 4 ? 32 : 56; }
    __host__ __device__ constexpr int consumer_registers() const {
        return warpgroups == 4 ? 112 : warpgroups == 3 ? 152 : 224;
    }
};
constexpr wide_tile wide_tiles[] = {{8, 4, 1},  {8, 2, 1},  {16, 4, 1},  {16, 2, 1},  {32, 4, 1}, {64, 4, 1},
                                    {64, 3, 1}, {64, 2, 1}, {128, 4, 2}, {128, 3, 2}, {128, 2, 2}};
enum { WIDE_TILES = sizeof wide_tiles / sizeof *wide_tiles };
enum { WIDE_MAX_TOKENS = 128, WIDE_MAX_WARPS = 16, WIDE_MAX_EIGHTS = WIDE_MAX_TOKENS / 8 }; // of a tile
enum { WIDE_PLACES = 2 };     // of a block for partial sums: of a tile that it goes on from, or stays with
enum { WIDE_MAX_SHARE = 32 }; // blocks that share a tile: a lane knows of one

// What a block knows of a tile that it shares.
struct wide_share {
    int first_block;      // of its rank, from which the others are a team apart
    int n_blocks, n_stay; // that have stages of the tile; the first n_stay have no tile after it
    int me;               // of them
    int first, last;      // eights of tokens that this block stores
};
// The tags of what each block and warp will leave, a bit for each eight.
typedef uint32_t wide_tags[WIDE_MAX_SHARE][WIDE_MAX_WARPS];
// Both, in shared memory.
struct alignas(16) wide_shared {
    wide_tags tags;
    wide_share share;
};

// A stage of its ring: codes and scales of a tile's panels, then the arranged activations.
struct wide_stage {
    int blocks;      // of 128 columns
    int panel_bytes; // from one panel to the next
    int x_at, bytes;
};

// Few tokens: stages twice as long, because the copies are what an SM has not enough of.
__host__ __device__ constexpr wide_stage wide_stage_of(int bits, int group, wide_tile tile) {
    wide_stage s = {};
    s.blocks = tile.tokens <= 32 && bits < 8 ? 2 : 1;
    s.panel_bytes =
        s.blocks * 16 * 128 * bits / 8 + (group >= 128 * s.blocks ? 1 : s.blocks * 128 / group) * 32;
    s.x_at = (tile.warps() * s.panel_bytes + 1023) / 1024 * 1024;
    s.bytes = s.x_at + s.blocks * 128 * tile.tokens * 2;
    return s;
}

// lut_gemv: blocks of 128 columns whose activations a warp has in registers; what is added to the tokens of a
// kernel whose blocks work in pairs.
enum { CHUNK_BLOCKS = 4, GEMV_PAIRS = 8 };
enum { GEMV_WARPS = 8, GEMV_MAX_TOKENS = 4, TILE_WARPS = 15, TILE_MAX_TOKENS = 32 };
enum { AMPERE_MAX_TOKENS = 32, AMPERE_STAGES = 4 }; // at most

// Warps of lut_ampere: as many as have registers enough, 128, 168 or 255 a thread.
__host__ __device__ constexpr int ampere_warps(int tokens) {
    return tokens > 16 ? 8 : tokens > 8 ? 12 : 16;
}

// Units of a warp in a stage of the ring: enough bytes that a copy (about 50 clocks whatever its size) is
// not what limits the stream.
template <int BITS> struct gemv_warp {
    enum { units = BITS >= 4 ? 1 : 2 };
};

// The kernels of one width for groups of 32, 64, 128 or 256 columns. Each stands in a file of its own, so
// that they compile in parallel: LUT_INSTANTIATE(lut_gemv, 2) defines lut_gemv_w2 by lut_gemv_pick<2,
// group>(n).
#define LUT_INSTANTIATE(NAME, BITS)                                                                          \
    lut_kernel NAME##_w##BITS(int group, int n) {                                                            \
        return group == 32    ? NAME##_pick<BITS, 32>(n)                                                     \
               : group == 64  ? NAME##_pick<BITS, 64>(n)                                                     \
               : group == 128 ? NAME##_pick<BITS, 128>(n)                                                    \
                              : NAME##_pick<BITS, 256>(n);                                                   \
    }

// 1, 2 or 4 tokens, plus GEMV_PAIRS for pairs of blocks.
lut_kernel lut_gemv_w2(int group, int variant);
lut_kernel lut_gemv_w3(int group, int variant);
lut_kernel lut_gemv_w4(int group, int variant);
lut_kernel lut_gemv_w8(int group, int variant);

// 8, 16 or 32 tokens: 1, 2 or 4 tiles of eight.
lut_kernel lut_tile_w2(int group, int n_tiles);
lut_kernel lut_tile_w3(int group, int n_tiles);
lut_kernel lut_tile_w4(int group, int n_tiles);
lut_kernel lut_tile_w8(int group, int n_tiles);

// The same for compute capability 8.x.
lut_kernel lut_ampere_w2(int group, int n_tiles);
lut_kernel lut_ampere_w3(int group, int n_tiles);
lut_kernel lut_ampere_w4(int group, int n_tiles);
lut_kernel lut_ampere_w8(int group, int n_tiles);

// tile: the index in wide_tiles; sm_90a only; p.x: arranged activations.
lut_kernel lut_wide_w2(int group, int tile);
lut_kernel lut_wide_w3(int group, int tile);
lut_kernel lut_wide_w4(int group, int tile);
lut_kernel lut_wide_w8(int group, int tile);

// Arranges activations (order.cuh) that lie in rows. Columns up to n_blocks · 128 and tokens up to whole
// tiles are zeros.
struct arrange_params {
    const uint8_t *x;
    uint8_t *out;
    int64_t x_stride; // bytes
    int n_tokens, n_cols;
    int tile_tokens, n_tiles, n_blocks;
    int overlap;
};
cudaError_t lut_arrange(const arrange_params &p, cudaStream_t stream);

#endif
