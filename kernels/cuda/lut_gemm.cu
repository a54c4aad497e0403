// Plans and launches: which kernel, how many panels a block of threads owns, how shared memory is divided.
#include "kernels/cuda/lut_gemm.h"

#include <assert.h>
#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/memory.h"
#include "kernels/layout.h"

// An SM has 228 KB, of which the system keeps 1 KB for each block: two blocks of lut_gemv, one of the others.
enum { GEMV_SHARED = 113 * 1024, SM_SHARED = 227 * 1024, SUMS_BYTES = 16 * 1024, MAX_STAGES = 16 };
enum { ROOMY_SHARED = 128 * 1024 }; // lut_ampere: 32 tokens at a time want more than the 99 KB of 8.6 and 8.9
enum { FACTORS_BYTES = (GEMV_WARPS + 1) * GEMV_MAX_TOKENS * (int)sizeof(float) };

static const int bits_of[] = {2, 3, 4, 8};
static const int groups_of[] = {32, 64, 128, 256};

// The kernels: what each path takes at a time, and in which sizes there is one.
static const struct {
    int most_tokens, shared;
    int tokens[6]; // in increasing order, then zeros
} paths[] = {
    {}, // LUT_PATH_AUTO
    {GEMV_MAX_TOKENS, GEMV_SHARED, {1, 2, 4}},
    {TILE_MAX_TOKENS, SM_SHARED, {8, 16, 32}},
    {WIDE_MAX_TOKENS, SM_SHARED, {8, 16, 32, 64, 128}},
    {AMPERE_MAX_TOKENS, 0, {8, 16, 32}}, // as much shared memory as the device has
};

// Which path is fastest: the first that the device has and that is meant for so few tokens.
static const struct {
    lut_path path;
    int tokens;
} choices[] = {{LUT_PATH_WIDE, 5}, {LUT_PATH_TILE, 5}, {LUT_PATH_GEMV, 1}};

static lut_kernel pick_wide(int bits, int group, int tile) {
    return bits == 2   ? lut_wide_w2(group, tile)
           : bits == 3 ? lut_wide_w3(group, tile)
           : bits == 4 ? lut_wide_w4(group, tile)
                       : lut_wide_w8(group, tile);
}

// tokens: of LUT_PATH_GEMV plus GEMV_PAIRS where blocks work in pairs.
static lut_kernel pick_kernel(lut_path path, int bits, int group, int tokens) {
    if (path == LUT_PATH_GEMV)
        return bits == 2   ? lut_gemv_w2(group, tokens)
               : bits == 3 ? lut_gemv_w3(group, tokens)
               : bits == 4 ? lut_gemv_w4(group, tokens)
                           : lut_gemv_w8(group, tokens);
    if (path == LUT_PATH_AMPERE)
        return bits == 2   ? lut_ampere_w2(group, tokens / 8)
               : bits == 3 ? lut_ampere_w3(group, tokens / 8)
               : bits == 4 ? lut_ampere_w4(group, tokens / 8)
                           : lut_ampere_w8(group, tokens / 8);
    return bits == 2   ? lut_tile_w2(group, tokens / 8)
           : bits == 3 ? lut_tile_w3(group, tokens / 8)
           : bits == 4 ? lut_tile_w4(group, tokens / 8)
                       : lut_tile_w8(group, tokens / 8);
}

// Tokens of the kernel that takes n_tokens, or as many of them as one can.
static int kernel_tokens(lut_path path, int64_t n_tokens) {
    const int *tokens = paths[path].tokens;
    while (*tokens < n_tokens && *tokens < paths[path].most_tokens) tokens++;
    return *tokens;
}

// The most that a path takes at a time on this device.
static int most_tokens(const lut_device *device, lut_path path) {
    return path == LUT_PATH_AMPERE && device->shared < ROOMY_SHARED ? 16 : paths[path].most_tokens;
}

static int path_shared(const lut_device *device, lut_path path) {
    return path == LUT_PATH_AMPERE ? device->shared : paths[path].shared;
}

bool lut_gemm_has_path(const lut_device *device, lut_path path) {
    if (path == LUT_PATH_WIDE) return device->has_wide;
    return path == LUT_PATH_AUTO || path == LUT_PATH_AMPERE || device->code_version >= CODE_HOPPER;
}

