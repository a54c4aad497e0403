// One way to launch a kernel: on a stream, with dynamic shared memory, as a programmatic dependent of the
// kernel ahead where asked (its memory may be read only after dependency_wait()).
#ifndef FLUTE_CUDA_LAUNCH_CUH
#define FLUTE_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

template <typename... Params, typename... Args>
static inline cudaError_t cuda_launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared,
                                      cudaStream_t stream, bool overlap, Args... args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute, config.numAttrs = overlap;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

#endif
