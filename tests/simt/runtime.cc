// The CUDA runtime of the emulated device. What is queued on a stream runs as late as it may: when somebody
// waits for it, so that a missing wait shows. Pageable memory is read when a copy is queued and written
// before it returns, as CUDA says. One lock guards everything; kernels run in the thread that waits.
#include "tests/simt/cuda_runtime.h"

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "tests/simt/control.h"

// A kernel, or anything else that happens in a stream; nothing at all at the start of a graph.
struct operation {
    std::function<void()> action;
    std::shared_ptr<const simt::launch> kernel;
};

struct CUgraph_st {
    std::vector<operation> operations; // in the order of the calls, which is one that their dependences allow
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid;
};

struct CUgraphExec_st {
    std::vector<operation> operations;
};

struct CUstream_st {
    bool blocking; // keeps order with the default stream
    std::deque<operation> queue;
    CUgraph_st *capture;
};

struct event_state {
    long recorded, done; // how many times
    cudaStream_t stream; // of the last record
    CUgraph_st *capture;
    std::chrono::steady_clock::time_point time;
};

struct CUevent_st {
    std::shared_ptr<event_state> state;
};

namespace {

enum { PAGE = 4096, ALIGNMENT = 256, POISON = 0xff, DEFAULT_SHARED = 48 * 1024 };

struct allocation {
    size_t size;
    bool is_device; // or pinned
};

struct device {
    std::recursive_mutex mutex;
    int n_devices = 1, n_sms = 2, major = 9, minor = 0;
    size_t memory = (size_t)8 << 30, used_device = 0, used_pinned = 0;
    int fail_allocation = 0, fail_launch = 0;
    std::map<uintptr_t, allocation> allocations;
    std::map<const void *, int> shared_limits; // of kernels that raised it
    CUstream_st default_stream = {true, {}, nullptr};
    std::vector<cudaStream_t> streams = {&default_stream};
    std::vector<CUgraph_st *> captures;
} d;

thread_local cudaError_t last_error = cudaSuccess;

struct guard {
    std::lock_guard<std::recursive_mutex> lock{d.mutex};
};

cudaError_t report(cudaError_t code) {
    if (code != cudaSuccess) last_error = code;
    return code;
}

const std::pair<const uintptr_t, allocation> *allocation_below(const void *p) {
    auto next = d.allocations.upper_bound((uintptr_t)p);
    return next == d.allocations.begin() ? nullptr : &*--next;
}

const allocation *allocation_of(const void *p, size_t bytes) {
    const auto *a = allocation_below(p);
    return a && (uintptr_t)p + bytes <= a->first + a->second.size ? &a->second : nullptr;
}

bool counts_down(int *n) {
    return *n > 0 && --*n == 0;
}

// Faults.

void on_fault(int, siginfo_t *info, void *) {
    const auto *a = allocation_below(info->si_addr);
    fprintf(stderr, "simt: memory fault at %p", info->si_addr);
    if (a)
        fprintf(stderr, ", %zu bytes behind the start of an allocation of %zu",
                (size_t)((uintptr_t)info->si_addr - a->first), a->second.size);
    fprintf(stderr, "\n");
    simt::describe_place();
    signal(SIGABRT, SIG_DFL);
    abort();
}

// Catches faults while it exists, on a stack of its own, because the fault may be the end of a fiber's.
struct fault_catcher {
    struct sigaction before = {};
    fault_catcher() {
        static uint8_t stack[64 * 1024]; // one kernel runs at a time
        stack_t on = {};
        on.ss_sp = stack, on.ss_size = sizeof stack;
        sigaltstack(&on, nullptr);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before);
    }
    ~fault_catcher() { sigaction(SIGSEGV, &before, nullptr); }
};

// Queues.

// The first operation, and, where more follow at once, the beginning of an overlapping kernel behind it.
void run_one(cudaStream_t s, bool more_follow) {
    const operation now = std::move(s->queue.front());
    s->queue.pop_front();
    if (now.kernel) {
        const fault_catcher catcher;
        const simt::launch *next = more_follow && !s->queue.empty() ? s->queue.front().kernel.get() : nullptr;
        simt::run(*now.kernel, next && next->overlaps ? next : nullptr);
    } else if (now.action)
        now.action();
}

void drain(cudaStream_t s) {
    while (!s->queue.empty()) run_one(s, true);
}