lut_path lut_gemm_path(const lut_device *device, int64_t n_tokens) {
    for (const auto &c : choices)
        if (n_tokens >= c.tokens && lut_gemm_has_path(device, c.path)) return c.path;
    return LUT_PATH_AMPERE;
}

lut_order lut_gemm_order(const lut_device *device, const weight *w, int64_t n_tokens) {
    lut_order order = {};
    if (lut_gemm_path(device, n_tokens) != LUT_PATH_WIDE || w->n_cols % BLOCK_COLS ||
        w->n_cols != layout_padded_cols(w->n_cols, w->group_size))
        return order;
    order.tile_tokens = kernel_tokens(LUT_PATH_WIDE, n_tokens);
    order.n_blocks = (int)(w->n_cols / BLOCK_COLS);
    return order;
}

size_t lut_order_bytes(int64_t n_tokens, int64_t n_cols) {
    return (size_t)round_up(n_tokens, WIDE_MAX_TOKENS) * (size_t)n_cols * sizeof(bf16);
}

// The workspace of lut_wide: partial sums and their tags, arranged activations. With fewer bytes for these,
// long prompts would go in pieces that read the weights too often: 32 MB are 1152 tokens at K = 14336.
enum { ARRANGED_BYTES = 32 << 20 };

static size_t partials_bytes(const lut_device *device) {
    return (size_t)device->n_sms * WIDE_PLACES * WIDE_MAX_WARPS * PANEL_ROWS * WIDE_MAX_TOKENS *
           sizeof(float);
}

static size_t tags_bytes(const lut_device *device) {
    return (size_t)round_up(device->n_sms * WIDE_PLACES * WIDE_MAX_WARPS * (int)sizeof(uint32_t), 1024);
}

static int open_workspace(lut_device *device, flute_error *err) {
    const size_t partials = partials_bytes(device), tags = tags_bytes(device);
    const int code = cuda_allocate(&device->workspace, partials + tags + ARRANGED_BYTES,
                                   "the workspace of the LUT-GEMM", err);
    if (code) return code;
    cudaError_t cuda = cudaMemset(device->workspace, 0, partials);
    if (cuda == cudaSuccess) cuda = cudaMemset((uint8_t *)device->workspace + partials, 0xff, tags);
    if (cuda == cudaSuccess) cuda = cudaDeviceSynchronize(); // before any stream of the caller's
    return cuda == cudaSuccess ? FLUTE_OK : cuda_fail(err, cuda, "the workspace of the LUT-GEMM");
}

// More shared memory than a kernel gets unasked.
static cudaError_t ready_kernel(const lut_device *device, lut_path path, lut_kernel kernel) {
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                path_shared(device, path));
}

static int ready_kernels(const lut_device *device, lut_path path, flute_error *err) {
    cudaError_t code = cudaSuccess;
    for (int bits : bits_of)
        for (int group : groups_of)
            if (path == LUT_PATH_WIDE)
                for (int tile = 0; tile < WIDE_TILES && code == cudaSuccess; tile++)
                    code = ready_kernel(device, path, pick_wide(bits, group, tile));
            else
                for (const int *tokens = paths[path].tokens; *tokens && code == cudaSuccess; tokens++) {
                    code = ready_kernel(device, path, pick_kernel(path, bits, group, *tokens));
                    if (path == LUT_PATH_GEMV && code == cudaSuccess)
                        code =
                            ready_kernel(device, path, pick_kernel(path, bits, group, *tokens + GEMV_PAIRS));
                }
    return code == cudaSuccess
               ? FLUTE_OK
               : cuda_fail(err, code, "the kernels do not fit this device; was flute built for it?");
}

// A MIG slice or an odd GPU may have fewer pairs of SMs than half its SMs.
static int count_pairs(lut_device *device, flute_error *err) {
    device->n_pairs = device->n_sms / 2;
    for (int i = 0; i < WIDE_TILES; i++) {
        const wide_tile tile = wide_tiles[i];
        int n = 0;
        if (tile.team == 1) continue;
        const cudaError_t code = cuda_most_clusters(pick_wide(bits_of[0], groups_of[0], i), device->n_sms,
                                                    tile.team, tile.threads(), SM_SHARED, &n);
        if (code != cudaSuccess) return cuda_fail(err, code, "cannot query the device");
        if (n < device->n_pairs) device->n_pairs = n;
    }
    if (device->n_pairs > 0) return FLUTE_OK;
    return fail(err, FLUTE_EUNSUPPORTED,
                "the GPU, or the part of it that this is, has no two SMs for a cluster");
}

