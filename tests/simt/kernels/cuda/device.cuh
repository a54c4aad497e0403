// The emulator's twin of the real kernels/cuda/device.cuh, which it shadows on the include path: the same
// functions, by their description in the PTX manual. tests/simt/test_twins.sh compares the declarations of
// the two.
#ifndef FLUTE_CUDA_DEVICE_CUH
#define FLUTE_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <deque>
#include <stdint.h>
#include <vector>

enum { WARP = 32 };

__device__ __forceinline__ void give_up() {
    simt::stop("give_up");
}

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

// Here addresses start at dynamic shared memory.
__device__ __forceinline__ uint32_t shared_window(const void *smem) {
    if (shared_address(smem) != 0) simt::stop("shared_window: not the start of dynamic shared memory");
    return 0;
}

template <int OFFSET> __device__ __forceinline__ uint32_t load_table(uint32_t at) {
    return load_shared(at + OFFSET);
}

__device__ __forceinline__ uint2 load_table2(uint32_t at) {
    return load_shared2(at);
}

__device__ __forceinline__ void store_shared2(uint32_t at, float2 v) {
    *(float2 *)simt::shared_at(at, 8, 8) = v;
}

__device__ __forceinline__ uint4 load_global4(const void *p) {
    if ((uintptr_t)p % 16) simt::stop("load_global4 from %p: not aligned to 16", p);
    return *(const uint4 *)p;
}

__device__ __forceinline__ uint32_t load_global_if(bool inside, const void *p) {
    return inside ? *(const uint32_t *)p : 0;
}

__device__ __forceinline__ uint4 load_global4_if(bool inside, const void *p) {
    return inside ? load_global4(p) : make_uint4(0, 0, 0, 0);
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

__device__ __forceinline__ void barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    barrier_wait(barrier, parity);
}

__device__ __forceinline__ void copy_weights(uint32_t to, const void *from, uint32_t bytes,
                                             uint32_t barrier) {
    simt::copy_bulk(to, from, bytes, barrier);
}

__device__ __forceinline__ void copy_activations(uint32_t to, const void *from, bool inside) {
    simt::copy_async(to, from, 16, inside ? 16 : 0);
}

__device__ __forceinline__ void copy_weights16(uint32_t to, const void *from) {
    simt::copy_async(to, from, 16, 16);
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

__device__ __forceinline__ void dependents_launch() {
    simt::dependents_launch();
}

__device__ __forceinline__ void dependency_wait() {
    simt::dependency_wait();
}

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    simt::block_meet(id, threads, false, "barrier_sync");
}

__device__ __forceinline__ uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}

__device__ __forceinline__ uint32_t bit_select(uint32_t mask, uint32_t a, uint32_t b) {
    return (a & mask) | (b & ~mask);
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

// Four values along k, 2t, 2t + 1, 2t + 8 and 2t + 9: what lane 4g + t holds of a row of A or a column of B.
typedef float float_quad __attribute__((vector_size(16)));

struct mma_operands {
    float_quad a[2], b; // rows g and g + 8, column g
};

inline float_quad unpack_bf16(uint32_t low, uint32_t high) {
    return float_quad{__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u),
                      __uint_as_float(high << 16), __uint_as_float(high & 0xffff0000u)};
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
    const simt::mma_operands mine = {{simt::unpack_bf16(a0, a2), simt::unpack_bf16(a1, a3)},
                                     simt::unpack_bf16(b0, b1)};
    const simt::mma_operands *all = simt::exchange(mine, "mma");
    const simt::mma_operands *rows = all + simt::this_lane / 4 * 4, *columns = all + simt::this_lane % 4 * 8;
    for (int i = 0; i < 4; i++) {
        simt::float_quad sum = {};
        for (int t = 0; t < 4; t++) sum += rows[t].a[i / 2] * columns[i % 2 * 4 + t].b;
        d[i] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

__device__ __forceinline__ uint32_t keep_in_register(uint32_t v) {
    return __shfl_sync(~0u, v, (int)threadIdx.x % WARP);
}

__device__ __forceinline__ const uint16_t *keep_in_register(const uint16_t *p) {
    return p;
}

__device__ __forceinline__ uint32_t warp_uniform(uint32_t v) {
    return __shfl_sync(~0u, v, 0);
}

// ---- wgmma (sm_90a) and what lut_wide.cuh needs besides ----

__device__ __forceinline__ uint32_t wgmma_base(uint32_t at) {
    return 1 << 16 | (at & 0x3ffff) >> 4;
}

__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t base, uint32_t bytes) {
    return ((uint64_t)1 << 30 | 1024 >> 4) << 32 | (base + (bytes >> 4));
}

namespace simt {

// The B operand that a matrix descriptor describes (PTX ISA, "Matrix descriptor" and "Strides" of wgmma),
// K-major: bits 0 to 13, 16 to 29 and 32 to 45 are the start address, leading and stride byte offset, each
// without its last four bits; 49 to 51 the base offset; 62 and 63 the swizzle. In the 128-byte swizzle a
// group of eight rows is 8 × 128 bytes, groups are a stride byte offset apart, and the leading one does not
// matter; bits 4 to 6 of an address are exchanged by those xor bits 7 to 9.
struct wgmma_operand {
    uint64_t descriptor;
    float at(int n, int k) const {
        const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
        const uint32_t linear = start + n / 8 * stride + n % 8 * 128 + k * 2;
        return __uint_as_float((uint32_t) * (const uint16_t *)shared_at(linear ^ (linear >> 7 & 7) << 4, 2, 2)
                               << 16);
    }
    void check() const {
        if (descriptor >> 62 != 1 || descriptor >> 49 & 7 || descriptor & 0x3ff1c000c000c000ull)
            stop("wgmma: descriptor %#llx is not one of the 128-byte swizzle",
                 (unsigned long long)descriptor);
        if ((descriptor & 0x3f) + 1 >= 8)
            stop("wgmma: the operand does not start in the first row of a group");
    }
};

// What a lane has started: its share of A, and where its sums go. B is read, and sums change, when somebody
// waits; B must still be what it was at the start.
struct wgmma_started {
    float *d;
    int n;
    uint32_t a[4];
    wgmma_operand b;
    int add;
    uint64_t b_hash;
};

inline std::vector<wgmma_started> wgmma_open[MAX_THREADS];               // not committed
inline std::deque<std::vector<wgmma_started>> wgmma_groups[MAX_THREADS]; // committed
inline bool wgmma_fenced[MAX_THREADS];

inline void split_bf16(uint32_t v, float (&to)[2]) {
    to[0] = __uint_as_float(v << 16), to[1] = __uint_as_float(v & 0xffff0000u);
}

inline uint64_t wgmma_hash(const wgmma_operand &b, int n) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 16; k++) hash = (hash ^ __float_as_uint(b.at(i, k))) * 1099511628211u;
    return hash;
}

