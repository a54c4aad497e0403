// NCCL: one process per GPU. Collectives are queued on the caller's stream and may be captured into a graph.
// Errors on the way come out of error(), which someone has to ask; abort() ends kernels that wait for a rank
// that is gone.
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "engine/base/fail.h"
#include "kernels/comm.h"

// Symmetric windows came with NCCL 2.27.
#define HAVE_WINDOWS (NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0))

enum {
    MAX_BUFFERS = 16,
    PIECE_BYTES = 4 << 20, // of a broadcast
};

typedef struct nccl_buffer {
    void *memory; // NULL: free
#if HAVE_WINDOWS
    ncclWindow_t window; // NULL: not registered
#endif
} nccl_buffer;

typedef struct nccl_comm {
    comm base;
    ncclComm_t handle;
    atomic_bool aborted; // then the handle is gone
    nccl_buffer buffers[MAX_BUFFERS];
    void *piece; // (PIECE_BYTES) of the device; NULL before the first broadcast
} nccl_comm;

_Static_assert(sizeof(ncclUniqueId) <= sizeof(comm_ticket), "the ticket carries NCCL's id");

static int check(ncclResult_t result, const char *what, flute_error *err) {
    if (result == ncclSuccess) return FLUTE_OK;
    return fail(err, FLUTE_EDEVICE, "%s: %s; NCCL_DEBUG=INFO says more", what, ncclGetErrorString(result));
}

static int nccl_error(comm *base, flute_error *err) {
    nccl_comm *c = (nccl_comm *)base;
    if (atomic_load(&c->aborted)) return fail(err, FLUTE_EDEVICE, "another rank has failed");
    ncclResult_t result = ncclSuccess;
    int code = check(ncclCommGetAsyncError(c->handle, &result), "ncclCommGetAsyncError", err);
    return code ? code : check(result, "NCCL", err);
}

static int gone(nccl_comm *c, flute_error *err) {
    return atomic_load(&c->aborted) ? nccl_error(&c->base, err) : FLUTE_OK;
}

static int nccl_all_reduce(comm *base, float *data, size_t n, void *stream, flute_error *err) {
    nccl_comm *c = (nccl_comm *)base;
    int code = gone(c, err);
    if (code) return code;
    return check(ncclAllReduce(data, data, n, ncclFloat32, ncclSum, c->handle, (cudaStream_t)stream),
                 "ncclAllReduce", err);
}

static int nccl_all_gather(comm *base, const void *own, void *all, size_t bytes, void *stream,
                           flute_error *err) {
    nccl_comm *c = (nccl_comm *)base;
    int code = gone(c, err);
    if (code) return code;
    return check(ncclAllGather(own, all, bytes, ncclUint8, c->handle, (cudaStream_t)stream), "ncclAllGather",
                 err);
}

static int check_cuda(cudaError_t code, const char *what, flute_error *err) {
    return code == cudaSuccess ? FLUTE_OK
                               : fail(err, FLUTE_EDEVICE, "%s: %s", what, cudaGetErrorString(code));
}

// Piece by piece by way of the device.
static int nccl_broadcast(comm *base, void *data, size_t bytes, int root, flute_error *err) {
    nccl_comm *c = (nccl_comm *)base;
    int code = gone(c, err);
    if (!code && !c->piece) code = check_cuda(cudaMalloc(&c->piece, PIECE_BYTES), "cudaMalloc", err);
    for (size_t done = 0; done < bytes && !code; done += PIECE_BYTES) {
        const size_t n = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        uint8_t *at = (uint8_t *)data + done;
        if (base->rank == root)
            code = check_cuda(cudaMemcpy(c->piece, at, n, cudaMemcpyHostToDevice), "cudaMemcpy", err);
        if (!code)
            code = check(ncclBroadcast(c->piece, c->piece, n, ncclUint8, root, c->handle, NULL),
                         "ncclBroadcast", err);
        if (!code) code = check_cuda(cudaStreamSynchronize(NULL), "cudaStreamSynchronize", err);
        if (!code) code = nccl_error(base, err);
        if (!code && base->rank != root)
            code = check_cuda(cudaMemcpy(at, c->piece, n, cudaMemcpyDeviceToHost), "cudaMemcpy", err);
    }
    return code;
}

// A sum of nothing in particular; abort ends it, and with it the wait.
static int nccl_barrier(comm *base, void *stream, flute_error *err) {
    float *one;
    int code = base->ops->alloc(base, (void **)&one, sizeof *one, err);
    if (code) return code;
    code = nccl_all_reduce(base, one, 1, stream, err);
    if (!code) code = check_cuda(cudaStreamSynchronize((cudaStream_t)stream), "cudaStreamSynchronize", err);
    if (!code) code = nccl_error(base, err);
    base->ops->release(base, one);
    return code;
}

