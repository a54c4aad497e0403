// The scalar twins against formulas in double, written in the natural order of channels, and the plumbing of
// the reference backend around them. Whole models are in tests/models/test_graph.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "kernels/layout.h"
#include "kernels/ref/ref.h"

static uint64_t random_state;

static void random_seed(uint64_t seed) {
    print_message("# seed %llu\n", (unsigned long long)seed);
    random_state = seed;
}

static uint32_t random_bits(void) { // xorshift64* (Vigna 2016)
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 32);
}

static float random_float(void) { // in [−1, 1)
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n > 0 ? n : 1, size);
    assert_non_null(memory);
    return memory;
}

static float *random_floats(int64_t n) {
    float *out = (float *)allocate((size_t)n, sizeof *out);
    for (int64_t i = 0; i < n; i++) out[i] = random_float();
    return out;
}

// |got − expected| within `tolerance` of the size of the terms that were summed.
static void assert_near(const char *what, int64_t index, double got, double expected, double size,
                        double tolerance) {
    if (!(fabs(got - expected) <= tolerance * (size + 1e-30)))
        fail_msg("%s: [%lld] is %.9g instead of %.9g", what, (long long)index, got, expected);
}

// A random matrix of any type; scales of either sign. The caller frees data.
static weight random_weight(weight_type type, int group_size, int64_t n_rows, int64_t n_cols) {
    weight w = {.type = type, .n_rows = n_rows, .n_cols = n_cols};
    const int64_t n = n_rows * n_cols;
    if (!weight_is_quantized(type)) {
        w.size = (size_t)n * (size_t)weight_type_bits(type) / 8;
        void *data = allocate(w.size, 1);
        for (int64_t i = 0; i < n; i++) {
            float value = random_float();
            if (type == WEIGHT_F32)
                ((float *)data)[i] = value;
            else
                ((uint16_t *)data)[i] = type == WEIGHT_F16 ? f16_from_float(value) : bf16_from_float(value);
        }
        w.data = data;
        return w;
    }
    w.group_size = group_size;
    w.size = layout_matrix_bytes(type, n_rows, n_cols, group_size);
    for (int i = 0; i < 16; i++) w.table[i] = bf16_from_float(random_float());
    uint8_t *packed = (uint8_t *)allocate(w.size, 1);
    const int64_t n_groups = n_cols / group_size;
    uint8_t *codes = (uint8_t *)allocate((size_t)(PANEL_ROWS * n_cols), 1);
    f16 *scales = (f16 *)allocate((size_t)(PANEL_ROWS * n_groups), sizeof *scales);
    for (int64_t row = 0; row < n_rows; row += PANEL_ROWS) {
        for (int64_t i = 0; i < PANEL_ROWS * n_cols; i++)
            codes[i] = (uint8_t)(random_bits() & ((1u << weight_type_bits(type)) - 1));
        for (int64_t i = 0; i < PANEL_ROWS * n_groups; i++) scales[i] = f16_from_float(random_float());
        const int left = n_rows - row < PANEL_ROWS ? (int)(n_rows - row) : PANEL_ROWS;
        layout_pack_panel(type, n_cols, group_size, left, codes, scales,
                          packed + (size_t)(row / PANEL_ROWS) * layout_panel_bytes(type, n_cols, group_size));
    }
    free(scales);
    free(codes);
    w.data = packed;
    return w;
}

static void release(weight *w) {
    free((void *)w->data);
}

// ---- Matrices

static void check_gemm(weight_type type, int group_size, int64_t n_rows, int64_t n_cols, int m) {
    weight w = random_weight(type, group_size, n_rows, n_cols);
    float *x = random_floats(m * n_cols), *out = random_floats(m * n_rows);
    float *row = (float *)allocate((size_t)n_cols, sizeof *row);
    ref_gemm(&w, x, m, out);
    for (int64_t n = 0; n < n_rows; n++) {
        for (int64_t k = 0; k < n_cols; k++) row[k] = weight_value(&w, n, k);
        for (int i = 0; i < m; i++) {
            // To the bit the plain loop, and near what double makes of it.
            float plain = 0;
            double exact = 0, size = 0;
            for (int64_t k = 0; k < n_cols; k++) {
                plain += x[i * n_cols + k] * row[k];
                exact += (double)x[i * n_cols + k] * row[k];
                size += fabs((double)x[i * n_cols + k] * row[k]);
            }
            const float got = out[i * n_rows + n];
            if (float_to_bits(got) != float_to_bits(plain))
                fail_msg("%s, %lld × %lld, M = %d: [%d][%lld] is %.9g instead of %.9g",
                         weight_type_name(type), (long long)n_rows, (long long)n_cols, m, i, (long long)n,
                         (double)got, (double)plain);
            assert_near("gemm", n, got, exact, size, 1e-6 + 6e-8 * (double)n_cols);
        }
    }
    free(row);
    free(out);
    free(x);
    release(&w);
}