inline void wgmma_start(float *d, int n, const uint32_t (&a)[4], uint64_t b, int add) {
    const unsigned me = threadIdx.x;
    if (!wgmma_fenced[me]) stop("wgmma without a wgmma_fence since registers were written");
    const wgmma_started w = {d, n, {a[0], a[1], a[2], a[3]}, {b}, add, 0};
    const uint64_t *all = exchange(b ^ (uint64_t)(add != 0) << 15, "wgmma");
    for (int i = 0; i < LANES; i++)
        if (all[i] != all[this_lane]) stop("wgmma: lanes bring different descriptors");
    w.b.check();
    wgmma_open[me].push_back(w);
    if (this_lane == 0) wgmma_open[me].back().b_hash = wgmma_hash(w.b, n);
}

inline void wgmma_perform(const wgmma_started &w) {
    if (this_lane == 0 && wgmma_hash(w.b, w.n) != w.b_hash) stop("wgmma: B changed while it was being read");
    struct fragment {
        float a[4][2];
    } mine;
    for (int i = 0; i < 4; i++) split_bf16(w.a[i], mine.a[i]);
    const fragment *all = exchange(mine, "wgmma_wait");
    const int g = this_lane / 4, t = this_lane % 4;
    for (int j = 0; j < w.n / 2; j++) { // row g or g + 8, column 8 · (j / 4) + 2t or 2t + 1
        const int high = j / 2 % 2, column = j / 4 * 8 + 2 * t + j % 2;
        float sum = w.add ? w.d[j] : 0.0f;
        for (int k = 0; k < 16; k++)
            sum += all[g * 4 + k % 8 / 2].a[k / 8 * 2 + high][k % 2] * w.b.at(column, k);
        w.d[j] = sum;
    }
}

} // namespace simt

__device__ __forceinline__ void wgmma_fence() {
    simt::wgmma_fenced[threadIdx.x] = true;
}

__device__ __forceinline__ void wgmma_commit() {
    simt::wgmma_groups[threadIdx.x].push_back(std::move(simt::wgmma_open[threadIdx.x]));
    simt::wgmma_open[threadIdx.x].clear();
    simt::wgmma_fenced[threadIdx.x] = false;
}

template <int left> __device__ __forceinline__ void wgmma_wait() {
    std::deque<std::vector<simt::wgmma_started>> &groups = simt::wgmma_groups[threadIdx.x];
    for (; (int)groups.size() > left; groups.pop_front())
        for (const simt::wgmma_started &w : groups.front()) simt::wgmma_perform(w);
}

template <int N> __device__ __forceinline__ void wgmma_settle(float (&d)[N]) {
    (void)d;
}

__device__ __forceinline__ void wgmma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    simt::wgmma_start(d, 8, {a0, a1, a2, a3}, b, add);
}

__device__ __forceinline__ void wgmma(float (&d)[8], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    simt::wgmma_start(d, 16, {a0, a1, a2, a3}, b, add);
}

