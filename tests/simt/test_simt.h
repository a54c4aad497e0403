// What the emulator's own tests share: arrays of the device, launches.
#ifndef FLUTE_SIMT_TEST_SIMT_H
#define FLUTE_SIMT_TEST_SIMT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include <cmocka.h>
}
#include <cuda_runtime.h>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "tests/simt/control.h"

template <typename T> struct device_array {
    T *data = nullptr;
    size_t n;
    explicit device_array(size_t count) : n(count) {
        assert_int_equal(cudaMalloc(&data, n * sizeof(T)), cudaSuccess);
    }
    explicit device_array(const std::vector<T> &v) : device_array(v.size()) {
        assert_int_equal(cudaMemcpy(data, v.data(), n * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    }
    device_array(const device_array &) = delete;
    device_array &operator=(const device_array &) = delete;
    ~device_array() { cudaFree(data); }
    std::vector<T> read() const {
        std::vector<T> v(n);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        assert_int_equal(cudaMemcpy(v.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
        return v;
    }
};

template <typename... P, typename... A>
static cudaError_t launch(void (*kernel)(P...), int grid, int threads, size_t shared, A... args) {
    return cuda_launch(kernel, dim3((unsigned)grid), threads, shared, nullptr, false, args...);
}

#endif
