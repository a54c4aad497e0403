// The emulated machine: what its instructions compute, that missing barriers show, and that it names what is
// wrong with a kernel instead of hanging.
#include "tests/simt/test_simt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// Warps.

enum { WARP_RESULTS = 12 };

static __global__ void warp_kernel(int *out) {
    const int lane = (int)threadIdx.x;
    out += lane * WARP_RESULTS;
    out[0] = __shfl_sync(~0u, lane * 10, lane / 2);
    out[1] = __shfl_xor_sync(~0u, lane, 5);
    out[2] = __shfl_up_sync(~0u, lane, 3);
    out[3] = __shfl_down_sync(~0u, lane, 3, 8);
    out[4] = (int)__ballot_sync(~0u, lane % 3 == 0);
    out[5] = __any_sync(~0u, lane == 31) + 2 * __any_sync(~0u, 0);
    out[6] = __all_sync(~0u, lane < 32) + 2 * __all_sync(~0u, lane < 31);
    out[7] = __reduce_add_sync(~0u, lane);
    out[8] = __reduce_max_sync(~0u, lane ^ 9) - __reduce_min_sync(~0u, lane - 4);
    out[9] = (int)__shfl_sync(~0u, (double)lane, 7);
    out[10] = (int)(__shfl_xor_sync(~0u, (uint64_t)lane << 40, 1) >> 40);
    out[11] = (int)__match_any_sync(~0u, lane % 8);
}

static void test_warp_functions(void **) {
    device_array<int> out(32 * WARP_RESULTS);
    assert_int_equal(launch(warp_kernel, 1, 32, 0, out.data), cudaSuccess);
    const std::vector<int> v = out.read();
    for (int lane = 0; lane < 32; lane++) {
        const int *at = &v[(size_t)lane * WARP_RESULTS];
        assert_int_equal(at[0], lane / 2 * 10);
        assert_int_equal(at[1], lane ^ 5);
        assert_int_equal(at[2], lane < 3 ? lane : lane - 3);
        assert_int_equal(at[3], lane % 8 < 5 ? lane + 3 : lane);
        assert_int_equal(at[4], 0x49249249);
        assert_int_equal(at[5], 1);
        assert_int_equal(at[6], 1);
        assert_int_equal(at[7], 496);
        assert_int_equal(at[8], 31 + 4);
        assert_int_equal(at[9], 7);
        assert_int_equal(at[10], lane ^ 1);
        assert_int_equal(at[11], 0x01010101 << lane % 8);
    }
}

