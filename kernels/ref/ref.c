#include "kernels/ref/ref.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/layout.h"

void ref_embed(const weight *w, const int32_t *ids, int n, float scale, float *out) {
    for (int i = 0; i < n; i++, out += w->n_cols) {
        weight_row(w, ids[i], out);
        for (int64_t col = 0; col < w->n_cols; col++) out[col] *= scale;
    }
}

// 16 × 128 weights in float are 8 KiB: they stay in the first-level cache while all rows of x pass by.
enum { TILE_ROWS = 16, TILE_COLS = 128 };

// Sums side by side, four to a vector of the target's baseline: gcc 12, given plain arrays, vectorises the
// loop over k instead, badly (6 GFLOP/s instead of 25). Element by element it is the same arithmetic.
typedef float four __attribute__((vector_size(16)));
typedef struct lanes {
    four part[TILE_ROWS / 4];
} lanes;

// sums[m][r] += Σ_k x[m][k] · tile[k][r] for two rows of x, in the order of k.
static void accumulate_two(const lanes *tile, const float *x0, const float *x1, int n_cols, lanes *sums) {
    lanes a = sums[0], b = sums[1];
    for (int k = 0; k < n_cols; k++)
        for (int i = 0; i < TILE_ROWS / 4; i++) {
            a.part[i] += x0[k] * tile[k].part[i];
            b.part[i] += x1[k] * tile[k].part[i];
        }
    sums[0] = a;
    sums[1] = b;
}

// Output columns [first, first + n), n <= 16, of all rows.
static void gemm_panel(const weight *w, int64_t first, int n, const float *x, int n_rows, float *out) {
    lanes tile[TILE_COLS] = {0}; // rows past the last stay zero
    for (int64_t col = 0; col < w->n_cols; col += TILE_COLS) {
        const int n_cols = w->n_cols - col < TILE_COLS ? (int)(w->n_cols - col) : TILE_COLS;
        for (int r = 0; r < n; r++) {
            float values[TILE_COLS];
            weight_values(w, first + r, col, n_cols, values);
            for (int k = 0; k < n_cols; k++) tile[k].part[r / 4][r % 4] = values[k];
        }
        for (int m = 0; m < n_rows; m += 2) {
            const int pair = n_rows - m < 2 ? 1 : 2; // a single row is computed twice
            const float *x0 = x + m * w->n_cols + col, *x1 = x0 + (pair - 1) * w->n_cols;
            lanes sums[2] = {0};
            for (int i = 0; i < pair && col > 0; i++)
                memcpy(&sums[i], out + (m + i) * w->n_rows + first, (size_t)n * sizeof(float));
            accumulate_two(tile, x0, x1, n_cols, sums);
            for (int i = 0; i < pair; i++)
                memcpy(out + (m + i) * w->n_rows + first, &sums[i], (size_t)n * sizeof(float));
        }
    }
}

void ref_gemm_columns(const weight *w, int64_t first, int64_t last, const float *x, int n_rows, float *out) {
    assert(first % TILE_ROWS == 0);
    for (; first < last; first += TILE_ROWS)
        gemm_panel(w, first, last - first < TILE_ROWS ? (int)(last - first) : TILE_ROWS, x, n_rows, out);
}

void ref_gemm(const weight *w, const float *x, int n_rows, float *out) {
    ref_gemm_columns(w, 0, w->n_rows, x, n_rows, out);
}

static float rms_factor(const float *x, int width, float eps) {
    float sum = 0;
    for (int i = 0; i < width; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)width + eps);
}

void ref_rms_norm(const norm_args *norm, const float *x, int width, float *out) {
    const float factor = rms_factor(x, width, norm->eps);
    for (int i = 0; i < width; i++)
        out[i] = x[i] * factor * (norm->offset + weight_value(norm->weight, 0, i));
}

int ref_rotary_channel(int head_dim, int i) {
    return i / 16 * 8 + i % 8 + (i % 16 < 8 ? 0 : head_dim / 2);
}

