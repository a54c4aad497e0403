// The small kernels of a forward step. At one token each is latency: one wave, few instructions behind the
// wait for the kernel ahead, weights loaded before it.
#include "kernels/cuda/elementwise.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rotate.cuh"
#include "kernels/layout.h"

// ---- Single weights, by the definition of layout.h

struct packed_weight {
    const uint8_t *data;
    int64_t n_cols;
    int64_t panel_bytes;
    int first_row, n_rows;
    int type, group;
    int unit_cols, unit_bytes, block_bytes;
    float table[16]; // INT8: unused
};

static packed_weight describe_weight(const weight *w) {
    packed_weight p = {};
    p.data = (const uint8_t *)w->data, p.n_cols = w->n_cols, p.type = w->type, p.group = w->group_size;
    p.first_row = (int)w->first_row, p.n_rows = (int)w->n_rows;
    if (!weight_is_quantized(w->type)) return p;
    p.panel_bytes = (int64_t)layout_panel_bytes(w->type, w->n_cols, w->group_size);
    p.unit_cols = layout_unit_cols(w->group_size);
    p.unit_bytes = (int)layout_unit_bytes(w->type, w->group_size);
    p.block_bytes = (int)layout_block_bytes(w->type);
    for (int i = 0; i < 16; i++) p.table[i] = bf16_to_float(w->table[i]);
    return p;
}

__device__ __forceinline__ uint32_t word_at(const uint8_t *at) {
    return *(const uint32_t *)at;
}

// Eight columns of one row from column `col`, a multiple of 8: one octet of a block.
__device__ __forceinline__ void packed_octet(const packed_weight &p, const float *table, int64_t row,
                                             int64_t col, float (&out)[8]) {
    const uint8_t *unit = p.data + row / 16 * p.panel_bytes + col / p.unit_cols * p.unit_bytes;
    const int in_unit = (int)(col % p.unit_cols), in_block = in_unit % 128, r = (int)(row % 16);
    const uint8_t *block = unit + in_unit / 128 * p.block_bytes;
    const int run = in_block / 32, lane = r % 8 * 4 + in_block % 32 / 8, half = r / 8;
    const uint8_t *scales =
        unit + p.unit_cols / 128 * p.block_bytes + (in_unit / p.group * 16 + r % 8 * 2 + half) * 2;
    const float scale = __half2float(__ushort_as_half(*(const uint16_t *)scales));
    const int at4 = run / 2 * 512 + lane * 16 + run % 2 * 8 + half * 4;
    uint32_t low, high = 0;
    if (p.type == WEIGHT_LUT4 || p.type == WEIGHT_INT8) {
        low = word_at(block + at4);
        if (p.type == WEIGHT_INT8) high = low, low = word_at(block + 1024 + at4);
    } else {
        low = word_at(block + lane * 16 + run * 4) >> 16 * half;
        if (p.type == WEIGHT_LUT3) high = word_at(block + 512 + lane * 8 + run / 2 * 4);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (p.type == WEIGHT_INT8) {
            out[i] = (float)((int)((high >> 4 * i & 15) * 16 + (low >> 4 * i & 15)) - 128) * scale;
        } else if (p.type == WEIGHT_LUT4) {
            out[i] = table[low >> 4 * i & 15] * scale;
        } else {
            const int third = 4 * (4 * half + i / 2) + 2 * (1 - run % 2) + i % 2;
            const uint32_t code = (low >> 2 * i & 3) | (p.type == WEIGHT_LUT3 ? (high >> third & 1) * 4 : 0);
            out[i] = table[code] * scale;
        }
    }
}

__device__ __forceinline__ void weight_octet(const packed_weight &p, const float *table, int64_t row,
                                             int64_t col, float (&out)[8]) {
    if (p.type >= WEIGHT_LUT2) return packed_octet(p, table, row, col, out);
    const int64_t at = row * p.n_cols + col;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (col + i >= p.n_cols)
            out[i] = 0.0f;
        else if (p.type == WEIGHT_F32)
            out[i] = ((const float *)p.data)[at + i];
        else if (p.type == WEIGHT_F16)
            out[i] = __half2float(__ushort_as_half(((const uint16_t *)p.data)[at + i]));
        else
            out[i] = from_bf16(((const uint16_t *)p.data)[at + i]);
    }
}

