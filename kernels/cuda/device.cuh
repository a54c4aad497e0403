// The PTX that the kernels use, each instruction behind one function: asynchronous copies of 16 bytes (sm_80)
// and in bulk, with their barriers (sm_90), programmatic dependent launch (sm_90; elsewhere there is nothing
// to wait for), byte permutation, matrix multiply.
#ifndef FLUTE_CUDA_DEVICE_CUH
#define FLUTE_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum { WARP = 32 };

// Where dynamic shared memory starts on compute capability 9.0, in a kernel that has no other: behind the 1
// KB that the system keeps.
enum { SHARED_BASE = 1024 };

// Ends the kernel with an error, by a store to address 0: where a trap stands anywhere in a kernel, ptxas
// gives no thread the registers that setmaxnreg promises.
__device__ __forceinline__ void give_up() {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(0ll), "r"(0) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ uint32_t load_shared(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

__device__ __forceinline__ uint2 load_shared2(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}

__device__ __forceinline__ uint4 load_shared4(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}

// The address of dynamic shared memory without its lower 16 bits, for load_table.
__device__ __forceinline__ uint32_t shared_window(const void *smem) {
    if ((shared_address(smem) & 0xffff) != SHARED_BASE) give_up();
    return shared_address(smem) & 0xffff0000;
}

// Loads from `at`, a shared_window plus an offset below 64 KB, plus OFFSET in dynamic shared memory: an
// address that needs no addition, because the instruction has one. What stands there must not change any
// more, as such loads may be moved.
template <int OFFSET> __device__ __forceinline__ uint32_t load_table(uint32_t at) {
    uint32_t v;
    asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(v) : "r"(at), "n"((int)SHARED_BASE + OFFSET));
    return v;
}

__device__ __forceinline__ uint2 load_table2(uint32_t at) {
    uint2 v;
    asm("ld.shared.v2.u32 {%0,%1}, [%2 + %3];" : "=r"(v.x), "=r"(v.y) : "r"(at), "n"((int)SHARED_BASE));
    return v;
}

__device__ __forceinline__ void store_shared2(uint32_t at, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");
}

// Activations: ordinary loads through L1, never the read-only path, because the kernel before may still be
// writing them when this one starts.
__device__ __forceinline__ uint4 load_global4(const void *p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// The same without a branch; zeros unless `inside`.
__device__ __forceinline__ uint32_t load_global_if(bool inside, const void *p) {
    uint32_t v;
    asm volatile("{\n.reg .pred p;\n"
                 "setp.ne.u32 p, %2, 0;\n"
                 "mov.u32 %0, 0;\n"
                 "@p ld.global.u32 %0, [%1];\n}"
                 : "=&r"(v)
                 : "l"(p), "r"((uint32_t)inside)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint4 load_global4_if(bool inside, const void *p) {
    uint4 v;
    asm volatile("{\n.reg .pred p;\n"
                 "setp.ne.u32 p, %5, 0;\n"
                 "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
                 "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(p), "r"((uint32_t)inside)
                 : "memory");
    return v;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Frees a slot of the ring. Every lane arrives for itself, once what it loaded has been used: `zero` must
// come out of the results, in a way that the compiler cannot see through. Arriving right behind the loads,
// before their values were back, gave sums that changed from run to run in 21 of 30 runs at four tokens, as
// if the arrival overtook the loads and the next copy changed codes that were still to be read; behind the
// use, none.
__device__ __forceinline__ void barrier_arrive_after(uint32_t barrier, uint32_t zero) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier + zero) : "memory");
}

// Arrives and says how many bytes of copies complete this phase.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ bool barrier_try(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
}

// Waits for the phase of this parity. A copy that never lands would hang the GPU for good: after a million
// tries, each of which suspends for about a microsecond, the launch fails instead.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    for (int tries = 0; !barrier_try(barrier, parity);)
        if (++tries > (1 << 20)) give_up();
}

// The same for a whole warp, which stays together: to ptxas the loop is one that cannot diverge, so that what
// is the same for all lanes may stay in uniform registers, and nothing has to bring lanes together again.
__device__ __forceinline__ void barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    for (int tries = 0; !__all_sync(~0u, barrier_try(barrier, parity));)
        if (++tries > (1 << 20)) give_up();
}

