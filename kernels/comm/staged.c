// Ranks on GPUs that communicate as ranks of host memory do: what they sum up travels through pinned memory,
// and whoever calls a collective waits for its end. That is slow, and works where NCCL does not: with several
// ranks on one GPU, and in a build without it.
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "engine/base/fail.h"
#include "kernels/comm.h"

enum { STAGE_BYTES = 1 << 20 };

typedef struct staged_comm {
    comm base;
    comm *host;
    uint8_t *stage; // (STAGE_BYTES) pinned
} staged_comm;

static int check(cudaError_t code, const char *what, flute_error *err) {
    if (code == cudaSuccess) return FLUTE_OK;
    return fail(err, code == cudaErrorMemoryAllocation ? FLUTE_ENOMEM : FLUTE_EDEVICE, "CUDA: %s: %s", what,
                cudaGetErrorString(code));
}

// n rows of `bytes`, in the order of the stream; they have arrived when it returns.
static int move(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes, size_t n,
                enum cudaMemcpyKind kind, void *stream, flute_error *err) {
    cudaError_t code =
        cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, n, kind, (cudaStream_t)stream);
    if (code == cudaSuccess) code = cudaStreamSynchronize((cudaStream_t)stream);
    return check(code, "data of a collective", err);
}

static int staged_all_reduce(comm *base, float *data, size_t n, void *stream, flute_error *err) {
    enum { STAGE_FLOATS = STAGE_BYTES / sizeof(float) };
    staged_comm *c = (staged_comm *)base;
    float *stage = (float *)(void *)c->stage;
    int code = FLUTE_OK;
    for (size_t done = 0; done < n && !code; done += STAGE_FLOATS) {
        const size_t count = n - done < STAGE_FLOATS ? n - done : STAGE_FLOATS, bytes = count * sizeof *data;
        code = move(stage, bytes, data + done, bytes, bytes, 1, cudaMemcpyDeviceToHost, stream, err);
        if (!code) code = c->host->ops->all_reduce(c->host, stage, count, NULL, err);
        if (!code)
            code = move(data + done, bytes, stage, bytes, bytes, 1, cudaMemcpyHostToDevice, stream, err);
    }
    return code;
}

static int staged_all_gather(comm *base, const void *own, void *all, size_t bytes, void *stream,
                             flute_error *err) {
    staged_comm *c = (staged_comm *)base;
    const size_t size = (size_t)base->size, piece = STAGE_BYTES / (size + 1);
    uint8_t *stage_all = c->stage + piece;
    int code = FLUTE_OK;
    for (size_t done = 0; done < bytes && !code; done += piece) {
        const size_t count = bytes - done < piece ? bytes - done : piece;
        code = move(c->stage, count, (const uint8_t *)own + done, count, count, 1, cudaMemcpyDeviceToHost,
                    stream, err);
        if (!code) code = c->host->ops->all_gather(c->host, c->stage, stage_all, count, NULL, err);
        if (!code)
            code = move((uint8_t *)all + done, bytes, stage_all, count, count, size, cudaMemcpyHostToDevice,
                        stream, err);
    }
    return code;
}

static int staged_broadcast(comm *base, void *data, size_t bytes, int root, flute_error *err) {
    comm *host = ((staged_comm *)base)->host;
    return host->ops->broadcast(host, data, bytes, root, err);
}

static int staged_barrier(comm *base, void *stream, flute_error *err) {
    comm *host = ((staged_comm *)base)->host;
    int code = check(cudaStreamSynchronize((cudaStream_t)stream), "a barrier", err);
    return code ? code : host->ops->barrier(host, NULL, err);
}

static int staged_alloc(comm *base, void **out, size_t bytes, flute_error *err) {
    void *memory = NULL;
    (void)base;
    cudaError_t code = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (code == cudaSuccess) code = cudaMemset(memory, 0, bytes);
    if (code != cudaSuccess) {
        cudaFree(memory);
        return check(code, "a buffer of collectives", err);
    }
    *out = memory;
    return FLUTE_OK;
}

static void staged_release(comm *base, void *memory) {
    (void)base;
    cudaFree(memory);
}

static int staged_error(comm *base, flute_error *err) {
    comm *host = ((staged_comm *)base)->host;
    return host->ops->error(host, err);
}

static void staged_abort(comm *base) {
    comm *host = ((staged_comm *)base)->host;
    host->ops->abort(host);
}

static void staged_free(comm *base) {
    staged_comm *c = (staged_comm *)base;
    cudaFreeHost(c->stage);
    comm_free(c->host);
    free(c);
}

static const comm_ops staged_ops = {
    .all_reduce = staged_all_reduce,
    .all_gather = staged_all_gather,
    .broadcast = staged_broadcast,
    .barrier = staged_barrier,
    .alloc = staged_alloc,
    .release = staged_release,
    .error = staged_error,
    .abort = staged_abort,
    .free = staged_free,
};

int comm_stage(comm **out, comm *host, flute_error *err) {
    staged_comm *c = calloc(1, sizeof *c);
    if (!c) return fail_memory(err, sizeof *c, "a rank");
    c->base = (comm){.ops = &staged_ops, .rank = host->rank, .size = host->size};
    snprintf(c->base.name, sizeof c->base.name, "%.20s through the host", host->name);
    int code = check(cudaHostAlloc((void **)&c->stage, STAGE_BYTES, cudaHostAllocDefault),
                     "pinned memory for collectives", err);
    if (code) {
        free(c);
        return code;
    }
    c->host = host;
    *out = &c->base;
    return FLUTE_OK;
}
