// y = x · Wᵀ on an NVIDIA GPU, for a quantized weight W in the packed order of kernels/layout.h.
#ifndef FLUTE_CUDA_LUT_GEMM_H
#define FLUTE_CUDA_LUT_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; // cudaStream_t

// What the launcher needs to know of a device.
typedef struct lut_device {
    int ordinal;
    int n_sms;
    int most_cluster; // blocks of threads that a cluster may have; 1: the device has none
    int n_pairs;      // clusters of two blocks with an SM each that run at the same time
    int shared;       // bytes of shared memory that a block of threads may have
    int code_version; // what the kernels that are loaded were compiled for: 80, 86, 89, or 90 and later
    bool has_wide;    // the kernels for many tokens run here: compute capability 9.0, Hopper
    void *workspace;  // of those kernels, in device memory, so that one product at a time may run; or NULL
} lut_device;

// Describes the current device and readies the kernels for it; once a device. FLUTE_EDEVICE: none, or
// the driver is too old; FLUTE_ENOMEM; FLUTE_EUNSUPPORTED: a GPU before compute capability 8.0, or one that
// this build has no code for.
int lut_device_open(lut_device *out, flute_error *err);
// Once the device is idle; also after lut_device_open failed, or on zeros.
void lut_device_close(lut_device *device);

// What happens to a sum before it is stored. n is the row of W, m the token.
typedef enum lut_epilogue {
    LUT_STORE_F32,  // y[m][n] = sum, float
    LUT_STORE_BF16, // y[m][n] = sum, bf16
    LUT_ADD_F32,    // y[m][n] += sum, float: the residual stream
    LUT_SILU_MUL,   // W in ROWS_GATE_UP order: y[m][c] = silu(gate sum) · up sum, bf16, N / 2 channels
    LUT_GELU_MUL,   // the same with GELU in its tanh form
} lut_epilogue;

// The kernels, to compare them; each takes any number of tokens.
typedef enum lut_path {
    LUT_PATH_AUTO,   // what was measured to be fastest
    LUT_PATH_GEMV,   // four tokens at a time; code for 9.0 or later
    LUT_PATH_TILE,   // 32; likewise
    LUT_PATH_WIDE,   // where lut_device.has_wide
    LUT_PATH_AMPERE, // 32, or 16 where shared memory is small; any code
} lut_path;

// Whether a path runs on the device.
bool lut_gemm_has_path(const lut_device *device, lut_path path);

// An RMS norm between two products, without a kernel of its own: the first one adds to the residual stream y,
// leaves y times the norm's weight as bf16 and, block by block, the sum of the squares of y; the second one
// multiplies that and, at its end, its sums by 1 / sqrt(mean(y²) + eps). For at most LUT_NORM_TOKENS tokens,
// on LUT_PATH_GEMV.
enum { LUT_NORM_TOKENS = 4, LUT_MAX_PARTS = 512 };

typedef struct lut_norm { // of the second product: x is what the first has left
    const float *squares; // (LUT_NORM_TOKENS, LUT_MAX_PARTS), the first n_parts of each row; NULL: no norm
    int n_parts;          // lut_gemm_parts of the first
    float eps;
} lut_norm;

typedef struct lut_next { // of the first, whose epilogue is LUT_ADD_F32
    float *squares;       // NULL: no norm
    const float *weight;  // (N) f32
    float offset;         // added to the weight
    bf16 *x;              // (n_tokens, x_stride) receives y · (offset + weight)
    int64_t x_stride;
} lut_next;

// How bf16 activations lie in memory. Zeros: in rows. Else arranged for the kernel for many tokens
// (order.cuh), in whole tiles of tokens, which lut_order_bytes makes room for; what is behind the last token
// does not matter.
typedef struct lut_order {
    int tile_tokens; // a power of two
    int n_blocks;    // of 128 columns, whole ones
} lut_order;

typedef struct lut_gemm_args {
    const weight *w;  // quantized; data in device memory, 16-byte aligned, layout_matrix_bytes
    const void *x;    // (n_tokens, w->n_cols) bf16, device memory, 16-byte aligned
    int64_t x_stride; // elements from row to row, a multiple of 8
    int64_t n_tokens; // at least 1
    void *y;          // (n_tokens, N or N / 2), device memory; must not overlap x
    int64_t y_stride; // elements from row to row
    lut_epilogue epilogue;
    lut_order x_order; // rows, or what lut_gemm_order says
    lut_order y_order; // of gated activations: what the next product wants
    lut_norm norm;     // zeroed: none
    lut_next next;
    // Start while the kernel before in the stream still runs, and read weights ahead of its end (programmatic
    // dependent launch). W must then not be written by that kernel; x and y may.
    bool overlap;
    // The kernel behind must not start before this one has ended, because it does not wait for it: NCCL's
    // kernels for symmetric memory read what other ranks' kernels may still be writing.
    bool held;
    lut_path path;
    // To compare variants of a path; 0: the one that takes least time. LUT_PATH_GEMV: 1 or, where they fit, 2
    // blocks of threads have the same rows, and a part of the columns each; not together with `next`.
    // LUT_PATH_WIDE: 64 rows of a tile for each of 2, 3 or 4 warpgroups, where there is such a tile for so
    // many tokens.
    int variant;
} lut_gemm_args;

// Tokens beyond which LUT_PATH_WIDE rounds each scale, and each weight (table value times scale), to bf16
// before it multiplies exactly, as kernels with 16-bit arithmetic do; up to there, and on the other paths,
// weights are exact.
enum { LUT_EXACT_TOKENS = 64 };

// Which path LUT_PATH_AUTO is for this many tokens.
lut_path lut_gemm_path(const lut_device *device, int64_t n_tokens);

// The order in which LUT_PATH_AUTO takes activations as they are; in another it arranges them first.
lut_order lut_gemm_order(const lut_device *device, const weight *w, int64_t n_tokens);

// Bytes of the activations of n_tokens tokens in any order.
size_t lut_order_bytes(int64_t n_tokens, int64_t n_cols);

// How many parts of squares a product of at most LUT_NORM_TOKENS tokens leaves.
int lut_gemm_parts(const lut_device *device, const weight *w);

// Queues the product on the stream; may be captured into a graph. Two products of one device must not run at
// the same time, on two streams (see lut_device.workspace). Deterministic: the same call gives the same bits.
// FLUTE_EINVAL: an argument that the comments above forbid; FLUTE_EDEVICE: the launch failed.
int lut_gemm(const lut_device *device, const lut_gemm_args *args, struct CUstream_st *stream,
             flute_error *err);

// Read bandwidth of the device in GB/s, measured over 2 GiB or what is free, at least 256 MiB; what every
// figure is compared with. A negative error code when memory is short.
double lut_read_bandwidth(flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
