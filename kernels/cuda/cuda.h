// The CUDA backend: every verb of kernels.h on an NVIDIA GPU of compute capability 9.0 or later.
#ifndef FLUTE_CUDA_H
#define FLUTE_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// On the current CUDA device. The pool is borrowed: its threads copy weights to pinned memory. FLUTE_EDEVICE:
// no device, or its driver is too old; FLUTE_EUNSUPPORTED: too old a GPU.
int backend_create_cuda(thread_pool *pool, backend **out, flute_error *err);

// Bytes that can be allocated on the current device, less what the driver needs to work with.
uint64_t cuda_available_memory(void);

// "CUDA 13.0 (driver 13.0), cuBLAS 13.0.2"; out: (size).
void cuda_library_versions(backend *be, char *out, size_t size);

#ifdef __cplusplus
}
#endif
#endif
