// Plans and launches: which kernel, how many panels a block of threads owns, how shared memory is divided.
#include "kernels/cuda/lut_gemm.h"

#include <assert.h>
#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/layout.h"

// An SM has 228 KB, of which the system keeps 1 KB for each block: two blocks of lut_gemv, one of lut_tile.
enum { GEMV_SHARED = 113 * 1024, TILE_SHARED = 227 * 1024, SUMS_BYTES = 16 * 1024, MAX_STAGES = 16 };
enum { FACTORS_BYTES = (GEMV_WARPS + 1) * GEMV_MAX_TOKENS * (int)sizeof(float) };

static const int bits_of[] = {2, 3, 4, 8};
static const int groups_of[] = {32, 64, 128, 256};
static const int tokens_of[] = {1, 2, 4, 8, 16, 32}; // one for each kernel

// The kernel that takes this many tokens: up to four at a time, or up to 32.
static lut_kernel pick_kernel(int bits, int group, int tokens) {
    if (tokens <= GEMV_MAX_TOKENS) {
        tokens = tokens == 3 ? 4 : tokens;
        return bits == 2   ? lut_gemv_w2(group, tokens)
               : bits == 3 ? lut_gemv_w3(group, tokens)
               : bits == 4 ? lut_gemv_w4(group, tokens)
                           : lut_gemv_w8(group, tokens);
    }
    const int tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
    return bits == 2   ? lut_tile_w2(group, tiles)
           : bits == 3 ? lut_tile_w3(group, tiles)
           : bits == 4 ? lut_tile_w4(group, tiles)
                       : lut_tile_w8(group, tiles);
}

static int fail_cuda(flute_error *err, cudaError_t code, const char *what) {
    return fail(err, FLUTE_EDEVICE, "CUDA: %s: %s", what, cudaGetErrorString(code));
}

int lut_device_open(lut_device *out, flute_error *err) {
    int major = 0, minor = 0;
    cudaError_t code = cudaGetDevice(&out->ordinal);
    if (code == cudaErrorInsufficientDriver)
        return fail(err, FLUTE_EDEVICE, "the NVIDIA driver is older than CUDA %d.%d; update the driver",
                    CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (code != cudaSuccess) return fail_cuda(err, code, "no usable device");
    code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, out->ordinal);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, out->ordinal);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&out->n_sms, cudaDevAttrMultiProcessorCount, out->ordinal);
    if (code != cudaSuccess) return fail_cuda(err, code, "cannot query the device");
    if (major < 9)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "the GPU has compute capability %d.%d; the kernels need 9.0 (Hopper) or later", major,
                    minor);
    for (int bits : bits_of)
        for (int group : groups_of)
            for (int tokens : tokens_of) {
                code = cudaFuncSetAttribute((const void *)pick_kernel(bits, group, tokens),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            tokens <= GEMV_MAX_TOKENS ? GEMV_SHARED : TILE_SHARED);
                if (code != cudaSuccess)
                    return fail_cuda(err, code,
                                     "the kernels do not fit this device; was flute built for it?");
            }
    return FLUTE_OK;
}

static int check_arguments(const lut_gemm_args *args, flute_error *err) {
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
        args->y_stride < w->n_rows / (gate_up ? 2 : 1) || (gate_up && w->n_rows % 16))
        return fail(err, FLUTE_EINVAL,
                    "lut_gemm: %lld tokens with strides %lld and %lld do not fit the weight",
                    (long long)args->n_tokens, (long long)args->x_stride, (long long)args->y_stride);
    if ((args->norm.squares || args->next.squares) && args->n_tokens > LUT_NORM_TOKENS)
        return fail(err, FLUTE_EINVAL, "lut_gemm: a norm with %lld tokens; at most %d",
                    (long long)args->n_tokens, (int)LUT_NORM_TOKENS);
    if (args->next.squares && (args->epilogue != LUT_ADD_F32 || args->next.x_stride < w->n_rows))
        return fail(err, FLUTE_EINVAL,
                    "lut_gemm: a norm behind a product that adds nothing, or with no room for its x");
    if (((uintptr_t)w->data | (uintptr_t)args->x) % 16)
        return fail(err, FLUTE_EINVAL, "lut_gemm: weights and activations must be aligned to 16 bytes");
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
    p.n_rows = (int)w->n_rows, p.n_cols = (int)w->n_cols, p.n_tokens = n_tokens;
    p.n_panels = (int)(layout_padded_rows(w->n_rows) / PANEL_ROWS);
    p.panel_units = (int)(layout_padded_cols(w->n_cols, w->group_size) / layout_unit_cols(w->group_size));
    p.epilogue = args->epilogue, p.overlap = args->overlap;
    p.norm = args->norm, p.next = args->next;
    fill_tables(w, &p);
    return p;
}

// Shared memory: table, sums, barriers, ring; as many stages as `shared` bytes hold.
static void divide_shared(lut_params *p, int sums_bytes, int stage_bytes, int shared) {
    p->sums_at = TABLE_BYTES;
    p->barriers_at = p->sums_at + sums_bytes;
    p->factors_at = p->barriers_at + MAX_STAGES * 16;
    p->ring_at = (int)round_up(p->factors_at + FACTORS_BYTES, 128);
    p->stage_bytes = stage_bytes;
    p->stages = (shared - p->ring_at) / stage_bytes;
    if (p->stages > MAX_STAGES) p->stages = MAX_STAGES;
}