void drain_all() {
    for (size_t i = 0; i < d.streams.size(); i++) drain(d.streams[i]);
}

void drain_until(const event_state &e, long record) {
    while (e.done < record) run_one(e.stream, true);
}

// What a call that may wait for the device does during a capture: it fails, and spoils it.
cudaError_t forbid_in_capture(cudaError_t code) {
    cudaError_t result = cudaSuccess;
    for (CUgraph_st *g : d.captures)
        if (g->mode == cudaStreamCaptureModeGlobal ||
            (g->mode == cudaStreamCaptureModeThreadLocal && g->thread == std::this_thread::get_id()))
            g->invalid = true, result = code;
    return result;
}

cudaError_t enqueue(cudaStream_t s, operation what) {
    if (!s) s = &d.default_stream;
    if (s->capture) {
        if (s->capture->invalid) return report(cudaErrorStreamCaptureInvalidated);
        s->capture->operations.push_back(std::move(what));
        return cudaSuccess;
    }
    if (s == &d.default_stream) {
        for (CUgraph_st *g : d.captures)
            if (g->origin->blocking) return g->invalid = true, report(cudaErrorStreamCaptureImplicit);
        for (cudaStream_t other : d.streams)
            if (other->blocking && other != s) drain(other);
    } else if (s->blocking)
        drain(&d.default_stream);
    s->queue.push_back(std::move(what));
    return cudaSuccess;
}

// Memory ends at a page that faults; up to there, and inside, it is poisoned.
size_t padded(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}
size_t mapped(size_t size) {
    return (padded(size) + PAGE - 1) / PAGE * PAGE + PAGE;
}

cudaError_t allocate(void **out, size_t size, bool is_device) {
    if (!out) return report(cudaErrorInvalidValue);
    *out = nullptr;
    const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureUnsupported);
    if (code != cudaSuccess) return report(code);
    if (size == 0) return cudaSuccess;
    if (counts_down(&d.fail_allocation) || (is_device && size > d.memory - d.used_device))
        return report(cudaErrorMemoryAllocation);
    void *map = mmap(nullptr, mapped(size), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return report(cudaErrorMemoryAllocation);
    uint8_t *end = (uint8_t *)map + mapped(size) - PAGE;
    mprotect(end, PAGE, PROT_NONE);
    *out = end - padded(size);
    memset(*out, POISON, padded(size));
    d.allocations[(uintptr_t)*out] = {size, is_device};
    (is_device ? d.used_device : d.used_pinned) += size;
    return cudaSuccess;
}

cudaError_t release(void *p, bool is_device) {
    if (!p) return cudaSuccess;
    const auto found = d.allocations.find((uintptr_t)p);
    if (found == d.allocations.end() || found->second.is_device != is_device)
        return report(cudaErrorInvalidValue);
    const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureUnsupported);
    if (code != cudaSuccess) return report(code);
    drain_all();
    const size_t size = found->second.size;
    for (size_t i = size; i < padded(size); i++)
        if (((uint8_t *)p)[i] != POISON)
            simt::stop("an allocation of %zu bytes at %p was written behind its end", size, p);
    (is_device ? d.used_device : d.used_pinned) -= size;
    munmap((uint8_t *)p + padded(size) + PAGE - mapped(size), mapped(size));
    d.allocations.erase(found);
    return cudaSuccess;
}

// Copies: `height` rows.
struct rectangle {
    size_t width, height, to_pitch, from_pitch;
};

size_t span(const rectangle &r, size_t pitch) {
    return r.height ? (r.height - 1) * pitch + r.width : 0;
}

void copy_rows(void *to, const void *from, const rectangle &r) {
    for (size_t i = 0; i < r.height; i++)
        memmove((uint8_t *)to + i * r.to_pitch, (const uint8_t *)from + i * r.from_pitch, r.width);
}

bool is_place(const void *p, size_t bytes, bool wants_device, bool any) {
    const allocation *a = allocation_of(p, bytes);
    if (!a && allocation_of(p, 1)) return false; // begins in an allocation and leaves it
    return any || (a && a->is_device) == wants_device;
}

