// Blocks of threads as fibers (Boost.Context), and what their threads wait for. See simt.h.
#include "tests/simt/simt.h"

#include <boost/context/fiber.hpp>
#include <cxxabi.h>
#include <deque>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <memory>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "tests/simt/control.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Dynamic shared memory, and behind it a strip that nobody may touch. Kernels declare it extern __shared__.
enum { GUARD = 1024, POISON = 0xff }; // NaN in every format
alignas(1024) thread_local uint8_t smem[simt::SHARED_CAPACITY + GUARD];

namespace simt {

namespace context = boost::context;

warp *this_warp;
int this_lane;

namespace {

// Stacks are made once, each below a page that faults, and each starts at another offset: at equal ones the
// hot lines of all fibers would fall into the same sets of the caches.
enum { STACK = 64 * 1024, PAGE = 4096, STAGGER = 64 * 11 };

struct stack_pool {
    int set, index; // of the machine; of the thread
    context::stack_context allocate() const {
        static std::vector<uint8_t *> sets;
        if ((int)sets.size() <= set) sets.resize((size_t)set + 1);
        uint8_t *&all = sets[(size_t)set];
        if (!all) {
            all = (uint8_t *)mmap(nullptr, (size_t)MAX_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (all == MAP_FAILED) stop("no memory for stacks");
            for (int i = 0; i < MAX_THREADS; i++) mprotect(all + (size_t)i * (STACK + PAGE), PAGE, PROT_NONE);
        }
        context::stack_context stack;
        stack.size = STACK - (size_t)(index % 12) * STAGGER;
        stack.sp = all + (size_t)index * (STACK + PAGE) + PAGE + stack.size;
        return stack;
    }
    void deallocate(context::stack_context &) const {}
};

struct copy {
    uint32_t to, bytes, bytes_read;
    const void *from;
};

struct thread {
    context::fiber fiber;
    uint3 index;
    const char *waits_for;     // in words
    uint32_t mbarrier, parity; // that it waits for, when it does
    unsigned cluster_phase;    // that it has arrived in
    std::vector<copy> copies;
    std::deque<std::vector<copy>> groups;
};

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

// The barrier of a cluster: threads of its blocks, those that have arrived in this phase, those that have
// returned.
struct cluster {
    unsigned threads, arrived, returned, phase;
};

enum { BARRIERS = 16 };

int n_machines;

struct machine {
    int stacks = n_machines++;
    const launch *what;
    long number; // of the launch
    context::fiber scheduler;
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

// Two, because a block of the kernel behind may have begun. m is the one that runs.
machine machines[2], *m = machines;
// Blocks that wait for flags of others of the same kernel, and machines for more of them; whether one has
// seen what it waits for.
std::deque<std::unique_ptr<machine>> parked, spare;
bool woken;
std::map<std::pair<long, unsigned>, cluster> clusters; // by launch and number
const launch *next_launch; // the kernel behind, if it may overlap the one that runs
uint64_t random_state, seed = 1;
long n_launches;

// splitmix64 (Steele, Lea, Flood 2014)
uint32_t random_below(uint32_t n) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(((z ^ z >> 31) >> 32) * n >> 32);
}

int warp_number() {
    return (int)(this_warp - m->warps.get());
}
thread &this_thread() {
    return m->threads[warp_number() * LANES + this_lane];
}

// Messages.

// Static kernels have no name here: addr2line -f tells it from the offset in the program.
std::string kernel_name() {
    Dl_info info = {};
    dladdr(m->what->kernel, &info);
    if (!info.dli_sname) {
        char text[64];
        snprintf(text, sizeof text, "kernel at offset %#zx",
                 (size_t)((uintptr_t)m->what->kernel - (uintptr_t)info.dli_fbase));
        return text;
    }
    int status;
    char *clear = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    const std::string name = status == 0 ? clear : info.dli_sname;
    free(clear);
    return name;
}

std::string state_of(int i) {
    const warp &w = m->warps[i / LANES];
    const uint32_t lane = 1u << i % LANES;
    if (!(w.live & lane)) return "has returned";
    if (w.ready & lane) return "can run";
    if (!(w.at_mbarrier & lane)) return m->threads[i].waits_for ? m->threads[i].waits_for : "runs";
    char text[64];
    snprintf(text, sizeof text, "waits for parity %u of the mbarrier at %#x", m->threads[i].parity,
             m->threads[i].mbarrier);
    return text;
}

void print_states() {
    for (int i = 0, from = 0; i < m->n_threads; i++) {
        if (i + 1 < m->n_threads && state_of(i) == state_of(i + 1)) continue;
        fprintf(stderr, "    warp %d lane %d to warp %d lane %d: %s\n", from / LANES, from % LANES, i / LANES,
                i % LANES, state_of(i).c_str());
        from = i + 1;
    }
    for (int i = 0; i < BARRIERS; i++)
        if (m->barriers[i].arrived > 0)
            fprintf(stderr, "    barrier %d: %d of %d threads have come\n", i, m->barriers[i].arrived,
                    m->barriers[i].wanted ? m->barriers[i].wanted : m->live);
}

} // namespace

void stop(const char *format, ...) {
    fflush(stdout);
    fprintf(stderr, "simt: ");
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    if (m->what) {
        fprintf(stderr, "simt: in %s, block (%u, %u, %u)", kernel_name().c_str(), m->block.x, m->block.y,
                m->block.z);
        if (this_warp)
            fprintf(stderr, ", thread (%u, %u, %u): warp %d, lane %d", threadIdx.x, threadIdx.y, threadIdx.z,
                    warp_number(), this_lane);
        fprintf(stderr, "\n");
        print_states();
    }
    abort();
}

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

} // namespace

// Scheduling.

namespace {

// Back to the scheduler, until somebody makes this lane ready.
void suspend(const char *what) {
    this_thread().waits_for = what;
    m->scheduler = std::move(m->scheduler).resume();
}

void release_block_barrier(barrier &b) {
    b.result = b.count;
    b.arrived = b.count = b.wanted = 0;
    for (int i = 0; i < m->n_warps; i++) m->warps[i].ready |= b.waiting[i], b.waiting[i] = 0;
}

unsigned block_number() {
    const dim3 &grid = m->what->grid;
    return (m->block.z * grid.y + m->block.y) * grid.x + m->block.x;
}

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

context::fiber thread_main(context::fiber &&from) {
    m->scheduler = std::move(from);
    m->what->body();
    this_warp->live &= ~(1u << this_lane);
    m->live--;
    cluster &c = this_cluster();
    c.returned++;
    cluster_update(c);
    barrier &b = m->barriers[0]; // those that have returned are not waited for
    if (b.arrived > 0 && b.wanted == 0 && b.arrived == m->live) release_block_barrier(b);
    return std::move(m->scheduler);
}

void set_builtins() {
    threadIdx = this_thread().index, blockIdx = m->block;
    blockDim = m->what->block, gridDim = m->what->grid;
}

void resume(warp &w, int number, int lane) {
    thread &t = m->threads[number * LANES + lane];
    w.ready &= ~(1u << lane);
    this_warp = &w, this_lane = lane;
    set_builtins();
    if (!t.fiber)
        t.fiber =
            context::fiber(std::allocator_arg, stack_pool{m->stacks, number * LANES + lane}, thread_main);
    t.waits_for = nullptr;
    t.fiber = std::move(t.fiber).resume();
}

bool land_one();

void prepare_block() {
    m->live = m->n_threads;
    m->landings.clear();
    for (int i = 0; i < m->n_threads; i++) {
        thread &t = m->threads[i];
        const unsigned x = m->what->block.x, y = m->what->block.y, n = (unsigned)i;
        t.index = {n % x, n / x % y, n / x / y};
        t.waits_for = nullptr;
        t.copies.clear(), t.groups.clear();
    }
    for (int i = 0; i < m->n_warps; i++) {
        warp &w = m->warps[i];
        const int lanes = m->n_threads - i * LANES;
        w.turn = 0, w.meeting = nullptr, w.met = w.at_mbarrier = w.at_dependency = w.at_others = 0;
        w.all = w.live = w.ready = lanes < LANES ? (1u << lanes) - 1 : ~0u;
    }
    // Any order is right for a kernel that is; each block gets another one.
    m->first_warp = (int)random_below((uint32_t)m->n_warps);
    m->warps_backward = random_below(2), m->lanes_backward = random_below(2);
    memset(m->barriers, 0, sizeof m->barriers);
    memset(smem, POISON, m->what->shared + GUARD);
}

void check_end_of_block() {
    this_warp = nullptr;
    for (const landing &l : m->landings)
        if (l.is_bulk) stop("the block has ended while a bulk copy is in flight");
    for (size_t i = 0; i < GUARD; i++)
        if (smem[m->what->shared + i] != POISON)
            stop("byte %zu of shared memory was written, of %zu", m->what->shared + i, m->what->shared);
}

void run_ready() {
    for (bool ran = true; ran;) {
        ran = false;
        for (int i = 0; i < m->n_warps; i++) {
            const int number = (m->first_warp + (m->warps_backward ? m->n_warps - i : i)) % m->n_warps;
            warp &w = m->warps[number];
            for (; w.ready; ran = true)
                resume(w, number, m->lanes_backward ? 31 - __builtin_clz(w.ready) : __builtin_ctz(w.ready));
        }
    }
}

// Whether another block may wake this one: by a word, or, of its cluster, by what it stores.
bool waits_for_others() {
    for (int i = 0; i < m->n_warps; i++)
        if (m->warps[i].at_others || (m->what->cluster > 1 && m->warps[i].at_mbarrier)) return true;
    return false;
}

// Lets those go on that may have been woken.
void look_again() {
    for (int i = 0; i < m->n_warps; i++) {
        warp &w = m->warps[i];
        w.ready |= w.at_others, w.at_others = 0;
        for (uint32_t left = w.at_mbarrier; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            const thread &t = m->threads[i * LANES + lane];
            if (mbarrier_at(t.mbarrier).parity == t.parity) continue;
            w.at_mbarrier &= ~(1u << lane), w.ready |= 1u << lane;
            woken = true;
        }
    }
}

// False: the block waits for others.
bool finish_block() {
    for (run_ready(); m->live > 0; run_ready())
        if (!land_one()) {
            this_warp = nullptr;
            if (waits_for_others()) return false;
            stop("deadlock: %d threads wait, and nothing can wake them", m->live);
        }
    check_end_of_block();
    return true;
}

void begin(const launch &what, long number) {
    m->what = &what, m->number = number;
    m->n_threads = (int)(what.block.x * what.block.y * what.block.z);
    m->n_warps = (m->n_threads + LANES - 1) / LANES;
    m->launches_dependents = false;
}

unsigned n_blocks(const launch &what) {
    return what.grid.x * what.grid.y * what.grid.z;
}

void set_block(unsigned number) {
    const dim3 &grid = m->what->grid;
    m->block = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
}

// Overlapped launches. When the last block of a kernel calls dependents_launch, a block of the kernel behind
// begins, and goes on until its threads have to wait: for the kernel ahead, if they are right.

// The thread-local memory of the program, where static shared memory lies.
int find_program(dl_phdr_info *info, size_t, void *found) {
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
            uint8_t *at = (uint8_t *)info->dlpi_tls_data;
            *(std::pair<uint8_t *, uint8_t *> *)found = {at, at + info->dlpi_phdr[i].p_memsz};
        }
    return 1; // the program comes first
}

// Copies what a block has of shared memory to m->shared, or back.
void swap_out_shared(bool out) {
    std::pair<uint8_t *, uint8_t *> all = {smem, smem};
    dl_iterate_phdr(find_program, &all);
    const std::pair<uint8_t *, uint8_t *> parts[] = {
        {all.first, smem}, {smem, smem + m->what->shared + GUARD}, {smem + sizeof smem, all.second}};
    if (out) m->shared.clear();
    const uint8_t *from = m->shared.data();
    for (const auto &part : parts) {
        const ptrdiff_t bytes = part.second - part.first;
        if (bytes <= 0) continue;
        if (out)
            m->shared.insert(m->shared.end(), part.first, part.second);
        else
            memcpy(part.first, from, (size_t)bytes), from += bytes;
    }
}

void start_next() {
    machine *const ahead = m, *const behind = &machines[m == machines];
    warp *const caller_warp = this_warp;
    const int caller_lane = this_lane;
    swap_out_shared(true);
    m = behind;
    begin(*next_launch, n_launches);
    next_launch = nullptr;
    m->is_early = true, m->is_last = false;
    set_block(random_below(n_blocks(*m->what)));
    prepare_block();
    run_ready();
    swap_out_shared(true);
    m = ahead;
    swap_out_shared(false);
    this_warp = caller_warp, this_lane = caller_lane;
    if (this_warp) set_builtins();
}

// Puts the block that waits aside. On a GPU it keeps its SM.
void park_block() {
    int n_sms = 0;
    cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0);
    if ((int)parked.size() >= n_sms)
        stop("more blocks than the %d SMs wait for each other: some may never start", n_sms);
    swap_out_shared(true);
    if (spare.empty()) spare.emplace_back(new machine()); // zeros
    parked.push_back(std::move(spare.back()));
    spare.pop_back();
    std::swap(*parked.back(), *m);
    begin(*parked.back()->what, parked.back()->number);
    m->is_early = false;
}

