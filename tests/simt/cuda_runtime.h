// CUDA C++ as an ordinary C++ header: qualifiers, vector types, built-in variables and functions, launches.
// Only what flute uses and what is next to it; the semantics are behind simt.h and in runtime.cc.
#ifndef FLUTE_SIMT_CUDA_RUNTIME_H
#define FLUTE_SIMT_CUDA_RUNTIME_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tests/simt/cuda_runtime_api.h"

#ifdef __cplusplus
#include "tests/simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ thread_local // for arrays in functions as for extern ones: see simt.h
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline
#define __noinline__ // libstdc++ writes it inside of __attribute__
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

enum { warpSize = simt::LANES };

// Vector types.

#define SIMT_VECTORS(type, name, align2, align4)                                                             \
    struct alignas(align2) name##2 {                                                                         \
        type x, y;                                                                                           \
    };                                                                                                       \
    struct alignas(align4) name##4 {                                                                         \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    inline name##2 make_##name##2(type x, type y) {                                                          \
        return {x, y};                                                                                       \
    }                                                                                                        \
    inline name##4 make_##name##4(type x, type y, type z, type w) {                                          \
        return {x, y, z, w};                                                                                 \
    }
SIMT_VECTORS(char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef SIMT_VECTORS
struct float3 {
    float x, y, z;
};
struct int3 {
    int x, y, z;
};
inline float3 make_float3(float x, float y, float z) {
    return {x, y, z};
}
inline int3 make_int3(int x, int y, int z) {
    return {x, y, z};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    return {x, y, z};
}

// Bits.

template <typename To, typename From> inline To simt_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float v) {
    return simt_bits<unsigned>(v);
}
inline int __float_as_int(float v) {
    return simt_bits<int>(v);
}
inline float __uint_as_float(unsigned v) {
    return simt_bits<float>(v);
}
inline float __int_as_float(int v) {
    return simt_bits<float>(v);
}
inline long long __double_as_longlong(double v) {
    return simt_bits<long long>(v);
}
inline double __longlong_as_double(long long v) {
    return simt_bits<double>(v);
}
inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
inline int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
inline int __clzll(long long v) {
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
inline int __ffs(int v) {
    return __builtin_ffs(v);
}
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> i * 4, byte = (unsigned)(bytes >> (s & 7) * 8) & 255;
        r |= (s & 8 ? (byte >> 7) * 255 : byte) << i * 8; // bit 3: the sign, eight times
    }
    return r;
}

// Arithmetic. The fast forms are as exact as the others here.

#define SIMT_MINMAX(type)                                                                                    \
    inline type min(type a, type b) {                                                                        \
        return b < a ? b : a;                                                                                \
    }                                                                                                        \
    inline type max(type a, type b) {                                                                        \
        return a < b ? b : a;                                                                                \
    }
SIMT_MINMAX(int)
SIMT_MINMAX(unsigned)
SIMT_MINMAX(long)
SIMT_MINMAX(unsigned long)
SIMT_MINMAX(long long)
SIMT_MINMAX(unsigned long long)
#undef SIMT_MINMAX
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}

