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

// Stores one sum, unless it is of a gated pair. Returns the square of what the next norm will see.
__device__ __forceinline__ float store_element(const lut_params &p, int row, int token, float v) {
    const int64_t at = token * p.y_stride + row;
    if (p.epilogue == LUT_ADD_F32) return add_residual(p, row, token, v);
    if (p.epilogue == LUT_STORE_BF16)
        ((__nv_bfloat16 *)p.y)[at] = __float2bfloat16_rn(v);
    else
        ((float *)p.y)[at] = v;
    return 0.0f;
}

// Stores the sums of rows g and g + 8 of a panel for one token: two outputs, or gate and up of one channel.
// Returns the sum of the squares of what the next norm will see.
__device__ __forceinline__ float store_pair(const lut_params &p, int panel, int g, int token, float low,
                                            float high) {
    if (token >= p.n_tokens) return 0.0f;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) { // N is a multiple of 16
        uint32_t *const word = order_word(p.y, p.y_order, p.y_stride * 2, token, panel * 8 + g / 2 * 2);
        ((__nv_bfloat16 *)word)[g % 2] = __float2bfloat16_rn(gated(low, high, p.epilogue));
        return 0.0f;
    }
    float squares = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = panel * 16 + half * 8 + g;
        if (row < p.n_rows) squares += store_element(p, row, token, half ? high : low);
    }
    return squares;
}

// sums: (n_panels, parts, 16, TOKENS) float in shared memory, `parts` partial sums of each, added in their
// order. more: as many again, behind these, or NULL. Panel first_panel of the matrix is panel 0 here. Called
// by n_threads threads from thread 0 on. factors: (TOKENS) multiply the sums of a token; NULL: none. Returns
// the squares of what this thread stored, as store_pair.
template <int TOKENS>
__device__ __forceinline__ float store_panels(const lut_params &p, const float *sums, int parts,
                                              int first_panel, int n_panels, int n_threads,
                                              const float *factors, const float *more = NULL) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n_panels * 8 * TOKENS; i += n_threads) {
        const int g = i % 8, token = i / 8 % TOKENS, panel = i / (8 * TOKENS);
        const int first = (panel * parts * 16 + g) * TOKENS + token;
        float low = 0.0f, high = 0.0f;
        auto add = [&](const float *at) {
            for (int part = 0; part < parts; part++, at += 16 * TOKENS) low += at[0], high += at[8 * TOKENS];
        };
        add(sums + first);
        if (more) add(more + first);
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

#endif
