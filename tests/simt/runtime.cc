// The CUDA runtime of the emulated device. What is queued on a stream runs as late as it may: when somebody
// waits for it, so that a missing wait shows. Pageable memory is read when a copy is queued and written
// before it returns, as CUDA says. One lock guards everything; kernels run in the thread that waits.
#include "tests/simt/device.h"

#include <signal.h>
#include <stdio.h>
#include <sys/time.h>

#include "tests/simt/control.h"
#include "tests/simt/cuda_runtime.h"

using namespace simt;

device simt::d;
card simt::claims;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

// Faults.

void on_signal(int number, siginfo_t *info, void *) {
    if (number == SIGVTALRM)
        simt::stop("the kernel has run for %d s: does it wait for memory that nobody writes?", d.patience);
    const auto *a = allocation_below(info->si_addr);
    if (!a) simt::stop("memory fault at %p", info->si_addr);
    simt::stop("memory fault at %p, %zu bytes behind the start of an allocation of %zu", info->si_addr,
               (size_t)((uintptr_t)info->si_addr - a->first), a->second.size);
}

// While it exists, catches faults and kernels that do not end; on a stack of its own, because the fault may
// be the end of a fiber's.
struct kernel_watch {
    struct sigaction fault_before = {}, alarm_before = {};
    kernel_watch() {
        static uint8_t stack[64 * 1024]; // one kernel runs at a time
        stack_t on = {};
        on.ss_sp = stack, on.ss_size = sizeof stack;
        sigaltstack(&on, nullptr);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &fault_before);
        sigaction(SIGVTALRM, &action, &alarm_before);
        set_alarm(d.patience);
    }
    ~kernel_watch() {
        set_alarm(0);
        sigaction(SIGSEGV, &fault_before, nullptr);
        sigaction(SIGVTALRM, &alarm_before, nullptr);
    }
    static void set_alarm(int seconds) { // of processor time
        struct itimerval in = {};
        in.it_value.tv_sec = seconds;
        setitimer(ITIMER_VIRTUAL, &in, nullptr);
    }
};

// Queues.

// The first operation, and, where more follow at once, the beginning of an overlapping kernel behind it.
void run_one(cudaStream_t s, bool more_follow) {
    const operation now = std::move(s->queue.front());
    s->queue.pop_front();
    if (now.kernel) {
        const kernel_watch watch;
        const simt::launch *next = more_follow && !s->queue.empty() ? s->queue.front().kernel.get() : nullptr;
        simt::run(*now.kernel, next && next->overlaps ? next : nullptr);
    } else if (now.action)
        now.action();
}

void drain_until(const event_state &e, long record) {
    while (e.done < record) run_one(e.stream, true);
}

} // namespace

namespace simt {

cudaError_t report(cudaError_t code) {
    if (code != cudaSuccess) last_error = code;
    return code;
}

void drain(cudaStream_t s) {
    while (!s->queue.empty()) run_one(s, true);
}

void drain_all() {
    for (size_t i = 0; i < d.streams.size(); i++) drain(d.streams[i]);
}

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

} // namespace simt

int simt::code_version() {
    return claims.code_version();
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
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &a = config->attrs[i];
        if (a.id == cudaLaunchAttributeClusterDimension) cluster = a.val.clusterDim.x;
        if (a.id == cudaLaunchAttributeClusterDimension &&
            (a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1))
            return report(cudaErrorNotSupported); // though CUDA has them
        if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization && claims.code_version() < 90)
            return report(cudaErrorNotSupported); // nothing in the kernel would wait
        if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization)
            overlaps = a.val.programmaticStreamSerializationAllowed;
    }
    if (cluster < 1 || cluster > MAX_CLUSTER || grid.x % cluster || (int)cluster > d.n_sms ||
        (cluster > 1 && claims.code_version() < 90))
        return report(cudaErrorInvalidClusterSize);
    if (counts_down(&d.fail_launch)) return report(cudaErrorLaunchOutOfResources);
    const launch what = {kernel, grid, block, config->dynamicSmemBytes, overlaps, cluster, std::move(body)};
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
        NAME(cudaErrorInvalidClusterSize)
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
        return *value = claims.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        return *value = claims.minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return *value = claims.shared_capacity() + 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return *value = claims.shared_capacity(), cudaSuccess;
    }
    return report(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int ordinal) {
    if (ordinal < 0 || ordinal >= d.n_devices) return report(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "simt emulator");
    p->totalGlobalMem = d.memory;
    p->sharedMemPerBlock = DEFAULT_SHARED, p->sharedMemPerBlockOptin = (size_t)claims.shared_capacity();
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024, p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = simt::LANES, p->maxThreadsPerBlock = simt::MAX_THREADS;
    p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->major = claims.major, p->minor = claims.minor, p->multiProcessorCount = d.n_sms;
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

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *user) {
    const guard g;
    return enqueue(stream, {[=] { function(user); }, nullptr});
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

// An external event is a node of the graph, which records it whenever it is launched.
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    if (flags != cudaEventRecordExternal || !stream || !stream->capture)
        return cudaEventRecord(event, stream);
    const guard g;
    const std::shared_ptr<event_state> e = event->state;
    return enqueue(stream,
                   {[e] { e->done = ++e->recorded, e->time = std::chrono::steady_clock::now(); }, nullptr});
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

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel) {
    const guard g;
    *attributes = {};
    if (!kernel) return report(cudaErrorInvalidDeviceFunction);
    if (claims.code_version() > claims.major * 10 + claims.minor)
        return report(cudaErrorNoKernelImageForDevice);
    const auto limit = d.shared_limits.find(kernel);
    attributes->maxThreadsPerBlock = simt::MAX_THREADS, attributes->ptxVersion = claims.code_version();
    attributes->binaryVersion = claims.major * 10 + claims.minor;
    attributes->maxDynamicSharedSizeBytes = limit == d.shared_limits.end() ? DEFAULT_SHARED : limit->second;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    const guard g;
    if (!kernel) return report(cudaErrorInvalidDeviceFunction);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > claims.shared_capacity()) return report(cudaErrorInvalidValue);
    d.shared_limits[kernel] = value;
    return cudaSuccess;
}

// As many as threads and shared memory allow: registers are not known.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t shared) {
    if (threads < 1 || threads > simt::MAX_THREADS) return report(cudaErrorInvalidValue);
    const int by_threads = 2048 / threads,
              by_shared = (int)((size_t)(claims.shared_capacity() + 1024) / (shared + 1024));
    *blocks = min(min(by_threads, by_shared), 32);
    return cudaSuccess;
}

// As many as have an SM for each of their blocks.
cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *kernel,
                                           const cudaLaunchConfig_t *config) {
    int cluster = 1;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
            cluster = (int)config->attrs[i].val.clusterDim.x;
    if (!kernel || cluster < 1 || cluster > simt::MAX_CLUSTER) return report(cudaErrorInvalidValue);
    *clusters = d.n_sms / cluster;
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
    claims.major = major, claims.minor = minor;
}
void simt_set_code(int version) {
    claims.code = version;
}
void simt_fail_allocation(int n) {
    d.fail_allocation = n;
}
void simt_set_patience(int seconds) {
    d.patience = seconds;
}
void simt_fail_launch(int n) {
    d.fail_launch = n;
}
size_t simt_allocated(void) {
    return d.used_device + d.used_pinned;
}