cudaError_t copy(void *to, const void *from, const rectangle &r, cudaMemcpyKind kind, cudaStream_t stream,
                 bool wait) {
    if (r.width == 0 || r.height == 0) return cudaSuccess;
    if (r.height > 1 && (r.width > r.to_pitch || r.width > r.from_pitch))
        return report(cudaErrorInvalidValue);
    const bool any = kind == cudaMemcpyDefault;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!is_place(to, span(r, r.to_pitch), to_device, any) ||
        !is_place(from, span(r, r.from_pitch), from_device, any))
        return report(cudaErrorInvalidValue);
    const bool to_pageable = !allocation_of(to, 1), from_pageable = !allocation_of(from, 1);
    const bool captured = stream && stream->capture;
    if (wait) {
        const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureImplicit);
        if (code != cudaSuccess) return report(code);
    }
    operation what = {[=] { copy_rows(to, from, r); }, nullptr};
    if (from_pageable && !captured && !wait) {
        const auto *first = (const uint8_t *)from;
        const auto staged = std::make_shared<std::vector<uint8_t>>(first, first + span(r, r.from_pitch));
        what.action = [=] { copy_rows(to, staged->data(), r); };
    }
    const cudaError_t code = enqueue(stream, std::move(what));
    if (code == cudaSuccess && !captured && (wait || to_pageable)) drain(stream ? stream : &d.default_stream);
    return code;
}

} // namespace

bool simt::device_memory_contains(const void *p, size_t bytes) {
    return allocation_of(p, bytes) != nullptr;
}

cudaError_t simt::queue(cudaStream_t stream, std::function<void()> what) {
    const guard g;
    return enqueue(stream, {std::move(what), nullptr});
}

cudaError_t simt::queue_launch(const cudaLaunchConfig_t *config, const void *kernel,
                               std::function<void()> body) {
    const guard g;
    const dim3 grid = config->gridDim, block = config->blockDim;
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
        return report(cudaErrorInvalidConfiguration);
    const auto limit = d.shared_limits.find(kernel);
    if (config->dynamicSmemBytes > (size_t)(limit == d.shared_limits.end() ? DEFAULT_SHARED : limit->second))
        return report(cudaErrorInvalidValue);
    bool overlaps = false;
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &a = config->attrs[i];
        const auto &cluster = a.val.clusterDim;
        if (a.id == cudaLaunchAttributeClusterDimension && cluster.x * cluster.y * cluster.z != 1)
            return report(cudaErrorNotSupported);
        if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization)
            overlaps = a.val.programmaticStreamSerializationAllowed;
    }
    if (counts_down(&d.fail_launch)) return report(cudaErrorLaunchOutOfResources);
    const launch what = {kernel, grid, block, config->dynamicSmemBytes, overlaps, std::move(body)};
    return enqueue(config->stream, {nullptr, std::make_shared<const launch>(what)});
}

// The C API.

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define NAME(name)                                                                                           \
    case name:                                                                                               \
        return #name;
        NAME(cudaSuccess)
        NAME(cudaErrorInvalidValue)
        NAME(cudaErrorMemoryAllocation)
        NAME(cudaErrorInitializationError)
        NAME(cudaErrorInvalidConfiguration)
        NAME(cudaErrorInvalidMemcpyDirection)
        NAME(cudaErrorInsufficientDriver)
        NAME(cudaErrorInvalidDeviceFunction)
        NAME(cudaErrorNoDevice)
        NAME(cudaErrorInvalidDevice)
        NAME(cudaErrorNoKernelImageForDevice)
        NAME(cudaErrorInvalidResourceHandle)
        NAME(cudaErrorNotReady)
        NAME(cudaErrorIllegalAddress)
        NAME(cudaErrorLaunchOutOfResources)
        NAME(cudaErrorLaunchFailure)
        NAME(cudaErrorNotSupported)
        NAME(cudaErrorStreamCaptureUnsupported)
        NAME(cudaErrorStreamCaptureInvalidated)
        NAME(cudaErrorStreamCaptureUnmatched)
        NAME(cudaErrorStreamCaptureUnjoined)
        NAME(cudaErrorStreamCaptureImplicit)
        NAME(cudaErrorCapturedEvent)
        NAME(cudaErrorUnknown)
#undef NAME
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess                 ? "no error"
           : error == cudaErrorMemoryAllocation ? "out of memory"
                                                : cudaGetErrorName(error);
}

cudaError_t cudaGetLastError(void) {
    const cudaError_t code = last_error;
    last_error = cudaSuccess;
    return code;
}

cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = d.n_devices;
    return report(d.n_devices > 0 ? cudaSuccess : cudaErrorNoDevice);
}

static thread_local int current_device;