// What is known of the device and of the code that is loaded for it.
static int describe_device(lut_device *out, flute_error *err) {
    int major = 0, minor = 0;
    cudaError_t code = cudaGetDevice(&out->ordinal);
    if (code == cudaErrorInsufficientDriver)
        return fail(err, FLUTE_EDEVICE,
                    "there is no NVIDIA driver, or one older than CUDA %d.%d; install or update it",
                    CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (code != cudaSuccess) return cuda_fail(err, code, "no usable device");
    code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, out->ordinal);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, out->ordinal);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&out->n_sms, cudaDevAttrMultiProcessorCount, out->ordinal);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&out->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, out->ordinal);
    if (code != cudaSuccess) return cuda_fail(err, code, "cannot query the device");
    if (major < 8)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "the GPU has compute capability %d.%d; the kernels need 8.0 (Ampere) or later", major,
                    minor);
    code = cuda_code_version(&out->code_version);
    if (code != cudaSuccess)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "this build has no code for the GPU's compute capability %d.%d (%s); build flute with "
                    "-Dgpu_arch=all or -Dgpu_arch=%d%d",
                    major, minor, cudaGetErrorString(code), major, minor);
    out->has_wide = major == 9 && minor == 0 && out->code_version >= CODE_HOPPER;
    out->most_cluster = out->code_version < CODE_HOPPER ? 1 : out->n_sms < 8 ? out->n_sms : 8; // as all have
    return FLUTE_OK;
}

int lut_device_open(lut_device *out, flute_error *err) {
    *out = {};
    int code = describe_device(out, err);
    if (code == FLUTE_OK && out->code_version < CODE_HOPPER) return ready_kernels(out, LUT_PATH_AMPERE, err);
    if (code == FLUTE_OK) code = ready_kernels(out, LUT_PATH_GEMV, err);
    if (code == FLUTE_OK) code = ready_kernels(out, LUT_PATH_TILE, err);
    if (code == FLUTE_OK && out->has_wide) code = ready_kernels(out, LUT_PATH_WIDE, err);
    if (code == FLUTE_OK && out->has_wide) code = count_pairs(out, err);
    if (code == FLUTE_OK && out->has_wide) code = open_workspace(out, err);
    return code;
}

void lut_device_close(lut_device *device) {
    cudaFree(device->workspace);
    device->workspace = NULL;
}