static __global__ void mma_kernel(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *d) {
    const int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    float sums[4] = {1, 1, 1, 1};
    auto pair = [](const __nv_bfloat16 *at) { return *(const uint32_t *)at; };
    const __nv_bfloat16 *top = a + g * 16 + 2 * t, *bottom = top + 8 * 16, *column = b + g * 16 + 2 * t;
    mma(sums, pair(top), pair(bottom), pair(top + 8), pair(bottom + 8), pair(column), pair(column + 8));
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

static void test_mma(void **) {
    std::vector<__nv_bfloat16> a(16 * 16), b(8 * 16); // b: columns
    for (int i = 0; i < 16 * 16; i++) a[(size_t)i] = (float)(i * 7 % 13 - 6);
    for (int i = 0; i < 8 * 16; i++) b[(size_t)i] = (float)(i * 5 % 11 - 5) * 0.25f;
    device_array<__nv_bfloat16> on_a(a), on_b(b);
    device_array<float> d(16 * 8);
    assert_int_equal(launch(mma_kernel, 1, 32, 0, on_a.data, on_b.data, d.data), cudaSuccess);
    const std::vector<float> v = d.read();
    for (size_t row = 0; row < 16; row++)
        for (size_t column = 0; column < 8; column++) {
            float sum = 1;
            for (size_t k = 0; k < 16; k++) sum += (float)a[row * 16 + k] * (float)b[column * 16 + k];
            assert_true(v[row * 8 + column] == sum);
        }
}

// d (64 × 16) = 1 + a (64 × 64) · bᵀ (16 × 64) by four steps of k = 16. wrong: 1, B changes under way; 2, no
// fence.
static __global__ void wgmma_kernel(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *d, int wrong) {
    extern __shared__ __align__(1024) uint8_t smem[];
    uint8_t *const tile = smem + 1024;
    const int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    for (int i = (int)threadIdx.x; i < 16 * 8; i += 128) { // chunk i % 8 of row i / 8, swizzled
        const int row = i / 8, chunk = i % 8;
        *(uint4 *)(tile + row * 128 + (chunk ^ row % 8) * 16) = *(const uint4 *)(b + row * 64 + chunk * 8);
    }
    __syncthreads();
    float sums[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    auto pair = [](const __nv_bfloat16 *at) { return *(const uint32_t *)at; };
    if (wrong != 2) wgmma_fence();
    for (uint32_t k = 0; k < 4; k++) {
        const __nv_bfloat16 *top = a + (warp * 16 + g) * 64 + k * 16 + 2 * t, *bottom = top + 8 * 64;
        wgmma(sums, pair(top), pair(bottom), pair(top + 8), pair(bottom + 8),
              wgmma_descriptor(wgmma_base(shared_address(tile)), k * 32), 1);
    }
    wgmma_commit();
    if (wrong == 1) *(uint32_t *)tile = 0;
    wgmma_wait<0>();
    wgmma_settle(sums);
    for (int i = 0; i < 8; i++) d[(warp * 16 + g + i / 2 % 2 * 8) * 16 + i / 4 * 8 + 2 * t + i % 2] = sums[i];
}

static void run_wgmma(const std::vector<__nv_bfloat16> &a, const std::vector<__nv_bfloat16> &b, int wrong,
                      std::vector<float> *v) {
    device_array<__nv_bfloat16> on_a(a), on_b(b);
    device_array<float> d(64 * 16);
    assert_int_equal(launch(wgmma_kernel, 1, 128, 1024 + 2048, on_a.data, on_b.data, d.data, wrong),
                     cudaSuccess);
    *v = d.read();
}

static void test_wgmma(void **) {
    std::vector<__nv_bfloat16> a(64 * 64), b(16 * 64);
    for (size_t i = 0; i < a.size(); i++) a[i] = (float)((int)(i * 7 % 13) - 6);
    for (size_t i = 0; i < b.size(); i++) b[i] = (float)((int)(i * 5 % 11) - 5) * 0.25f;
    std::vector<float> v;
    run_wgmma(a, b, 0, &v);
    for (size_t row = 0; row < 64; row++)
        for (size_t column = 0; column < 16; column++) {
            float sum = 1;
            for (size_t k = 0; k < 64; k++) sum += (float)a[row * 64 + k] * (float)b[column * 64 + k];
            assert_true(v[row * 16 + column] == sum);
        }
}

static void run_wrong_wgmma(int wrong) {
    std::vector<float> v;
    run_wgmma(std::vector<__nv_bfloat16>(64 * 64, 1.0f), std::vector<__nv_bfloat16>(16 * 64, 1.0f), wrong,
              &v);
}

// Every block takes what the one behind it has left, the last one nothing, adds two and leaves that; silent:
// nobody leaves anything.
static __global__ void partials_kernel(float4 *partials, uint32_t tag, bool silent) {
    float4 v = make_float4(0, 0, 0, 0), *const mine = partials + blockIdx.x * 64 + threadIdx.x;
    if (blockIdx.x + 1 < gridDim.x) v = load_partial(mine + 64), await_partial(mine + 64, v, tag);
    if (!silent) leave_partial(mine, make_float4(v.x + 2, v.y + 2, v.z + 2, v.w + 2), tag);
}

static void run_partials(int n_blocks, bool silent, size_t shared = 0) {
    simt_set_sms(4);
    device_array<uint32_t> partials(std::vector<uint32_t>((size_t)n_blocks * 256, 0));
    for (uint32_t use = 0; use < 3; use++) { // of the same places
        const uint32_t tag = (use + 1) % 2;
        assert_int_equal(launch(partials_kernel, n_blocks, 64, shared, (float4 *)partials.data, tag, silent),
                         cudaSuccess);
        const std::vector<uint32_t> v = partials.read();
        for (int i = 0; i < n_blocks * 256; i++)
            assert_int_equal(v[(size_t)i], __float_as_uint(2.0f * (float)(n_blocks - i / 256)) | tag);
    }
}

static void test_blocks_that_wait(void **) {
    run_partials(4, false);
}

static __global__ void matrices_kernel(uint32_t *out) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const int lane = (int)threadIdx.x;
    for (int i = 0; i < 8; i++)
        ((uint16_t *)smem)[lane * 8 + i] = (uint16_t)(lane * 8 + i); // matrix, row, column
    __syncwarp();
    const uint4 v = load_matrix4(shared_address(smem) + (uint32_t)lane * 16);
    const uint4 w = load_matrix4_transposed(shared_address(smem) + (uint32_t)lane * 16);
    *(uint4 *)(out + lane * 8) = v;
    *(uint4 *)(out + lane * 8 + 4) = w;
}

static void test_load_matrix(void **) {
    device_array<uint32_t> out(32 * 8);
    assert_int_equal(launch(matrices_kernel, 1, 32, 1024, out.data), cudaSuccess);
    const std::vector<uint32_t> v = out.read();
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t g = lane / 4, t = lane % 4, at = i * 64 + g * 8 + 2 * t,
                           across = i * 64 + 2 * t * 8 + g;
            assert_int_equal(v[lane * 8 + i], at | (at + 1) << 16);
            assert_int_equal(v[lane * 8 + 4 + i], across | (across + 8) << 16);
        }
}