static void test_gemm(void **unused) {
    (void)unused;
    random_seed(21);
    static const int64_t shapes[][2] = {{1, 32}, {16, 128}, {17, 96}, {31, 288}, {48, 512}, {777, 192}};
    static const int ms[] = {1, 2, 3, 8, 33};
    for (int type = 0; type < WEIGHT_N_TYPES; type++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (size_t i = 0; i < (s < 5 ? 5 : 2); i++)
                check_gemm((weight_type)type, 32, shapes[s][0], shapes[s][1], ms[i]);
    for (int group_size = 64; group_size <= 256; group_size *= 2)
        check_gemm(WEIGHT_LUT3, group_size, 40, 768, 5);
    check_gemm(WEIGHT_F32, 0, 21, 129, 3); // dense columns may be of any number
    check_gemm(WEIGHT_BF16, 0, 5, 7, 4);
}

static void test_gemm_columns_leave_the_others_alone(void **unused) {
    (void)unused;
    random_seed(22);
    enum { N = 70, K = 64, M = 3 };
    weight w = random_weight(WEIGHT_LUT4, 32, N, K);
    float *x = random_floats(M * K), *whole = random_floats(M * N), *part = random_floats(M * N);
    float before[M * N];
    memcpy(before, part, sizeof before);
    ref_gemm(&w, x, M, whole);
    ref_gemm_columns(&w, 16, 57, x, M, part);
    for (int i = 0; i < M * N; i++)
        assert_true(part[i] == (i % N >= 16 && i % N < 57 ? whole[i] : before[i]));
    free(part);
    free(whole);
    free(x);
    release(&w);
}

static void test_embed(void **unused) {
    (void)unused;
    random_seed(23);
    static const int32_t ids[] = {0, 36, 5, 5};
    float out[4 * 64];
    for (int type = 0; type < WEIGHT_N_TYPES; type++) {
        weight w = random_weight((weight_type)type, 32, 37, 64);
        ref_embed(&w, ids, 4, 3.0f, out);
        for (int i = 0; i < 4 * 64; i++) assert_true(out[i] == 3.0f * weight_value(&w, ids[i / 64], i % 64));
        release(&w);
    }
}

// ---- Vectors

static double rms(const float *x, int n, double eps) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum / n + eps);
}

static void test_rms_norm(void **unused) {
    (void)unused;
    random_seed(24);
    static const int widths[] = {1, 16, 100, 384, 4096};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int offset = 0; offset < 2; offset++) {
            const int width = widths[s];
            weight w = random_weight(offset ? WEIGHT_BF16 : WEIGHT_F32, 0, 1, width);
            norm_args norm = {.weight = &w, .eps = 1e-3f, .offset = (float)offset};
            float *x = random_floats(width), *out = random_floats(width);
            const double factor = 1 / rms(x, width, norm.eps);
            ref_rms_norm(&norm, x, width, out);
            for (int i = 0; i < width; i++) {
                double expected = x[i] * factor * (offset + (double)weight_value(&w, 0, i));
                assert_near("rms_norm", i, out[i], expected, fabs(x[i] * factor) * 2, 2e-6);
            }
            ref_rms_norm(&norm, x, width, x); // in place
            assert_memory_equal(x, out, (size_t)width * sizeof *x);
            free(out);
            free(x);
            release(&w);
        }
}

// Channel of the checkpoint's order at place i of a q head, from the definition of the layout.
static int channel_at(int head_dim, int i) {
    const row_order_dims dims = {.n_heads = 1, .n_kv_heads = 1, .head_dim = head_dim};
    return (int)layout_row_source(ROWS_QKV, &dims, i).row;
}

