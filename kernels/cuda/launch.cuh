// One way to launch a kernel: on a stream, with dynamic shared memory, as a programmatic dependent of the
// kernel ahead where asked (its memory may be read only after dependency_wait()), in clusters of neighbouring
// blocks where asked.
#ifndef FLUTE_CUDA_LAUNCH_CUH
#define FLUTE_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

// cluster: blocks of a cluster, which divide grid.x; 1: none.
template <typename... Params, typename... Args>
static inline cudaError_t cuda_launch_clusters(void (*kernel)(Params...), dim3 grid, int cluster, int threads,
                                               size_t shared, cudaStream_t stream, bool overlap,
                                               Args... args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2] = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    if (overlap) {
        cudaLaunchAttribute &a = attributes[config.numAttrs++];
        a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        a.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        cudaLaunchAttribute &a = attributes[config.numAttrs++];
        a.id = cudaLaunchAttributeClusterDimension;
        a.val.clusterDim.x = (unsigned)cluster, a.val.clusterDim.y = a.val.clusterDim.z = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <typename... Params, typename... Args>
static inline cudaError_t cuda_launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared,
                                      cudaStream_t stream, bool overlap, Args... args) {
    return cuda_launch_clusters(kernel, grid, 1, threads, shared, stream, overlap, args...);
}

#endif
