// The emulated device, between runtime.cc (streams, launches) and memory.cc (allocations, copies).
#ifndef FLUTE_SIMT_DEVICE_H
#define FLUTE_SIMT_DEVICE_H

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/simt/simt.h"

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

namespace simt {

enum { DEFAULT_SHARED = 48 * 1024 }; // bytes that a kernel may have unless it raises its limit

struct allocation {
    size_t size;
    bool is_device; // or pinned
};

struct device {
    std::recursive_mutex mutex;
    int n_devices = 1, n_sms = 2;
    size_t memory = (size_t)1 << 30, used_device = 0, used_pinned = 0;
    int fail_allocation = 0, fail_launch = 0;
    int patience = 60; // seconds that a kernel may take
    std::map<uintptr_t, allocation> allocations;
    std::map<const void *, int> shared_limits; // of kernels that raised it
    CUstream_st default_stream = {true, {}, nullptr};
    std::vector<cudaStream_t> streams = {&default_stream};
    std::vector<CUgraph_st *> captures;
};
extern device d;

// What the device and the code on it claim to be. Constants at first, so that a test may set them before
// constructors have run.
struct card {
    int major = 9, minor = 0, code = 0;

    int code_version() const { return code ? code : major >= 9 ? 90 : major * 10 + minor; }
    int shared_capacity() const { // bytes for a block
        return major >= 9 ? (int)SHARED_CAPACITY : minor == 0 ? 163 * 1024 : 99 * 1024;
    }
};
extern card claims;

struct guard {
    std::lock_guard<std::recursive_mutex> lock{d.mutex};
};

// Notes an error for cudaGetLastError and returns it.
cudaError_t report(cudaError_t code);

// Whether a failure that a test asked for is due.
inline bool counts_down(int *n) {
    return *n > 0 && --*n == 0;
}

// What a call that may wait for the device does during a capture: it fails, and spoils it.
cudaError_t forbid_in_capture(cudaError_t code);

// Queues an operation, or records it where the stream is captured; runs what is queued on one stream, or on
// all.
cudaError_t enqueue(cudaStream_t s, operation what);
void drain(cudaStream_t s);
void drain_all();

// The last allocation that begins at p or before, and the one that holds these bytes; or null.
const std::pair<const uintptr_t, allocation> *allocation_below(const void *p);
const allocation *allocation_of(const void *p, size_t bytes);

} // namespace simt
#endif
