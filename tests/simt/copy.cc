// Asynchronous copies to shared memory, and the mbarriers there that they complete.
#include "tests/simt/machine.h"

namespace simt {

// mbarriers.

namespace {

// In the eight bytes that the object has in shared memory.
struct mbarrier {
    uint64_t sign : 2; // tells one that was initialized from poison and data
    uint64_t parity : 1;
    uint64_t expected : 20, pending : 20; // arrivals
    int64_t bytes : 21;                   // of copies that have not landed
};
static_assert(sizeof(mbarrier) == 8, "");
enum { MBARRIER_SIGN = 2 };

mbarrier &mbarrier_at(uint32_t at) {
    mbarrier &b = *(mbarrier *)shared_at(at, 8, 8);
    if (b.sign != MBARRIER_SIGN) stop("shared memory at %#x holds no initialized mbarrier", at);
    return b;
}

// Wakes those of the running block that wait for it.
void mbarrier_wake(uint32_t at) {
    for (int i = 0; i < m->n_warps; i++)
        for (uint32_t left = m->warps[i].at_mbarrier; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            if (m->threads[i * LANES + lane].mbarrier != at) continue;
            m->warps[i].at_mbarrier &= ~(1u << lane), m->warps[i].ready |= 1u << lane;
        }
}

// Of any block; true when the phase ends, as nothing is missing.
bool mbarrier_update(mbarrier &b, uint32_t at, int arrivals, int64_t bytes) {
    if (b.pending < (unsigned)arrivals)
        stop("mbarrier at %#x: more arrivals than the %u of a phase", at, (unsigned)b.expected);
    if (b.bytes + bytes >= 1 << 20 || b.bytes + bytes <= -(1 << 20))
        stop("mbarrier at %#x: too many bytes in one phase", at);
    b.pending -= (unsigned)arrivals, b.bytes += bytes;
    if (b.pending > 0 || b.bytes != 0) return false;
    b.pending = b.expected, b.parity ^= 1;
    return true;
}

void mbarrier_count(uint32_t at, int arrivals, int64_t bytes) {
    if (mbarrier_update(mbarrier_at(at), at, arrivals, bytes)) mbarrier_wake(at);
}

void perform(const copy &c) {
    void *to = shared_at(c.to, c.bytes, 16);
    memset(to, 0, c.bytes);
    memcpy(to, c.from, c.bytes_read);
}

void land(const landing &l) {
    int64_t bytes = 0;
    for (const copy &c : l.copies) perform(c), bytes += c.bytes;
    mbarrier_count(l.mbarrier, l.is_bulk ? 0 : 1, l.is_bulk ? -bytes : 0);
}

void check_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t bytes_read) {
    if (to % 16 || (uintptr_t)from % 16 || bytes % 16 || bytes == 0)
        stop("a copy of %u bytes from %p to %#x: not aligned to 16", bytes, from, to);
    shared_at(to, bytes, 16);
    if (bytes_read && !device_memory_contains(from, bytes_read))
        stop("a copy of %u bytes from %p: not in device memory", bytes_read, from);
}

} // namespace

bool mbarrier_passed(uint32_t at, uint32_t parity) {
    return mbarrier_at(at).parity != parity;
}

void mbarrier_init(uint32_t at, uint32_t arrivals) {
    mbarrier *b = (mbarrier *)shared_at(at, 8, 8);
    if (code_version() < 90) stop("an mbarrier in code for %d", code_version());
    memset(b, 0, sizeof *b);
    b->sign = MBARRIER_SIGN, b->expected = b->pending = arrivals;
}

void mbarrier_arrive(uint32_t at, uint32_t bytes_expected) {
    mbarrier_at(at).bytes += bytes_expected;
    mbarrier_count(at, 1, 0);
}

bool mbarrier_done(uint32_t at, uint32_t parity) {
    if (mbarrier_passed(at, parity)) return true;
    this_thread().mbarrier = at, this_thread().parity = parity;
    this_warp->at_mbarrier |= 1u << this_lane;
    suspend("mbarrier");
    return mbarrier_passed(at, parity);
}

