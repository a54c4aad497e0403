// __nv_bfloat16 and __nv_bfloat162: what flute uses of cuda_bf16.h. Conversions are exact or round to nearest
// even.
#ifndef FLUTE_SIMT_CUDA_BF16_H
#define FLUTE_SIMT_CUDA_BF16_H

#include "engine/base/numeric.h"
#include "tests/simt/cuda_runtime.h"

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float v) : bits(bf16_from_float(v)) {}
    operator float() const { return bf16_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float v) {
    return v;
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    return v;
}
inline float __bfloat162float(__nv_bfloat16 v) {
    return v;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
    return simt_bits<__nv_bfloat16>(v);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) {
    return v.bits;
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) {
    return {v, v};
}
inline __nv_bfloat162 __float2bfloat162_rn(float v) {
    return {v, v};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {x, y};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return {v.x, v.y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {v.x, v.y};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}
inline float __low2float(__nv_bfloat162 v) {
    return v.x;
}
inline float __high2float(__nv_bfloat162 v) {
    return v.y;
}
inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a + (float)b;
}
inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a * (float)b;
}
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
// Rounded to float and then again, which may differ from hardware by one unit in the last place.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return fmaf(a, b, c);
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a - (float)b;
}
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline __nv_bfloat162 operator+(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hadd2(a, b);
}
inline __nv_bfloat162 operator-(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hsub2(a, b);
}
inline __nv_bfloat162 operator*(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __hmul2(a, b);
}

#endif