static int check_arguments(const lut_device *device, const lut_gemm_args *args, lut_path path,
                           flute_error *err) {
    const weight *w = args->w;
    const bool gate_up = args->epilogue == LUT_SILU_MUL || args->epilogue == LUT_GELU_MUL;
    if (!weight_is_quantized(w->type))
        return fail(err, FLUTE_EINVAL, "lut_gemm: the weight is not quantized");
    if (w->group_size != 32 && w->group_size != 64 && w->group_size != 128 && w->group_size != 256)
        return fail(err, FLUTE_EINVAL, "lut_gemm: group size %d is not 32, 64, 128 or 256", w->group_size);
    if (w->n_rows < 1 || w->n_cols < 1 || w->n_cols % w->group_size || w->n_rows > INT32_MAX / 2 ||
        w->n_cols > INT32_MAX / 2)
        return fail(err, FLUTE_EINVAL, "lut_gemm: no kernel for a %lld × %lld weight in groups of %d",
                    (long long)w->n_rows, (long long)w->n_cols, w->group_size);
    if (args->n_tokens < 1 || args->x_stride < w->n_cols || args->x_stride % 8 ||
        args->y_stride < w->n_rows / (gate_up ? 2 : 1) || (gate_up && (w->n_rows % 16 || args->y_stride % 2)))
        return fail(err, FLUTE_EINVAL,
                    "lut_gemm: %lld tokens with strides %lld and %lld do not fit the weight",
                    (long long)args->n_tokens, (long long)args->x_stride, (long long)args->y_stride);
    if ((args->norm.squares || args->next.squares) && args->n_tokens > LUT_NORM_TOKENS)
        return fail(err, FLUTE_EINVAL, "lut_gemm: a norm with %lld tokens; at most %d",
                    (long long)args->n_tokens, (int)LUT_NORM_TOKENS);
    if ((args->norm.squares || args->next.squares) && path != LUT_PATH_GEMV)
        return fail(err, FLUTE_EINVAL, "lut_gemm: only LUT_PATH_GEMV has norms");
    if (args->next.squares && (args->epilogue != LUT_ADD_F32 || args->next.x_stride < w->n_rows))
        return fail(err, FLUTE_EINVAL,
                    "lut_gemm: a norm behind a product that adds nothing, or with no room for its x");
    if (((uintptr_t)w->data | (uintptr_t)args->x) % 16)
        return fail(err, FLUTE_EINVAL, "lut_gemm: weights and activations must be aligned to 16 bytes");
    const lut_order want = lut_gemm_order(device, w, args->n_tokens);
    if (args->x_order.tile_tokens &&
        (args->path != LUT_PATH_AUTO || args->x_order.tile_tokens != want.tile_tokens))
        return fail(err, FLUTE_EINVAL, "lut_gemm: activations in an order that the product does not take");
    if (path == LUT_PATH_WIDE && args->variant != 0 && (args->variant < 2 || args->variant > 4))
        return fail(err, FLUTE_EINVAL, "lut_gemm: tiles of %d warpgroups; they have 2, 3 or 4",
                    args->variant);
    if (path == LUT_PATH_GEMV && (args->variant < 0 || args->variant > 2))
        return fail(err, FLUTE_EINVAL, "lut_gemm: rows of %d blocks; they have 1 or 2", args->variant);
    if (args->variant != 0 && args->next.squares)
        return fail(err, FLUTE_EINVAL, "lut_gemm: a variant before a norm, which knows of none");
    if (!lut_gemm_has_path(device, path))
        return fail(err, FLUTE_EINVAL, "lut_gemm: %s",
                    path == LUT_PATH_WIDE ? "LUT_PATH_WIDE needs compute capability 9.0 (Hopper)"
                                          : "this path needs code for compute capability 9.0");
    return FLUTE_OK;
}

// The tables of single weights, in bf16.
static void fill_tables(const weight *w, lut_params *p) {
    for (int i = 0; i < 16; i++) {
        const bool int8 = w->type == WEIGHT_INT8;
        p->table[0][i] = int8 ? bf16_from_float(16.0f * (float)(i - 8)) : w->table[i];
        p->table[1][i] = int8 ? bf16_from_float((float)i) : 0;
    }
}

// What does not depend on the kernel: matrix, activations and output of tokens [first, first + n_tokens).
static lut_params make_params(const lut_gemm_args *args, int64_t first, int n_tokens) {
    const weight *w = args->w;
    const bool is_float = args->epilogue == LUT_STORE_F32 || args->epilogue == LUT_ADD_F32;
    lut_params p = {};
    p.weights = (const uint8_t *)w->data;
    p.x_stride = args->x_stride * 2, p.y_stride = args->y_stride;
    p.x = (const uint8_t *)args->x + first * p.x_stride;
    p.y = (uint8_t *)args->y + first * args->y_stride * (is_float ? 4 : 2);
    p.y_order = args->y_order;
    if (args->y_order.tile_tokens) p.y = (uint8_t *)args->y + first * args->y_order.n_blocks * BLOCK_COLS * 2;
    p.n_rows = (int)w->n_rows, p.n_cols = (int)w->n_cols, p.n_tokens = n_tokens;
    p.n_panels = (int)(layout_padded_rows(w->n_rows) / PANEL_ROWS);
    p.panel_units = (int)(layout_padded_cols(w->n_cols, w->group_size) / layout_unit_cols(w->group_size));
    p.epilogue = args->epilogue, p.overlap = args->overlap;
    p.releases = args->overlap && !args->held;
    p.y_aligned = ((uintptr_t)p.y | (uintptr_t)(p.y_stride * (is_float ? 4 : 2))) % 16 == 0;
    p.norm = args->norm, p.next = args->next;
    fill_tables(w, &p);
    return p;
}

