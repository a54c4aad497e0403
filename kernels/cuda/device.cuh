// The PTX that the kernels use, each instruction behind one function: asynchronous copies and their barriers
// (sm_90), programmatic dependent launch (sm_90), byte permutation, matrix multiply.
#ifndef FLUTE_CUDA_DEVICE_CUH
#define FLUTE_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum { WARP = 32 };

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
// tries, each of which suspends for about a microsecond, the kernel traps and the launch fails instead.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    for (int tries = 0; !barrier_try(barrier, parity);)
        if (++tries > (1 << 20)) __trap();
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

// Arrives when this thread's copy_activations so far have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Ends a group of this thread's copy_activations, none of them as yet on a barrier.
__device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most GROUPS of this thread's groups, the last ones, are still under way.
template <int GROUPS> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Lets the next kernel of the stream start as soon as there is room for it.
__device__ __forceinline__ void dependents_launch() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Waits until the kernels before have finished and their stores can be seen.
__device__ __forceinline__ void dependency_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
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

#endif
