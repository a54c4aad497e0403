// The GPU's LUT-GEMM against the scalar definition of kernels/layout.h, in double: every width, group size
// and number of tokens on ragged shapes, random data, poisoned outputs, with and without overlapped launches,
// activations in rows and arranged, and the same bits twice; rows of products that overlap, and two with a
// norm between them. Prints TAP, whose plan says SKIP where there is no device.
//
//     check_cuda [--small] [SEED [TYPE [TOKENS [PATH]]]]     (0: all numbers of tokens; auto, gemv, tile,
//     wide, ampere)
//
// --small: less of each, for the emulator of tests/simt.
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lut_gemm.h"
#include "kernels/layout.h"
#include "tests/kernels/cuda_check.h"
#ifdef EMULATED_SMS
#include "tests/simt/control.h"
#endif

typedef struct device_buffer {
    void *data;
    size_t size;
} device_buffer;

// The buffer grows as needed; contents are lost.
static void *device_memory(device_buffer *buffer, size_t size) {
    if (buffer->size < size) {
        cudaFree(buffer->data);
        check(cudaMalloc(&buffer->data, size), "cudaMalloc");
        buffer->size = size;
    }
    return buffer->data;
}

typedef struct check_case {
    weight w; // data on the host
    int n_tokens;
    int64_t x_stride, y_stride;
    lut_epilogue epilogue;
    bool overlap;
    lut_path path;
    int variant; // of the path
    lut_order x_order, y_order;
    lut_norm norm; // of what is on the device
    lut_next next;
    const float *factors; // (n_tokens) of the norm; NULL: none
    bf16 *x;
} check_case;

enum { POISON = 0xff }; // NaN in every format

static bool is_gate_up(const check_case *c) {
    return c->epilogue == LUT_SILU_MUL || c->epilogue == LUT_GELU_MUL;
}

// Elements behind each row of y that nobody may touch.
static int y_gap(const check_case *c) {
    return is_gate_up(c) ? 4 : 3;
}

static bool is_bf16(const check_case *c) {
    return c->epilogue != LUT_STORE_F32 && c->epilogue != LUT_ADD_F32;
}

static double residual_at(int64_t i) { // what LUT_ADD_F32 finds in y
    return (double)(i % 17) * 0.25 - 2.0;
}

static check_case case_random(weight_type type, int group_size, int n_tokens, int64_t n_rows,
                              int64_t n_cols) {
    check_case c = {.n_tokens = n_tokens, .overlap = random_bits() & 1};
    c.epilogue = (lut_epilogue)random_below(LUT_GELU_MUL + 1);
    if (is_gate_up(&c)) n_rows = round_up(n_rows, 16);
    c.w = (weight){.type = type, .group_size = group_size, .n_rows = n_rows, .n_cols = n_cols};
    c.w.size = layout_matrix_bytes(type, n_rows, n_cols, group_size);
    uint8_t *data = host_memory(c.w.size);
    const int64_t n_panels = layout_padded_rows(n_rows) / PANEL_ROWS;
    layout_random_panels(type, n_cols, group_size, 0, n_panels, random_bits(), 0.02f, data);
    c.w.data = data;
    if (type != WEIGHT_INT8)
        for (int i = 0; i < 1 << weight_type_bits(type); i++) c.w.table[i] = bf16_from_float(random_float());
    c.x_stride = n_cols + 8 * random_below(3);
    c.y_stride = n_rows / (is_gate_up(&c) ? 2 : 1) + y_gap(&c);
    c.x = host_memory((size_t)(n_tokens * c.x_stride) * sizeof *c.x);
    for (int64_t i = 0; i < n_tokens * c.x_stride; i++)
        c.x[i] = i % c.x_stride < n_cols ? bf16_from_float(random_float()) : 0x7fc0; // NaN between the rows
    return c;
}

// Other orders than rows, at random, where the product takes and leaves them.
static void case_order(const lut_device *device, check_case *c) {
    if (c->path != LUT_PATH_AUTO) return;
    if (random_below(2)) c->x_order = lut_gemm_order(device, &c->w, c->n_tokens);
    // LUT_PATH_AMPERE takes many tokens in pieces, which must be whole tiles of y.
    if (!is_gate_up(c) || random_below(2) || lut_gemm_path(device, c->n_tokens) == LUT_PATH_AMPERE) return;
    c->y_order.tile_tokens = 8 << random_below(5);
    c->y_order.n_blocks = (int)((c->w.n_rows / 2 + 127) / 128);
}