// Shared memory: table, sums, barriers, factors or shares, ring; as many stages as `shared` bytes hold.
static void divide_shared(lut_params *p, int sums_bytes, int more_bytes, int stage_bytes, int ring_alignment,
                          int shared) {
    p->sums_at = TABLE_BYTES;
    p->barriers_at = p->sums_at + sums_bytes;
    p->more_at = p->barriers_at + MAX_STAGES * 16 + 16; // two a stage, and one more
    p->ring_at = (int)round_up(p->more_at + more_bytes, ring_alignment);
    p->stage_bytes = stage_bytes;
    p->stages = (shared - p->ring_at) / stage_bytes;
    if (p->stages > MAX_STAGES) p->stages = MAX_STAGES;
}

// How lut_gemv divides a matrix over two blocks of threads for each SM, single ones or pairs.
struct gemv_division {
    int team;   // 1, or 2: blocks of a pair
    int panels; // of each team
    int n_blocks;
};

static gemv_division divide_gemv_by(const lut_device *device, const weight *w, int team) {
    const int n_panels = (int)(layout_padded_rows(w->n_rows) / PANEL_ROWS),
              n_teams = 2 * device->n_sms / team;
    gemv_division d = {};
    d.team = team;
    d.panels = (n_panels + n_teams - 1) / n_teams;
    d.n_blocks = (n_panels + d.panels - 1) / d.panels * team;
    return d;
}

// The columns of a chunk: of those activations a block has in registers.
enum { CHUNK_COLS = GEMV_WARPS * CHUNK_BLOCKS * BLOCK_COLS };

// What a block has of the matrix, and its shared memory. Where it has many panels it adds them up in rounds;
// a pair all at a time, which takes room from the ring.
static void plan_gemv(const gemv_division &d, const weight *w, int tokens, lut_params *p) {
    const int warp_units =
        weight_type_bits(w->type) >= 4 ? (int)gemv_warp<4>::units : (int)gemv_warp<2>::units;
    const int stage_units = GEMV_WARPS * warp_units;
    const int panel_sums = GEMV_WARPS * PANEL_ROWS * tokens * (int)sizeof(float);
    p->cta_panels = d.panels;
    p->group_panels = p->cta_panels < SUMS_BYTES / panel_sums ? p->cta_panels : SUMS_BYTES / panel_sums;
    int sums = p->group_panels; // in those of a panel
    if (d.team > 1) {
        p->group_panels = d.panels;
        sums = (d.panels + 1) / 2 * (w->n_cols > 2 * CHUNK_COLS ? 3 : 2);
    }
    divide_shared(p, sums * panel_sums, FACTORS_BYTES,
                  stage_units * (int)layout_unit_bytes(w->type, w->group_size), 128, GEMV_SHARED);
}

// Pairs have so many panels at most, and need room for a stage of the ring beside the sums of four tokens.
enum { PAIR_MAX_PANELS = 5 };
static bool pairs_fit(const gemv_division &pairs, const weight *w) {
    lut_params p = {};
    plan_gemv(pairs, w, GEMV_MAX_TOKENS, &p);
    return pairs.panels <= PAIR_MAX_PANELS && p.stages > 0;
}

// team: as asked for, where that is possible, or 0. In pairs blocks load half of the activations, for twice
// the panels, and share matrices of few panels more evenly; for that they wait for each other, which rows of
// up to 4096 columns are not worth, and have less room for weights: measured, on an H200.
static gemv_division divide_gemv(const lut_device *device, const weight *w, int team) {
    const gemv_division single = divide_gemv_by(device, w, 1), pairs = divide_gemv_by(device, w, 2);
    if (team == 1 || device->most_cluster < 2 || !pairs_fit(pairs, w)) return single;
    const bool pays = w->n_cols > CHUNK_COLS && (pairs.panels <= 2 || w->n_cols <= 2 * CHUNK_COLS);
    return team == 2 || pays ? pairs : single;
}

int lut_gemm_parts(const lut_device *device, const weight *w) {
    return divide_gemv(device, w, 0).n_blocks;
}

// lut_tile and lut_ampere: one block on each SM, up to 32 tokens.
static int tile_warps(lut_path path, int tokens) {
    return path == LUT_PATH_AMPERE ? ampere_warps(tokens) : (int)TILE_WARPS;
}