// Lets each block that was put aside look again.
void try_parked_blocks() {
    for (size_t n = parked.size(); n > 0; n--) {
        std::unique_ptr<machine> block = std::move(parked.front());
        parked.pop_front();
        std::swap(*block, *m);
        spare.push_back(std::move(block));
        swap_out_shared(false);
        look_again();
        if (!finish_block()) park_block();
    }
}

void finish_parked_blocks() {
    while (!parked.empty()) {
        woken = false;
        try_parked_blocks();
        if (!woken) stop("deadlock: %zu blocks wait for others that never come", parked.size());
    }
}

// Lets a block that has begun early go on.
void end_early() {
    swap_out_shared(false);
    m->is_early = false;
    for (int i = 0; i < m->n_warps; i++) {
        warp &w = m->warps[i];
        w.ready |= w.at_dependency, w.at_dependency = 0;
    }
}

} // namespace

void run(const launch &what, const launch *next) {
    if (this_warp) stop("a kernel launches another one");
    const long number = n_launches++;
    random_state = seed + (uint64_t)number;
    const unsigned n = n_blocks(what), size = what.cluster;
    unsigned first = random_below(n);
    const bool has_begun = machines[0].what || machines[1].what;
    m = &machines[machines[1].what != nullptr];
    if (has_begun)
        first = block_number();
    else
        begin(what, number);
    next_launch = next;
    for (unsigned i = 0; i < n; i++) {
        m->is_last = i == n - 1;
        if (i == 0 && has_begun) {
            end_early();
            if (m->is_last && m->launches_dependents && next_launch) start_next();
        } else {
            set_block((first / size + i / size) % (n / size) * size + (first + i) % size);
            prepare_block();
        }
        if (!finish_block()) park_block();
        if (size > 1 && i % size == size - 1) finish_parked_blocks();
    }
    finish_parked_blocks();
    for (unsigned i = 0; i < n / size; i++) clusters.erase({number, i});
    m->what = nullptr;
}

