// Device memory, and how CUDA's failures become ours.
#ifndef FLUTE_CUDA_MEMORY_H
#define FLUTE_CUDA_MEMORY_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

// FLUTE_ENOMEM where memory was short, FLUTE_EDEVICE otherwise: "CUDA: WHAT: why".
int cuda_fail(flute_error *err, cudaError_t code, const char *what);
// Device memory; the failure says how much was wanted and how much is free.
int cuda_allocate(void **out, size_t bytes, const char *what, flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
