// Rotary position embedding of the heads of one row, and where keys and values go: a warp a head. Used by the
// kernel of its own (prefill) and by attention itself (decode). Twins: ref_head_norm, ref_rope.
#ifndef FLUTE_CUDA_ROTATE_CUH
#define FLUTE_CUDA_ROTATE_CUH

#include <cuda_bf16.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/epilogue.cuh"

__device__ __forceinline__ uint16_t to_bf16(float v) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
    return to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}

__device__ __forceinline__ float from_bf16(uint16_t v) {
    return __uint_as_float((uint32_t)v << 16);
}

enum { MAX_PAIRS = 4 }; // rotary pairs of a lane, PAIRS: head_dim up to 64 · PAIRS

struct rotate_params {
    cuda_rows rows;
    const float *qkv, *q_weight, *k_weight, *inv_freq;
    float q_eps, q_offset, k_eps, k_offset, q_scale;
    int n_queries; // query heads of a KV head
};

static inline rotate_params describe_rotation(const rotate_args *args) {
    rotate_params p = {};
    p.rows = *args->rows, p.qkv = args->qkv, p.inv_freq = args->inv_freq, p.q_scale = args->q_scale;
    if (args->q_norm.weight) p.q_weight = (const float *)args->q_norm.weight->data;
    if (args->k_norm.weight) p.k_weight = (const float *)args->k_norm.weight->data;
    p.n_queries = p.rows.n_heads / p.rows.n_kv_heads;
    p.q_eps = args->q_norm.eps, p.q_offset = args->q_norm.offset;
    p.k_eps = args->k_norm.eps, p.k_offset = args->k_norm.offset;
    return p;
}

// Rotary pair c of a head in stored order: its places are eight apart.
__device__ __forceinline__ int pair_place(int c) {
    return c / 8 * 16 + c % 8;
}

// A lane has the pairs lane + 32 · i of every head.
template <int PAIRS> struct lane_rotation {
    float cosine[PAIRS], sine[PAIRS];

    // Frequencies, in place of cosines.
    __device__ __forceinline__ void load(const float *inv_freq, int head_dim) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int c = threadIdx.x % WARP + i * WARP;
            cosine[i] = c < head_dim / 2 ? inv_freq[c] : 0.0f;
        }
    }
    __device__ __forceinline__ void turn(int position) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) sincosf((float)position * cosine[i], &sine[i], &cosine[i]);
    }
};

template <int PAIRS> struct lane_pairs {
    float a[PAIRS], b[PAIRS];

    __device__ __forceinline__ void load(const float *from, int head_dim) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int c = lane + i * WARP;
            const bool inside = c < head_dim / 2;
            a[i] = inside ? from[pair_place(c)] : 0.0f, b[i] = inside ? from[pair_place(c) + 8] : 0.0f;
        }
    }
    __device__ __forceinline__ void norm(const float *weight, float eps, float offset, int head_dim) {
        const int lane = threadIdx.x % WARP, half = head_dim / 2;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) squares += a[i] * a[i] + b[i] * b[i];
        const float factor = 1.0f / sqrtf(warp_sum(squares) / head_dim + eps);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int c = lane + i * WARP;
            if (c < half) a[i] *= factor * (offset + weight[c]), b[i] *= factor * (offset + weight[c + half]);
        }
    }
    // As they are, in channels `stride` apart: values.
    __device__ __forceinline__ void store(int head_dim, uint16_t *to, int stride) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int c = lane + i * WARP;
            if (c >= head_dim / 2) continue;
            to[pair_place(c) * stride] = to_bf16(a[i]), to[(pair_place(c) + 8) * stride] = to_bf16(b[i]);
        }
    }
    // Turned and scaled, to the places of stored order.
    __device__ __forceinline__ void store_turned(const lane_rotation<PAIRS> &r, float scale, int head_dim,
                                                 uint16_t *to) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int c = lane + i * WARP;
            if (c >= head_dim / 2) continue;
            to[pair_place(c)] = to_bf16((a[i] * r.cosine[i] - b[i] * r.sine[i]) * scale);
            to[pair_place(c) + 8] = to_bf16((b[i] * r.cosine[i] + a[i] * r.sine[i]) * scale);
        }
    }
};

// Head `head` of a row and KV head in the product of qkv: its query heads, then key, then value.
__device__ __forceinline__ const float *head_of_row(const rotate_params &p, int row, int kv_head, int head) {
    return p.qkv +
           (((int64_t)row * p.rows.n_kv_heads + kv_head) * (p.n_queries + 2) + head) * p.rows.head_dim;
}

template <int PAIRS>
__device__ __forceinline__ void rotate_query(const rotate_params &p, const lane_rotation<PAIRS> &rotation,
                                             lane_pairs<PAIRS> &pairs, uint16_t *to) {
    if (p.q_weight) pairs.norm(p.q_weight, p.q_eps, p.q_offset, p.rows.head_dim);
    pairs.store_turned(rotation, p.q_scale, p.rows.head_dim, to);
}

template <int PAIRS>
__device__ __forceinline__ void rotate_key(const rotate_params &p, const lane_rotation<PAIRS> &rotation,
                                           lane_pairs<PAIRS> &pairs, uint16_t *to) {
    if (p.k_weight) pairs.norm(p.k_weight, p.k_eps, p.k_offset, p.rows.head_dim);
    pairs.store_turned(rotation, 1.0f, p.rows.head_dim, to);
}

#endif
