// The emulated runtime: that streams and copies run late, kernels overlap where they may, graphs repeat what
// was recorded, calls refuse what CUDA refuses, and cuBLAS multiplies.
#include "tests/simt/test_simt.h"

#include <cublas_v2.h>

static __global__ void add_kernel(int *p, int v) {
    *p = *p * 2 + v;
}

static void test_streams_run_late(void **) {
    int *pinned, *number;
    cudaStream_t one, two;
    cudaEvent_t ready;
    assert_int_equal(cudaMallocHost(&pinned, sizeof *pinned), cudaSuccess);
    assert_int_equal(cudaMalloc(&number, sizeof *number), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaEventCreate(&ready), cudaSuccess);
    *pinned = 0;
    assert_int_equal(cudaMemsetAsync(number, 0, sizeof *number, one), cudaSuccess);
    assert_int_equal(cuda_launch(add_kernel, dim3(1), 1, 0, one, false, number, 3), cudaSuccess);
    assert_int_equal(cudaEventRecord(ready, one), cudaSuccess);
    assert_int_equal(cudaStreamWaitEvent(two, ready), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(pinned, number, sizeof *number, cudaMemcpyDeviceToHost, two),
                     cudaSuccess);
    assert_int_equal(*pinned, 0);
    assert_int_equal(cudaEventQuery(ready), cudaErrorNotReady);
    assert_int_equal(cudaStreamSynchronize(two), cudaSuccess);
    assert_int_equal(*pinned, 3);
    assert_int_equal(cudaEventQuery(ready), cudaSuccess);
    assert_int_equal(cudaStreamQuery(one), cudaSuccess);
    cudaEventDestroy(ready);
    cudaStreamDestroy(one);
    cudaStreamDestroy(two);
    cudaFree(number);
    cudaFreeHost(pinned);
}

// One of a row of kernels that overlap: adds `step` to what the one before has left of every number, in
// another block. What it keeps in static shared memory before it waits has to be there afterwards.
static __global__ void chain_kernel(const int *from, int *to, int step, bool wait) {
    __shared__ int kept[32];
    dependents_launch();
    kept[threadIdx.x] = step;
    if (wait) dependency_wait();
    __syncthreads();
    const unsigned n = gridDim.x * 32, i = blockIdx.x * 32 + threadIdx.x;
    to[i] = from[(i + 32) % n] + kept[31 - threadIdx.x];
}

static bool chain_is_right(int n_blocks, bool wait) {
    std::vector<int> zeros((size_t)n_blocks * 32, 0);
    device_array<int> a(zeros), b(zeros);
    for (int i = 1; i <= 10; i++)
        assert_int_equal(cuda_launch(chain_kernel, dim3((unsigned)n_blocks), 32, 0, nullptr, true,
                                     i % 2 ? a.data : b.data, i % 2 ? b.data : a.data, i, wait),
                         cudaSuccess);
    bool right = true;
    for (int v : a.read()) right = right && v == 55;
    return right;
}

static void test_overlapped_launches(void **) {
    for (int n_blocks : {1, 2, 5}) {
        assert_true(chain_is_right(n_blocks, true));
        assert_false(chain_is_right(n_blocks, false));
    }
}

// A launch overlaps only where the code that is loaded can wait, and no device runs code for a later one.
static void test_code_for_older_devices(void **) {
    cudaFuncAttributes attributes;
    int version = 0;
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    simt_set_capability(8, 6);
    assert_int_equal(cuda_code_version(&version), cudaSuccess);
    assert_int_equal(version, 86);
    assert_int_equal(cudaFuncSetAttribute((const void *)chain_kernel, limit, 99 * 1024 + 1),
                     cudaErrorInvalidValue);
    assert_true(chain_is_right(2, false));
    simt_set_code(90);
    assert_int_equal(cudaFuncGetAttributes(&attributes, (const void *)chain_kernel),
                     cudaErrorNoKernelImageForDevice);
    simt_set_capability(9, 0);
    simt_set_code(80);
    assert_int_equal(cuda_code_version(&version), cudaSuccess);
    assert_int_equal(version, 80);
    assert_int_equal(cudaFuncGetAttributes(&attributes, (const void *)chain_kernel), cudaSuccess);
    assert_int_equal(attributes.binaryVersion, 90);
    assert_true(chain_is_right(2, false));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(1), config.attrs = &attribute, config.numAttrs = 1;
    int *none = nullptr;
    assert_int_equal(cudaLaunchKernelEx(&config, chain_kernel, none, none, 1, true), cudaErrorNotSupported);
    simt_set_code(0);
    assert_int_equal(cuda_code_version(&version), cudaSuccess);
    assert_int_equal(version, 90);
    assert_false(chain_is_right(2, false));
}