static void case_free(check_case *c) {
    free((void *)c->w.data);
    free(c->x);
}

// Runs the case on the device; y: what the rows look like afterwards, as bytes.
static int case_run(const lut_device *device, const check_case *c, uint8_t *y, size_t rows_size,
                    flute_error *err) {
    static device_buffer w_buffer, x_buffer, y_buffer;
    weight placed = c->w;
    const size_t x_size = c->x_order.tile_tokens ? lut_order_bytes(c->n_tokens, c->w.n_cols)
                                                 : (size_t)(c->n_tokens * c->x_stride) * sizeof *c->x;
    const size_t y_size =
        c->y_order.tile_tokens ? lut_order_bytes(c->n_tokens, c->y_order.n_blocks * 128) : rows_size;
    bf16 *x = host_memory(x_size), *arranged = host_memory(y_size);
    memset(x, POISON, x_size);
    for (int64_t m = 0; m < c->n_tokens; m++)
        for (int64_t k = 0; k < (c->x_order.tile_tokens ? c->w.n_cols : 0); k++)
            x[order_element(c->x_order, m, k)] = c->x[m * c->x_stride + k];
    placed.data = device_memory(&w_buffer, c->w.size);
    check(cudaMemcpy(w_buffer.data, c->w.data, c->w.size, cudaMemcpyHostToDevice), "copy of the weight");
    device_memory(&x_buffer, x_size);
    check(cudaMemcpy(x_buffer.data, c->x_order.tile_tokens ? x : c->x, x_size, cudaMemcpyHostToDevice),
          "copy of the activations");
    device_memory(&y_buffer, y_size);
    memset(y, POISON, rows_size);
    memset(arranged, POISON, y_size);
    if (c->epilogue == LUT_ADD_F32)
        for (int64_t m = 0; m < c->n_tokens; m++)
            for (int64_t n = 0; n < c->w.n_rows; n++)
                ((float *)(void *)y)[m * c->y_stride + n] = (float)residual_at(m * c->y_stride + n);
    check(cudaMemcpy(y_buffer.data, c->y_order.tile_tokens ? (void *)arranged : y, y_size,
                     cudaMemcpyHostToDevice),
          "copy of the output");
    const lut_gemm_args args = {.w = &placed,
                                .x = x_buffer.data,
                                .x_stride = c->x_stride,
                                .n_tokens = c->n_tokens,
                                .y = y_buffer.data,
                                .y_stride = c->y_stride,
                                .epilogue = c->epilogue,
                                .x_order = c->x_order,
                                .y_order = c->y_order,
                                .norm = c->norm,
                                .next = c->next,
                                .overlap = c->overlap,
                                .path = c->path,
                                .variant = c->variant};
    const int code = lut_gemm(device, &args, NULL, err);
    check(cudaDeviceSynchronize(), "lut_gemm");
    check(cudaMemcpy(c->y_order.tile_tokens ? (void *)arranged : y, y_buffer.data, y_size,
                     cudaMemcpyDeviceToHost),
          "copy of the result");
    for (int64_t m = 0; m < c->n_tokens; m++)
        for (int64_t i = 0; i < (c->y_order.tile_tokens ? c->w.n_rows / 2 : 0); i++)
            ((bf16 *)(void *)y)[m * c->y_stride + i] = arranged[order_element(c->y_order, m, i)];
    free(x);
    free(arranged);
    return code;
}

// One row as lut_wide multiplies it for many tokens: scales and products rounded to bf16.
static void rounded_row(const weight *w, int64_t row, float *out) {
    for (int64_t k = 0; k < w->n_cols; k++) {
        const unsigned code = layout_code(w, row, k);
        const float value = w->type == WEIGHT_INT8 ? (float)((int)code - 128) : bf16_to_float(w->table[code]);
        const float scale = bf16_to_float(bf16_from_float(layout_scale(w, row, k)));
        out[k] = bf16_to_float(bf16_from_float(value * scale)); // of 8 + 8 bits: exact before it is rounded
    }
}