// Panels that a block owns beyond two for each warp make further passes over K, as even as can be; where it
// owns fewer, warps split K. False: fewer than two stages fit.
static bool plan_tile_passes(const lut_device *device, lut_path path, const weight *w, int most_panels,
                             int most_slices, lut_params *p) {
    const int tokens = kernel_tokens(path, p->n_tokens), warps = tile_warps(path, tokens);
    const int unit_bytes = (int)layout_unit_bytes(w->type, w->group_size),
              unit_cols = layout_unit_cols(w->group_size);
    const int passes = (p->cta_panels + most_panels - 1) / most_panels;
    p->tile_panels = (p->cta_panels + passes - 1) / passes;
    p->k_slices = warps / ((p->tile_panels + 1) / 2);
    if (p->k_slices > most_slices) p->k_slices = most_slices;
    const int stages_of_k = (p->panel_units + p->k_slices - 1) / p->k_slices;
    p->k_slices = (p->panel_units + stages_of_k - 1) / stages_of_k; // stages of equal size
    // 64 bytes more than a multiple of 128: eight lanes that read two tokens meet no bank twice.
    p->x_row_bytes = p->k_slices * unit_cols * 2 + 64;
    const int x_rows = path == LUT_PATH_AMPERE && p->n_tokens < 8 ? p->n_tokens : tokens;
    const int sums =
        p->k_slices > 1 ? p->tile_panels * p->k_slices * PANEL_ROWS * tokens * (int)sizeof(float) : 0;
    divide_shared(p, sums, 0,
                  (int)round_up(p->tile_panels * p->k_slices * unit_bytes + x_rows * p->x_row_bytes, 128),
                  128, path_shared(device, path));
    if (path == LUT_PATH_AMPERE && p->stages > AMPERE_STAGES) p->stages = AMPERE_STAGES;
    return p->stages >= 2;
}

static void plan_tile(const lut_device *device, lut_path path, const weight *w, lut_params *p) {
    const int warps = tile_warps(path, kernel_tokens(path, p->n_tokens));
    p->cta_panels = (p->n_panels + device->n_sms - 1) / device->n_sms;
    // Few tokens: reading their activations twice costs less than stages of a single unit.
    const int most = p->n_tokens <= 16 ? warps + warps % 2 : 2 * warps;
    for (int most_panels = most; most_panels >= 2; most_panels -= 2)
        for (int most_slices = warps; most_slices >= 1; most_slices--)
            if (plan_tile_passes(device, path, w, most_panels, most_slices, p)) return;
    assert(!"two stages of two panels and one slice always fit");
}

// What a product takes with a tile of lut_wide, microseconds, less what all tiles of these tokens take: for
// each 128 columns of a team, for each 64 rows of these, for each 64 rows whose sums blocks hand each other,
// where teams have parts of two tiles. Fitted to five shapes of 4 bits on an H200 (README.md), within 9 %;
// the tile that it chooses was the fastest, or took at most 4 % longer.
static const struct wide_cost {
    int tokens;
    double columns, rows, sums, two_tiles;
} wide_costs[] = {{16, 0.141, 0.107, 0.55, 0.34},
                  {32, 0.118, 0.137, 0.54, 0.34},
                  {64, 0.282, 0.153, 1.09, 0.24},
                  {128, 0.096, 0.314, 1.92, 0.76}};

// How a product is divided for one of wide_tiles.
struct wide_plan {
    int tile; // its index
    int n_teams, waves, tile_stages;
    int64_t rest_stages;
    double time; // of wide_costs
};