// Asynchronous copy of a multiple of 16 bytes, global to shared. Weights are read once a token and would push
// everything else out of L2, hence evict_first.
__device__ __forceinline__ void copy_weights(uint32_t to, const void *from, uint32_t bytes,
                                             uint32_t barrier) {
    asm volatile("{\n.reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], policy;\n}" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// Asynchronous copy of 16 bytes of activations, which every block of threads reads; zeros unless `inside`.
__device__ __forceinline__ void copy_activations(uint32_t to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

// Asynchronous copy of 16 bytes of weights. Without a cache policy: ptxas 13.0 makes the policy part of a
// descriptor in uniform registers, and where it is not the same for all lanes an H200 stops at an illegal
// instruction.
__device__ __forceinline__ void copy_weights16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Arrives when this thread's copy_activations so far have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Ends a group of this thread's copies of 16 bytes, none of them as yet on a barrier.
__device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most GROUPS of this thread's groups, the last ones, are still under way.
template <int GROUPS> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Lets the next kernel of the stream start as soon as there is room for it.
__device__ __forceinline__ void dependents_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before have finished and their stores can be seen.
__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first warps of a block meet; others do not take part.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// The bits of a where mask has ones, else of b. Of the same in C with a constant mask the compilers make two
// instructions.
__device__ __forceinline__ uint32_t bit_select(uint32_t mask, uint32_t a, uint32_t b) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(d) : "r"(mask), "r"(a), "r"(b));
    return d;
}

// Four matrices of 8 × 8 16-bit elements from shared memory, in fragment order: lane 8i + r says where row r
// of matrix i stands (16 bytes, aligned); lane 4g + t gets elements 2t and 2t + 1 of row g of each.
__device__ __forceinline__ uint4 load_matrix4(uint32_t at) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

// The same of the transposed matrices: lane 4g + t gets elements 2t and 2t + 1 of column g.
__device__ __forceinline__ uint4 load_matrix4_transposed(uint32_t at) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

// d (16 × 8, fp32) += a (16 × 16, bf16) · b (16 × 8, bf16)
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ptxas recomputes what looks cheap (lane numbers, addresses) in every iteration of a loop; what comes out of
// a shuffle it keeps. Worth 10 % of the instructions of the inner loop.
__device__ __forceinline__ uint32_t keep_in_register(uint32_t v) {
    return __shfl_sync(~0u, v, threadIdx.x % WARP);
}

// The same for an address in global memory, against what goes before ptxas: 16 copies a constant apart got 16
// addresses of their own, worked out from the beginning.
__device__ __forceinline__ const uint16_t *keep_in_register(const uint16_t *p) {
    asm volatile("" : "+l"(p));
    return p;
}

// The same value, which all lanes have, from a shuffle: ptxas then knows that they do, and keeps it and what
// is computed from it in uniform registers, where descriptors of wgmma must come to stand.
__device__ __forceinline__ uint32_t warp_uniform(uint32_t v) {
    return __shfl_sync(~0u, v, 0);
}

// ---- wgmma (sm_90a) and what lut_wide.cuh needs besides ----

// A B operand (tokens × k, k contiguous) in shared memory: rows of 128 bytes in groups of eight, 1024 bytes
// from group to group, 16-byte chunk c of row r at chunk c ^ (r % 8) (the 128-byte swizzle). `at` is
// 1024-aligned. The low word of its descriptor.
__device__ __forceinline__ uint32_t wgmma_base(uint32_t at) {
    return 1 << 16 | (at & 0x3ffff) >> 4;
}

// The descriptor of the operand that stands `bytes` further: 32 for each k16 step inside a row. (A sum of 64
// bits: put together of two words, ptxas moves both to where wgmma wants them, for each wgmma.)
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t base, uint32_t bytes) {
    return (((uint64_t)1 << 30 | 1024 >> 4) << 32 | base) + (bytes >> 4);
}

// Registers written so far (A operands, accumulators) come before the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `left` committed groups still run. Their A registers and B memory are free then.
template <int left> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

// Behind a wait: nothing that reads or writes these accumulators moves ahead of it.
template <int N> __device__ __forceinline__ void wgmma_settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d (64 × 2·N, fp32, this warpgroup's) = a (64 × 16, bf16, in registers) · b + d; without d when !add.
// Asynchronous: a and b must keep their values, and d is not to be touched, until a wait. Lane 4g + t of the
// i-th warp of four holds rows 16i + g and 16i + g + 8: of a as mma() does, of d columns 8j + 2t and 8j + 2t
// + 1 in d[4j..4j + 1] and d[4j + 2..4j + 3].
#define WGMMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D16(i) WGMMA_D4(i), WGMMA_D4(i + 4), WGMMA_D4(i + 8), WGMMA_D4(i + 12)
#define WGMMA_R4 "%0,%1,%2,%3"
#define WGMMA_R8 WGMMA_R4 ",%4,%5,%6,%7"
#define WGMMA_R16 WGMMA_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_R32 WGMMA_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_R64                                                                                            \
    WGMMA_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54" \
              ",%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA(n, in_d, in_a, in_b, in_add, ...)                                                              \
    asm volatile("{\n.reg .pred p;\n"                                                                        \
                 "setp.ne.b32 p, " in_add ", 0;\n"                                                           \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" in_d "}, {" in_a "}, " in_b     \
                 ", p, 1, 1, 0;\n}"                                                                          \
                 : __VA_ARGS__                                                                               \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add))

