// The emulator's core, as its CUDA headers use it: blocks of threads whose threads are fibers of one OS
// thread.
//
// A grid's blocks run one after another; one that waits for another makes way. Inside of a block a
// fiber runs until it has to wait (for its warp, a barrier, a copy) and the next one that is ready goes on;
// the order of warps and lanes is drawn for each block, so that a missing barrier shows. When nobody can go
// on, one asynchronous copy lands; when there is none, the emulator says who waits for what, and aborts.
#ifndef FLUTE_SIMT_SIMT_H
#define FLUTE_SIMT_SIMT_H

#include <functional>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

#include "tests/simt/cuda_runtime_api.h"

struct uint3 {
    unsigned x, y, z;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

enum { LANES = 32, MAX_THREADS = 1024, SHARED_CAPACITY = 227 * 1024, MAX_SLOT = 64, MAX_CLUSTER = 8 };

struct launch {
    const void *kernel;
    dim3 grid, block;
    size_t shared;              // bytes of dynamic shared memory
    bool overlaps;              // may begin before the kernel ahead of it has ended
    unsigned cluster;           // blocks of a cluster, neighbours along x
    std::function<void()> body; // one thread
};

// Runs a kernel. next: the one behind it if that may overlap, else null; it has to be run right after this
// one.
void run(const launch &what, const launch *next);

// Ends the program with a message that names the kernel, the block and the thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void stop(const char *format, ...);

// Warps. A collective is a meeting of all lanes to which each brings a value; `slots` are of one meeting each
// in turn, so that a lane may still read while another is at the next meeting already.
struct warp {
    alignas(16) uint8_t slots[2][LANES * MAX_SLOT];
    int turn;            // slots of the next meeting
    const char *meeting; // what the lanes that have arrived are at
    uint32_t all, live, ready, met, at_mbarrier, at_dependency, at_others; // lanes
};

extern warp *this_warp;
extern int this_lane;

// Overlapped launches.
void dependents_launch();
void dependency_wait();

void warp_meet(const char *what, uint32_t mask);

// Brings a value to the meeting `what` and returns those of all lanes.
template <typename T> const T *exchange(const T &mine, const char *what, uint32_t mask = ~0u) {
    static_assert(sizeof(T) <= MAX_SLOT && std::is_trivially_copyable<T>::value, "");
    T *all = reinterpret_cast<T *>(this_warp->slots[this_warp->turn]);
    all[this_lane] = mine;
    warp_meet(what, mask);
    return all;
}

// Barriers of a block. threads: how many take part, 0 for all that have not returned. The result is the
// number of threads that came with a predicate that is true.
int block_meet(int barrier, int threads, bool predicate, const char *what);
void block_arrive(int barrier, int threads);

// Shared memory is addressed by 32 bits: the distance from smem, which is checked.
uint32_t shared_offset(const void *p);
void *shared_at(uint32_t at, size_t bytes, size_t alignment);

// Objects in shared memory that copies complete.
void mbarrier_init(uint32_t at, uint32_t arrivals);
void mbarrier_arrive(uint32_t at, uint32_t bytes_expected);
bool mbarrier_done(uint32_t at, uint32_t parity); // otherwise other threads run first
void mbarrier_wait(uint32_t at, uint32_t parity);

// Waits until the bits `mask` of a word of global memory, which another block changes, are `value`.
void word_wait(const uint32_t *word, uint32_t mask, uint32_t value);

// The barrier of a cluster: a thread arrives, and waits for all others that have not returned. A store to the
// shared memory of the block of this rank, which has begun and not ended, and that completes bytes of an
// mbarrier there.
void cluster_arrive();
void cluster_wait();
void cluster_store(uint32_t at, int rank, const void *value, uint32_t bytes, uint32_t mbarrier);
void cluster_arrive_at(uint32_t mbarrier, int rank); // in the same block

// Asynchronous copies: by block, completing an mbarrier; by thread, in groups.
void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t mbarrier);
void copy_cluster(uint32_t to, const void *from, uint32_t bytes, uint32_t mbarrier,
                  unsigned ranks); // a bit each
void copy_async(uint32_t to, const void *from, uint32_t bytes, uint32_t bytes_read);
void copies_commit();
void copies_wait(int groups_left);
void mbarrier_arrive_after_copies(uint32_t at);

// Of runtime.cc.
int code_version(); // what the kernels claim to be compiled for: 90, 80, …
bool device_memory_contains(const void *p, size_t bytes);
cudaError_t queue(cudaStream_t stream, std::function<void()> what);
// Checks a launch as the driver does, and queues it.
cudaError_t queue_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> body);

} // namespace simt
#endif