static void test_bits_and_numbers(void **) {
    assert_int_equal(__byte_perm(0x33221100, 0x77665544, 0x7250), 0x77225500);
    assert_int_equal(__byte_perm(0x00008000, 0, 0x9998), 0xffffff00);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__float2bfloat16_rn(1.00390625f).bits, 0x3f80); // a tie, to even
    assert_int_equal(__float2bfloat16_rn(1.01171875f).bits, 0x3f82);
    assert_int_equal(__float2half_rn(65519.0f).bits, 0x7bff);
    assert_true(__half22float2(__floats2half2_rn(0.5f, -2.0f)).y == -2.0f);
    assert_true(__half22float2(__floats2half2_rn(3, 5) * __floats2half2_rn(7, 9) - __float2half2_rn(1)).y ==
                44.0f);
    unsigned counter = 2;
    assert_int_equal(atomicInc(&counter, 2), 2);
    assert_int_equal(atomicInc(&counter, 2), 0);
    assert_int_equal(atomicMax(&counter, 7u), 1);
    assert_int_equal(atomicCAS(&counter, 7u, 9u), 7);
    assert_int_equal(counter, 9);
}

// Blocks.

static __global__ void block_kernel(int *out) {
    __shared__ int turned[80];
    const int i = (int)threadIdx.x, n = (int)blockDim.x;
    turned[n - 1 - i] = i;
    const int odd = __syncthreads_count(i % 2);
    out[blockIdx.x * blockDim.x + threadIdx.x] = turned[i] * 1000 + odd;
    if (i % 2) return;
    __syncthreads(); // those that have returned are not waited for
    if (i == 0) out[blockIdx.x * blockDim.x] += 500;
}

