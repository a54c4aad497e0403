#include "kernels/cuda/memory.h"

#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/kernels.h"

enum { KEPT_BYTES = 256 << 20 }; // of free memory: for the driver, kernels and graphs

int cuda_fail(flute_error *err, cudaError_t code, const char *what) {
    return fail(err, code == cudaErrorMemoryAllocation ? FLUTE_ENOMEM : FLUTE_EDEVICE, "CUDA: %s: %s", what,
                cudaGetErrorString(code));
}

int cuda_allocate(void **out, size_t bytes, const char *what, flute_error *err) {
    const cudaError_t code = cudaMalloc(out, bytes > 0 ? bytes : 1);
    if (code == cudaSuccess) return FLUTE_OK;
    size_t free_bytes = 0, total = 0;
    *out = NULL;
    cudaGetLastError(); // it is reported here
    if (code != cudaErrorMemoryAllocation || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        return cuda_fail(err, code, what);
    return fail(err, FLUTE_ENOMEM, "out of GPU memory: %.1f MiB for %s, %.1f MiB of %.1f are free",
                (double)bytes / 0x1p20, what, (double)free_bytes / 0x1p20, (double)total / 0x1p20);
}

uint64_t cuda_available_memory(void) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return 0;
    return free_bytes > KEPT_BYTES ? free_bytes - KEPT_BYTES : 0;
}
