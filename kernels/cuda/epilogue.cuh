// The end of a kernel: partial sums of a panel's rows, added up in a fixed order and stored as lut_epilogue
// says.
#ifndef FLUTE_CUDA_EPILOGUE_CUH
#define FLUTE_CUDA_EPILOGUE_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/lut_gemm.h"
#include "kernels/cuda/lut_kernels.h"
#include "kernels/cuda/order.cuh"

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}

__device__ __forceinline__ float gated(float gate, float up, int epilogue) {
    if (epilogue == LUT_SILU_MUL) return gate / (1.0f + __expf(-gate)) * up;
    // tanh(z) = 1 − 2 / (1 + exp(2z)), without overflow for large z
    const float z = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (2.0f - 2.0f / (1.0f + __expf(2.0f * z))) * up;
}

// Adds to one element of the residual stream, and prepares it for the norm that follows, if one does. Returns
// its square.
__device__ __forceinline__ float add_residual(const lut_params &p, int row, int token, float v) {
    float *y = (float *)p.y + token * p.y_stride + row;
    v += *y;
    *y = v;
    if (!p.next.squares) return 0.0f;
    p.next.x[token * p.next.x_stride + row] =
        __bfloat16_as_ushort(__float2bfloat16_rn(v * (p.next.offset + p.next.weight[row])));
    return v * v;
}

// Stores the sums of rows g and g + 8 of a panel for one token: two outputs, or gate and up of one channel.
// Returns the sum of the squares of what the next norm will see.
__device__ __forceinline__ float store_pair(const lut_params &p, int panel, int g, int token, float low,
                                            float high) {
    if (token >= p.n_tokens) return 0.0f;
    const int64_t row_of_y = token * p.y_stride;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) { // N is a multiple of 16
        uint32_t *const word = order_word(p.y, p.y_order, p.y_stride * 2, token, panel * 8 + g / 2 * 2);
        ((__nv_bfloat16 *)word)[g % 2] = __float2bfloat16_rn(gated(low, high, p.epilogue));
        return 0.0f;
    }
    float squares = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = panel * 16 + half * 8 + g;
        const float v = half ? high : low;
        if (row >= p.n_rows) break;
        if (p.epilogue == LUT_STORE_BF16)
            ((__nv_bfloat16 *)p.y)[row_of_y + row] = __float2bfloat16_rn(v);
        else if (p.epilogue == LUT_ADD_F32)
            squares += add_residual(p, row, token, v);
        else
            ((float *)p.y)[row_of_y + row] = v;
    }
    return squares;
}

// sums: (n_panels, parts, 16, TOKENS) float in shared memory, `parts` partial sums of each, added in their
// order. Panel first_panel of the matrix is panel 0 here. Called by n_threads threads from thread 0 on.
// factors: (TOKENS) multiply the sums of a token; NULL: none. Returns the squares of what this thread stored,
// as store_pair.
template <int TOKENS>
__device__ __forceinline__ float store_panels(const lut_params &p, const float *sums, int parts,
                                              int first_panel, int n_panels, int n_threads,
                                              const float *factors) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n_panels * 8 * TOKENS; i += n_threads) {
        const int g = i % 8, token = i / 8 % TOKENS, panel = i / (8 * TOKENS);
        const float *at = sums + (panel * parts * 16 + g) * TOKENS + token;
        float low = 0.0f, high = 0.0f;
        for (int part = 0; part < parts; part++, at += 16 * TOKENS) low += at[0], high += at[8 * TOKENS];
        const float factor = factors ? factors[token] : 1.0f;
        squares += store_pair(p, first_panel + panel, g, token, low * factor, high * factor);
    }
    return squares;
}

// Two bf16 in a word.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}

// Stores a quarter of a panel for one token: rows 4·quarter to 4·quarter + 3, or two channels. rows: the sums
// of all 16, 16-byte aligned. With p.y_aligned rows go in one piece, 64 bytes of floats for four lanes. Loops
// stay loops: this code stands in a kernel once for every eight tokens.
__device__ __forceinline__ void store_quarter(const lut_params &p, int panel, int token, int quarter,
                                              const float *rows) {
    if (token >= p.n_tokens) return;
    const int64_t row_of_y = token * p.y_stride;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) {
        const int channel = quarter * 2;
        *order_word(p.y, p.y_order, p.y_stride * 2, token, panel * 8 + channel) =
            bf16_pair(gated(rows[channel], rows[8 + channel], p.epilogue),
                      gated(rows[channel + 1], rows[9 + channel], p.epilogue));
        return;
    }
    const int row = panel * 16 + quarter * 4;
    float *const floats = (float *)p.y + row_of_y + row;
    __nv_bfloat16 *const bf16s = (__nv_bfloat16 *)p.y + row_of_y + row;
    rows += quarter * 4;
    if (p.y_aligned && row + 4 <= p.n_rows) {
        const float4 v = *(const float4 *)rows;
        if (p.epilogue == LUT_STORE_BF16)
            *(uint2 *)bf16s = make_uint2(bf16_pair(v.x, v.y), bf16_pair(v.z, v.w));
        else if (p.epilogue == LUT_ADD_F32)
            add_global4(floats, v);
        else
            *(float4 *)floats = v;
        return;
    }
#pragma unroll 1
    for (int i = 0; i < 4 && row + i < p.n_rows; i++)
        if (p.epilogue == LUT_STORE_BF16)
            bf16s[i] = __float2bfloat16_rn(rows[i]);
        else
            floats[i] = p.epilogue == LUT_ADD_F32 ? floats[i] + rows[i] : rows[i];
}

#endif