static void test_block_with_a_partial_warp(void **) {
    device_array<int> out(3 * 80);
    assert_int_equal(launch(block_kernel, 3, 80, 0, out.data), cudaSuccess);
    const std::vector<int> v = out.read();
    for (size_t i = 0; i < v.size(); i++)
        assert_int_equal(v[i], (int)(79 - i % 80) * 1000 + 40 + (i % 80 == 0 ? 500 : 0));
}

// Every thread reads what one of another warp, or of its own, has written; wait: for that.
static __global__ void exchange_kernel(int *out, int distance, bool wait) {
    __shared__ int numbers[64];
    numbers[threadIdx.x] = (int)blockIdx.x * 64 + (int)threadIdx.x;
    if (wait) __syncthreads();
    out[blockIdx.x * 64 + (threadIdx.x ^ (unsigned)distance)] = numbers[threadIdx.x ^ (unsigned)distance];
}

static bool exchange_is_right(int distance, bool wait) {
    device_array<int> out(8 * 64);
    assert_int_equal(launch(exchange_kernel, 8, 64, 0, out.data, distance, wait), cudaSuccess);
    const std::vector<int> v = out.read();
    bool right = true;
    for (size_t i = 0; i < v.size(); i++) right = right && v[i] == (int)i;
    return right;
}

static void test_missing_barriers_show(void **) {
    for (int distance : {1, 32}) {
        assert_true(exchange_is_right(distance, true));
        assert_false(exchange_is_right(distance, false));
    }
}

// 8 stages of 512 bytes through a ring of two; a producer warp and 32 consumers. forget: the wait for data.
static __global__ void ring_kernel(const uint8_t *from, uint32_t *out, bool forget) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const uint32_t full = shared_address(smem), empty = full + 16, ring = full + 128;
    if (threadIdx.x == 32)
        for (uint32_t s = 0; s < 2; s++) barrier_init(full + s * 8, 1), barrier_init(empty + s * 8, 32);
    __syncthreads();
    if (threadIdx.x > 32) return;
    for (uint32_t n = 0; n < 8; n++) {
        const uint32_t s = n % 2, parity = n / 2 % 2;
        if (threadIdx.x == 32) {
            if (n >= 2) barrier_wait(empty + s * 8, parity ^ 1);
            barrier_expect(full + s * 8, 512);
            copy_weights(ring + s * 512, from + n * 512, 512, full + s * 8);
        } else {
            if (!forget || n < 7) barrier_wait(full + s * 8, parity);
            out[n * 32 + threadIdx.x] = load_shared4(ring + s * 512 + threadIdx.x * 16).x;
            if (n < 6) barrier_arrive_after(empty + s * 8, 0);
        }
    }
    if (threadIdx.x == 32) barrier_wait(full + 8, 1); // the last copy has landed
}

static bool ring_is_right(bool forget) {
    std::vector<uint8_t> bytes(8 * 512);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = (uint8_t)(i / 16);
    device_array<uint8_t> from(bytes);
    device_array<uint32_t> out(8 * 32);
    bool right = true;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(launch(ring_kernel, 1, 64, 128 + 1024, from.data, out.data, forget), cudaSuccess);
        const std::vector<uint32_t> v = out.read();
        for (size_t k = 0; k < v.size(); k++) right = right && v[k] == k % 256 * 0x01010101u;
    }
    return right;
}

static void test_ring_of_bulk_copies(void **) {
    assert_true(ring_is_right(false));
    assert_false(ring_is_right(true));
}

// Two groups of copies by each thread; `left` of them may be missing when it reads.
template <int LEFT> static __global__ void groups_kernel(const uint4 *from, uint32_t *out) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const uint32_t at = shared_address(smem) + threadIdx.x * 32;
    copy_activations(at, from + threadIdx.x, true);
    copies_commit();
    copy_activations(at + 16, from + threadIdx.x, threadIdx.x % 2);
    copies_commit();
    copies_wait<LEFT>();
    out[threadIdx.x * 2] = load_shared4(at).w;
    out[threadIdx.x * 2 + 1] = load_shared4(at + 16).w;
}