enum { THREADS = 256 };

// Lanes look different entries up: in constant memory one after the other, here at once.
__device__ __forceinline__ void table_to_shared(const packed_weight &p, float *table) {
    if (threadIdx.x < 16) table[threadIdx.x] = p.table[threadIdx.x];
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS)
    embed(const __grid_constant__ packed_weight w, const int32_t *ids, float scale, float *x, bool held) {
    if (!held) dependents_launch();
    dependency_wait();
    __shared__ float table[16];
    table_to_shared(w, table);
    const int64_t row = blockIdx.x, col = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * 8;
    if (col >= w.n_cols) return;
    const int id = ids[row] - w.first_row;
    float v[8] = {};
    if (id >= 0 && id < w.n_rows) weight_octet(w, table, id, col, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (col + i < w.n_cols) x[row * w.n_cols + col + i] = v[i] * scale;
}

static dim3 octet_grid(int64_t n_rows, int64_t n_cols) {
    return dim3((unsigned)n_rows, (unsigned)((n_cols + THREADS * 8 - 1) / (THREADS * 8)));
}

cudaError_t cuda_embed(const weight *w, const int32_t *ids, int n_rows, float scale, float *x, bool held,
                       cudaStream_t stream) {
    return cuda_launch(embed, octet_grid(n_rows, w->n_cols), THREADS, 0, stream, true, describe_weight(w),
                       ids, scale, x, held);
}

static __global__ void __launch_bounds__(THREADS)
    dequantize(const __grid_constant__ packed_weight w, int64_t first_row, uint4 *out) {
    __shared__ float table[16];
    dependents_launch();
    table_to_shared(w, table);
    const int64_t row = blockIdx.x, col = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * 8;
    float v[8];
    if (col < w.n_cols) packed_octet(w, table, first_row + row, col, v);
    dependency_wait(); // the product ahead may still read what `out` holds
    if (col >= w.n_cols) return;
    out[(row * w.n_cols + col) / 8] = make_uint4(to_bf16x2(v[0], v[1]), to_bf16x2(v[2], v[3]),
                                                 to_bf16x2(v[4], v[5]), to_bf16x2(v[6], v[7]));
}

cudaError_t cuda_dequantize(const weight *w, int64_t first_row, int64_t n_rows, bf16 *out,
                            cudaStream_t stream) {
    return cuda_launch(dequantize, octet_grid(n_rows, w->n_cols), THREADS, 0, stream, true,
                       describe_weight(w), first_row, (uint4 *)out);
}

static __global__ void __launch_bounds__(THREADS)
    convert(int type, const void *in, int64_t n, uint16_t *out) {
    dependents_launch();
    dependency_wait();
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)
        out[i] = to_bf16(type == WEIGHT_F32 ? ((const float *)in)[i]
                                            : __half2float(__ushort_as_half(((const uint16_t *)in)[i])));
}

static unsigned blocks_for(int64_t n) {
    const int64_t blocks = (n + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 4096 ? blocks : 4096);
}

cudaError_t cuda_convert(weight_type from, const void *in, int64_t n, bf16 *out, cudaStream_t stream) {
    return cuda_launch(convert, dim3(blocks_for(n)), THREADS, 0, stream, true, (int)from, in, n, out);
}

// ---- Norms: a block a row, four floats of a thread at a time

enum { NORM_VECTORS = 4, NORM_MAX_THREADS = 1024 };

struct row_norm {
    const float *weight; // (width); NULL: no norm
    float eps, offset;
};

static row_norm describe_norm(const norm_args *args) {
    row_norm n = {};
    if (!args || !args->weight) return n;
    n.weight = (const float *)args->weight->data, n.eps = args->eps, n.offset = args->offset;
    return n;
}

