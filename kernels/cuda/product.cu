#include "kernels/cuda/product.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <stdio.h>

#include "engine/base/fail.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/memory.h"
#include "kernels/layout.h"

enum {
    TILE_TOKENS = 32,           // most that lut_gemm takes without lut_wide, in one or two pieces
    PIECE_BYTES = 128 << 20,    // dequantized weights: enough rows of W that cuBLAS fills the machine
    WORKSPACE_BYTES = 32 << 20, // what cuBLAS recommends for Hopper
    PIECE_ROWS = 128,           // a piece has a multiple of so many rows
};

int product_device_open(product_device *out, flute_error *err) {
    *out = product_device{};
    int code = lut_device_open(&out->lut, err);
    if (code) {
        product_device_close(out);
        return code;
    }
    const cudaError_t cuda = cudaStreamCreateWithFlags(&out->stream, cudaStreamNonBlocking);
    if (cuda != cudaSuccess) code = cuda_fail(err, cuda, "a queue for products");
    if (!code) code = cuda_allocate(&out->workspace, WORKSPACE_BYTES, "the workspace of cuBLAS", err);
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (!code) status = cublasCreate(&out->cublas);
    if (!code && status == CUBLAS_STATUS_SUCCESS) status = cublasSetStream(out->cublas, out->stream);
    if (!code && status == CUBLAS_STATUS_SUCCESS)
        status = cublasSetWorkspace(out->cublas, out->workspace, WORKSPACE_BYTES);
    if (status != CUBLAS_STATUS_SUCCESS)
        code = fail(err, FLUTE_EDEVICE, "cuBLAS: %s", cublasGetStatusString(status));
    if (code) product_device_close(out);
    return code;
}

void product_device_close(product_device *device) {
    if (device->cublas) cublasDestroy(device->cublas);
    cudaFree(device->workspace);
    if (device->stream) cudaStreamDestroy(device->stream);
    lut_device_close(&device->lut);
    *device = product_device{};
}

void product_cublas_version(const product_device *device, char *out, size_t size) {
    int version = 0;
    cublasGetVersion(device->cublas, &version);
    snprintf(out, size, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

bool product_fuses_norm(const product_device *device, const weight *w, int n_tokens) {
    return weight_is_quantized(w->type) && n_tokens <= LUT_NORM_TOKENS &&
           lut_gemm_path(&device->lut, n_tokens) == LUT_PATH_GEMV;
}

// Rows of a weight with n_cols columns that are dequantized at a time.
static int64_t piece_rows(int64_t n_cols) {
    const int64_t rows = PIECE_BYTES / 2 / n_cols / PIECE_ROWS * PIECE_ROWS;
    return rows > PIECE_ROWS ? rows : (int64_t)PIECE_ROWS;
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// On an H200, lut_wide is as fast as dequantization and cuBLAS at 2048 tokens (a prompt of Llama-3-8B: 59.1
// and 60.1 ms) and faster at fewer.
bool product_is_fused(const product_device *device, const weight *w, int64_t n_tokens) {
    return weight_is_quantized(w->type) && (device->lut.has_wide || n_tokens <= TILE_TOKENS);
}

lut_order product_order(const product_device *device, const weight *w, int64_t n_tokens) {
    return product_is_fused(device, w, n_tokens) ? lut_gemm_order(&device->lut, w, n_tokens) : lut_order{};
}

size_t product_weights_bytes(const product_device *device, const kernel_dims *dims) {
    const int64_t widest = most(most(dims->hidden, dims->n_ff), (int64_t)dims->n_heads * dims->head_dim);
    if (device->lut.has_wide || (dims->max_rows <= TILE_TOKENS && dims->max_logits <= TILE_TOKENS)) return 0;
    return (size_t)most(PIECE_BYTES, widest * PIECE_ROWS * 2);
}

size_t product_gate_up_bytes(const kernel_dims *dims) {
    const int64_t rows = 2 * round_up(dims->n_ff, 8), piece = piece_rows(dims->hidden);
    return (size_t)(rows < piece ? rows : piece) * (size_t)dims->max_rows * sizeof(float);
}

// Rows [first, first + n) of W, as bf16 at `weights`.
static int multiply_piece(const product_device *device, const product_scratch *scratch,
                          const lut_gemm_args *args, const void *weights, int64_t first, int64_t n,
                          flute_error *err) {
    const bool gate_up = args->epilogue == LUT_SILU_MUL || args->epilogue == LUT_GELU_MUL;
    const bool is_bf16 = args->epilogue == LUT_STORE_BF16;
    const float one = 1.0f, beta = args->epilogue == LUT_ADD_F32 ? 1.0f : 0.0f;
    void *to = gate_up ? (void *)scratch->gate_up : (uint8_t *)args->y + first * (is_bf16 ? 2 : 4);
    const int64_t stride = gate_up ? n : args->y_stride;
    // Column-major: yᵀ (n × tokens) = W (n × K, stored transposed) · xᵀ (K × tokens).
    const cublasStatus_t status = cublasGemmEx(
        device->cublas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, (int)args->n_tokens, (int)args->w->n_cols, &one,
        weights, CUDA_R_16BF, (int)args->w->n_cols, args->x, CUDA_R_16BF, (int)args->x_stride, &beta, to,
        is_bf16 ? CUDA_R_16BF : CUDA_R_32F, (int)stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS)
        return fail(err, FLUTE_EDEVICE, "cuBLAS: a product of %lld × %lld and %lld tokens: %s", (long long)n,
                    (long long)args->w->n_cols, (long long)args->n_tokens, cublasGetStatusString(status));
    if (!gate_up) return FLUTE_OK;
    const cudaError_t code = cuda_activate(args->epilogue == LUT_SILU_MUL ? ACT_SILU : ACT_GELU_TANH,
                                           scratch->gate_up, n, (int)args->n_tokens, (int)(n / 2),
                                           (bf16 *)args->y + first / 2, args->y_stride, device->stream);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "activations");
}

int product(const product_device *device, const product_scratch *scratch, const lut_gemm_args *args,
            flute_error *err) {
    const weight *w = args->w;
    const bool quantized = weight_is_quantized(w->type);
    if (product_is_fused(device, w, args->n_tokens)) return lut_gemm(&device->lut, args, device->stream, err);
    const int64_t piece = piece_rows(w->n_cols);
    int code = FLUTE_OK;
    for (int64_t first = 0; code == FLUTE_OK && first < w->n_rows; first += piece) {
        const int64_t n = w->n_rows - first < piece ? w->n_rows - first : piece;
        const void *weights = quantized ? scratch->weights : (const bf16 *)w->data + first * w->n_cols;
        cudaError_t cuda = cudaSuccess;
        if (quantized) cuda = cuda_dequantize(w, first, n, scratch->weights, device->stream);
        if (cuda != cudaSuccess) return cuda_fail(err, cuda, "dequantizing weights");
        code = multiply_piece(device, scratch, args, weights, first, n, err);
    }
    return code;
}
