// What the kernels that are loaded were compiled for.
#include "kernels/cuda/launch.cuh"

#include <atomic>

enum { MAX_DEVICES = 64 }; // whose version is kept

// Never launched. Compiled for what all kernels that run everywhere are compiled for.
static __global__ void probe() {}

static std::atomic<int> known_versions[MAX_DEVICES];

cudaError_t cuda_code_version(int *version) {
    cudaFuncAttributes attributes = {};
    int ordinal = 0;
    cudaError_t code = cudaGetDevice(&ordinal);
    if (code == cudaSuccess) code = cudaFuncGetAttributes(&attributes, (const void *)probe);
    *version = attributes.ptxVersion;
    if (code == cudaSuccess && ordinal < MAX_DEVICES) known_versions[ordinal] = *version;
    return code;
}

int cuda_known_code_version(void) {
    int ordinal = 0, version = 0;
    if (cudaGetDevice(&ordinal) != cudaSuccess) return 0;
    if (ordinal < MAX_DEVICES) version = known_versions[ordinal].load(std::memory_order_relaxed);
    if (version == 0 && cuda_code_version(&version) != cudaSuccess) return 0;
    return version;
}