void dependents_launch() {
    if (code_version() < 90) return; // its kernels do not overlap
    m->launches_dependents = true;
    if (m->is_last && next_launch) start_next();
}

void dependency_wait() {
    if (!m->is_early) return;
    this_warp->at_dependency |= 1u << this_lane;
    suspend("dependency_wait");
}

// Meetings.

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

// Shared memory. Static objects lie near smem, because both are thread-local.

uint32_t shared_offset(const void *p) {
    return (uint32_t)((const uint8_t *)p - smem);
}

void *shared_at(uint32_t at, size_t bytes, size_t alignment) {
    const int64_t offset = (int32_t)at;
    const bool is_static = offset < 0 || offset >= SHARED_CAPACITY + GUARD;
    if (at % alignment) stop("shared memory at %#x: not aligned to %zu", at, alignment);
    if (is_static ? offset < -(1 << 20) || offset > 1 << 20 : (size_t)offset + bytes > m->what->shared)
        stop("shared memory at %#x: %zu bytes there are outside of the %zu of the block", at, bytes,
             m->what->shared);
    return smem + offset;
}

// mbarriers.

namespace {

// Ends the phase when nothing is missing, and wakes those that wait for it.
void mbarrier_update(mbarrier &b, uint32_t at) {
    if (b.pending > 0 || b.bytes != 0) return;
    b.pending = b.expected, b.parity ^= 1;
    for (int i = 0; i < m->n_warps; i++)
        for (uint32_t left = m->warps[i].at_mbarrier; left; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            if (m->threads[i * LANES + lane].mbarrier != at) continue;
            m->warps[i].at_mbarrier &= ~(1u << lane), m->warps[i].ready |= 1u << lane;
        }
}

void mbarrier_count(uint32_t at, int arrivals, int64_t bytes) {
    mbarrier &b = mbarrier_at(at);
    if (b.pending < (unsigned)arrivals)
        stop("mbarrier at %#x: more arrivals than the %u of a phase", at, (unsigned)b.expected);
    if (b.bytes + bytes >= 1 << 20 || b.bytes + bytes <= -(1 << 20))
        stop("mbarrier at %#x: too many bytes in one phase", at);
    b.pending -= (unsigned)arrivals, b.bytes += bytes;
    mbarrier_update(b, at);
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

// One of those in flight, any: they land in no order.
bool land_one() {
    if (m->landings.empty()) return false;
    const size_t i = random_below((uint32_t)m->landings.size());
    const landing l = std::move(m->landings[i]);
    m->landings.erase(m->landings.begin() + (ptrdiff_t)i);
    land(l);
    return true;
}

void check_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t bytes_read) {
    if (to % 16 || (uintptr_t)from % 16 || bytes % 16 || bytes == 0)
        stop("a copy of %u bytes from %p to %#x: not aligned to 16", bytes, from, to);
    shared_at(to, bytes, 16);
    if (bytes_read && !device_memory_contains(from, bytes_read))
        stop("a copy of %u bytes from %p: not in device memory", bytes_read, from);
}

} // namespace

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
    if (mbarrier_at(at).parity != parity) return true;
    this_thread().mbarrier = at, this_thread().parity = parity;
    this_warp->at_mbarrier |= 1u << this_lane;
    suspend("mbarrier");
    return mbarrier_at(at).parity != parity;
}