cudaError_t cudaGetDevice(int *ordinal) {
    *ordinal = current_device;
    return report(d.n_devices > 0 ? cudaSuccess : cudaErrorNoDevice);
}

// All devices are the same one.
cudaError_t cudaSetDevice(int ordinal) {
    if (ordinal < 0 || ordinal >= d.n_devices)
        return report(d.n_devices > 0 ? cudaErrorInvalidDevice : cudaErrorNoDevice);
    current_device = ordinal;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int ordinal) {
    if (ordinal < 0 || ordinal >= d.n_devices) return report(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        return *value = simt::MAX_THREADS, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        return *value = DEFAULT_SHARED, cudaSuccess;
    case cudaDevAttrWarpSize:
        return *value = simt::LANES, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        return *value = d.n_sms, cudaSuccess;
    case cudaDevAttrL2CacheSize:
        return *value = 50 << 20, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        return *value = 2048, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        return *value = d.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        return *value = d.minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return *value = simt::SHARED_CAPACITY + 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return *value = simt::SHARED_CAPACITY, cudaSuccess;
    }
    return report(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int ordinal) {
    if (ordinal < 0 || ordinal >= d.n_devices) return report(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "simt emulator");
    p->totalGlobalMem = d.memory;
    p->sharedMemPerBlock = DEFAULT_SHARED, p->sharedMemPerBlockOptin = simt::SHARED_CAPACITY;
    p->sharedMemPerMultiprocessor = simt::SHARED_CAPACITY + 1024, p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = simt::LANES, p->maxThreadsPerBlock = simt::MAX_THREADS;
    p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->major = d.major, p->minor = d.minor, p->multiProcessorCount = d.n_sms;
    p->memoryBusWidth = 5120, p->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    return *version = CUDART_VERSION, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    return *version = CUDART_VERSION, cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    const guard g;
    *free = d.memory - d.used_device, *total = d.memory;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    const guard g;
    const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureUnsupported);
    if (code == cudaSuccess) drain_all();
    return report(code);
}

cudaError_t cudaMalloc(void **p, size_t size) {
    const guard g;
    return allocate(p, size, true);
}

cudaError_t cudaMallocHost(void **p, size_t size) {
    const guard g;
    return allocate(p, size, false);
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned) {
    return cudaMallocHost(p, size);
}

cudaError_t cudaFree(void *p) {
    const guard g;
    return release(p, true);
}

cudaError_t cudaFreeHost(void *p) {
    const guard g;
    return release(p, false);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    const guard g;
    return copy(to, from, {n, 1, n, n}, kind, nullptr, true);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    const guard g;
    return copy(to, from, {n, 1, n, n}, kind, stream, false);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
    const guard g;
    return copy(to, from, {width, height, to_pitch, from_pitch}, kind, nullptr, true);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    const guard g;
    return copy(to, from, {width, height, to_pitch, from_pitch}, kind, stream, false);
}

cudaError_t cudaMemset(void *p, int value, size_t n) {
    return cudaMemsetAsync(p, value, n, nullptr);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    const guard g;
    if (n == 0) return cudaSuccess;
    if (!allocation_of(p, n)) return report(cudaErrorInvalidValue);
    return enqueue(stream, {[=] { memset(p, value, n); }, nullptr});
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    const guard g;
    *stream = new CUstream_st{!(flags & cudaStreamNonBlocking), {}, nullptr};
    d.streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const guard g;
    if (!stream) return report(cudaErrorInvalidResourceHandle);
    drain(stream);
    for (size_t i = 0; i < d.streams.size(); i++)
        if (d.streams[i] == stream) d.streams.erase(d.streams.begin() + (ptrdiff_t)i);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const guard g;
    if (!stream) stream = &d.default_stream;
    if (stream->capture) return stream->capture->invalid = true, report(cudaErrorStreamCaptureUnsupported);
    drain(stream);
    return cudaSuccess;
}