// The sum over all threads of the block, the same in each.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float partial[WARP];
    v = warp_sum(v);
    __syncthreads(); // `partial` may still be read for the sum before
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    const int n_warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    return warp_sum(lane < n_warps ? partial[lane] : 0.0f);
}

// What a thread has of a row: floats 4·(threadIdx.x + i·blockDim.x) and the three behind.
struct row_part {
    float4 v[NORM_VECTORS];

    template <typename F> __device__ __forceinline__ void each(int width, F f) {
#pragma unroll
        for (int i = 0; i < NORM_VECTORS; i++) {
            const int at = threadIdx.x + i * blockDim.x;
            if (at < width / 4) f(at, v[i]);
        }
    }
    __device__ __forceinline__ void load(const float *row, int width) {
        each(width, [&](int at, float4 &x) { x = ((const float4 *)row)[at]; });
    }
    // Weights do not change: they are loaded before the wait for the kernel ahead.
    __device__ __forceinline__ void load_gain(const row_norm &norm, int width) {
        each(width, [&](int at, float4 &x) {
            x = norm.weight ? ((const float4 *)norm.weight)[at] : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
            if (norm.weight) x.x += norm.offset, x.y += norm.offset, x.z += norm.offset, x.w += norm.offset;
        });
    }
    __device__ __forceinline__ void norm(const row_norm &norm, const row_part &gain, int width) {
        float squares = 0.0f;
        each(width, [&](int, float4 &x) { squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; });
        const float factor = norm.weight ? 1.0f / sqrtf(block_sum(squares) / width + norm.eps) : 1.0f;
        for (int i = 0; i < NORM_VECTORS; i++) {
            v[i].x *= factor * gain.v[i].x, v[i].y *= factor * gain.v[i].y;
            v[i].z *= factor * gain.v[i].z, v[i].w *= factor * gain.v[i].w;
        }
    }
    __device__ __forceinline__ void store(uint16_t *out, const lut_order &order, int row, int width) {
        each(width, [&](int at, float4 &x) {
            *order_word(out, order, width * 2, row, at * 4) = to_bf16x2(x.x, x.y);
            *order_word(out, order, width * 2, row, at * 4 + 2) = to_bf16x2(x.z, x.w);
        });
    }
};

static __global__ void __launch_bounds__(NORM_MAX_THREADS)
    rms_norm(row_norm norm, const float *x, const int32_t *rows, int width, uint16_t *out, lut_order order) {
    row_part part = {}, gain = {};
    dependents_launch();
    gain.load_gain(norm, width);
    dependency_wait();
    const int64_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    part.load(x + row * width, width);
    part.norm(norm, gain, width);
    part.store(out, order, blockIdx.x, width);
}

static __global__ void __launch_bounds__(NORM_MAX_THREADS)
    norm_add(row_norm norm, const float *product, int width, float *x, row_norm next, uint16_t *out,
             lut_order order) {
    row_part part = {}, gain = {}, next_gain = {};
    dependents_launch();
    gain.load_gain(norm, width);
    if (out) next_gain.load_gain(next, width);
    dependency_wait();
    float *row = x + blockIdx.x * (int64_t)width;
    part.load(product + blockIdx.x * (int64_t)width, width);
    part.norm(norm, gain, width);
    part.each(width, [&](int at, float4 &y) {
        const float4 old = ((const float4 *)row)[at];
        y.x += old.x, y.y += old.y, y.z += old.z, y.w += old.w;
        ((float4 *)row)[at] = y;
    });
    if (!out) return;
    part.norm(next, next_gain, width);
    part.store(out, order, blockIdx.x, width);
}

static int norm_threads(int width) {
    const int threads = (width / 4 + WARP - 1) / WARP * WARP;
    return threads < NORM_MAX_THREADS ? threads : NORM_MAX_THREADS;
}

cudaError_t cuda_rms_norm(const norm_args *norm, const float *x, const int32_t *rows, int n_rows, int width,
                          bf16 *out, lut_order order, cudaStream_t stream) {
    return cuda_launch(rms_norm, dim3((unsigned)n_rows), norm_threads(width), 0, stream, true,
                       describe_norm(norm), x, rows, width, out, order);
}

