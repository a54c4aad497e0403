// The device: memory, weights and the KV cache. The forward step is state.cu.
#include "kernels/cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime.h>

#include "engine/base/fail.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/layout.h"

enum {
    STAGING_BYTES = 16 << 20, // two of them: one is filled while the other is on its way
    STAGING_CHUNK = 1 << 20,  // what a thread copies at a time
    BATCH_ROWS = 2048,        // of a prefill: products this tall run at the speed of the tensor cores
};

// ---- Weights

typedef struct copy_job {
    uint8_t *to;
    const uint8_t *from;
    size_t size;
} copy_job;

static void copy_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    const copy_job *job = (const copy_job *)argument;
    const size_t from = (size_t)begin * STAGING_CHUNK, to = (size_t)end * STAGING_CHUNK;
    (void)worker;
    memcpy(job->to + from, job->from + from, (to < job->size ? to : job->size) - from);
}

// Copies through pinned memory: from the page cache that takes all threads to keep up with the bus, and from
// a disk it reads ahead of the copy to the device.
static cudaError_t upload(cuda_backend *be, void *to, const void *from, size_t size) {
    cudaStream_t stream = be->device.stream;
    cudaError_t code = cudaSuccess;
    for (size_t done = 0, n, turn = 0; code == cudaSuccess && done < size; done += n, turn ^= 1) {
        n = size - done < STAGING_BYTES ? size - done : (size_t)STAGING_BYTES;
        code = cudaEventSynchronize(be->staged[turn]);
        if (code != cudaSuccess) break;
        copy_job job = {be->staging[turn], (const uint8_t *)from + done, n};
        threads_for(be->pool, (int64_t)((n + STAGING_CHUNK - 1) / STAGING_CHUNK), 1, copy_chunk, &job);
        code = cudaMemcpyAsync((uint8_t *)to + done, be->staging[turn], n, cudaMemcpyHostToDevice, stream);
        if (code == cudaSuccess) code = cudaEventRecord(be->staged[turn], stream);
    }
    return code;
}

// A vector becomes float32, whatever it was: norms read it once for every row.
static int place_vector(cuda_backend *be, const weight *host, weight *placed, flute_error *err) {
    const size_t bytes = (size_t)host->n_cols * sizeof(float);
    float *values = (float *)malloc(bytes);
    void *data = NULL;
    if (!values) return fail_memory(err, bytes, "a vector of weights");
    weight_row(host, 0, values);
    int code = cuda_allocate(&data, bytes, "a vector of weights", err);
    if (!code) {
        const cudaError_t cuda = upload(be, data, values, bytes);
        if (cuda != cudaSuccess) code = cuda_fail(err, cuda, "copying weights");
    }
    free(values);
    placed->type = WEIGHT_F32, placed->size = bytes, placed->data = data;
    return code;
}

// Dense matrices are bf16 on the device, as activations are. Those of 16 or 32 other bits are rounded.
static int place_converted(cuda_backend *be, const weight *host, weight *placed, flute_error *err) {
    const int64_t n = host->n_rows * host->n_cols;
    void *raw = NULL, *data = NULL;
    int code = cuda_allocate(&raw, host->size, "weights before their conversion", err);
    if (!code) code = cuda_allocate(&data, (size_t)n * sizeof(bf16), "weights", err);
    if (!code) {
        cudaError_t cuda = upload(be, raw, host->data, host->size);
        if (cuda == cudaSuccess) cuda = cuda_convert(host->type, raw, n, (bf16 *)data, be->device.stream);
        if (cuda == cudaSuccess) cuda = cudaStreamSynchronize(be->device.stream);
        if (cuda != cudaSuccess) code = cuda_fail(err, cuda, "converting weights");
    }
    cudaFree(raw);
    placed->type = WEIGHT_BF16, placed->size = (size_t)n * sizeof(bf16), placed->data = data;
    return code;
}

static void cuda_weight_release(backend *be, weight *placed) {
    (void)be;
    cudaFree((void *)placed->data);
    placed->data = NULL;
}

static int cuda_weight_place(backend *base, const weight *host, weight *placed, flute_error *err) {
    cuda_backend *be = (cuda_backend *)base;
    *placed = *host;
    placed->data = NULL;
    int code;
    if (host->n_rows == 1 && host->first_row == 0 && !weight_is_quantized(host->type)) {
        code = place_vector(be, host, placed, err);
    } else if (host->type == WEIGHT_F32 || host->type == WEIGHT_F16) {
        code = place_converted(be, host, placed, err);
    } else {
        void *data = NULL;
        code = cuda_allocate(&data, host->size, "weights", err);
        placed->data = data;
        if (!code) {
            const cudaError_t cuda = upload(be, data, host->data, host->size);
            if (cuda != cudaSuccess) code = cuda_fail(err, cuda, "copying weights");
        }
    }
    if (code) cuda_weight_release(base, placed);
    return code;
}

// ---- The KV cache; its layout: elementwise.h

int cuda_tile_tokens(int block_tokens) {
    return (int)round_up(block_tokens, KV_TILE);
}

int64_t cuda_block_stride(const kernel_dims *dims, int block_tokens) {
    return (int64_t)dims->n_layers * dims->n_kv_heads * 2 * dims->head_dim * cuda_tile_tokens(block_tokens);
}

static size_t cuda_kv_bytes(backend *be, const kernel_dims *dims, int64_t n_tokens) {
    (void)be;
    return (size_t)n_tokens * (size_t)(dims->n_layers * dims->n_kv_heads) * 2 * (size_t)dims->head_dim *
           sizeof(bf16);
}

static void cuda_kv_free(backend *be, kv_pool *pool) {
    (void)be;
    cudaFree(pool->data);
    *pool = kv_pool{};
}