static void test_head_norm_and_rope_follow_the_stored_order(void **unused) {
    (void)unused;
    random_seed(25);
    for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
        const int half = head_dim / 2, position = (int)(random_bits() % 3000);
        weight w = random_weight(WEIGHT_F32, 0, 1, head_dim);
        norm_args norm = {.weight = &w, .eps = 1e-6f, .offset = 1};
        float *natural = random_floats(head_dim), *stored = random_floats(head_dim);
        float *inv_freq = random_floats(half);
        for (int i = 0; i < head_dim; i++) {
            assert_int_equal(ref_rotary_channel(head_dim, i), channel_at(head_dim, i));
            stored[i] = natural[channel_at(head_dim, i)];
        }
        const double factor = 1 / rms(natural, head_dim, norm.eps);
        ref_head_norm(&norm, stored, head_dim);
        for (int i = 0; i < head_dim; i++) {
            const int c = channel_at(head_dim, i);
            natural[c] = (float)(natural[c] * factor * (1 + (double)weight_value(&w, 0, c)));
            assert_near("head_norm", i, stored[i], natural[c], 2, 2e-6);
            stored[i] = natural[c];
        }
        ref_rope(stored, head_dim, inv_freq, position);
        for (int i = 0; i < head_dim; i++) {
            const int c = channel_at(head_dim, i);
            const double angle = (float)position * inv_freq[c % half]; // a float, as PyTorch's is
            const double partner = c < half ? -natural[c + half] : natural[c - half];
            assert_near("rope", i, stored[i], natural[c] * cos(angle) + partner * sin(angle), 4, 1e-6);
        }
        free(inv_freq);
        free(stored);
        free(natural);
        release(&w);
    }
}

static void test_softcap_and_activations(void **unused) {
    (void)unused;
    random_seed(26);
    assert_true(ref_softcap(123.5f, 0) == 123.5f);
    for (int n_ff = 1; n_ff < 40; n_ff++) {
        const int stored = (int)round_up(n_ff, 8) * 2;
        const row_order_dims dims = {.n_rows_source = n_ff};
        float *gate_up = random_floats(stored), out[40], gate[40] = {0}, up[40] = {0};
        for (int i = 0; i < stored; i++) {
            gate_up[i] *= 12;
            row_source from = layout_row_source(ROWS_GATE_UP, &dims, i);
            if (from.row >= 0) (from.source == 0 ? gate : up)[from.row] = gate_up[i];
        }
        ref_activation(ACT_SILU, gate_up, n_ff, out);
        for (int i = 0; i < n_ff; i++) {
            double expected = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
            assert_near("silu", i, out[i], expected, fabs(expected), 1e-6);
        }
        ref_activation(ACT_GELU_TANH, gate_up, n_ff, out);
        for (int i = 0; i < n_ff; i++) {
            double g = gate[i], inner = sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
            // 1 + tanh cancels for negative gates: the error is one of the whole gate.
            assert_near("gelu", i, out[i], 0.5 * g * (1 + tanh(inner)) * up[i], fabs(g * up[i]), 1e-6);
        }
        for (int i = 0; i < n_ff; i++)
            assert_near("softcap", i, ref_softcap(gate[i], 5), 5 * tanh(gate[i] / 5.0), 5, 1e-6);
        free(gate_up);
    }
}

// ---- Attention

static void check_attention(int head_dim, int n_tokens, int block_tokens, int first, float softcap) {
    const int n_blocks = (n_tokens + block_tokens - 1) / block_tokens, last = n_tokens - 1;
    const int64_t stride = 2 * (int64_t)head_dim * block_tokens + 5;
    float *q = random_floats(head_dim), *k = random_floats((int64_t)n_tokens * head_dim);
    float *v = random_floats((int64_t)n_tokens * head_dim), *out = random_floats(head_dim);
    float *cache = (float *)allocate((size_t)(n_blocks * stride), sizeof *cache);
    int32_t *blocks = (int32_t *)allocate((size_t)n_blocks, sizeof *blocks);
    double *p = (double *)allocate((size_t)n_tokens, sizeof *p);
    for (int64_t i = 0; i < n_blocks * stride; i++) cache[i] = NAN; // what is not a token must not be read
    for (int i = 0; i < n_blocks; i++) blocks[i] = (i + n_blocks / 2) % n_blocks;
    ref_kv kv = {cache, cache + (int64_t)head_dim * block_tokens, blocks, block_tokens, stride, head_dim};
    for (int t = first; t < n_tokens; t++)
        for (int d = 0; d < head_dim; d++) {
            float *block = cache + blocks[t / block_tokens] * stride;
            block[d * block_tokens + t % block_tokens] = k[t * head_dim + d] *= 3;
            block[head_dim * block_tokens + t % block_tokens * head_dim + d] = v[t * head_dim + d];
        }
    double max = -INFINITY, sum = 0;
    for (int t = first; t <= last; t++) {
        for (int d = 0; d < head_dim; d++) p[t] += (double)q[d] * k[t * head_dim + d];
        if (softcap != 0) p[t] = softcap * tanh(p[t] / softcap);
        max = fmax(max, p[t]);
    }
    for (int t = first; t <= last; t++) sum += p[t] = exp(p[t] - max);
    ref_attention(q, &kv, first, last, softcap, out);
    for (int d = 0; d < head_dim; d++) {
        double expected = 0;
        for (int t = first; t <= last; t++) expected += p[t] / sum * v[t * head_dim + d];
        assert_near("attention", d, out[d], expected, 1, 1e-5);
    }
    free(p);
    free(blocks);
    free(cache);
    free(out);
    free(v);
    free(k);
    free(q);
}