inline float __expf(float x) {
    return expf(x);
}
inline float __exp10f(float x) {
    return powf(10.0f, x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __powf(float x, float y) {
    return powf(x, y);
}
inline float __sinf(float x) {
    return sinf(x);
}
inline float __cosf(float x) {
    return cosf(x);
}
inline void __sincosf(float x, float *s, float *c) {
    *s = sinf(x), *c = cosf(x);
}
inline float rsqrtf(float x) {
    return (float)(1.0 / sqrt((double)x));
}
inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
inline float __frsqrt_rn(float x) {
    return rsqrtf(x);
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
inline float __saturatef(float x) {
    return x > 0 ? x < 1 ? x : 1 : 0;
} // NaN: 0
inline float __int2float_rn(int v) {
    return (float)v;
}
inline float __uint2float_rn(unsigned v) {
    return (float)v;
}
inline int __float2int_rn(float v) {
    return (int)rintf(v);
}
inline int __float2int_rz(float v) {
    return (int)v;
}
inline double __hiloint2double(int high, int low) {
    return simt_bits<double>((uint64_t)(unsigned)high << 32 | (unsigned)low);
}

// Memory.

template <typename T> inline T __ldg(const T *p) {
    return *p;
}
template <typename T> inline T __ldcs(const T *p) {
    return *p;
}
template <typename T> inline T __ldcg(const T *p) {
    return *p;
}
template <typename T> inline T __ldca(const T *p) {
    return *p;
}
template <typename T> inline T __ldcv(const T *p) {
    return *p;
}
template <typename T> inline void __stcs(T *p, T v) {
    *p = v;
}
template <typename T> inline void __stcg(T *p, T v) {
    *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Only one thread runs at a time, so every access is atomic.
template <typename T, typename V> inline T simt_swap(T *p, V v) {
    const T old = *p;
    *p = (T)v;
    return old;
}
template <typename T> struct simt_identity { using type = T; };
template <typename T> using simt_same = typename simt_identity<T>::type; // deduced from the pointer alone
template <typename T> inline T atomicAdd(T *p, simt_same<T> v) {
    return simt_swap(p, *p + v);
}
template <typename T> inline T atomicSub(T *p, simt_same<T> v) {
    return simt_swap(p, *p - v);
}
template <typename T> inline T atomicMax(T *p, simt_same<T> v) {
    return simt_swap(p, *p < v ? v : *p);
}
template <typename T> inline T atomicMin(T *p, simt_same<T> v) {
    return simt_swap(p, v < *p ? v : *p);
}
template <typename T> inline T atomicExch(T *p, simt_same<T> v) {
    return simt_swap(p, v);
}
template <typename T> inline T atomicAnd(T *p, simt_same<T> v) {
    return simt_swap(p, *p & v);
}
template <typename T> inline T atomicOr(T *p, simt_same<T> v) {
    return simt_swap(p, *p | v);
}
template <typename T> inline T atomicXor(T *p, simt_same<T> v) {
    return simt_swap(p, *p ^ v);
}
template <typename T> inline T atomicCAS(T *p, simt_same<T> expected, simt_same<T> v) {
    return simt_swap(p, *p == expected ? v : *p);
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return simt_swap(p, *p >= limit ? 0 : *p + 1);
}
inline unsigned atomicDec(unsigned *p, unsigned limit) {
    return simt_swap(p, *p == 0 || *p > limit ? limit : *p - 1);
}

// Blocks and warps.

inline void __syncthreads() {
    simt::block_meet(0, 0, false, "__syncthreads");
}
inline int __syncthreads_count(int v) {
    return simt::block_meet(0, 0, v != 0, "__syncthreads_count");
}
inline int __syncthreads_or(int v) {
    return simt::block_meet(0, 0, v != 0, "__syncthreads_or") > 0;
}
inline int __syncthreads_and(int v) {
    return simt::block_meet(0, 0, v == 0, "__syncthreads_and") == 0;
}
inline void __syncwarp(unsigned mask = ~0u) {
    simt::warp_meet("__syncwarp", mask);
}
[[noreturn]] inline void __trap() {
    simt::stop("__trap");
}

// A lane reads from `source` where that is inside of its segment of `width` lanes, else keeps its own.
template <typename T> inline T simt_shuffle(unsigned mask, T v, int source, bool inside, const char *what) {
    const T *all = simt::exchange(v, what, mask);
    return all[inside ? source : simt::this_lane];
}
template <typename T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    const int lane = simt::this_lane;
    return simt_shuffle(mask, v, (lane & -width) | (source & (width - 1)), true, "__shfl_sync");
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    const int lane = simt::this_lane, source = lane ^ with;
    return simt_shuffle(mask, v, source, source < (lane & -width) + width, "__shfl_xor_sync");
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = simt::this_lane, source = lane - (int)by;
    return simt_shuffle(mask, v, source, source >= (lane & -width), "__shfl_up_sync");
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = simt::this_lane, source = lane + (int)by;
    return simt_shuffle(mask, v, source, source < (lane & -width) + width, "__shfl_down_sync");
}

// Which lanes hold the same value.
template <typename T> inline unsigned __match_any_sync(unsigned mask, T v) {
    const T *all = simt::exchange(v, "__match_any_sync", mask);
    unsigned same = 0;
    for (int i = 0; i < simt::LANES; i++)
        same |= (unsigned)(simt::this_warp->all >> i & 1 && all[i] == v) << i;
    return same;
}

// Folds the values of all lanes of the warp.
template <typename T, typename F> inline T simt_reduce(unsigned mask, T v, const char *what, F fold) {
    const T *all = simt::exchange(v, what, mask);
    T sum = all[0];
    for (int i = 1; i < simt::LANES && simt::this_warp->all >> i & 1; i++) sum = fold(sum, all[i]);
    return sum;
}
template <typename T> inline T __reduce_add_sync(unsigned mask, T v) {
    return simt_reduce(mask, v, "__reduce_add_sync", [](T a, T b) { return a + b; });
}
template <typename T> inline T __reduce_max_sync(unsigned mask, T v) {
    return simt_reduce(mask, v, "__reduce_max_sync", [](T a, T b) { return a < b ? b : a; });
}
template <typename T> inline T __reduce_min_sync(unsigned mask, T v) {
    return simt_reduce(mask, v, "__reduce_min_sync", [](T a, T b) { return b < a ? b : a; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
    return simt_reduce(mask, v, "__reduce_or_sync", [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) {
    return simt_reduce(mask, v, "__reduce_and_sync", [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __ballot_sync(unsigned mask, int v) {
    const unsigned mine = v ? 1u << simt::this_lane : 0;
    return simt_reduce(mask, mine, "__ballot_sync", [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int v) {
    return simt_reduce(mask, v != 0, "__any_sync", [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int v) {
    return simt_reduce(mask, v != 0, "__all_sync", [](int a, int b) { return a & b; });
}

// Launches.

template <typename... Params, typename... Args>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Params...),
                                      Args &&...args) {
    return simt::queue_launch(config, (const void *)kernel,
                              [kernel, args...] { kernel(static_cast<Params>(args)...); });
}

// The typed forms of functions that take untyped pointers in C.
template <typename T> inline cudaError_t cudaMalloc(T **p, size_t size) {
    return cudaMalloc((void **)p, size);
}
template <typename T> inline cudaError_t cudaMallocHost(T **p, size_t size) {
    return cudaMallocHost((void **)p, size);
}
template <typename T> inline cudaError_t cudaHostAlloc(T **p, size_t size, unsigned flags) {
    return cudaHostAlloc((void **)p, size, flags);
}
template <typename... P>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}
template <typename... P>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*kernel)(P...),
                                                                 int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)kernel, threads, shared);
}
template <typename... P>
inline cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, void (*kernel)(P...),
                                                  const cudaLaunchConfig_t *config) {
    return cudaOccupancyMaxActiveClusters(clusters, (const void *)kernel, config);
}
inline cudaError_t cudaEventRecord(cudaEvent_t event) {
    return cudaEventRecord(event, nullptr);
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e) {
    return cudaStreamWaitEvent(s, e, 0);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph) {
    return cudaGraphInstantiate(exec, graph, 0);
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, n, kind, nullptr);
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t n) {
    return cudaMemsetAsync(p, value, n, nullptr);
}

#endif
#endif