// Tiles: whole ones in waves, one for each team at a time; what is left, up to twice as many, by stages of K
// in equal parts. Where tiles are few and all but a tenth of the teams can share them out without a team in
// two tiles, that is cheaper than the last SMs are worth. A team has at least 256 columns of a tile, or it
// would not be worth its start, and so many that at most WIDE_MAX_SHARE teams meet in a tile.
static wide_plan plan_wide_tile(const lut_device *device, const lut_params *p, int index, int blocks,
                                int stage_blocks) {
    const wide_tile tile = wide_tiles[index];
    const wide_cost *cost = wide_costs;
    while (cost->tokens < tile.tokens) cost++;
    const int team_panels = tile.warps() * tile.team, stages = (blocks + stage_blocks - 1) / stage_blocks;
    const int64_t tiles = (int64_t)p->token_tiles * ((p->n_panels + team_panels - 1) / team_panels);
    int64_t n_teams = tile.team > 1 ? device->n_pairs : device->n_sms; // that run at the same time
    if (tiles < n_teams) {
        const int64_t even = n_teams / tiles * tiles,
                      least = (stages + WIDE_MAX_SHARE - 2) / (WIDE_MAX_SHARE - 1);
        if (even * 10 >= n_teams * 9) n_teams = even;
        const int64_t worth = tiles * stages * stage_blocks / 2;
        if (n_teams > worth) n_teams = worth > 0 ? worth : 1;
        if (n_teams > tiles * stages / least) n_teams = tiles * stages / least;
    }
    wide_plan plan = {};
    plan.tile = index, plan.n_teams = (int)n_teams, plan.tile_stages = stages;
    plan.waves = (int)(tiles % n_teams ? (tiles > n_teams ? tiles / n_teams - 1 : 0) : tiles / n_teams);
    const int64_t rest = tiles - plan.waves * n_teams;
    plan.rest_stages = rest * stages;
    const double most = plan.waves * stages + (double)((plan.rest_stages + n_teams - 1) / n_teams);
    plan.time = most * stage_blocks * (cost->columns + tile.warpgroups * cost->rows);
    if (rest > 0) {
        const bool two_tiles = n_teams % rest != 0;
        plan.time += tile.warpgroups * cost->sums * (two_tiles ? 1 : 1 - (double)rest / (double)n_teams) +
                     (two_tiles ? cost->two_tiles : 0);
    }
    return plan;
}

// Of the tiles that have this many tokens the one of so many warpgroups, or the one that takes least time.
static wide_plan plan_wide(const lut_device *device, const weight *w, int tile_tokens, int warpgroups,
                           lut_params *p) {
    const int bits = weight_type_bits(w->type),
              blocks = p->panel_units * layout_unit_cols(w->group_size) / BLOCK_COLS;
    p->token_tiles = (p->n_tokens + tile_tokens - 1) / tile_tokens;
    wide_plan best = {};
    for (int i = 0; i < WIDE_TILES; i++) {
        if (wide_tiles[i].tokens != tile_tokens) continue;
        const wide_plan plan =
            plan_wide_tile(device, p, i, blocks, wide_stage_of(bits, w->group_size, wide_tiles[i]).blocks);
        const bool asked_for = wide_tiles[i].warpgroups == warpgroups;
        if (best.n_teams == 0 || asked_for || plan.time < best.time) best = plan;
        if (asked_for) break;
    }
    const wide_tile tile = wide_tiles[best.tile];
    p->waves = best.waves, p->tile_stages = best.tile_stages, p->rest_stages = (uint32_t)best.rest_stages;
    p->partials = (float4 *)device->workspace;
    p->tags = (uint32_t *)((uint8_t *)device->workspace + partials_bytes(device));
    divide_shared(p, tile.warps() * tile.result_bytes(), 2 * (int)sizeof(wide_shared),
                  wide_stage_of(bits, w->group_size, tile).bytes, 1024, SM_SHARED);
    assert(p->stages >= 2);
    return best;
}

static int launch_wide(const lut_device *device, const lut_gemm_args *args, lut_params *p, int tile_tokens,
                       cudaStream_t stream, flute_error *err) {
    const weight *w = args->w;
    const wide_plan plan = plan_wide(device, w, tile_tokens, args->variant, p);
    const wide_tile tile = wide_tiles[plan.tile];
    cudaError_t code = cudaSuccess;
    if (plan.rest_stages * plan.n_teams > UINT32_MAX)
        return fail(err, FLUTE_EINVAL, "lut_gemm: %d columns are too many", p->n_cols);
    if (!args->x_order.tile_tokens) {
        arrange_params arrange = {};
        arrange.x = p->x, arrange.x_stride = p->x_stride;
        arrange.out = (uint8_t *)p->tags + tags_bytes(device);
        arrange.n_tokens = p->n_tokens, arrange.n_cols = p->n_cols;
        arrange.tile_tokens = tile_tokens, arrange.n_tiles = p->token_tiles;
        arrange.n_blocks = p->panel_units * layout_unit_cols(w->group_size) / BLOCK_COLS;
        arrange.overlap = args->overlap;
        p->x = arrange.out;
        code = lut_arrange(arrange, stream);
    }
    if (code == cudaSuccess)
        code = cuda_launch_clusters(pick_wide(weight_type_bits(w->type), w->group_size, plan.tile),
                                    dim3((unsigned)(plan.n_teams * tile.team)), tile.team, tile.threads(),
                                    (size_t)(p->ring_at + p->stages * p->stage_bytes), stream, true, *p);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "launching the LUT-GEMM");
}