static void test_attention(void **unused) {
    (void)unused;
    random_seed(27);
    static const int lengths[] = {1, 2, 15, 16, 17, 63, 300}, sizes[] = {1, 5, 16, 64};
    for (int head_dim = 16; head_dim <= 256; head_dim *= 2)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (size_t b = 0; b < sizeof sizes / sizeof *sizes; b++) {
                check_attention(head_dim, lengths[i], sizes[b], 0, 0);
                check_attention(head_dim, lengths[i], sizes[b], lengths[i] * 2 / 3, 2.0f);
            }
    check_attention(48, 100, 100, 0, 0); // one block: contiguous
}

// ---- The backend

// One feed-forward block without attention, of a width that is no multiple of eight, on quantized weights.
typedef struct ff_model {
    kernel_dims dims;
    weight embedding, norm, gate_up, down, head;
    backend *be;
    backend_state *state;
    kv_pool cache;
} ff_model;

enum { HIDDEN = 64, N_FF = 20, N_VOCAB = 37, FF_ROWS = 5 };

static void ff_open(ff_model *model) {
    flute_error err = {0};
    *model = (ff_model){
        .dims = {HIDDEN, 2, 1, 32, N_FF, N_VOCAB, 1, FF_ROWS, FF_ROWS},
        .embedding = random_weight(WEIGHT_LUT4, 32, N_VOCAB, HIDDEN),
        .norm = random_weight(WEIGHT_BF16, 0, 1, HIDDEN),
        .gate_up = random_weight(WEIGHT_LUT3, 64, 2 * round_up(N_FF, 8), HIDDEN),
        .down = random_weight(WEIGHT_F16, 0, HIDDEN, N_FF),
        .head = random_weight(WEIGHT_INT8, 32, N_VOCAB, HIDDEN),
    };
    assert_int_equal(backend_create_ref(NULL, &model->be, &err), FLUTE_OK);
    const backend_ops *ops = model->be->ops;
    assert_int_equal(ops->kv_create(model->be, &model->dims, 4, 3, &model->cache, &err), FLUTE_OK);
    assert_int_equal(ops->state_create(model->be, &model->dims, &model->state, &err), FLUTE_OK);
}

static void ff_close(ff_model *model) {
    const backend_ops *ops = model->be->ops;
    ops->state_free(model->state);
    ops->kv_free(model->be, &model->cache);
    ops->free(model->be);
    weight *weights[] = {&model->embedding, &model->norm, &model->gate_up, &model->down, &model->head};
    for (int i = 0; i < 5; i++) release(weights[i]);
}

static const int32_t ff_ids[FF_ROWS] = {3, 36, 0, 3, 17};

static int ff_step(ff_model *model, const int32_t *logits_rows, int n_logits, const sample_args *samples,
                   flute_error *err) {
    static const int32_t positions[FF_ROWS] = {0, 1, 2, 3, 4}, sequences[FF_ROWS] = {0}, table[2] = {1, 2};
    const backend_ops *ops = model->be->ops;
    const kernel_batch batch = {FF_ROWS, ff_ids, positions, sequences, 1, 2, table, n_logits, logits_rows};
    const norm_args norm = {&model->norm, 1e-5f, 1};
    ops->begin(model->state, &batch, &model->cache);
    ops->embed(model->state, &model->embedding, 2.0f);
    ops->gate_up(model->state, &(gate_up_args){norm, &model->gate_up, ACT_SILU});
    ops->project_add(model->state, &(project_args){PROJECT_FF, &model->down, norm});
    ops->head(model->state, &(head_args){norm, &model->head, 4.0f});
    ops->sample(model->state, samples);
    return ops->finish(model->state, err);
}

static void double_norm(const weight *w, const double *x, double *out) {
    double sum = 0;
    for (int i = 0; i < HIDDEN; i++) sum += x[i] * x[i];
    for (int i = 0; i < HIDDEN; i++)
        out[i] = x[i] / sqrt(sum / HIDDEN + 1e-5) * (1 + (double)weight_value(w, 0, i));
}