// The sum of one row and token, and the sum of the sizes of its terms.
static double dot(const check_case *c, const float *row, int64_t token, double *size) {
    double sum = 0;
    *size = 0;
    for (int64_t k = 0; k < c->w.n_cols; k++) {
        const double term = (double)row[k] * bf16_to_float(c->x[token * c->x_stride + k]);
        sum += term, *size += fabs(term);
    }
    const double factor = c->factors ? c->factors[token] : 1.0;
    *size *= factor;
    return sum * factor;
}

static double gate_function(const check_case *c, double gate) {
    if (c->epilogue == LUT_SILU_MUL) return gate / (1 + exp(-gate));
    return 0.5 * gate * (1 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)));
}

// Compares one output element; returns its error in units of what is allowed.
static double element_error(const check_case *c, const uint8_t *y, int64_t token, int64_t channel,
                            const float *row, const float *row_up) {
    const int64_t at = token * c->y_stride + channel;
    double size, size_up = 0, expected = dot(c, row, token, &size);
    double allowed = 1e-6 * size; // fp32 sums of exact products
    if (is_gate_up(c)) {
        const double up = dot(c, row_up, token, &size_up), gate = expected;
        expected = gate_function(c, gate) * up;
        allowed = 2e-6 * (size * fabs(up) + size_up * (fabs(gate) + 1)); // |act'| < 1.13; __expf: 2 ulp
    }
    if (c->epilogue == LUT_ADD_F32) expected += (double)(float)residual_at(at);
    const double got = is_bf16(c) ? (double)bf16_to_float(((const bf16 *)(const void *)y)[at])
                                  : (double)((const float *)(const void *)y)[at];
    if (is_bf16(c)) allowed += fabs(expected) * 0x1p-8;
    allowed += fabs(expected) * 1e-6 + 1e-30;
    return isfinite(got) ? fabs(got - expected) / allowed : INFINITY;
}

// The largest error over rows, all of them or a sample; at most 1 is right.
static double case_error(const lut_device *device, const check_case *c, const uint8_t *y) {
    const lut_path path = c->path ? c->path : lut_gemm_path(device, c->n_tokens);
    void (*get_row)(const weight *, int64_t, float *) =
        path == LUT_PATH_WIDE && c->n_tokens > LUT_EXACT_TOKENS ? rounded_row : weight_row;
    const int64_t channels = c->w.n_rows / (is_gate_up(c) ? 2 : 1);
    const double work = (double)channels * (double)c->w.n_cols * c->n_tokens;
    const int64_t wanted = work < 5e6 ? channels : (int64_t)(5e6 / ((double)c->w.n_cols * c->n_tokens)) + 1;
    float *row = host_memory((size_t)c->w.n_cols * 2 * sizeof *row), *row_up = row + c->w.n_cols;
    double worst = 0;
    for (int64_t i = 0; i < wanted; i++) {
        const int64_t channel = wanted == channels ? i : random_below((int)channels);
        const int64_t first = is_gate_up(c) ? channel / 8 * 16 + channel % 8 : channel;
        get_row(&c->w, first, row);
        if (is_gate_up(c)) get_row(&c->w, first + 8, row_up);
        for (int64_t token = 0; token < c->n_tokens; token++)
            worst = fmax(worst, element_error(c, y, token, channel, row, row_up));
    }
    free(row);
    return worst;
}

// Whether the bytes between the rows of y are still poisoned.
static bool case_gaps_untouched(const check_case *c, const uint8_t *y) {
    const size_t element = is_bf16(c) ? 2 : 4;
    for (int64_t token = 0; token < c->n_tokens; token++) {
        const size_t n = (size_t)y_gap(c);
        const uint8_t *gap = y + ((size_t)((token + 1) * c->y_stride) - n) * element;
        for (size_t i = 0; i < n * element; i++)
            if (gap[i] != POISON) return false;
    }
    return true;
}

static const char *const path_names[] = {"auto", "gemv", "tile", "wide", "ampere"};
enum { N_PATHS = 5 };

