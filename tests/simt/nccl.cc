// NCCL on the emulated device: the collectives of host memory (kernels/comm/local.c), queued on the stream,
// and with it captured into graphs. Arguments are checked as far as their mistakes would show on a real
// device.
#include "tests/simt/nccl.h"

#include <atomic>
#include <string.h>

#include "kernels/comm.h"
#include "tests/simt/simt.h"

struct ncclComm {
    comm *ranks;
    std::atomic<bool> failed;
};

static_assert(sizeof(ncclUniqueId) == sizeof(comm_ticket), "");

namespace {

ncclResult_t queue(ncclComm_t c, cudaStream_t stream, std::function<int()> what) {
    const cudaError_t code = simt::queue(stream, [c, what] {
        if (what()) c->failed = true;
    });
    return code == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

} // namespace

const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclSuccess       ? "no error"
           : result == ncclRemoteError ? "remote process exited or there was a network error"
                                       : "an error of the emulated NCCL";
}

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    comm_ticket ticket = {};
    if (comm_kind_local.ticket(&ticket, nullptr)) return ncclSystemError;
    memcpy(id, &ticket, sizeof *id);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int n_ranks, ncclUniqueId id, int rank) {
    comm_ticket ticket;
    comm *ranks;
    memcpy(&ticket, &id, sizeof ticket);
    if (comm_kind_local.join(&ranks, &ticket, rank, n_ranks, nullptr)) return ncclSystemError;
    *out = new ncclComm{ranks, {false}};
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    comm_free(c->ranks);
    delete c;
    return ncclSuccess;
}

// What was queued may still come to run: the communicator stays.
ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->ranks->ops->abort(c->ranks);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error) {
    *error = c->failed ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclMemAlloc(void **memory, size_t size) {
    return cudaMalloc(memory, size) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void *memory) {
    return cudaFree(memory) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

// Collective, as the real one.
ncclResult_t ncclCommWindowRegister(ncclComm_t c, void *memory, size_t size, ncclWindow_t *window,
                                    int flags) {
    if (flags != NCCL_WIN_COLL_SYMMETRIC || !simt::device_memory_contains(memory, size))
        return ncclInvalidArgument;
    if (c->ranks->ops->barrier(c->ranks, nullptr, nullptr)) return ncclRemoteError;
    *window = (ncclWindow_t)memory;
    return ncclSuccess;
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t, ncclWindow_t window) {
    return window ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t c, cudaStream_t stream) {
    if (type != ncclFloat32 || op != ncclSum || from != to ||
        !simt::device_memory_contains(to, n * sizeof(float)))
        return ncclInvalidArgument;
    return queue(c, stream,
                 [=] { return c->ranks->ops->all_reduce(c->ranks, (float *)to, n, nullptr, nullptr); });
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t stream) {
    if (type != ncclUint8 || !simt::device_memory_contains(from, n) ||
        !simt::device_memory_contains(to, n * (size_t)c->ranks->size))
        return ncclInvalidArgument;
    return queue(c, stream,
                 [=] { return c->ranks->ops->all_gather(c->ranks, from, to, n, nullptr, nullptr); });
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t type, int root, ncclComm_t c,
                           cudaStream_t stream) {
    if (type != ncclUint8 || from != to || !simt::device_memory_contains(to, n)) return ncclInvalidArgument;
    return queue(c, stream, [=] { return c->ranks->ops->broadcast(c->ranks, to, n, root, nullptr); });
}