static int cuda_kv_create(backend *base, const kernel_dims *dims, int block_tokens, int n_blocks,
                          kv_pool *pool, flute_error *err) {
    const cuda_backend *be = (const cuda_backend *)base;
    const size_t bytes = (size_t)n_blocks * (size_t)cuda_block_stride(dims, block_tokens) * sizeof(bf16);
    *pool = kv_pool{};
    int code = cuda_allocate(&pool->data, bytes, "the KV cache; ask for a smaller context with -c", err);
    if (code) return code;
    pool->block_tokens = block_tokens, pool->n_blocks = n_blocks;
    const cudaError_t cuda = cudaMemsetAsync(pool->data, 0, bytes, be->device.stream);
    if (cuda == cudaSuccess) return FLUTE_OK;
    cuda_kv_free(base, pool);
    return cuda_fail(err, cuda, "clearing the KV cache");
}

// In the order of the stream; a failure shows at the end of the next step.
static void cuda_kv_copy_block(backend *base, const kernel_dims *dims, const kv_pool *source, int from,
                               kv_pool *target, int to) {
    const cuda_backend *be = (const cuda_backend *)base;
    const int64_t stride = cuda_block_stride(dims, source->block_tokens);
    cudaMemcpyAsync((bf16 *)target->data + to * stride, (const bf16 *)source->data + from * stride,
                    (size_t)stride * sizeof(bf16), cudaMemcpyDeviceToDevice, be->device.stream);
}

// ---- The device

static const char *cuda_describe(backend *be) {
    return ((cuda_backend *)be)->description;
}

static double cuda_read_bandwidth(backend *be) {
    (void)be;
    const double gigabytes = lut_read_bandwidth(NULL);
    return gigabytes > 0 ? gigabytes * 1e9 : 0;
}

static void cuda_free(backend *base) {
    if (!base) return;
    cuda_backend *be = (cuda_backend *)base;
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(be->staging[i]);
        if (be->staged[i]) cudaEventDestroy(be->staged[i]);
    }
    product_device_close(&be->device);
    free(be);
}

static const backend_ops *cuda_ops(void) {
    static backend_ops ops; // C++17 has no designated initializers
    ops.name = "cuda";
    ops.batch_rows = BATCH_ROWS;
#ifdef FLUTE_HAVE_NCCL
    ops.comm = &comm_kind_nccl;
#endif
    ops.comm_adopt = comm_stage;
    ops.free = cuda_free;
    ops.describe = cuda_describe;
    ops.read_bandwidth = cuda_read_bandwidth;
    ops.weight_place = cuda_weight_place;
    ops.weight_release = cuda_weight_release;
    ops.kv_bytes = cuda_kv_bytes;
    ops.kv_create = cuda_kv_create;
    ops.kv_free = cuda_kv_free;
    ops.kv_copy_block = cuda_kv_copy_block;
    ops.state_create = cuda_state_create;
    ops.state_free = cuda_state_free;
    ops.begin = cuda_begin;
    ops.embed = cuda_verb_embed;
    ops.qkv = cuda_verb_qkv;
    ops.attend = cuda_verb_attend;
    ops.project_add = cuda_verb_project_add;
    ops.gate_up = cuda_verb_gate_up;
    ops.head = cuda_verb_head;
    ops.sample = cuda_verb_sample;
    ops.finish = cuda_finish;
    ops.tokens = cuda_tokens;
    ops.logits = cuda_logits;
    return &ops;
}

// The card, and the libraries that the figures of a run depend on.
static void describe(cuda_backend *be) {
    cudaDeviceProp properties;
    int driver = 0;
    char cublas[32];
    if (cudaGetDeviceProperties(&properties, be->device.lut.ordinal) != cudaSuccess) return;
    cudaDriverGetVersion(&driver);
    product_cublas_version(&be->device, cublas, sizeof cublas);
    snprintf(be->description, sizeof be->description,
             "%.64s, %d SMs, %.1f GiB, CUDA %d.%d, driver %d.%d, cuBLAS %s", properties.name,
             properties.multiProcessorCount, (double)properties.totalGlobalMem / 0x1p30,
             CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, driver / 1000, driver % 1000 / 10, cublas);
}

int cuda_device_count(void) {
    int n_devices = 0;
    return cudaGetDeviceCount(&n_devices) == cudaSuccess ? n_devices : 0;
}

int cuda_choose_device(int local_rank, flute_error *err) {
    int n_devices = 0;
    cudaError_t code = cudaGetDeviceCount(&n_devices);
    if (code == cudaSuccess && n_devices > 0) code = cudaSetDevice(local_rank % n_devices);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "choosing a device");
}

int backend_create_cuda(thread_pool *pool, backend **out, flute_error *err) {
    cuda_backend *be = (cuda_backend *)calloc(1, sizeof *be);
    if (!be) return fail_memory(err, sizeof *be, "the CUDA backend");
    be->base.ops = cuda_ops();
    be->pool = pool;
    int code = product_device_open(&be->device, err);
    cudaError_t cuda = cudaSuccess;
    if (!code) cuda = cuda_attention_open(be->device.lut.shared);
    for (int i = 0; !code && cuda == cudaSuccess && i < 2; i++) {
        cuda = cudaHostAlloc((void **)&be->staging[i], STAGING_BYTES, cudaHostAllocDefault);
        if (cuda == cudaSuccess) cuda = cudaEventCreateWithFlags(&be->staged[i], cudaEventDisableTiming);
    }
    if (cuda != cudaSuccess) code = cuda_fail(err, cuda, "opening the device");
    if (code) {
        cuda_free(&be->base);
        return code;
    }
    describe(be);
    *out = &be->base;
    return FLUTE_OK;
}