static double double_dot(const weight *w, int64_t row, const double *x) {
    double sum = 0;
    for (int64_t k = 0; k < w->n_cols; k++) sum += (double)weight_value(w, row, k) * x[k];
    return sum;
}

// The same step for one row, in double.
static void ff_expected(const ff_model *model, int32_t id, double *logits) {
    double x[HIDDEN], normed[HIDDEN], ff[N_FF], product[HIDDEN];
    for (int i = 0; i < HIDDEN; i++) x[i] = 2.0 * weight_value(&model->embedding, id, i);
    double_norm(&model->norm, x, normed);
    for (int i = 0; i < N_FF; i++) {
        double gate = double_dot(&model->gate_up, i / 8 * 16 + i % 8, normed);
        ff[i] = gate / (1 + exp(-gate)) * double_dot(&model->gate_up, i / 8 * 16 + 8 + i % 8, normed);
    }
    for (int i = 0; i < HIDDEN; i++) product[i] = double_dot(&model->down, i, ff);
    double_norm(&model->norm, product, normed);
    for (int i = 0; i < HIDDEN; i++) x[i] += normed[i];
    double_norm(&model->norm, x, normed);
    for (int i = 0; i < N_VOCAB; i++) logits[i] = 4 * tanh(double_dot(&model->head, i, normed) / 4);
}

static void test_feed_forward_of_ragged_width(void **unused) {
    (void)unused;
    random_seed(28);
    ff_model model;
    ff_open(&model);
    flute_error err = {0};
    static const int32_t rows[] = {1, 2, 4};
    const sample_args samples[3] = {{0}}; // greedy
    assert_int_equal(ff_step(&model, rows, 3, samples, &err), FLUTE_OK);
    for (int i = 0; i < 3; i++) {
        double expected[N_VOCAB];
        int best = 0;
        ff_expected(&model, ff_ids[rows[i]], expected);
        const float *got = model.be->ops->logits(model.state, i);
        for (int id = 0; id < N_VOCAB; id++) {
            assert_near("logits", id, got[id], expected[id], 4, 1e-5);
            if (got[id] > got[best]) best = id;
        }
        assert_int_equal(model.be->ops->tokens(model.state)[i], best);
    }
    assert_int_equal(ff_step(&model, NULL, 0, NULL, &err), FLUTE_OK); // a step may want no logits
    ff_close(&model);
}

static void test_errors_stick_until_the_next_begin(void **unused) {
    (void)unused;
    random_seed(29);
    ff_model model;
    ff_open(&model);
    flute_error err = {0};
    static const int32_t rows[] = {0, 4};
    const sample_args samples[2] = {{0}};
    f16 *down = (f16 *)model.down.data, saved = down[3];
    down[3] = 0x7e00; // NaN
    assert_int_equal(ff_step(&model, rows, 2, samples, &err), FLUTE_ERANGE);
    assert_non_null(strstr(err.message, "not finite"));
    down[3] = saved;
    assert_int_equal(ff_step(&model, rows, 2, samples, &err), FLUTE_OK);
    ff_close(&model);
}

static void test_backend_describes_and_measures_itself(void **unused) {
    (void)unused;
    backend *be = NULL;
    flute_error err = {0};
    const kernel_dims dims = {64, 4, 2, 32, 128, 100, 3, 8, 1};
    assert_int_equal(backend_create_ref(NULL, &be, &err), FLUTE_OK);
    assert_string_equal(be->ops->name, "ref");
    assert_true(strlen(be->ops->describe(be)) > 0);
    // Keys and values in float32: layers × KV heads × head_dim × 2 × 4 bytes.
    assert_int_equal(be->ops->kv_bytes(be, &dims, 10), 10 * 3 * 2 * 32 * 2 * 4);
    double bandwidth = be->ops->read_bandwidth(be);
    assert_true(bandwidth > 1e8 && bandwidth < 1e13);
    weight w = random_weight(WEIGHT_F32, 0, 2, 3), placed;
    assert_int_equal(be->ops->weight_place(be, &w, &placed, &err), FLUTE_OK);
    assert_ptr_equal(placed.data, w.data);
    be->ops->weight_release(be, &placed);
    assert_null(placed.data);
    release(&w);
    be->ops->free(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_gemm_columns_leave_the_others_alone),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_head_norm_and_rope_follow_the_stored_order),
        cmocka_unit_test(test_softcap_and_activations),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_feed_forward_of_ragged_width),
        cmocka_unit_test(test_errors_stick_until_the_next_begin),
        cmocka_unit_test(test_backend_describes_and_measures_itself),
    };
    return cmocka_run_group_tests_name("ref", tests, NULL, NULL);
}
