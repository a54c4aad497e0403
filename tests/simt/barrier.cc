// Where threads wait for each other: meetings of a warp, barriers of a block and of a cluster, words.
#include "tests/simt/machine.h"

#include <map>

namespace simt {

// Warps.

void warp_meet(const char *what, uint32_t mask) {
    warp &w = *this_warp;
    if ((mask & w.all) != w.all)
        stop("%s with mask %#x: the emulator knows only meetings of whole warps", what, mask);
    if (w.met && strcmp(w.meeting, what) != 0)
        stop("the warp diverges: this lane is at %s, lanes %#x are at %s", what, w.met, w.meeting);
    w.meeting = what;
    w.met |= 1u << this_lane;
    if (w.met == w.all) {
        w.ready |= w.met & ~(1u << this_lane);
        w.met = 0, w.turn ^= 1;
    } else
        suspend(what);
}

// Blocks.

static void release_block_barrier(barrier &b) {
    b.result = b.count;
    b.arrived = b.count = b.wanted = 0;
    for (int i = 0; i < m->n_warps; i++) m->warps[i].ready |= b.waiting[i], b.waiting[i] = 0;
}

static barrier &barrier_numbered(int id, int threads) {
    if (id < 0 || id >= BARRIERS) stop("there is no barrier %d", id);
    if (threads % LANES || threads < 0 || threads > m->n_threads)
        stop("barrier %d of %d threads, in a block of %d", id, threads, m->n_threads);
    barrier &b = m->barriers[id];
    if (b.arrived > 0 && b.wanted != threads)
        stop("barrier %d: this thread expects %d threads, those before %d", id, threads, b.wanted);
    b.wanted = threads;
    return b;
}

// Counts the thread in; true when it was the last.
static bool arrive(barrier &b, bool predicate) {
    b.arrived++, b.count += predicate;
    return b.arrived == (b.wanted ? b.wanted : m->live);
}

int block_meet(int id, int threads, bool predicate, const char *what) {
    barrier &b = barrier_numbered(id, threads);
    if (arrive(b, predicate))
        release_block_barrier(b);
    else {
        b.waiting[warp_number()] |= 1u << this_lane;
        suspend(what);
    }
    // Nobody comes to the barrier's next end before every thread of this one has read the result: they all
    // take part in it.
    return b.result;
}

void block_arrive(int id, int threads) {
    barrier &b = barrier_numbered(id, threads);
    if (arrive(b, false)) release_block_barrier(b);
}

// Words and clusters. A block that waits for others makes way.

static void suspend_for_others(const char *what) {
    this_warp->at_others |= 1u << this_lane;
    suspend(what);
}

void word_wait(const uint32_t *word, uint32_t mask, uint32_t value) {
    while ((*word & mask) != value) suspend_for_others("waits for a word of another block");
    woken = true;
}

namespace {

// The barrier of a cluster: threads of its blocks, those that have arrived in this phase, those that have
// returned.
struct cluster {
    unsigned threads, arrived, returned, phase;
};

std::map<std::pair<long, unsigned>, cluster> clusters; // by launch and number

cluster &this_cluster() {
    const unsigned blocks = m->what->cluster;
    cluster &c = clusters[{m->number, block_number() / blocks}];
    c.threads = blocks * (unsigned)m->n_threads;
    return c;
}

// Ends the phase of a cluster's barrier when nobody is missing.
void cluster_update(cluster &c) {
    if (c.arrived > 0 && c.arrived + c.returned == c.threads) c.arrived = 0, c.phase++;
}

} // namespace

void cluster_arrive() {
    cluster &c = this_cluster();
    this_thread().cluster_phase = c.phase, this_thread().cluster_arrived = true;
    c.arrived++;
    cluster_update(c);
}

void cluster_wait() {
    while (this_cluster().phase == this_thread().cluster_phase) suspend_for_others("waits for its cluster");
    this_thread().cluster_arrived = false;
    woken = true;
}

void forget_clusters(long number, unsigned n) {
    for (unsigned i = 0; i < n; i++) clusters.erase({number, i});
}

void leave_barriers() {
    cluster &c = this_cluster();
    if (this_thread().cluster_arrived) // would it count twice? PTX does not say
        stop("a thread has arrived at the barrier of its cluster and returns without a wait");
    c.returned++;
    cluster_update(c);
    barrier &b = m->barriers[0];
    if (b.arrived > 0 && b.wanted == 0 && b.arrived == m->live) release_block_barrier(b);
}

} // namespace simt
