// y = x · Wᵀ for any weight and number of tokens: the fused LUT-GEMM, and cuBLAS for dense weights and,
// behind a dequantization in pieces, for many tokens on GPUs that lack lut_wide.
#ifndef FLUTE_CUDA_PRODUCT_H
#define FLUTE_CUDA_PRODUCT_H

#include "kernels/cuda/lut_gemm.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cublasContext; // cublasHandle_t

// What products need besides their arguments; the queue of one stream.
typedef struct product_device {
    lut_device lut;
    struct CUstream_st *stream;
    struct cublasContext *cublas;
    void *workspace; // of cuBLAS: it must not allocate while a graph is captured
} product_device;

// On the current device. FLUTE_EDEVICE, FLUTE_ENOMEM, FLUTE_EUNSUPPORTED.
int product_device_open(product_device *out, flute_error *err);
void product_device_close(product_device *device); // accepts a zeroed one

// Device memory for the pieces: dequantized weights, and gate and up sums before their activation.
typedef struct product_scratch {
    bf16 *weights;
    float *gate_up;
} product_scratch;

// Sizes for products of at most max_rows tokens.
size_t product_weights_bytes(const product_device *device, const kernel_dims *dims);
size_t product_gate_up_bytes(const kernel_dims *dims);

// The order in which the product of so many tokens takes activations as they are.
lut_order product_order(const product_device *device, const weight *w, int64_t n_tokens);
// Whether it is lut_gemm's, which can leave gated activations in any order.
bool product_is_fused(const product_device *device, const weight *w, int64_t n_tokens);

// Whether the product of so many tokens can leave or take a norm (lut_norm).
bool product_fuses_norm(const product_device *device, const weight *w, int n_tokens);

// Queues the product. args->w may be dense: bf16 then. Errors as lut_gemm.
int product(const product_device *device, const product_scratch *scratch, const lut_gemm_args *args,
            flute_error *err);

// "13.0.2": the version of cuBLAS; out: (size).
void product_cublas_version(const product_device *device, char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
