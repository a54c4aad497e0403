// __half and __half2: what flute uses of cuda_fp16.h. Conversions are exact or round to nearest even.
#ifndef FLUTE_SIMT_CUDA_FP16_H
#define FLUTE_SIMT_CUDA_FP16_H

#include "engine/base/numeric.h"
#include "tests/simt/cuda_runtime.h"

struct alignas(2) __half {
    uint16_t bits;
    __half() = default;
    __half(float v) : bits(f16_from_float(v)) {}
    operator float() const { return f16_to_float(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

inline __half __float2half(float v) {
    return v;
}
inline __half __float2half_rn(float v) {
    return v;
}
inline float __half2float(__half v) {
    return v;
}
inline __half __ushort_as_half(unsigned short v) {
    return simt_bits<__half>(v);
}
inline unsigned short __half_as_ushort(__half v) {
    return v.bits;
}
inline __half2 __halves2half2(__half x, __half y) {
    return {x, y};
}
inline __half2 make_half2(__half x, __half y) {
    return {x, y};
}
inline __half2 __half2half2(__half v) {
    return {v, v};
}
inline __half2 __float2half2_rn(float v) {
    return {v, v};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {x, y};
}
inline __half2 __float22half2_rn(float2 v) {
    return {v.x, v.y};
}
inline float2 __half22float2(__half2 v) {
    return {v.x, v.y};
}
inline __half __low2half(__half2 v) {
    return v.x;
}
inline __half __high2half(__half2 v) {
    return v.y;
}
inline float __low2float(__half2 v) {
    return v.x;
}
inline float __high2float(__half2 v) {
    return v.y;
}
inline __half __hadd(__half a, __half b) {
    return (float)a + (float)b;
}
inline __half __hmul(__half a, __half b) {
    return (float)a * (float)b;
}
inline __half2 __hadd2(__half2 a, __half2 b) {
    return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline __half2 __hmul2(__half2 a, __half2 b) {
    return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
// Rounded to float and then again, which may differ from hardware by one unit in the last place.
inline __half __hfma(__half a, __half b, __half c) {
    return fmaf(a, b, c);
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __half __hsub(__half a, __half b) {
    return (float)a - (float)b;
}
inline __half2 __hsub2(__half2 a, __half2 b) {
    return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline __half2 operator+(__half2 a, __half2 b) {
    return __hadd2(a, b);
}
inline __half2 operator-(__half2 a, __half2 b) {
    return __hsub2(a, b);
}
inline __half2 operator*(__half2 a, __half2 b) {
    return __hmul2(a, b);
}

#endif