static void test_pageable_memory_is_staged(void **) {
    device_array<int> number(1);
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    int source = 7, target = 0;
    assert_int_equal(cudaMemcpyAsync(number.data, &source, sizeof source, cudaMemcpyHostToDevice, stream),
                     cudaSuccess);
    source = 8;
    assert_int_equal(cudaMemcpyAsync(&target, number.data, sizeof target, cudaMemcpyDeviceToHost, stream),
                     cudaSuccess);
    assert_int_equal(target, 7);
    // The default stream waits for the blocking ones.
    assert_int_equal(cuda_launch(add_kernel, dim3(1), 1, 0, stream, false, number.data, 1), cudaSuccess);
    assert_int_equal(cudaMemcpy(&target, number.data, sizeof target, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(target, 15);
    cudaStreamDestroy(stream);
}

static void test_graphs(void **) {
    device_array<int> number(std::vector<int>{1});
    void *more;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cuda_launch(add_kernel, dim3(1), 1, 0, stream, false, number.data, 1), cudaSuccess);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_int_equal(number.read()[0], 1); // recorded, not run
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(number.read()[0], 7);
    assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess);

    // What waits spoils a capture.
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cudaMalloc(&more, 16), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    cudaStreamDestroy(stream);
}

static void test_refusals(void **) {
    device_array<int> number(1);
    void *p;
    size_t free, total;
    int host;
    assert_int_equal(launch(add_kernel, 1, 1025, 0, number.data, 0), cudaErrorInvalidConfiguration);
    assert_int_equal(launch(add_kernel, 0, 1, 0, number.data, 0), cudaErrorInvalidConfiguration);
    assert_int_equal(launch(add_kernel, 1, 1, 48 * 1024 + 1, number.data, 0), cudaErrorInvalidValue);
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    assert_int_equal(cudaFuncSetAttribute(add_kernel, limit, 227 * 1024 + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(add_kernel, limit, 227 * 1024), cudaSuccess);
    assert_int_equal(launch(add_kernel, 1, 1, 227 * 1024, number.data, 0), cudaSuccess);
    assert_int_equal(cudaMemcpy(&host, number.data, 8, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(&host, number.data, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemGetInfo(&free, &total), cudaSuccess);
    assert_int_equal(cudaMalloc(&p, free + 1), cudaErrorMemoryAllocation);
    assert_null(p);

    const size_t before = simt_allocated();
    simt_fail_allocation(2);
    device_array<int> first(5);
    assert_int_equal(simt_allocated(), before + 20);
    assert_int_equal(cudaMalloc(&p, 4), cudaErrorMemoryAllocation);
    device_array<int> third(1);
    simt_fail_launch(1);
    assert_int_equal(launch(add_kernel, 1, 1, 0, number.data, 0), cudaErrorLaunchOutOfResources);
    assert_int_equal(launch(add_kernel, 1, 1, 0, number.data, 0), cudaSuccess);
    cudaGetLastError();
}

static void test_cublas(void **) {
    const size_t m = 3, n = 2, k = 4;
    std::vector<__nv_bfloat16> a(m * k), b(n * k); // both with k contiguous
    for (size_t i = 0; i < a.size(); i++) a[i] = (float)i - 5;
    for (size_t i = 0; i < b.size(); i++) b[i] = (float)i * 0.5f;
    device_array<__nv_bfloat16> on_a(a), on_b(b);
    device_array<float> c(std::vector<float>(m * n, 1));
    const float alpha = 2, beta = 3;
    cublasHandle_t handle;
    assert_int_equal(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
    auto gemm = [&](cublasOperation_t ta, int lda) {
        return cublasGemmEx(handle, ta, CUBLAS_OP_N, (int)m, (int)n, (int)k, &alpha, on_a.data, CUDA_R_16BF,
                            lda, on_b.data, CUDA_R_16BF, (int)k, &beta, c.data, CUDA_R_32F, (int)m,
                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    };
    assert_int_equal(gemm(CUBLAS_OP_T, (int)k), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(gemm(CUBLAS_OP_T, (int)k - 1), CUBLAS_STATUS_INVALID_VALUE);
    const std::vector<float> v = c.read();
    for (size_t row = 0; row < m; row++)
        for (size_t column = 0; column < n; column++) {
            float sum = 0;
            for (size_t i = 0; i < k; i++) sum += (float)a[row * k + i] * (float)b[column * k + i];
            assert_true(v[column * m + row] == 2 * sum + 3);
        }
    cublasDestroy(handle);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_run_late),
        cmocka_unit_test(test_overlapped_launches),
        cmocka_unit_test(test_code_for_older_devices),
        cmocka_unit_test(test_pageable_memory_is_staged),
        cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_cublas),
    };
    return cmocka_run_group_tests_name("simt runtime", tests, nullptr, nullptr);
}