__device__ __forceinline__ void wgmma(float (&d)[16], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    simt::wgmma_start(d, 32, {a0, a1, a2, a3}, b, add);
}

__device__ __forceinline__ void wgmma(float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    simt::wgmma_start(d, 64, {a0, a1, a2, a3}, b, add);
}

__device__ __forceinline__ void wgmma(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint64_t b, int add) {
    simt::wgmma_start(d, 128, {a0, a1, a2, a3}, b, add);
}

template <int registers> __device__ __forceinline__ void registers_give_up() {}

template <int registers> __device__ __forceinline__ void registers_take() {}

__device__ __forceinline__ void copy_shared_by_many(uint32_t to, const void *from, uint32_t bytes,
                                                    uint32_t barrier) {
    simt::copy_bulk(to, from, bytes, barrier);
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    simt::mbarrier_arrive(barrier, 0);
}

namespace simt {

// Rounds once: first to odd, to 24 bits, which decides no tie.
inline uint16_t bf16_of(double v) {
    float f = (float)v;
    if ((double)f != v) {
        uint32_t bits = __float_as_uint(f);
        if (fabs((double)f) > fabs(v)) bits--;
        f = __uint_as_float(bits | 1);
    }
    return bf16_from_float(f);
}

template <typename F> inline uint32_t bf16x2_each(uint32_t a, uint32_t b, uint32_t c, F f) {
    float x[2], y[2], z[2];
    split_bf16(a, x), split_bf16(b, y), split_bf16(c, z);
    return bf16_of(f((double)x[0], (double)y[0], (double)z[0])) |
           (uint32_t)bf16_of(f((double)x[1], (double)y[1], (double)z[1])) << 16;
}

} // namespace simt

__device__ __forceinline__ uint32_t bf16x2_mul(uint32_t a, uint32_t b) {
    return simt::bf16x2_each(a, b, 0, [](double x, double y, double) { return x * y; });
}

__device__ __forceinline__ uint32_t bf16x2_add(uint32_t a, uint32_t b) {
    return simt::bf16x2_each(a, b, 0, [](double x, double y, double) { return x + y; });
}

enum { HAS_CLUSTERS = true };

__device__ __forceinline__ void cluster_arrive() {
    simt::cluster_arrive();
}

__device__ __forceinline__ void cluster_wait() {
    simt::cluster_wait();
}

__device__ __forceinline__ uint32_t cluster_address(uint32_t at, int rank) {
    return at | (uint32_t)rank << 24;
}

template <typename T> static void store_there(uint32_t there, T v, uint32_t barrier) {
    if (there >> 24 != barrier >> 24) simt::stop("store_cluster: the barrier is in another block");
    simt::cluster_store(there & 0xffffff, (int)(there >> 24), &v, sizeof v, barrier & 0xffffff);
}

__device__ __forceinline__ void store_cluster(uint32_t there, float v, uint32_t barrier) {
    store_there(there, v, barrier);
}
__device__ __forceinline__ void store_cluster(uint32_t there, float2 v, uint32_t barrier) {
    store_there(there, v, barrier);
}

__device__ __forceinline__ void copy_to_cluster(uint32_t to, const void *from, uint32_t bytes,
                                                uint32_t barrier, uint16_t ranks) {
    simt::copy_cluster(to, from, bytes, barrier, ranks);
}

__device__ __forceinline__ void barrier_arrive_cluster(uint32_t there) {
    simt::cluster_arrive_at(there & 0xffffff, (int)(there >> 24));
}

__device__ __forceinline__ float4 load_partial(const float4 *p) {
    return *p;
}

__device__ __forceinline__ float with_tag(float v, uint32_t tag) {
    return __uint_as_float((__float_as_uint(v) & ~1u) | tag);
}

__device__ __forceinline__ bool has_tag(float4 v, uint32_t tag) {
    const float floats[] = {v.x, v.y, v.z, v.w};
    for (float f : floats)
        if ((__float_as_uint(f) & 1) != tag) return false;
    return true;
}

__device__ __forceinline__ void leave_partial(float4 *p, float4 v, uint32_t tag) {
    if (tag > 1) simt::stop("leave_partial: a tag of %u", tag);
    *p = make_float4(with_tag(v.x, tag), with_tag(v.y, tag), with_tag(v.z, tag), with_tag(v.w, tag));
}

__device__ __forceinline__ void await_partial(const float4 *p, float4 &v, uint32_t tag) {
    const uint32_t *words = (const uint32_t *)p;
    for (int i = 0; i < 4; i++) simt::word_wait(words + i, 1, tag);
    v = make_float4(with_tag(p->x, 0), with_tag(p->y, 0), with_tag(p->z, 0), with_tag(p->w, 0));
}

__device__ __forceinline__ void add_global4(float *p, float4 v) {
    if ((uintptr_t)p % 16) simt::stop("add_global4 to %p: not aligned to 16", (void *)p);
    p[0] += v.x, p[1] += v.y, p[2] += v.z, p[3] += v.w;
}

#endif