static void count_right(const std::vector<uint32_t> &v, int *first, int *second) {
    for (uint32_t i = 0; i < 32; i++)
        *first += v[i * 2] == i * 4 + 3, *second += v[i * 2 + 1] == (i % 2 ? i * 4 + 3 : 0);
}

static void test_groups_of_copies(void **) {
    std::vector<uint4> words(32);
    for (uint32_t i = 0; i < 32; i++) words[i] = make_uint4(i * 4, i * 4 + 1, i * 4 + 2, i * 4 + 3);
    device_array<uint4> from(words);
    device_array<uint32_t> out(64);
    int first = 0, second = 0;
    assert_int_equal(launch(groups_kernel<0>, 1, 32, 1024, from.data, out.data), cudaSuccess);
    count_right(out.read(), &first, &second);
    assert_int_equal(first, 32);
    assert_int_equal(second, 32);
    first = second = 0;
    assert_int_equal(launch(groups_kernel<1>, 1, 32, 1024, from.data, out.data), cudaSuccess);
    count_right(out.read(), &first, &second);
    assert_int_equal(first, 32);
    assert_in_range(second, 1, 31); // some are late, as nobody waited for them
}

// Clusters.

// Every block gives each of its cluster a number, and adds up what it got. The odd warp returns at once.
static __global__ void cluster_kernel(float *out, int size, bool wait) {
    extern __shared__ __align__(1024) uint8_t smem[];
    float2 *const got = (float2 *)smem;
    const uint32_t barrier = shared_address(smem + 64);
    const int rank = (int)blockIdx.x % size, thread = (int)threadIdx.x;
    dependents_launch();
    if (thread >= 32) return;
    if (thread == 0) barrier_init(barrier, 1), barrier_init_fence(), barrier_expect(barrier, size * 8);
    __syncwarp();
    cluster_arrive();
    dependency_wait();
    if (wait) cluster_wait();
    if (thread < size)
        store_cluster(cluster_address(shared_address(got + rank), thread),
                      make_float2((float)rank, (float)blockIdx.x), cluster_address(barrier, thread));
    barrier_wait(barrier, 0);
    float sum = 0.0f;
    for (int i = 0; i < size; i++) sum += got[i].x * 100.0f + got[i].y;
    out[blockIdx.x * 32 + threadIdx.x] = sum;
}

// Blocks of a cluster read the same stages of 32 words, of which each copies a part for all, into one place:
// when the whole cluster has read a stage, the next one comes.
static __global__ void shared_stages_kernel(const uint32_t *from, uint32_t *out, int size, int n_stages) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const uint32_t words = shared_address(smem), full = words + 128, free = full + 8;
    const int rank = (int)blockIdx.x % size, thread = (int)threadIdx.x, part = 128 / size;
    if (thread == 0) barrier_init(full, 1), barrier_init(free, 32 * size), barrier_init_fence();
    cluster_arrive();
    cluster_wait();
    uint32_t sum = 0;
    for (int i = 0; i < n_stages; i++) {
        if (thread == 0) {
            barrier_wait(free, (i + 1) % 2);
            barrier_expect(full, 128);
            copy_to_cluster(words + rank * part, (const uint8_t *)(from + i * 32) + rank * part, part, full,
                            (uint16_t)((1 << size) - 1));
        }
        barrier_wait(full, i % 2);
        sum = sum * 3 + load_shared(words + thread * 4);
        for (int other = 0; other < size; other++) barrier_arrive_cluster(cluster_address(free, other));
    }
    if (thread == 0) barrier_wait(free, (n_stages + 1) % 2); // others arrive here, too
    out[blockIdx.x * 32 + thread] = sum;
}

