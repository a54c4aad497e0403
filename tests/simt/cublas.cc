// cuBLAS on the emulated device: plain loops, queued on the handle's stream.
#include "tests/simt/cublas_v2.h"

#include "engine/base/numeric.h"
#include "tests/simt/simt.h"

struct cublasContext {
    cudaStream_t stream;
};

namespace {

struct matrix {
    const bf16 *data;
    bool transposed;
    int64_t stride;
    float at(int row, int column) const {
        return bf16_to_float(data[transposed ? column + row * stride : row + column * stride]);
    }
};

struct gemm {
    int m, n, k;
    float alpha, beta;
    matrix a, b;
    void *c;
    bool c_is_float;
    int64_t c_stride;

    void run() const {
        for (int column = 0; column < n; column++)
            for (int row = 0; row < m; row++) {
                float sum = 0;
                for (int i = 0; i < k; i++) sum += a.at(row, i) * b.at(i, column);
                store(row + column * c_stride, alpha * sum);
            }
    }

    void store(int64_t at, float v) const { // C is not read where beta is zero
        if (c_is_float) {
            float *to = (float *)c + at;
            *to = beta != 0 ? v + beta * *to : v;
        } else {
            bf16 *to = (bf16 *)c + at;
            *to = bf16_from_float(beta != 0 ? v + beta * bf16_to_float(*to) : v);
        }
    }
};

// Whether `columns` columns of `rows` elements, `stride` apart, lie in device memory.
bool is_matrix(const void *p, int rows, int columns, int64_t stride, size_t element) {
    return stride >= rows && stride > 0 &&
           simt::device_memory_contains(p, (size_t)((columns - 1) * stride + rows) * element);
}

} // namespace

cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasContext{nullptr};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *workspace, size_t size) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    return size == 0 || simt::device_memory_contains(workspace, size) ? CUBLAS_STATUS_SUCCESS
                                                                      : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t) {
    return handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

cublasStatus_t cublasGetVersion(cublasHandle_t, int *version) {
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusName(cublasStatus_t status) {
    switch (status) {
#define NAME(name)                                                                                           \
    case name:                                                                                               \
        return #name;
        NAME(CUBLAS_STATUS_SUCCESS)
        NAME(CUBLAS_STATUS_NOT_INITIALIZED)
        NAME(CUBLAS_STATUS_ALLOC_FAILED)
        NAME(CUBLAS_STATUS_INVALID_VALUE)
        NAME(CUBLAS_STATUS_ARCH_MISMATCH)
        NAME(CUBLAS_STATUS_MAPPING_ERROR)
        NAME(CUBLAS_STATUS_EXECUTION_FAILED)
        NAME(CUBLAS_STATUS_INTERNAL_ERROR)
        NAME(CUBLAS_STATUS_NOT_SUPPORTED)
        NAME(CUBLAS_STATUS_LICENSE_ERROR)
#undef NAME
    }
    return "unknown cuBLAS status";
}

const char *cublasGetStatusString(cublasStatus_t status) {
    return cublasGetStatusName(status);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                            int n, int k, const void *alpha, const void *A, cudaDataType Atype, int lda,
                            const void *B, cudaDataType Btype, int ldb, const void *beta, void *C,
                            cudaDataType Ctype, int ldc, cublasComputeType_t computeType, cublasGemmAlgo_t) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (Atype != CUDA_R_16BF || Btype != CUDA_R_16BF || (Ctype != CUDA_R_32F && Ctype != CUDA_R_16BF) ||
        (computeType != CUBLAS_COMPUTE_32F && computeType != CUBLAS_COMPUTE_32F_PEDANTIC))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (m == 0 || n == 0) return CUBLAS_STATUS_SUCCESS;
    const bool ta = transa != CUBLAS_OP_N, tb = transb != CUBLAS_OP_N, c_is_float = Ctype == CUDA_R_32F;
    if (!is_matrix(A, ta ? k : m, ta ? m : k, lda, 2) || !is_matrix(B, tb ? n : k, tb ? k : n, ldb, 2) ||
        !is_matrix(C, m, n, ldc, c_is_float ? 4 : 2))
        return CUBLAS_STATUS_INVALID_VALUE;
    const gemm what = {m,
                       n,
                       k,
                       *(const float *)alpha,
                       *(const float *)beta,
                       {(const bf16 *)A, ta, lda},
                       {(const bf16 *)B, tb, ldb},
                       C,
                       c_is_float,
                       ldc};
    return simt::queue(handle->stream, [what] { what.run(); }) == cudaSuccess
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_EXECUTION_FAILED;
}