// Runs a case twice; prints what is wrong with it.
static bool case_check(const lut_device *device, check_case *c) {
    const size_t y_size = (size_t)(c->n_tokens * c->y_stride) * (is_bf16(c) ? 2 : 4);
    uint8_t *y = host_memory(y_size), *again = host_memory(y_size);
    flute_error err = {0};
    const char *wrong = NULL;
    double error = 0;
    if (case_run(device, c, y, y_size, &err) != FLUTE_OK ||
        case_run(device, c, again, y_size, &err) != FLUTE_OK)
        wrong = err.message;
    else if (memcmp(y, again, y_size) != 0)
        wrong = "two runs differ";
    else if (!case_gaps_untouched(c, y))
        wrong = "wrote outside its rows";
    else if ((error = case_error(device, c, y)) > 1)
        wrong = "wrong sums";
    if (wrong)
        printf("# %s g%d N=%lld K=%lld M=%d %s %d epilogue %d%s%s%s: %s (error %.3g times the allowed)\n",
               weight_type_name(c->w.type), c->w.group_size, (long long)c->w.n_rows, (long long)c->w.n_cols,
               c->n_tokens, path_names[c->path], c->variant, c->epilogue, c->overlap ? " overlapped" : "",
               c->x_order.tile_tokens ? " x arranged" : "", c->y_order.tile_tokens ? " y arranged" : "",
               wrong, error);
    free(y);
    free(again);
    return !wrong;
}

// Ragged shapes, more of the small ones: N from 1, K from one group; and now and then one with several panels
// for every block of threads. Many tokens: either few rows or few columns.
static void random_shape(int group_size, int n_tokens, int64_t *n_rows, int64_t *n_cols) {
    const int kind = random_below(8);
    *n_rows = kind < 4   ? 1 + random_below(100)
              : kind < 7 ? 1 + random_below(3000)
                         : 4200 + random_below(9000);
    *n_cols = group_size * (1 + random_below((kind < 4 ? 9000 : 3000) / group_size));
    if (n_tokens <= 32) return;
    if (kind == 7)
        *n_cols = group_size * (1 + random_below(512 / group_size));
    else if (*n_rows > 500)
        *n_rows = 1 + *n_rows % 500;
}

// The same on the two SMs of the emulator, in turn: short, wide, and long enough for several rounds of the
// ring.
static void random_small_shape(int kind, int group_size, int64_t *n_rows, int64_t *n_cols) {
    *n_rows = kind == 0 ? 1 + random_below(100) : kind == 1 ? 1 + random_below(400) : 100 + random_below(100);
    *n_cols = kind == 0 ? random_below(1500) : kind == 1 ? random_below(500) : 3000 + random_below(1500);
    *n_cols = round_up(*n_cols + 1, group_size);
}

static const weight_type types[] = {WEIGHT_LUT2, WEIGHT_LUT3, WEIGHT_LUT4, WEIGHT_INT8};
static const int all_tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32, 33, 64, 128, 300};
static const int few_tokens[] = {1, 2, 3, 4, 5, 8, 17, 32, 33, 65};
enum { N_TYPES = 4, SHAPES = 3 };

enum { CHAIN = 4, CHAIN_WIDTH = 256 };

// CHAIN products in a row, each of what the one before has stored; the last one's bits go to `y`.
static int chain_run(const lut_device *device, const check_case *c, bool overlap, bf16 *y, flute_error *err) {
    static device_buffer w_buffer, buffers[2];
    weight placed = c->w;
    const size_t size = (size_t)c->n_tokens * CHAIN_WIDTH * sizeof *y;
    placed.data = device_memory(&w_buffer, c->w.size);
    check(cudaMemcpy(w_buffer.data, c->w.data, c->w.size, cudaMemcpyHostToDevice), "copy of the weight");
    for (int i = 0; i < 2; i++)
        check(cudaMemset(device_memory(&buffers[i], size), POISON, size), "cudaMemset");
    check(cudaMemcpy(buffers[0].data, c->x, size, cudaMemcpyHostToDevice), "copy of the activations");
    int code = FLUTE_OK;
    for (int i = 0; i < CHAIN && code == FLUTE_OK; i++) {
        const lut_gemm_args args = {.w = &placed,
                                    .x = buffers[i % 2].data,
                                    .x_stride = CHAIN_WIDTH,
                                    .n_tokens = c->n_tokens,
                                    .y = buffers[1 - i % 2].data,
                                    .y_stride = CHAIN_WIDTH,
                                    .epilogue = LUT_STORE_BF16,
                                    .overlap = overlap,
                                    .path = c->path};
        code = lut_gemm(device, &args, NULL, err);
        if (!overlap) check(cudaDeviceSynchronize(), "lut_gemm");
    }
    check(cudaMemcpy(y, buffers[CHAIN % 2].data, size, cudaMemcpyDeviceToHost), "copy of the result");
    return code;
}