static void test_cluster_copies(void **) {
    enum { STAGES = 5 };
    simt_set_sms(4);
    std::vector<uint32_t> words(STAGES * 32);
    for (size_t i = 0; i < words.size(); i++) words[i] = (uint32_t)(i * i + 7);
    const device_array<uint32_t> from(words);
    for (int size : {1, 2, 4}) {
        device_array<uint32_t> out((size_t)(2 * size * 32));
        assert_int_equal(cuda_launch_clusters(shared_stages_kernel, dim3((unsigned)(2 * size)), size, 32, 256,
                                              nullptr, false, from.data, out.data, size, (int)STAGES),
                         cudaSuccess);
        const std::vector<uint32_t> v = out.read();
        for (size_t i = 0; i < v.size(); i++) {
            uint32_t want = 0;
            for (size_t stage = 0; stage < STAGES; stage++) want = want * 3 + words[stage * 32 + i % 32];
            assert_int_equal(v[i], want);
        }
    }
    simt_set_sms(2);
}

static void test_clusters(void **) {
    simt_set_sms(4);
    for (int size : {1, 2, 4})
        for (int n_clusters : {1, 3}) {
            device_array<float> out((size_t)(n_clusters * size * 32));
            for (int i = 0; i < 3; i++)
                assert_int_equal(cuda_launch_clusters(cluster_kernel, dim3((unsigned)(n_clusters * size)),
                                                      size, 64, 128, nullptr, true, out.data, size, true),
                                 cudaSuccess);
            const std::vector<float> v = out.read();
            for (int block = 0; block < n_clusters * size; block++) {
                const int first = block / size * size;
                float want = 0.0f;
                for (int i = 0; i < size; i++) want += (float)(i * 100 + first + i);
                for (int i = 0; i < 32; i++) assert_true(v[(size_t)(block * 32 + i)] == want);
            }
        }
    device_array<float> out(8 * 32);
    for (int size : {3, 8}) // does not divide the grid; more than there are SMs
        assert_int_equal(cuda_launch_clusters(cluster_kernel, dim3(8), size, 64, 128, nullptr, false,
                                              out.data, size, true),
                         cudaErrorInvalidClusterSize);
    simt_set_sms(2);
}

// What ends a program. Each runs in a child.

static __global__ void diverging_kernel() {
    if (threadIdx.x < 7)
        __shfl_sync(~0u, 1, 0);
    else
        __syncwarp();
}

static __global__ void missing_lane_kernel() {
    if (threadIdx.x == 3) return;
    __syncwarp();
}

static __global__ void missing_warp_kernel() {
    if (threadIdx.x < 64) barrier_sync(1, 96);
}

__global__ void missing_copy_kernel() {
    extern __shared__ __align__(1024) uint8_t smem[];
    const uint32_t at = shared_address(smem);
    barrier_init(at, 1);
    barrier_expect(at, 16);
    barrier_wait(at, 0);
}

static __global__ void outside_kernel(uint32_t at) {
    extern __shared__ __align__(1024) uint8_t smem[];
    load_shared(shared_address(smem) + at);
}

static __global__ void overflow_kernel() {
    extern __shared__ __align__(1024) uint8_t smem[];
    smem[64] = 0;
}

static __global__ void misaligned_kernel(const uint8_t *from) {
    extern __shared__ __align__(1024) uint8_t smem[];
    copy_activations(shared_address(smem), from + 8, true);
}

static __global__ void store_kernel(uint8_t *p) {
    *p = 0;
}

static __global__ void spinning_kernel(volatile int *flag) {
    while (*flag != 1) {}
}

static void run_spinning() {
    device_array<int> flag(1);
    simt_set_patience(1);
    launch(spinning_kernel, 1, 1, 0, flag.data);
    cudaDeviceSynchronize();
}

static void run_store(size_t size, size_t at) {
    uint8_t *p;
    cudaMalloc(&p, size);
    launch(store_kernel, 1, 1, 0, p + at);
    cudaFree(p);
}