cudaError_t cuda_norm_add(const norm_args *norm, const float *product, int n_rows, int width, float *x,
                          const norm_args *next, bf16 *out, lut_order order, cudaStream_t stream) {
    return cuda_launch(norm_add, dim3((unsigned)n_rows), norm_threads(width), 0, stream, true,
                       describe_norm(norm), product, width, x, describe_norm(next), next ? out : (bf16 *)NULL,
                       order);
}

// ---- Rotation and the cache: a block for each row and KV head, a warp for each of its heads

static __global__ void rotate(const __grid_constant__ rotate_params p, uint16_t *q) {
    const int row = blockIdx.x, kv_head = blockIdx.y;
    const int n_queries = p.n_queries;
    dependents_launch();
    const int position = p.rows.positions[row];
    lane_rotation<MAX_PAIRS> rotation;
    rotation.load(p.inv_freq, p.rows.head_dim);
    rotation.turn(position);
    dependency_wait();
    if (position < 0) return;
    const cuda_rows &r = p.rows;
    const int head_dim = r.head_dim, token = position % r.block_tokens;
    const int32_t block = r.tables[(int64_t)r.sequences[row] * r.max_blocks + position / r.block_tokens];
    uint16_t *keys = r.cache + block * r.block_stride + (int64_t)kv_head * 2 * head_dim * r.tile_tokens;
    for (int head = threadIdx.x / WARP; head < n_queries + 2; head += blockDim.x / WARP) {
        lane_pairs<MAX_PAIRS> pairs;
        pairs.load(head_of_row(p, row, kv_head, head), head_dim);
        if (head < n_queries)
            rotate_query(p, rotation, pairs,
                         q + ((int64_t)row * r.n_heads + kv_head * n_queries + head) * head_dim);
        else if (head == n_queries)
            rotate_key(p, rotation, pairs, keys + token * head_dim);
        else
            pairs.store(head_dim, keys + head_dim * r.tile_tokens + token, r.tile_tokens);
    }
}

cudaError_t cuda_rotate(const rotate_args *args, bf16 *q, cudaStream_t stream) {
    const cuda_rows *rows = args->rows;
    const int heads = rows->n_heads / rows->n_kv_heads + 2, warps = heads < 16 ? heads : 16;
    return cuda_launch(rotate, dim3((unsigned)rows->n_rows, (unsigned)rows->n_kv_heads), warps * WARP, 0,
                       stream, true, describe_rotation(args), q);
}

// ---- Activations and logits, where a product did not do it itself

static __global__ void __launch_bounds__(THREADS)
    activate(int act, const float *gate_up, int64_t in_stride, int n_channels, uint16_t *out,
             int64_t out_stride) {
    dependents_launch();
    dependency_wait();
    const int c = blockIdx.y * THREADS + threadIdx.x;
    if (c >= n_channels) return;
    const float *from = gate_up + blockIdx.x * in_stride + c / 8 * 16 + c % 8;
    out[blockIdx.x * out_stride + c] = to_bf16(gated(from[0], from[8], act));
}

cudaError_t cuda_activate(activation act, const float *gate_up, int64_t in_stride, int n_rows, int n_channels,
                          bf16 *out, int64_t out_stride, cudaStream_t stream) {
    const dim3 grid((unsigned)n_rows, (unsigned)((n_channels + THREADS - 1) / THREADS));
    return cuda_launch(activate, grid, THREADS, 0, stream, true,
                       act == ACT_SILU ? (int)LUT_SILU_MUL : (int)LUT_GELU_MUL, gate_up, in_stride,
                       n_channels, out, out_stride);
}

static __global__ void __launch_bounds__(THREADS) softcap(float *logits, int64_t n, float cap) {
    dependents_launch();
    dependency_wait();
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)
        logits[i] = cap * tanhf(logits[i] / cap);
}

cudaError_t cuda_softcap(float *logits, int64_t n, float cap, cudaStream_t stream) {
    return cuda_launch(softcap, dim3(blocks_for(n)), THREADS, 0, stream, true, logits, n, cap);
}
