// 16-bit floating point on the host. gcc 12 has no scalar __bf16, so both formats are plain uint16_t.
#ifndef FLUTE_NUMERIC_H
#define FLUTE_NUMERIC_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16; // 1 sign, 8 exponent, 7 mantissa bits: the upper half of a float
typedef uint16_t f16;  // IEEE binary16

static inline float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bf16_to_float(bf16 value) {
    return float_from_bits((uint32_t)value << 16);
}

// Rounds to nearest, ties to even. NaN stays NaN.
static inline bf16 bf16_from_float(float value) {
    uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float f16_to_float(f16 value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t magnitude = value & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
    // Subnormal: magnitude × 2^-24, exact in float.
    float scaled = (float)magnitude * 5.9604644775390625e-8f;
    return float_from_bits(sign | float_to_bits(scaled));
}

// Rounds to nearest, ties to even; overflows to infinity. NaN stays NaN.
static inline f16 f16_from_float(float value) {
    uint32_t bits = float_to_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (f16)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (f16)(sign | 0x7c00u); // 65520 and above
    if (magnitude < 0x38800000u) {                              // below 2^-14: subnormal result
        // Adding 0.5 puts the 2^-24 steps at the bottom of the mantissa and rounds as the FPU does.
        float shifted = float_from_bits(magnitude) + 0.5f;
        return (f16)(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (f16)(sign | ((rounded - 0x38000000u) >> 13));
}

static inline int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

#endif