// Asking makes progress, by one operation.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const guard g;
    if (!stream) stream = &d.default_stream;
    if (stream->capture) return stream->capture->invalid = true, report(cudaErrorStreamCaptureUnsupported);
    if (stream->queue.empty()) return cudaSuccess;
    run_one(stream, false);
    return cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const guard g;
    const std::shared_ptr<event_state> e = event->state;
    if (e->capture) { // the stream joins the capture that the event was recorded in
        if (!stream || (stream->capture && stream->capture != e->capture))
            return e->capture->invalid = true, report(cudaErrorStreamCaptureImplicit);
        stream->capture = e->capture;
        return cudaSuccess;
    }
    if (stream && stream->capture) return report(cudaErrorStreamCaptureUnsupported);
    const long record = e->recorded;
    return enqueue(stream, {[e, record] { drain_until(*e, record); }, nullptr});
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new CUevent_st{std::make_shared<event_state>()};
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return cudaEventCreate(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const guard g;
    if (!event) return report(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const guard g;
    const std::shared_ptr<event_state> e = event->state;
    e->capture = stream ? stream->capture : nullptr;
    if (e->capture) return cudaSuccess;
    e->stream = stream ? stream : &d.default_stream;
    const long record = ++e->recorded;
    return enqueue(stream,
                   {[e, record] { e->done = record, e->time = std::chrono::steady_clock::now(); }, nullptr});
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const guard g;
    if (event->state->capture) return report(cudaErrorCapturedEvent);
    drain_until(*event->state, event->state->recorded);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const guard g;
    const event_state &e = *event->state;
    if (e.capture) return report(cudaErrorCapturedEvent);
    if (e.done == e.recorded) return cudaSuccess;
    run_one(e.stream, false);
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    const guard g;
    const event_state &a = *start->state, &b = *end->state;
    if (a.recorded == 0 || b.recorded == 0) return report(cudaErrorInvalidResourceHandle);
    if (a.done < a.recorded || b.done < b.recorded) return report(cudaErrorNotReady);
    *ms = std::chrono::duration<float, std::milli>(b.time - a.time).count();
    return cudaSuccess;
}

// Capture.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const guard g;
    if (!stream) return report(cudaErrorStreamCaptureUnsupported);
    if (stream->capture) return report(cudaErrorInvalidValue);
    stream->capture = new CUgraph_st{{}, stream, mode, std::this_thread::get_id(), false};
    d.captures.push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    const guard g;
    *graph = nullptr;
    if (!stream || !stream->capture) return report(cudaErrorInvalidValue);
    CUgraph_st *captured = stream->capture;
    if (captured->origin != stream) return captured->invalid = true, report(cudaErrorStreamCaptureUnmatched);
    for (cudaStream_t s : d.streams)
        if (s->capture == captured) s->capture = nullptr;
    for (size_t i = 0; i < d.captures.size(); i++)
        if (d.captures[i] == captured) d.captures.erase(d.captures.begin() + (ptrdiff_t)i);
    if (captured->invalid) {
        delete captured;
        return report(cudaErrorStreamCaptureInvalidated);
    }
    *graph = captured;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    const guard g;
    *status = !stream || !stream->capture ? cudaStreamCaptureStatusNone
              : stream->capture->invalid  ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = nullptr;
    if (!graph) return report(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{graph->operations};
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    const guard g;
    if (!exec) return report(cudaErrorInvalidValue);
    if (counts_down(&d.fail_launch)) return report(cudaErrorLaunchOutOfResources);
    cudaError_t code = enqueue(stream, {}); // its first kernel does not overlap what is ahead of the graph
    for (const operation &each : exec->operations)
        if (code == cudaSuccess) code = enqueue(stream, each);
    return code;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    const guard g;
    if (!kernel) return report(cudaErrorInvalidDeviceFunction);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > simt::SHARED_CAPACITY) return report(cudaErrorInvalidValue);
    d.shared_limits[kernel] = value;
    return cudaSuccess;
}

// As many as threads and shared memory allow: registers are not known.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t shared) {
    if (threads < 1 || threads > simt::MAX_THREADS) return report(cudaErrorInvalidValue);
    const int by_threads = 2048 / threads,
              by_shared = (int)((simt::SHARED_CAPACITY + 1024) / (shared + 1024));
    *blocks = min(min(by_threads, by_shared), 32);
    return cudaSuccess;
}

// control.h

void simt_set_sms(int n_sms) {
    d.n_sms = n_sms;
}
void simt_set_devices(int n_devices) {
    d.n_devices = n_devices;
}
void simt_set_memory(size_t bytes) {
    d.memory = bytes;
}
void simt_set_capability(int major, int minor) {
    d.major = major, d.minor = minor;
}
void simt_fail_allocation(int n) {
    d.fail_allocation = n;
}
void simt_fail_launch(int n) {
    d.fail_launch = n;
}
size_t simt_allocated(void) {
    return d.used_device + d.used_pinned;
}