// A graph of `repeats` sums, launched twice in a row: when the second one begins, all ranks are there.
static int nccl_time_all_reduce(comm *base, float *data, size_t n, int repeats, double *seconds,
                                flute_error *err) {
    cudaStream_t stream = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    float ms = 0;
    int code = nccl_all_reduce(base, data, n, NULL, err); // connects; outside of a graph
    cudaError_t cuda = cudaStreamSynchronize(NULL);
    if (cuda == cudaSuccess) cuda = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (cuda == cudaSuccess) cuda = cudaEventCreate(&begin);
    if (cuda == cudaSuccess) cuda = cudaEventCreate(&end);
    if (code || cuda != cudaSuccess) goto done;
    if ((cuda = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal)) != cudaSuccess) goto done;
    for (int i = 0; i < repeats && !code; i++) code = nccl_all_reduce(base, data, n, stream, err);
    cuda = cudaStreamEndCapture(stream, &graph);
    if (!code && cuda == cudaSuccess) cuda = cudaGraphInstantiate(&exec, graph, 0);
    if (code || cuda != cudaSuccess) goto done;
    cuda = cudaGraphLaunch(exec, stream);
    if (cuda == cudaSuccess) cuda = cudaEventRecord(begin, stream);
    if (cuda == cudaSuccess) cuda = cudaGraphLaunch(exec, stream);
    if (cuda == cudaSuccess) cuda = cudaEventRecord(end, stream);
    const cudaError_t waited = cudaStreamSynchronize(stream);
    if (cuda == cudaSuccess) cuda = waited;
    if (cuda == cudaSuccess) cuda = cudaEventElapsedTime(&ms, begin, end);
    if (cuda == cudaSuccess) code = nccl_error(base, err);
done:
    *seconds = ms * 1e-3 / repeats;
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    if (end) cudaEventDestroy(end);
    if (begin) cudaEventDestroy(begin);
    if (stream) cudaStreamDestroy(stream);
    return code ? code : check_cuda(cuda, "timing an all-reduce", err);
}

static nccl_buffer *find_buffer(nccl_comm *c, const void *memory) {
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (c->buffers[i].memory == memory) return &c->buffers[i];
    return NULL;
}

static int nccl_alloc(comm *base, void **out, size_t bytes, flute_error *err) {
    nccl_comm *c = (nccl_comm *)base;
    nccl_buffer *buffer = find_buffer(c, NULL);
    if (!buffer) return fail(err, FLUTE_EDEVICE, "more than %d buffers of collectives", MAX_BUFFERS);
    void *memory;
    int code = gone(c, err);
    if (!code) code = check(ncclMemAlloc(&memory, bytes), "ncclMemAlloc", err);
    if (code) return code;
    *buffer = (nccl_buffer){.memory = memory};
    code = check_cuda(cudaMemset(memory, 0, bytes), "cudaMemset", err);
#if HAVE_WINDOWS
    // Where the machine has no symmetric memory NCCL says so by a NULL window, and the buffer works as any.
    if (!code)
        code =
            check(ncclCommWindowRegister(c->handle, memory, bytes, &buffer->window, NCCL_WIN_COLL_SYMMETRIC),
                  "ncclCommWindowRegister", err);
#endif
    if (code) {
        base->ops->release(base, memory);
        return code;
    }
    *out = memory;
    return FLUTE_OK;
}

static void nccl_release(comm *base, void *memory) {
    nccl_comm *c = (nccl_comm *)base;
    if (!memory) return;
    nccl_buffer *buffer = find_buffer(c, memory);
#if HAVE_WINDOWS
    if (buffer->window && !atomic_load(&c->aborted)) ncclCommWindowDeregister(c->handle, buffer->window);
#endif
    ncclMemFree(memory);
    *buffer = (nccl_buffer){0};
}

static void nccl_abort(comm *base) {
    nccl_comm *c = (nccl_comm *)base;
    if (!atomic_exchange(&c->aborted, true)) ncclCommAbort(c->handle);
}

static void nccl_free(comm *base) {
    nccl_comm *c = (nccl_comm *)base;
    for (int i = 0; i < MAX_BUFFERS; i++) nccl_release(base, c->buffers[i].memory);
    if (!atomic_load(&c->aborted)) ncclCommDestroy(c->handle);
    cudaFree(c->piece);
    free(c);
}

static const comm_ops nccl_ops = {
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .broadcast = nccl_broadcast,
    .time_all_reduce = nccl_time_all_reduce,
    .barrier = nccl_barrier,
    .alloc = nccl_alloc,
    .release = nccl_release,
    .error = nccl_error,
    .abort = nccl_abort,
    .free = nccl_free,
};

static int nccl_ticket(comm_ticket *out, flute_error *err) {
    ncclUniqueId id;
    int code = check(ncclGetUniqueId(&id), "ncclGetUniqueId", err);
    if (!code) memcpy(out->bytes, &id, sizeof id);
    return code;
}

static int nccl_join(comm **out, const comm_ticket *ticket, int rank, int size, flute_error *err) {
    ncclUniqueId id;
    memcpy(&id, ticket->bytes, sizeof id);
    nccl_comm *c = calloc(1, sizeof *c);
    if (!c) return fail_memory(err, sizeof *c, "a rank");
    c->base = (comm){.ops = &nccl_ops, .rank = rank, .size = size, .queued = true};
    const ncclResult_t result = ncclCommInitRank(&c->handle, size, id, rank);
    int code = check(result, "ncclCommInitRank", err);
    if (result == ncclInvalidUsage)
        fail(err, code, "NCCL refuses these ranks (%s). Do two of them share a GPU? --comm local lets them",
             ncclGetErrorString(result));
    if (code) {
        free(c);
        return code;
    }
    int version = 0;
    ncclGetVersion(&version);
    snprintf(c->base.name, sizeof c->base.name, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    *out = &c->base;
    return FLUTE_OK;
}

const comm_kind comm_kind_nccl = {"nccl", nccl_ticket, nccl_join};