// Products that overlap leave the same bits as ones that wait for each other.
static bool check_chain(const lut_device *device, weight_type type, int n_tokens, int only_path) {
    check_case c = case_random(type, 64, n_tokens, CHAIN_WIDTH, CHAIN_WIDTH);
    const size_t n = (size_t)n_tokens * CHAIN_WIDTH;
    bf16 *waiting = host_memory(n * sizeof *waiting), *overlapping = host_memory(n * sizeof *overlapping);
    flute_error err = {0};
    c.path = only_path >= 0 ? (lut_path)only_path : LUT_PATH_AUTO;
    for (size_t i = 0; i < n; i++) c.x[i] = bf16_from_float(random_float()); // no gaps between the rows
    bool good = chain_run(device, &c, false, waiting, &err) == FLUTE_OK &&
                chain_run(device, &c, true, overlapping, &err) == FLUTE_OK;
    if (!good)
        printf("# %s M=%d, a row of products: %s\n", weight_type_name(type), n_tokens, err.message);
    else if (memcmp(waiting, overlapping, n * sizeof *waiting) != 0) {
        printf("# %s M=%d: products that overlap differ from ones that wait\n", weight_type_name(type),
               n_tokens);
        good = false;
    }
    free(waiting);
    free(overlapping);
    case_free(&c);
    return good;
}

static bool check_product(const lut_device *device, weight_type type, int group_size, int n_tokens,
                          int64_t n_rows, int64_t n_cols, lut_path path, int variant) {
    check_case c = case_random(type, group_size, n_tokens, n_rows, n_cols);
    c.path = path, c.variant = variant;
    case_order(device, &c);
    const bool good = case_check(device, &c);
    case_free(&c);
    return good;
}

// So many rows that a block of LUT_PATH_GEMV adds its panels up in two rounds, with the same activations.
static bool check_many_rows(const lut_device *device, weight_type type, int group_size, int n_tokens) {
    const int tokens = n_tokens > 2 ? 4 : n_tokens, panels = 2 * device->n_sms * (32 / tokens + 1);
    return check_product(device, type, group_size, n_tokens, 16 * panels - 16, group_size, LUT_PATH_GEMV, 0);
}

// A matrix that one or two blocks of threads have rows of, most of them as many panels as they may; on the
// emulator with columns for one chunk, now and then for two.
static bool check_teams(const lut_device *device, bool small, weight_type type, int group_size,
                        int n_tokens) {
    const int most_cols = !small ? 16384 : random_below(4) ? 4096 : 10240, panels = (int)random_below(5) + 1;
    const int64_t n_rows = 16 * panels * device->n_sms - (int64_t)random_below(40),
                  n_cols = group_size * (int64_t)(random_below((uint32_t)(most_cols / group_size)) + 1);
    bool good = true;
    for (int team = 2; team >= 1; team--)
        good = check_product(device, type, group_size, n_tokens, n_rows > 0 ? n_rows : 1, n_cols,
                             LUT_PATH_GEMV, team) &&
               good;
    return good;
}

enum { NORM_SQUARES = LUT_NORM_TOKENS * LUT_MAX_PARTS };