// Panels of a block where two blocks of threads run on each SM.
static int gemv_panels(const lut_device *device, int n_panels) {
    return (n_panels + 2 * device->n_sms - 1) / (2 * device->n_sms);
}

int lut_gemm_parts(const lut_device *device, const weight *w) {
    const int n_panels = (int)(layout_padded_rows(w->n_rows) / PANEL_ROWS),
              each = gemv_panels(device, n_panels);
    return (n_panels + each - 1) / each;
}

// Two blocks of threads on each SM, up to four tokens.
static void plan_gemv(const lut_device *device, const weight *w, lut_params *p) {
    const int tokens = p->n_tokens <= 2 ? p->n_tokens : 4;
    const int warp_units =
        weight_type_bits(w->type) >= 4 ? (int)gemv_warp<4>::units : (int)gemv_warp<2>::units;
    const int stage_units = GEMV_WARPS * warp_units;
    const int panel_sums = GEMV_WARPS * PANEL_ROWS * tokens * (int)sizeof(float);
    p->cta_panels = gemv_panels(device, p->n_panels);
    p->group_panels = p->cta_panels < SUMS_BYTES / panel_sums ? p->cta_panels : SUMS_BYTES / panel_sums;
    divide_shared(p, p->group_panels * panel_sums,
                  stage_units * (int)layout_unit_bytes(w->type, w->group_size), GEMV_SHARED);
}

// One block on each SM, up to 32 tokens. Panels that a block owns beyond two for each warp make further
// passes over K, as even as can be; where it owns fewer, warps split K. False: fewer than two stages fit.
static bool plan_tile_passes(const weight *w, int most_panels, int most_slices, lut_params *p) {
    const int tokens = p->n_tokens <= 8 ? 8 : p->n_tokens <= 16 ? 16 : 32;
    const int unit_bytes = (int)layout_unit_bytes(w->type, w->group_size),
              unit_cols = layout_unit_cols(w->group_size);
    const int passes = (p->cta_panels + most_panels - 1) / most_panels;
    p->tile_panels = (p->cta_panels + passes - 1) / passes;
    p->k_slices = TILE_WARPS / ((p->tile_panels + 1) / 2);
    if (p->k_slices > most_slices) p->k_slices = most_slices;
    const int stages_of_k = (p->panel_units + p->k_slices - 1) / p->k_slices;
    p->k_slices = (p->panel_units + stages_of_k - 1) / stages_of_k; // stages of equal size
    // 64 bytes more than a multiple of 128: eight lanes that read two tokens meet no bank twice.
    p->x_row_bytes = p->k_slices * unit_cols * 2 + 64;
    const int sums =
        p->k_slices > 1 ? p->tile_panels * p->k_slices * PANEL_ROWS * tokens * (int)sizeof(float) : 0;
    divide_shared(p, sums,
                  (int)round_up(p->tile_panels * p->k_slices * unit_bytes + tokens * p->x_row_bytes, 128),
                  TILE_SHARED);
    return p->stages >= 2;
}

static void plan_tile(const lut_device *device, const weight *w, lut_params *p) {
    p->cta_panels = (p->n_panels + device->n_sms - 1) / device->n_sms;
    // Few tokens: reading their activations twice costs less than stages of a single unit.
    const int most = p->n_tokens <= 16 ? TILE_WARPS + 1 : 2 * TILE_WARPS;
    for (int most_panels = most; most_panels >= 2; most_panels -= 2)
        for (int most_slices = TILE_WARPS; most_slices >= 1; most_slices--)
            if (plan_tile_passes(w, most_panels, most_slices, p)) return;
    assert(!"two stages of two panels and one slice always fit");
}

static int launch(const lut_device *device, const lut_gemm_args *args, int64_t first, int n_tokens,
                  cudaStream_t stream, flute_error *err) {
    const weight *w = args->w;
    const bool gemv = n_tokens <= GEMV_MAX_TOKENS;
    lut_params p = make_params(args, first, n_tokens);
    if (gemv)
        plan_gemv(device, w, &p);
    else
        plan_tile(device, w, &p);
    const cudaError_t code =
        cuda_launch(pick_kernel(weight_type_bits(w->type), w->group_size, n_tokens),
                    dim3((unsigned)((p.n_panels + p.cta_panels - 1) / p.cta_panels)),
                    ((gemv ? GEMV_WARPS : TILE_WARPS) + 1) * 32,
                    (size_t)(p.ring_at + p.stages * p.stage_bytes), stream, args->overlap, p);
    return code == cudaSuccess ? FLUTE_OK : fail_cuda(err, code, "launching the LUT-GEMM");
}

// More than 32 tokens go in pieces, and read the weights once for each.
int lut_gemm(const lut_device *device, const lut_gemm_args *args, struct CUstream_st *stream,
             flute_error *err) {
    int code = check_arguments(args, err);
    for (int64_t first = 0; code == FLUTE_OK && first < args->n_tokens; first += TILE_MAX_TOKENS) {
        const int64_t left = args->n_tokens - first;
        code = launch(device, args, first, left < TILE_MAX_TOKENS ? (int)left : TILE_MAX_TOKENS, stream, err);
    }
    return code;
}
