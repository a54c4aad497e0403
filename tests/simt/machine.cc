// Blocks of threads as fibers (Boost.Context), and the order in which they run. See simt.h.
#include "tests/simt/machine.h"

#include <algorithm>
#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <sys/mman.h>

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

machine machines[2]; // two, because a block of the kernel behind may have begun
// Blocks that wait for flags of others of the same kernel, and machines for more of them.
std::deque<std::unique_ptr<machine>> parked, spare;
const launch *next_launch; // the kernel behind, if it may overlap the one that runs
uint64_t random_state, seed = 1;
long n_launches;

} // namespace

machine *m = machines;
bool woken;

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

unsigned block_number() {
    const dim3 &grid = m->what->grid;
    return (m->block.z * grid.y + m->block.y) * grid.x + m->block.x;
}

void suspend(const char *what) {
    this_thread().waits_for = what;
    m->scheduler = std::move(m->scheduler).resume();
}

// Messages.

namespace {

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

// Scheduling.

namespace {

context::fiber thread_main(context::fiber &&from) {
    m->scheduler = std::move(from);
    m->what->body();
    this_warp->live &= ~(1u << this_lane);
    m->live--;
    leave_barriers();
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

void prepare_block() {
    m->live = m->n_threads;
    m->landings.clear();
    for (int i = 0; i < m->n_threads; i++) {
        thread &t = m->threads[i];
        const unsigned x = m->what->block.x, y = m->what->block.y, n = (unsigned)i;
        t.index = {n % x, n / x % y, n / x / y};
        t.waits_for = nullptr, t.cluster_arrived = false;
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
            if (!mbarrier_passed(t.mbarrier, t.parity)) continue;
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

// Blocks that an SM of Hopper runs at the same time, if registers suffice.
int blocks_of_sm(const launch &what) {
    enum { SM_SHARED = 228 << 10, RESERVED = 1 << 10, SM_THREADS = 2048, SM_BLOCKS = 32 };
    const int by_shared = (int)(SM_SHARED / (what.shared + RESERVED)), by_threads = SM_THREADS / m->n_threads;
    return std::min({by_shared, by_threads, (int)SM_BLOCKS});
}

// Puts the block that waits aside. On a GPU it keeps its place on an SM.
void park_block() {
    int n_sms = 0;
    cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0);
    if ((int)parked.size() >= n_sms * blocks_of_sm(*m->what))
        stop("more blocks than run on %d SMs wait for each other: some may never start", n_sms);
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

// As far as they get.
void continue_parked_blocks() {
    for (woken = true; woken && !parked.empty();) {
        woken = false;
        try_parked_blocks();
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
        if (size > 1 && i % size == size - 1) continue_parked_blocks();
    }
    continue_parked_blocks();
    if (!parked.empty()) stop("deadlock: %zu blocks wait for others that never come", parked.size());
    forget_clusters(number, n / size);
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

uint8_t *block_shared(unsigned number) {
    machine *const running = m;
    uint8_t *found = block_number() == number ? smem : nullptr;
    std::pair<uint8_t *, uint8_t *> all = {smem, smem};
    dl_iterate_phdr(find_program, &all);
    for (const std::unique_ptr<machine> &block : parked) {
        m = block.get();
        if (block_number() == number) found = m->shared.data() + (smem - all.first);
    }
    m = running;
    return found;
}

} // namespace simt

void simt_set_seed(unsigned seed) {
    simt::seed = (uint64_t)seed << 32 | 1;
}
long simt_launches(void) {
    return simt::n_launches;
}
