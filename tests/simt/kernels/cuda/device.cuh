// The emulator's twin of the real kernels/cuda/device.cuh, which it shadows on the include path: the same
// functions, by their description in the PTX manual. tests/simt/test_twins.sh compares the declarations of
// the two.
#ifndef FLUTE_CUDA_DEVICE_CUH
#define FLUTE_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum { WARP = 32 };

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return simt::shared_offset(p);
}

__device__ __forceinline__ uint32_t load_shared(uint32_t at) {
    return *(const uint32_t *)simt::shared_at(at, 4, 4);
}

__device__ __forceinline__ uint2 load_shared2(uint32_t at) {
    return *(const uint2 *)simt::shared_at(at, 8, 8);
}

__device__ __forceinline__ uint4 load_shared4(uint32_t at) {
    return *(const uint4 *)simt::shared_at(at, 16, 16);
}

__device__ __forceinline__ uint4 load_global4(const void *p) {
    if ((uintptr_t)p % 16) simt::stop("load_global4 from %p: not aligned to 16", p);
    return *(const uint4 *)p;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    simt::mbarrier_init(barrier, (uint32_t)arrivals);
}

__device__ __forceinline__ void barrier_init_fence() {}

__device__ __forceinline__ void barrier_arrive_after(uint32_t barrier, uint32_t zero) {
    simt::mbarrier_arrive(barrier + zero, 0);
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    simt::mbarrier_arrive(barrier, bytes);
}

__device__ __forceinline__ bool barrier_try(uint32_t barrier, uint32_t parity) {
    return simt::mbarrier_done(barrier, parity);
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    while (!barrier_try(barrier, parity)) {}
}

__device__ __forceinline__ void copy_weights(uint32_t to, const void *from, uint32_t bytes,
                                             uint32_t barrier) {
    simt::copy_bulk(to, from, bytes, barrier);
}

__device__ __forceinline__ void copy_activations(uint32_t to, const void *from, bool inside) {
    simt::copy_async(to, from, 16, inside ? 16 : 0);
}

__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {
    simt::mbarrier_arrive_after_copies(barrier);
}

__device__ __forceinline__ void copies_commit() {
    simt::copies_commit();
}

template <int GROUPS> __device__ __forceinline__ void copies_wait() {
    simt::copies_wait(GROUPS);
}

// Kernels of a stream do not overlap here.
__device__ __forceinline__ void dependents_launch() {}

__device__ __forceinline__ void dependency_wait() {}

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    simt::block_meet(id, threads, false, "barrier_sync");
}

__device__ __forceinline__ uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}

namespace simt {

struct matrix_row { // of eight 16-bit elements
    uint16_t at[8];
};

// Lane 8i + r brings row r of matrix i; lane 4g + t takes two elements of each: 2t and 2t + 1 of row g, or of
// column g where `transposed`.
inline uint4 load_matrices(uint32_t at, bool transposed, const char *what) {
    const matrix_row *rows = exchange(*(const matrix_row *)shared_at(at, 16, 16), what);
    const int g = this_lane / 4, t = this_lane % 4;
    uint32_t v[4];
    for (int i = 0; i < 4; i++, rows += 8)
        v[i] = transposed ? rows[2 * t].at[g] | (uint32_t)rows[2 * t + 1].at[g] << 16
                          : rows[g].at[2 * t] | (uint32_t)rows[g].at[2 * t + 1] << 16;
    return make_uint4(v[0], v[1], v[2], v[3]);
}

struct mma_operands { // of a lane, in float
    float a[4][2], b[2][2];
};

inline void unpack_bf16(uint32_t v, float (&to)[2]) {
    to[0] = __uint_as_float(v << 16), to[1] = __uint_as_float(v & 0xffff0000u);
}

} // namespace simt

__device__ __forceinline__ uint4 load_matrix4(uint32_t at) {
    return simt::load_matrices(at, false, "load_matrix4");
}

__device__ __forceinline__ uint4 load_matrix4_transposed(uint32_t at) {
    return simt::load_matrices(at, true, "load_matrix4_transposed");
}

// Lane 4g + t holds of A (16 × 16) rows g and g + 8 (odd registers), columns 2t and 2t + 1, and 8 more
// (registers 2 and 3); of B (16 × 8) column g, rows likewise; of D (16 × 8) rows g and g + 8, columns 2t and
// 2t + 1.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
    simt::mma_operands mine;
    simt::unpack_bf16(a0, mine.a[0]), simt::unpack_bf16(a1, mine.a[1]);
    simt::unpack_bf16(a2, mine.a[2]), simt::unpack_bf16(a3, mine.a[3]);
    simt::unpack_bf16(b0, mine.b[0]), simt::unpack_bf16(b1, mine.b[1]);
    const simt::mma_operands *all = simt::exchange(mine, "mma");
    const int g = simt::this_lane / 4, t = simt::this_lane % 4;
    for (int half = 0; half < 2; half++) // of the columns of A
        for (int k = 0; k < 8; k++)
            for (int i = 0; i < 4; i++) {
                const float a = all[g * 4 + k / 2].a[half * 2 + i / 2][k % 2];
                const float b = all[(2 * t + i % 2) * 4 + k / 2].b[half][k % 2];
                d[i] += a * b;
            }
}

__device__ __forceinline__ uint32_t keep_in_register(uint32_t v) {
    return __shfl_sync(~0u, v, (int)threadIdx.x % WARP);
}

#endif