void mbarrier_wait(uint32_t at, uint32_t parity) {
    while (!mbarrier_done(at, parity)) {}
}

// What is at this place in dynamic shared memory of the block of this rank.
static uint8_t *cluster_memory(uint32_t at, int rank) {
    const unsigned blocks = m->what->cluster, first = block_number() / blocks * blocks;
    if (rank < 0 || rank >= (int)blocks) stop("a cluster of %u blocks has no rank %d", blocks, rank);
    if (at >= SHARED_CAPACITY) stop("a cluster shares dynamic shared memory alone"); // here, not on a GPU
    uint8_t *const memory = block_shared(first + (unsigned)rank);
    if (!memory) stop("block %u of the cluster has not begun, or has ended", first + (unsigned)rank);
    return memory + at;
}

// Whoever waits for it in another block looks again when that goes on.
static void cluster_count(uint32_t at, int rank, int arrivals, int64_t bytes) {
    mbarrier &b = *(mbarrier *)cluster_memory(at, rank);
    if (b.sign != MBARRIER_SIGN)
        stop("shared memory at %#x of rank %d holds no initialized mbarrier", at, rank);
    const bool own = block_number() % m->what->cluster == (unsigned)rank;
    if (mbarrier_update(b, at, arrivals, bytes) && own) mbarrier_wake(at);
}

void cluster_store(uint32_t at, int rank, const void *value, uint32_t bytes, uint32_t at_mbarrier) {
    shared_at(at, bytes, bytes < 16 ? bytes : 16);
    memcpy(cluster_memory(at, rank), value, bytes);
    cluster_count(at_mbarrier, rank, 0, -(int64_t)bytes);
}

void cluster_arrive_at(uint32_t at_mbarrier, int rank) {
    cluster_count(at_mbarrier, rank, 1, 0);
}

// Copies. Whether one happens at once or as late as it may is drawn: the first finds memory that is still
// being read, the second results that nobody waited for.

bool land_one() {
    if (m->landings.empty()) return false;
    const size_t i = random_below((uint32_t)m->landings.size());
    const landing l = std::move(m->landings[i]);
    m->landings.erase(m->landings.begin() + (ptrdiff_t)i);
    land(l);
    return true;
}

void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t at) {
    check_copy(to, from, bytes, bytes);
    mbarrier_at(at);
    const landing l = {{{to, bytes, bytes, from}}, at, true};
    if (random_below(2))
        land(l);
    else
        m->landings.push_back(l);
}

void copy_cluster(uint32_t to, const void *from, uint32_t bytes, uint32_t at, unsigned ranks) {
    check_copy(to, from, bytes, bytes);
    const unsigned mine = block_number() % m->what->cluster;
    for (unsigned rank = 0; ranks >> rank; rank++)
        if (rank != mine && ranks >> rank & 1) cluster_store(to, (int)rank, from, bytes, at);
    if (ranks >> mine & 1) copy_bulk(to, from, bytes, at);
}

void copy_async(uint32_t to, const void *from, uint32_t bytes, uint32_t bytes_read) {
    check_copy(to, from, bytes, bytes_read);
    const copy c = {to, bytes, bytes_read, from};
    if (random_below(2))
        perform(c);
    else
        this_thread().copies.push_back(c);
}

void copies_commit() {
    thread &t = this_thread();
    t.groups.push_back(std::move(t.copies));
    t.copies.clear();
}

void copies_wait(int groups_left) {
    thread &t = this_thread();
    for (; (int)t.groups.size() > groups_left; t.groups.pop_front())
        for (const copy &c : t.groups.front()) perform(c);
}

void mbarrier_arrive_after_copies(uint32_t at) {
    thread &t = this_thread();
    mbarrier_at(at);
    landing l = {{}, at, false};
    for (const std::vector<copy> &group : t.groups)
        l.copies.insert(l.copies.end(), group.begin(), group.end());
    l.copies.insert(l.copies.end(), t.copies.begin(), t.copies.end());
    t.groups.clear(), t.copies.clear();
    m->landings.push_back(std::move(l));
}

} // namespace simt