static int launch_gemv(const lut_device *device, const lut_gemm_args *args, lut_params *p,
                       cudaStream_t stream, flute_error *err) {
    const weight *w = args->w;
    const gemv_division d = divide_gemv(device, w, args->variant);
    const int tokens = kernel_tokens(LUT_PATH_GEMV, p->n_tokens);
    plan_gemv(d, w, tokens, p);
    const cudaError_t code =
        cuda_launch_clusters(pick_kernel(LUT_PATH_GEMV, weight_type_bits(w->type), w->group_size,
                                         tokens + (d.team > 1 ? (int)GEMV_PAIRS : 0)),
                             dim3((unsigned)d.n_blocks), d.team, (GEMV_WARPS + 1) * 32,
                             (size_t)(p->ring_at + p->stages * p->stage_bytes), stream, args->overlap, *p);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "launching the LUT-GEMM");
}

static int launch_narrow(const lut_device *device, const lut_gemm_args *args, lut_path path, lut_params *p,
                         cudaStream_t stream, flute_error *err) {
    const weight *w = args->w;
    const int tokens = kernel_tokens(path, p->n_tokens);
    const lut_kernel kernel = pick_kernel(path, weight_type_bits(w->type), w->group_size, tokens);
    const int warps = tile_warps(path, tokens) + (path == LUT_PATH_TILE); // one more copies
    plan_tile(device, path, w, p);
    // Not readied by lut_device_open where it is only asked for to compare.
    cudaError_t code = cudaSuccess;
    if (path == LUT_PATH_AMPERE && device->code_version >= CODE_HOPPER)
        code = ready_kernel(device, path, kernel);
    if (code == cudaSuccess)
        code = cuda_launch(kernel, dim3((unsigned)((p->n_panels + p->cta_panels - 1) / p->cta_panels)),
                           warps * 32, (size_t)(p->ring_at + p->stages * p->stage_bytes), stream,
                           args->overlap, *p);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "launching the LUT-GEMM");
}

// What a path cannot take at once goes in pieces, each of which reads the weights.
int lut_gemm(const lut_device *device, const lut_gemm_args *args, struct CUstream_st *stream,
             flute_error *err) {
    const weight *w = args->w;
    const lut_path path = args->path ? args->path : lut_gemm_path(device, args->n_tokens);
    int code = check_arguments(device, args, path, err);
    if (code != FLUTE_OK) return code;
    const int most = most_tokens(device, path),
              tokens = kernel_tokens(path, args->n_tokens < most ? args->n_tokens : most);
    int64_t piece = tokens;
    if (path == LUT_PATH_WIDE) {
        const int64_t tile_bytes = layout_padded_cols(w->n_cols, w->group_size) * 2 * tokens;
        piece = args->x_order.tile_tokens ? args->n_tokens : ARRANGED_BYTES / tile_bytes * tokens;
        if (piece == 0)
            return fail(err, FLUTE_EINVAL, "lut_gemm: %lld columns are too many for %lld tokens",
                        (long long)w->n_cols, (long long)args->n_tokens);
    }
    if (args->y_order.tile_tokens && piece < args->n_tokens && piece % args->y_order.tile_tokens)
        return fail(err, FLUTE_EINVAL, "lut_gemm: y in tiles of %d tokens, from pieces of %lld",
                    args->y_order.tile_tokens, (long long)piece);
    for (int64_t first = 0; code == FLUTE_OK && first < args->n_tokens; first += piece) {
        const int64_t left = args->n_tokens - first;
        lut_params p = make_params(args, first, left < piece ? (int)left : (int)piece);
        code = path == LUT_PATH_WIDE   ? launch_wide(device, args, &p, tokens, stream, err)
               : path == LUT_PATH_GEMV ? launch_gemv(device, args, &p, stream, err)
                                       : launch_narrow(device, args, path, &p, stream, err);
    }
    return code;
}