static __global__ void leaving_kernel() {
    cluster_arrive();
}

static void run_unready_cluster() {
    device_array<float> out(2 * 32);
    cuda_launch_clusters(cluster_kernel, dim3(2), 2, 64, 128, nullptr, false, out.data, 2, false);
}

static const struct {
    const char *message;
    void (*run)();
} deaths[] = {
    {"the warp diverges: this lane is at", [] { launch(diverging_kernel, 1, 32, 0); }},
    {"deadlock: 31 threads wait", [] { launch(missing_lane_kernel, 1, 32, 0); }},
    {"barrier 1: 64 of 96 threads have come", [] { launch(missing_warp_kernel, 1, 96, 0); }},
    {"waits for parity 0 of the mbarrier at 0", [] { launch(missing_copy_kernel, 1, 1, 64); }},
    {"in missing_copy_kernel(), block (0, 0, 0)", [] { launch(missing_copy_kernel, 1, 1, 64); }},
    {"shared memory at 0x40: 4 bytes there are outside", [] { launch(outside_kernel, 1, 1, 64, 64u); }},
    {"shared memory at 0x2: not aligned to 4", [] { launch(outside_kernel, 1, 1, 64, 2u); }},
    {"byte 64 of shared memory was written, of 64", [] { launch(overflow_kernel, 1, 1, 64); }},
    {"not aligned to 16",
     [] { launch(misaligned_kernel, 1, 1, 64, (const uint8_t *)device_array<uint8_t>(64).data); }},
    {"an mbarrier in code for 86",
     [] {
         simt_set_capability(8, 6);
         launch(missing_copy_kernel, 1, 1, 64);
     }},
    {"wgmma: B changed while it was being read", [] { run_wrong_wgmma(1); }},
    {"wgmma without a wgmma_fence", [] { run_wrong_wgmma(2); }},
    {"blocks wait for others that never come", [] { run_partials(4, true); }},
    {"more blocks than run on 4 SMs", [] { run_partials(18, true, 48 << 10); }}, // four on each
    {"returns without a wait",
     [] { cuda_launch_clusters(leaving_kernel, dim3(2), 2, 32, 0, nullptr, false); }},
    {"of the cluster has not begun, or has ended", run_unready_cluster},
    {"the kernel has run for 1 s", run_spinning},
    {"an allocation of 100 bytes", [] { run_store(100, 110); }},
    {"4096 bytes behind the start of an allocation of 4096", [] { run_store(4096, 4096); }},
};

static void test_deaths(void **) {
    for (const auto &death : deaths) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            dup2(ends[1], STDERR_FILENO);
            death.run();
            cudaDeviceSynchronize();
            _exit(0);
        }
        close(ends[1]);
        char text[4096];
        size_t n = 0;
        for (ssize_t got; n < sizeof text - 1 && (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;)
            n += (size_t)got;
        text[n] = 0;
        close(ends[0]);
        int status;
        waitpid(child, &status, 0);
        if (!WIFSIGNALED(status) || !strstr(text, death.message))
            print_message("expected \"%s\" in:\n%s", death.message, text);
        assert_true(WIFSIGNALED(status) && strstr(text, death.message));
    }
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_warp_functions),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_wgmma),
        cmocka_unit_test(test_blocks_that_wait),
        cmocka_unit_test(test_load_matrix),
        cmocka_unit_test(test_bits_and_numbers),
        cmocka_unit_test(test_block_with_a_partial_warp),
        cmocka_unit_test(test_missing_barriers_show),
        cmocka_unit_test(test_ring_of_bulk_copies),
        cmocka_unit_test(test_groups_of_copies),
        cmocka_unit_test(test_clusters),
        cmocka_unit_test(test_cluster_copies),
        cmocka_unit_test(test_deaths),
    };
    return cmocka_run_group_tests_name("simt", tests, nullptr, nullptr);
}
