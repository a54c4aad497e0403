// The end of a kernel: partial sums of a panel's rows, added up in a fixed order and stored as lut_epilogue
// says.
#ifndef FLUTE_CUDA_EPILOGUE_CUH
#define FLUTE_CUDA_EPILOGUE_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/lut_gemm.h"
#include "kernels/cuda/lut_kernels.h"

// Two bf16 in a word.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}

__device__ __forceinline__ float gated(float gate, float up, int epilogue) {
    if (epilogue == LUT_SILU_MUL) return gate / (1.0f + __expf(-gate)) * up;
    // tanh(z) = 1 − 2 / (1 + exp(2z)), without overflow for large z
    const float z = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (2.0f - 2.0f / (1.0f + __expf(2.0f * z))) * up;
}

// Stores the sums of rows g and g + 8 of a panel for one token: two outputs, or gate and up of one channel.
__device__ __forceinline__ void store_pair(const lut_params &p, int panel, int g, int token, float low,
                                           float high) {
    if (token >= p.n_tokens) return;
    const int64_t row_of_y = token * p.y_stride;
    if (p.epilogue == LUT_SILU_MUL || p.epilogue == LUT_GELU_MUL) { // N is a multiple of 16
        ((__nv_bfloat16 *)p.y)[row_of_y + panel * 8 + g] = __float2bfloat16_rn(gated(low, high, p.epilogue));
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = panel * 16 + half * 8 + g;
        const float v = half ? high : low;
        if (row >= p.n_rows) return;
        if (p.epilogue == LUT_STORE_BF16)
            ((__nv_bfloat16 *)p.y)[row_of_y + row] = __float2bfloat16_rn(v);
        else if (p.epilogue == LUT_ADD_F32)
            ((float *)p.y)[row_of_y + row] += v;
        else
            ((float *)p.y)[row_of_y + row] = v;
    }
}

// sums: (n_panels, parts, 16, TOKENS) float in shared memory, `parts` partial sums of each, added in their
// order. Panel first_panel of the matrix is panel 0 here. Called by n_threads threads from thread 0 on.
// factor(token) multiplies the sums of a token.
template <int TOKENS, typename Factor>
__device__ __forceinline__ void store_panels(const lut_params &p, const float *sums, int parts,
                                             int first_panel, int n_panels, int n_threads, Factor factor) {
    for (int i = threadIdx.x; i < n_panels * 8 * TOKENS; i += n_threads) {
        const int g = i % 8, token = i / 8 % TOKENS, panel = i / (8 * TOKENS);
        const float *at = sums + (panel * parts * 16 + g) * TOKENS + token;
        float low = 0.0f, high = 0.0f;
        for (int part = 0; part < parts; part++, at += 16 * TOKENS) low += at[0], high += at[8 * TOKENS];
        const float f = factor(token);
        store_pair(p, first_panel + panel, g, token, low * f, high * f);
    }
}

#endif