// What the first of two products has left for the norm: x is its sums y times the norm's weight, and squares,
// of which n_parts of each row are written, add up to those of y. Fills factors.
static bool norm_is_right(const check_case *c, const float *y, const float *gains, const bf16 *x,
                          const float *squares, int n_parts, float eps, float *factors) {
    const int64_t width = c->w.n_rows;
    for (int m = 0; m < c->n_tokens; m++) {
        double sum = 0, expected = 0;
        for (int64_t n = 0; n < width; n++) {
            const float v = y[m * c->y_stride + n];
            expected += (double)v * v;
            if (x[m * c->next.x_stride + n] != bf16_from_float(v * (c->next.offset + gains[n]))) return false;
        }
        for (int i = 0; i < LUT_MAX_PARTS; i++) {
            const float part = squares[m * LUT_MAX_PARTS + i];
            if (i < n_parts ? !isfinite(part) : !isnan(part)) return false;
            if (i < n_parts) sum += part;
        }
        if (fabs(sum - expected) > 1e-5 * expected) return false;
        factors[m] = (float)(1.0 / sqrt(expected / (double)width + eps));
    }
    return true;
}

// A product that adds to the residual stream, and one of the norm of that: (width × n_cols), (n_rows ×
// width).
static bool check_norm(const lut_device *device, weight_type type, int group_size, int n_tokens,
                       int64_t n_cols, int64_t width, int64_t n_rows) {
    static device_buffer squares_buffer, weight_buffer, x_buffer;
    check_case first = case_random(type, group_size, n_tokens, width, n_cols),
               second = case_random(type, group_size, n_tokens, n_rows, width);
    first.epilogue = LUT_ADD_F32, first.y_stride = width + y_gap(&first);
    const size_t x_size = (size_t)(n_tokens * second.x_stride) * sizeof *second.x,
                 y_size = (size_t)(n_tokens * first.y_stride) * sizeof(float);
    float *y = host_memory(y_size), *gains = host_memory((size_t)width * sizeof *gains),
          *squares = host_memory(NORM_SQUARES * sizeof *squares), factors[LUT_NORM_TOKENS];
    for (int64_t i = 0; i < width; i++) gains[i] = random_float();
    first.next = (lut_next){.squares = device_memory(&squares_buffer, NORM_SQUARES * sizeof *squares),
                            .weight = device_memory(&weight_buffer, (size_t)width * sizeof *gains),
                            .offset = (float)random_below(2),
                            .x = device_memory(&x_buffer, x_size),
                            .x_stride = second.x_stride};
    check(cudaMemcpy(weight_buffer.data, gains, (size_t)width * sizeof *gains, cudaMemcpyHostToDevice),
          "copy of the norm's weight");
    check(cudaMemset(squares_buffer.data, POISON, NORM_SQUARES * sizeof *squares), "cudaMemset");
    check(cudaMemcpy(x_buffer.data, second.x, x_size, cudaMemcpyHostToDevice), "copy of the activations");
    flute_error err = {0};
    const char *wrong = NULL;
    if (case_run(device, &first, (uint8_t *)(void *)y, y_size, &err) != FLUTE_OK)
        wrong = err.message;
    else if (!case_gaps_untouched(&first, (const uint8_t *)(const void *)y))
        wrong = "wrote outside the rows before it";
    else if (case_error(device, &first, (const uint8_t *)(const void *)y) > 1)
        wrong = "wrong sums before it";
    check(cudaMemcpy(squares, squares_buffer.data, NORM_SQUARES * sizeof *squares, cudaMemcpyDeviceToHost),
          "copy of the squares");
    check(cudaMemcpy(second.x, x_buffer.data, x_size, cudaMemcpyDeviceToHost), "copy of the activations");
    second.norm = (lut_norm){squares_buffer.data, lut_gemm_parts(device, &first.w), 1e-5f};
    if (!wrong &&
        !norm_is_right(&first, y, gains, second.x, squares, second.norm.n_parts, second.norm.eps, factors))
        wrong = "wrong x or squares";
    second.factors = factors;
    const bool good = !wrong && case_check(device, &second);
    if (wrong)
        printf("# %s g%d M=%d, a norm of %lld channels, %lld columns ahead: %s\n", weight_type_name(type),
               group_size, n_tokens, (long long)width, (long long)n_cols, wrong);
    free(y);
    free(gains);
    free(squares);
    case_free(&first);
    case_free(&second);
    return good;
}

// Norms of few channels behind long rows, and of many: where LUT_PATH_GEMV works in pairs of blocks, of the
// first or of the second product.
static bool check_norms(const lut_device *device, bool small, weight_type type, int group_size,
                        int n_tokens) {
    const int64_t some = 256 * (1 + (int64_t)random_below(small ? 1 : 12)),
                  many = 4096 + 256 * (1 + (int64_t)random_below(small ? 2 : 20));
    const int64_t n_rows = 1 + random_below(small ? 40 : 3000);
    return check_norm(device, type, group_size, n_tokens, many, some, n_rows) &&
           check_norm(device, type, group_size, n_tokens, some, many, n_rows);
}