__device__ __forceinline__ void wgmma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    WGMMA("8", WGMMA_R4, "%4,%5,%6,%7", "%8", "%9", WGMMA_D4(0));
}

__device__ __forceinline__ void wgmma(float (&d)[8], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    WGMMA("16", WGMMA_R8, "%8,%9,%10,%11", "%12", "%13", WGMMA_D4(0), WGMMA_D4(4));
}

__device__ __forceinline__ void wgmma(float (&d)[16], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    WGMMA("32", WGMMA_R16, "%16,%17,%18,%19", "%20", "%21", WGMMA_D16(0));
}

__device__ __forceinline__ void wgmma(float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    WGMMA("64", WGMMA_R32, "%32,%33,%34,%35", "%36", "%37", WGMMA_D16(0), WGMMA_D16(16));
}

__device__ __forceinline__ void wgmma(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    WGMMA("128", WGMMA_R64, "%64,%65,%66,%67", "%68", "%69", WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32),
          WGMMA_D16(48));
}

#undef WGMMA

// Registers of a thread from here on, for all four warps of a warpgroup; what the producers give up the
// consumers take.
template <int registers> __device__ __forceinline__ void registers_give_up() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers> __device__ __forceinline__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// Asynchronous copy of a multiple of 16 bytes that other blocks will ask for, too.
__device__ __forceinline__ void copy_shared_by_many(uint32_t to, const void *from, uint32_t bytes,
                                                    uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// a · b of two bf16, rounded.
__device__ __forceinline__ uint32_t bf16x2_mul(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ uint32_t bf16x2_add(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// ---- Clusters (sm_90): neighbouring blocks that run at the same time and reach each other's shared memory

#if __CUDA_ARCH__ >= 900
enum { HAS_CLUSTERS = true };
#else
enum { HAS_CLUSTERS = false }; // what follows must not be called
#endif

// A thread arrives at the barrier of its cluster. Orders nothing but what barrier_init_fence does: the
// release that PTX has by default is a fence for the whole GPU.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

// Waits until all threads of the cluster that have not returned have arrived. An acquire, which empties the
// SM's L1 cache: what was loaded before and is to be loaded again comes from the L2 cache.
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// What address `at` is in the shared memory of the block of this rank; offsets from it are as from `at`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t at, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

// Stores there and counts the bytes at a barrier of the same block, both later. The block must have
// begun, and must not end before.
__device__ __forceinline__ void store_cluster(uint32_t there, float v, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there), "f"(v),
        "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void store_cluster(uint32_t there, float2 v, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            there),
        "f"(v.x), "f"(v.y), "r"(barrier)
        : "memory");
}

// Copies to `to` and counts at `barrier` in each block of the cluster whose bit of `ranks` is set, at the
// same offsets there: one read from L2 for all.
__device__ __forceinline__ void copy_to_cluster(uint32_t to, const void *from, uint32_t bytes,
                                                uint32_t barrier, uint16_t ranks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "h"(ranks)
                 : "memory");
}

// Arrives at a barrier of any block of the cluster; there: a cluster_address.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t there) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

// What blocks hand to each other goes through L2: another SM's L1 does not hear of it. The last bit of each
// float is a tag, 0 or 1, that tells new sums from those which a place held before.
__device__ __forceinline__ float4 load_partial(const float4 *p) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

__device__ __forceinline__ float with_tag(float v, uint32_t tag) {
    return __uint_as_float((__float_as_uint(v) & ~1u) | tag);
}

__device__ __forceinline__ bool has_tag(float4 v, uint32_t tag) {
    return (((__float_as_uint(v.x) ^ tag) | (__float_as_uint(v.y) ^ tag) | (__float_as_uint(v.z) ^ tag) |
             (__float_as_uint(v.w) ^ tag)) &
            1) == 0;
}

__device__ __forceinline__ void leave_partial(float4 *p, float4 v, uint32_t tag) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(with_tag(v.x, tag)),
                 "f"(with_tag(v.y, tag)), "f"(with_tag(v.z, tag)), "f"(with_tag(v.w, tag))
                 : "memory");
}

// Waits for the sums of this tag; v: what was loaded from there, then they. Gives up like barrier_wait, after
// about a second.
__device__ __forceinline__ void await_partial(const float4 *p, float4 &v, uint32_t tag) {
    for (int tries = 0; !has_tag(v, tag); v = load_partial(p))
        if (++tries > (1 << 21)) give_up();
    v = make_float4(with_tag(v.x, 0), with_tag(v.y, 0), with_tag(v.z, 0), with_tag(v.w, 0));
}

// p[0..3] += v, each a rounded sum, without waiting for the old values. p: 16-byte aligned.
__device__ __forceinline__ void add_global4(float *p, float4 v) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y),
                 "f"(v.z), "f"(v.w)
                 : "memory");
}

#endif
