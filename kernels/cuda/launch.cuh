// One way to launch a kernel: on a stream, with dynamic shared memory, as a programmatic dependent of the
// kernel ahead where asked (its memory may be read only after dependency_wait()) and where the code that is
// loaded knows how to wait, in clusters of neighbouring blocks where asked.
#ifndef FLUTE_CUDA_LAUNCH_CUH
#define FLUTE_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

enum { CODE_HOPPER = 90 }; // the first version with bulk copies and programmatic dependent launch

// The virtual architecture that the code which runs on the current device was compiled for: 80, 86, 90, … A
// Hopper may run code for 8.0, from its PTX: it is the code that decides which kernels there are.
cudaError_t cuda_code_version(int *version);
// The same from memory, or 0 where CUDA refuses to tell: every launch asks.
int cuda_known_code_version(void);

// Clusters of so many neighbouring blocks.
static inline cudaLaunchAttribute cuda_cluster(int blocks) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)blocks;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    return attribute;
}

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
    if (overlap && cuda_known_code_version() >= CODE_HOPPER) {
        cudaLaunchAttribute &a = attributes[config.numAttrs++];
        a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        a.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) attributes[config.numAttrs++] = cuda_cluster(cluster);
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

// How many clusters run at the same time, of as many blocks as SMs at most.
template <typename... Params>
static inline cudaError_t cuda_most_clusters(void (*kernel)(Params...), int n_sms, int cluster, int threads,
                                             size_t shared, int *n_clusters) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = cuda_cluster(cluster);
    config.gridDim = dim3((unsigned)(n_sms / cluster * cluster));
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(n_clusters, kernel, &config);
}

template <typename... Params, typename... Args>
static inline cudaError_t cuda_launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared,
                                      cudaStream_t stream, bool overlap, Args... args) {
    return cuda_launch_clusters(kernel, grid, 1, threads, shared, stream, overlap, args...);
}

#endif
