// Inside the CUDA backend: the device (backend.cu) and the forward step (state.cu).
#ifndef FLUTE_CUDA_BACKEND_H
#define FLUTE_CUDA_BACKEND_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/product.h"
#include "kernels/kernels.h"

typedef struct cuda_backend {
    backend base;
    thread_pool *pool; // borrowed
    product_device device;
    uint8_t *staging[2]; // pinned: weights on their way to the device
    cudaEvent_t staged[2];
    char description[192];
} cuda_backend;

// Elements from block to block of the KV cache, and the tokens that it keeps room for in one.
int64_t cuda_block_stride(const kernel_dims *dims, int block_tokens);
int cuda_tile_tokens(int block_tokens);

int cuda_state_create(backend *be, const kernel_dims *dims, backend_state **out, flute_error *err);
void cuda_state_free(backend_state *state);
void cuda_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool);
void cuda_verb_embed(backend_state *state, const weight *embedding, float scale);
void cuda_verb_qkv(backend_state *state, const qkv_args *args);
void cuda_verb_attend(backend_state *state, const attend_args *args);
void cuda_verb_project_add(backend_state *state, const project_args *args);
void cuda_verb_gate_up(backend_state *state, const gate_up_args *args);
void cuda_verb_head(backend_state *state, const head_args *args);
void cuda_verb_sample(backend_state *state, const sample_args *args);
int cuda_finish(backend_state *state, flute_error *err);
const int32_t *cuda_tokens(backend_state *state);
const float *cuda_logits(backend_state *state, int i);

#endif