void mbarrier_wait(uint32_t at, uint32_t parity) {
    while (!mbarrier_done(at, parity)) {}
}

void word_wait(const uint32_t *word, uint32_t empty) {
    while (*word == empty) {
        this_warp->at_others |= 1u << this_lane;
        suspend("waits for a word of another block");
    }
    woken = true;
}

// Clusters. A block that waits for its neighbours makes way like one that waits for a word.

void cluster_arrive() {
    cluster &c = this_cluster();
    this_thread().cluster_phase = c.phase;
    c.arrived++;
    cluster_update(c);
}

void cluster_wait() {
    while (this_cluster().phase == this_thread().cluster_phase) {
        this_warp->at_others |= 1u << this_lane;
        suspend("waits for its cluster");
    }
    woken = true;
}

// The parked machine whose block has this number.
static machine *parked_machine(unsigned wanted) {
    machine *const running = m;
    machine *found = nullptr;
    for (const std::unique_ptr<machine> &block : parked) {
        m = block.get();
        if (block_number() == wanted) found = m;
    }
    m = running;
    return found;
}

void cluster_store(uint32_t at, int rank, const void *value, uint32_t bytes, uint32_t at_mbarrier) {
    uint8_t *const own = (uint8_t *)shared_at(at, bytes, bytes);
    if (at >= SHARED_CAPACITY || at_mbarrier >= SHARED_CAPACITY)
        stop("a cluster shares dynamic shared memory alone"); // here, not on a GPU
    const unsigned blocks = m->what->cluster, mine = block_number();
    if (rank < 0 || rank >= (int)blocks) stop("a cluster of %u blocks has no rank %d", blocks, rank);
    const unsigned wanted = mine / blocks * blocks + (unsigned)rank;
    if (wanted == mine) {
        memcpy(own, value, bytes);
        mbarrier_count(at_mbarrier, 0, -(int64_t)bytes);
        return;
    }
    machine *const there = parked_machine(wanted);
    if (!there) stop("block %u of the cluster has not begun, or has ended", wanted);
    std::pair<uint8_t *, uint8_t *> all = {smem, smem};
    dl_iterate_phdr(find_program, &all);
    uint8_t *const its_smem = there->shared.data() + (smem - all.first);
    memcpy(its_smem + at, value, bytes);
    mbarrier &b = *(mbarrier *)(its_smem + at_mbarrier);
    if (b.sign != MBARRIER_SIGN)
        stop("shared memory at %#x of block %u holds no mbarrier", at_mbarrier, wanted);
    b.bytes -= bytes;
    if (b.pending == 0 && b.bytes == 0) b.pending = b.expected, b.parity ^= 1;
}

// Copies. Whether one happens at once or as late as it may is drawn: the first finds memory that is still
// being read, the second results that nobody waited for.

void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t at) {
    check_copy(to, from, bytes, bytes);
    mbarrier_at(at);
    const landing l = {{{to, bytes, bytes, from}}, at, true};
    if (random_below(2))
        land(l);
    else
        m->landings.push_back(l);
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

void simt_set_seed(unsigned seed) {
    simt::seed = (uint64_t)seed << 32 | 1;
}
long simt_launches(void) {
    return simt::n_launches;
}
