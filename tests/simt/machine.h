// What the parts of the emulator's core share: the block that runs, its threads and what they wait for.
// machine.cc runs the threads, in barrier.cc they wait for each other, in copy.cc for copies.
#ifndef FLUTE_SIMT_MACHINE_H
#define FLUTE_SIMT_MACHINE_H

#include <boost/context/fiber.hpp>
#include <deque>
#include <memory>
#include <vector>

#include "tests/simt/simt.h"

namespace simt {

struct copy {
    uint32_t to, bytes, bytes_read;
    const void *from;
};

struct thread {
    boost::context::fiber fiber;
    uint3 index;
    const char *waits_for;     // in words
    uint32_t mbarrier, parity; // that it waits for, when it does
    unsigned cluster_phase;    // that it has arrived in
    bool cluster_arrived;      // and not waited for
    std::vector<copy> copies;
    std::deque<std::vector<copy>> groups;
};

enum { BARRIERS = 16 };

struct barrier {
    int arrived, wanted, count; // threads here, expected (0: all); those with a true predicate
    int result;
    uint32_t waiting[MAX_THREADS / LANES];
};

// What lands later: a copy that completes bytes of an mbarrier, or a thread's own copies before it arrives.
struct landing {
    std::vector<copy> copies;
    uint32_t mbarrier;
    bool is_bulk;
};

struct machine {
    static inline int n_machines;
    int stacks = n_machines++; // number of its set
    const launch *what;
    long number; // of the launch
    boost::context::fiber scheduler;
    uint3 block;
    int n_threads, n_warps, live;
    std::unique_ptr<thread[]> threads{new thread[MAX_THREADS]};
    std::unique_ptr<warp[]> warps{new warp[MAX_THREADS / LANES]};
    barrier barriers[BARRIERS];
    std::deque<landing> landings;
    int first_warp; // the order of this block
    bool warps_backward, lanes_backward;
    bool is_last, is_early;      // block; kernel, while the one ahead is not done
    bool launches_dependents;    // has been called
    std::vector<uint8_t> shared; // memory, while the other machine runs
};

extern machine *m; // that runs
extern bool woken; // a block that waited for others has seen what it waits for

// machine.cc
uint32_t random_below(uint32_t n);
int warp_number();
thread &this_thread();
unsigned block_number();
// Back to the scheduler, until somebody makes this lane ready. what: the thread waits for, in words.
void suspend(const char *what);
// Dynamic shared memory of a block of this grid, the running one or one put aside; null: there is none of
// this number.
uint8_t *block_shared(unsigned block);

// barrier.cc
// The thread has returned: those of its block and of its cluster do not wait for it.
void leave_barriers();
// A launch of this number has ended, whose grid was n clusters.
void forget_clusters(long number, unsigned n);

// copy.cc
// Whether this phase of an mbarrier is over.
bool mbarrier_passed(uint32_t at, uint32_t parity);
// Lets one of the copies in flight land, any: they land in no order. False: there is none.
bool land_one();

} // namespace simt
#endif