void ref_head_norm(const norm_args *norm, float *x, int head_dim) {
    const float factor = rms_factor(x, head_dim, norm->eps);
    for (int i = 0; i < head_dim; i++)
        x[i] =
            x[i] * factor * (norm->offset + weight_value(norm->weight, 0, ref_rotary_channel(head_dim, i)));
}

void ref_rope(float *x, int head_dim, const float *inv_freq, int position) {
    for (int channel = 0; channel < head_dim / 2; channel++) {
        float *first = x + channel / 8 * 16 + channel % 8, *second = first + 8;
        float angle = (float)position * inv_freq[channel];
        float c = cosf(angle), s = sinf(angle), a = *first, b = *second;
        *first = a * c - b * s;
        *second = b * c + a * s;
    }
}

float ref_softcap(float x, float cap) {
    return cap != 0 ? cap * tanhf(x / cap) : x;
}

static float silu(float x) {
    return x / (1.0f + expf(-x));
}

static float gelu_tanh(float x) {
    const float sqrt_2_over_pi = 0.79788456080286535588f;
    return 0.5f * x * (1.0f + tanhf(sqrt_2_over_pi * (x + 0.044715f * x * x * x)));
}

void ref_activation(activation act, const float *gate_up, int n_ff, float *out) {
    for (int i = 0; i < n_ff; i++) {
        float gate = gate_up[i / 8 * 16 + i % 8], up = gate_up[i / 8 * 16 + 8 + i % 8];
        out[i] = (act == ACT_SILU ? silu(gate) : gelu_tanh(gate)) * up;
    }
}

enum { SCORES = 16 }; // tokens whose scores are computed side by side

// Scores of tokens [first, first + n) into scores, n <= 16 and all in one block.
static void block_scores(const float *q, const ref_kv *kv, int first, int n, float softcap, float *scores) {
    const float *keys =
        kv->keys + kv->blocks[first / kv->block_tokens] * kv->block_stride + first % kv->block_tokens;
    for (int t = 0; t < n; t++) scores[t] = 0;
    for (int d = 0; d < kv->head_dim; d++, keys += kv->block_tokens)
        for (int t = 0; t < n; t++) scores[t] += q[d] * keys[t];
    for (int t = 0; t < n; t++) scores[t] = ref_softcap(scores[t], softcap);
}

// Tokens from `first` that one call of block_scores can take.
static int piece_length(const ref_kv *kv, int first, int last) {
    int in_block = kv->block_tokens - first % kv->block_tokens, left = last - first + 1;
    int n = in_block < left ? in_block : left;
    return n < SCORES ? n : SCORES;
}

// Two passes over the keys, the first for the largest score: cheaper here than a buffer as long as the
// context.
void ref_attention(const float *q, const ref_kv *kv, int first, int last, float softcap, float *out) {
    float scores[SCORES], max = -INFINITY, sum = 0;
    for (int token = first, n; token <= last; token += n) {
        n = piece_length(kv, token, last);
        block_scores(q, kv, token, n, softcap, scores);
        for (int t = 0; t < n; t++) max = fmaxf(max, scores[t]);
    }
    for (int d = 0; d < kv->head_dim; d++) out[d] = 0;
    for (int token = first, n; token <= last; token += n) {
        n = piece_length(kv, token, last);
        block_scores(q, kv, token, n, softcap, scores);
        const float *values = kv->values + kv->blocks[token / kv->block_tokens] * kv->block_stride +
                              (int64_t)(token % kv->block_tokens) * kv->head_dim;
        for (int t = 0; t < n; t++, values += kv->head_dim) {
            float p = expf(scores[t] - max);
            sum += p;
            for (int d = 0; d < kv->head_dim; d++) out[d] += p * values[d];
        }
    }
    for (int d = 0; d < kv->head_dim; d++) out[d] /= sum;
}
