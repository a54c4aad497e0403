// One way to launch a kernel: on a stream, with dynamic shared memory, as a programmatic dependent of the
// kernel ahead where asked (its memory may be read only after dependency_wait()) and where the code that is
// loaded knows how to wait.
#ifndef FLUTE_CUDA_LAUNCH_CUH
#define FLUTE_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

enum { CODE_HOPPER = 90 }; // the first version with bulk copies and programmatic dependent launch

// The virtual architecture that the code which runs on the current device was compiled for: 80, 86, 90, … A
// Hopper may run code for 8.0, from its PTX: it is the code that decides which kernels there are.
cudaError_t cuda_code_version(int *version);
// The same from memory, or 0 where CUDA refuses to tell: every launch asks.
int cuda_known_code_version(void);

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
    config.attrs = &attribute, config.numAttrs = overlap && cuda_known_code_version() >= CODE_HOPPER;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

#endif