// One type, number of tokens and group size: some shapes and paths, then one with each variant of a path.
// only_path: this one, or -1.
static bool check_group(const lut_device *device, bool small, weight_type type, int group_size, int n_tokens,
                        int only_path) {
    bool good = true;
    int64_t n_rows, n_cols;
    for (int i = 0; i < SHAPES; i++) {
        lut_path path;
        do path = (lut_path)random_below(N_PATHS);
        while (!lut_gemm_has_path(device, path));
        if (only_path >= 0) path = (lut_path)only_path;
        if (small)
            random_small_shape(i, group_size, &n_rows, &n_cols);
        else
            random_shape(group_size, n_tokens, &n_rows, &n_cols);
        good = check_product(device, type, group_size, n_tokens, n_rows, n_cols, path, 0) && good;
    }
    const bool gemv = n_tokens <= 4 && lut_gemm_has_path(device, LUT_PATH_GEMV),
               wide = n_tokens > 4 && lut_gemm_has_path(device, LUT_PATH_WIDE);
    if (gemv && (only_path < 0 || only_path == LUT_PATH_GEMV))
        good = check_many_rows(device, type, group_size, n_tokens) &&
               check_teams(device, small, type, group_size, n_tokens) &&
               check_norms(device, small, type, group_size, n_tokens) && good;
    if (small) random_small_shape(1, group_size, &n_rows, &n_cols); // the last one takes long
    for (int warpgroups = 2; warpgroups <= 4; warpgroups++)
        if (wide && (only_path < 0 || only_path == LUT_PATH_WIDE))
            good = check_product(device, type, group_size, n_tokens, n_rows, n_cols, LUT_PATH_WIDE,
                                 warpgroups) &&
                   good;
    return good;
}

int main(int argc, char **argv) {
    const bool small = argc > 1 && strcmp(argv[1], "--small") == 0;
    const int *tokens_of = small ? few_tokens : all_tokens;
    const int n_counts = (int)(small ? sizeof few_tokens : sizeof all_tokens) / (int)sizeof *tokens_of;
    argc -= small, argv += small;
    lut_device device;
    flute_error err = {0};
    int n_devices = 0, failed = 0;
#ifdef EMULATED_SMS
    simt_set_sms(EMULATED_SMS);
#endif
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("1..0 # SKIP no CUDA device\n");
        return 0;
    }
    if (lut_device_open(&device, &err) != FLUTE_OK) {
        printf("1..0 # SKIP %s\n", err.message);
        return 0;
    }
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20261124;
    random_state = seed * 2 + 1;
    printf("1..%d\n# seed %llu, code for %d\n", N_TYPES * n_counts, (unsigned long long)seed,
           device.code_version);
    const int only_type = argc > 2 ? weight_type_parse(argv[2]) : -1,
              only_tokens = argc > 3 ? atoi(argv[3]) : 0;
    int only_path = -1;
    for (int i = 0; argc > 4 && i < N_PATHS; i++)
        if (strcmp(argv[4], path_names[i]) == 0) only_path = i;
    for (int t = 0; t < N_TYPES; t++)
        for (int m = 0; m < n_counts; m++) {
            if ((only_type >= 0 && (int)types[t] != only_type) ||
                (only_tokens > 0 && tokens_of[m] != only_tokens)) {
                printf("ok %d # SKIP not asked for\n", t * n_counts + m + 1);
                continue;
            }
            bool good = check_chain(&device, types[t], tokens_of[m], only_path);
            for (int group_size = 32; group_size <= 256; group_size *= 2)
                good = check_group(&device, small, types[t], group_size, tokens_of[m], only_path) && good;
            printf("%sok %d - %s, %d tokens\n", good ? "" : "not ", t * n_counts + m + 1,
                   weight_type_name(types[t]), tokens_of[m]);
            fflush(stdout);
            failed += !good;
        }
    lut_device_close(&device);
    return failed > 0;
}
