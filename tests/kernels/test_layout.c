// The restructured layout against the formulas of weights.md, written here a second time.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/layout.h"

static const weight_type types[] = {WEIGHT_LUT2, WEIGHT_LUT3, WEIGHT_LUT4, WEIGHT_INT8};
static const int groups[] = {32, 64, 128, 256};

static uint32_t random_state = 20261124;
static uint32_t next_random(void) {
    return random_state = random_state * 1664525u + 1013904223u, random_state >> 8;
}

// ---- weights.md once more: the bit of a plane that holds bit `i` of an octet

static int bit_at(const uint8_t *plane, int64_t byte, int bit) {
    return plane[byte + bit / 8] >> (bit % 8) & 1;
}

static unsigned documented_code(weight_type type, int group, const uint8_t *panel, int row, int64_t col) {
    const int unit_cols = group > 128 ? group : 128;
    const size_t block_bytes = (size_t)16 * 128 * (size_t)weight_type_bits(type) / 8;
    const size_t unit_bytes =
        (size_t)(unit_cols / 128) * block_bytes + (size_t)(unit_cols / group) * 16 * sizeof(f16);
    const uint8_t *block =
        panel + (size_t)(col / unit_cols) * unit_bytes + (size_t)(col % unit_cols / 128) * block_bytes;
    const int u = (int)(col % 128 / 32), lane = 4 * (row % 8) + (int)(col % 32 / 8), h = row / 8,
              i = (int)(col % 8);
    unsigned code = 0;
    const int64_t word4 = 512 * (u / 2) + 16 * lane + 8 * (u % 2) + 4 * h;
    const int64_t word2 = 16 * lane + 4 * u, word1 = 512 + 8 * lane + 4 * (u / 2);
    for (int bit = 0; bit < 4; bit++) {
        if (type == WEIGHT_LUT4) code |= (unsigned)bit_at(block, word4, 4 * i + bit) << bit;
        if (type == WEIGHT_INT8)
            code |= (unsigned)bit_at(block, word4, 4 * i + bit) << (4 + bit) |
                    (unsigned)bit_at(block, 1024 + word4, 4 * i + bit) << bit;
        if ((type == WEIGHT_LUT2 || type == WEIGHT_LUT3) && bit < 2)
            code |= (unsigned)bit_at(block, word2, 16 * h + 2 * i + bit) << bit;
    }
    if (type == WEIGHT_LUT3)
        code |= (unsigned)bit_at(block, word1, 4 * (4 * h + i / 2) + 2 * (1 - u % 2) + i % 2) << 2;
    return code;
}

static f16 documented_scale(weight_type type, int group, const uint8_t *panel, int row, int64_t col) {
    const int unit_cols = group > 128 ? group : 128;
    const size_t codes = (size_t)(unit_cols / 128) * 16 * 128 * (size_t)weight_type_bits(type) / 8;
    const size_t unit_bytes = codes + (size_t)(unit_cols / group) * 32;
    const int place = row < 8 ? 2 * row : 2 * (row - 8) + 1; // 0, 8, 1, 9, …
    f16 scale;
    memcpy(&scale,
           panel + (size_t)(col / unit_cols) * unit_bytes + codes + 32 * (size_t)(col % unit_cols / group) +
               2 * (size_t)place,
           sizeof scale);
    return scale;
}

static void check_panel(weight_type type, int group, int64_t n_cols, int n_rows) {
    const int64_t n_groups = n_cols / group;
    const size_t bytes = layout_panel_bytes(type, n_cols, group);
    uint8_t *codes = malloc((size_t)(16 * n_cols)), *back = malloc((size_t)(16 * n_cols)),
            *panel = malloc(bytes);
    f16 *scales = malloc((size_t)(16 * n_groups) * sizeof(f16)),
        *scales_back = malloc((size_t)(16 * n_groups) * sizeof(f16));
    for (int64_t i = 0; i < 16 * n_cols; i++)
        codes[i] = (uint8_t)(next_random() & ((1u << weight_type_bits(type)) - 1));
    for (int64_t i = 0; i < 16 * n_groups; i++) scales[i] = (f16)(next_random() & 0x7bff);
    memset(panel, 0xa5, bytes);
    layout_pack_panel(type, n_cols, group, n_rows, codes, scales, panel);
    layout_unpack_panel(type, n_cols, group, panel, back, scales_back);
    const weight w = {
        .type = type, .group_size = group, .n_rows = n_rows, .n_cols = n_cols, .data = panel, .size = bytes};
    const int64_t padded = layout_padded_cols(n_cols, group);
    assert_int_equal(padded % layout_unit_cols(group), 0);
    for (int row = 0; row < 16; row++)
        for (int64_t col = 0; col < padded; col++) {
            const bool real = row < n_rows && col < n_cols;
            const unsigned code = real ? codes[row * n_cols + col] : 0;
            const f16 scale = real ? scales[row * n_groups + col / group] : 0;
            assert_int_equal(documented_code(type, group, panel, row, col), code);
            assert_int_equal(layout_code(&w, row, col), code);
            assert_int_equal(documented_scale(type, group, panel, row, col), scale);
            assert_true(layout_scale(&w, row, col) == f16_to_float(scale));
            if (col < n_cols) {
                assert_int_equal(back[row * n_cols + col], code);
                assert_int_equal(scales_back[row * n_groups + col / group], scale);
            }
        }
    free(codes);
    free(back);
    free(panel);
    free(scales);
    free(scales_back);
}

static void test_panels(void **state) {
    (void)state;
    static const int multiples[] = {1, 2, 3, 5};
    static const int rows[] = {1, 7, 8, 9, 16};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
            for (size_t m = 0; m < sizeof multiples / sizeof *multiples; m++)
                for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                    check_panel(types[t], groups[g], (int64_t)groups[g] * multiples[m], rows[r]);
}

// The sizes that weights.md states.
static void test_sizes(void **state) {
    (void)state;
    assert_int_equal(layout_block_bytes(WEIGHT_LUT2), 512);
    assert_int_equal(layout_block_bytes(WEIGHT_LUT3), 768);
    assert_int_equal(layout_block_bytes(WEIGHT_LUT4), 1024);
    assert_int_equal(layout_block_bytes(WEIGHT_INT8), 2048);
    assert_int_equal(layout_unit_bytes(WEIGHT_LUT4, 32), 1024 + 4 * 32);
    assert_int_equal(layout_unit_bytes(WEIGHT_LUT4, 128), 1056);
    assert_int_equal(layout_unit_bytes(WEIGHT_LUT3, 128), 800);
    assert_int_equal(layout_unit_bytes(WEIGHT_LUT4, 256), 2 * 1024 + 32);
    assert_int_equal(layout_matrix_bytes(WEIGHT_LUT4, 777, 192, 64), 49 * 2 * (1024 + 2 * 32));
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
            assert_int_equal(layout_unit_bytes(types[t], groups[g]) % 32, 0); // every unit starts at a sector
}

// The worked example of weights.md, byte for byte.
static void test_example(void **state) {
    (void)state;
    static const uint8_t lane6_lut4[16] = {0x65, 0x87, 0xa9, 0xcb, 0xed, 0x0f, 0x21, 0x43,
                                           0xa9, 0xcb, 0xed, 0x0f, 0x21, 0x43, 0x65, 0x87};
    static const uint8_t lane6_plane1[8] = {0x6c, 0x93, 0x6c, 0x93, 0x6c, 0x93, 0x6c, 0x93};
    static const uint8_t first_scales[8] = {0x00, 0x3c, 0x00, 0x40, 0x80, 0x3c, 0x40, 0x40};
    uint8_t codes[16 * 128], panel[1056];
    f16 scales[16];
    for (int bits = 3; bits <= 4; bits++) {
        for (int r = 0; r < 16; r++) {
            scales[r] = f16_from_float(1 + (float)r / 8);
            for (int c = 0; c < 128; c++) codes[r * 128 + c] = (uint8_t)((3 * r + c + c / 8) % (1 << bits));
        }
        layout_pack_panel(bits == 4 ? WEIGHT_LUT4 : WEIGHT_LUT3, 128, 128, 16, codes, scales, panel);
        if (bits == 4) {
            assert_memory_equal(panel + 96, lane6_lut4, 16);
            assert_memory_equal(panel + 1024, first_scales, 8);
        } else {
            for (int i = 0; i < 16; i++) assert_int_equal(panel[96 + i], 0x39);
            assert_memory_equal(panel + 512 + 48, lane6_plane1, 8);
            assert_memory_equal(panel + 768, first_scales, 8);
        }
    }
}

static void test_values(void **state) {
    (void)state;
    uint8_t codes[16 * 32], panel[1152 * 2];
    f16 scales[16];
    weight w = {.type = WEIGHT_LUT2, .group_size = 32, .n_rows = 16, .n_cols = 32, .data = panel};
    for (int i = 0; i < 4; i++) w.table[i] = bf16_from_float((float)i - 1.5f);
    for (int i = 0; i < 16 * 32; i++) codes[i] = (uint8_t)(i * 7 % 4);
    for (int i = 0; i < 16; i++) scales[i] = f16_from_float(i % 2 ? -0.25f * (float)i : 0.5f);
    layout_pack_panel(WEIGHT_LUT2, 32, 32, 16, codes, scales, panel);
    float row[32];
    for (int r = 0; r < 16; r++) {
        weight_row(&w, r, row);
        for (int c = 0; c < 32; c++)
            assert_true(row[c] == ((float)codes[r * 32 + c] - 1.5f) * (r % 2 ? -0.25f * (float)r : 0.5f));
    }
    w.type = WEIGHT_INT8;
    for (int i = 0; i < 16 * 32; i++) codes[i] = (uint8_t)(i * 37);
    layout_pack_panel(WEIGHT_INT8, 32, 32, 16, codes, scales, panel);
    for (int c = 0; c < 32; c++)
        assert_true(weight_value(&w, 2, c) == ((float)codes[2 * 32 + c] - 128) * 0.5f);

    const float dense32[4] = {1, -2, 3.5f, 1e-20f};
    const f16 dense16[4] = {0x3c00, 0xc000, 0x4300, 0x0001};
    const weight f32 = {.type = WEIGHT_F32, .n_rows = 2, .n_cols = 2, .data = dense32};
    const weight half = {.type = WEIGHT_F16, .n_rows = 2, .n_cols = 2, .data = dense16};
    assert_true(weight_value(&f32, 1, 0) == 3.5f && weight_value(&half, 0, 1) == -2);
    assert_true(weight_value(&half, 1, 1) == 0x1p-24f);
}

// Every row of every source appears exactly once, and the padding of an odd gate/up is marked.
static void check_order(row_order order, const row_order_dims *dims, const int64_t source_rows[3]) {
    const int64_t n = layout_row_count(order, dims);
    int *seen[3];
    for (int s = 0; s < 3; s++) seen[s] = calloc((size_t)source_rows[s] + 1, sizeof(int));
    int64_t padding = 0;
    for (int64_t row = 0; row < n; row++) {
        const row_source source = layout_row_source(order, dims, row);
        if (source.row < 0) {
            padding++;
            continue;
        }
        assert_true(source.row < source_rows[source.source]);
        assert_int_equal(seen[source.source][source.row]++, 0);
    }
    assert_int_equal(n - padding, source_rows[0] + source_rows[1] + source_rows[2]);
    for (int s = 0; s < 3; s++) free(seen[s]);
}

static void test_row_orders(void **state) {
    (void)state;
    static const int shapes[][3] = {{6, 2, 64}, {32, 8, 128}, {4, 4, 32},
                                    {4, 1, 64}, {8, 4, 256},  {3, 1, 16}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const row_order_dims dims = {
            .n_heads = shapes[i][0], .n_kv_heads = shapes[i][1], .head_dim = shapes[i][2]};
        const int64_t q = (int64_t)dims.n_heads * dims.head_dim,
                      kv = (int64_t)dims.n_kv_heads * dims.head_dim;
        check_order(ROWS_QKV, &dims, (int64_t[3]){q, kv, kv});
    }
    static const int64_t widths[] = {8, 64, 100, 1024, 1};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const row_order_dims dims = {.n_rows_source = widths[i]};
        check_order(ROWS_GATE_UP, &dims, (int64_t[3]){widths[i], widths[i], 0});
        check_order(ROWS_PLAIN, &dims, (int64_t[3]){widths[i], 0, 0});
    }
    // Partners are eight rows apart.
    const row_order_dims dims = {.n_heads = 6, .n_kv_heads = 2, .head_dim = 64, .n_rows_source = 64};
    for (int64_t row = 0; row < 3 * 64; row++) {
        if (row % 16 >= 8) continue;
        const row_source first = layout_row_source(ROWS_QKV, &dims, row),
                         second = layout_row_source(ROWS_QKV, &dims, row + 8);
        assert_int_equal(second.row - first.row, 32);
        if (row >= 128) continue;
        const row_source gate = layout_row_source(ROWS_GATE_UP, &dims, row),
                         up = layout_row_source(ROWS_GATE_UP, &dims, row + 8);
        assert_int_equal(gate.source, 0);
        assert_int_equal(up.source, 1);
        assert_int_equal(gate.row, up.row);
    }
}

// Panels made alone equal panels made together; scales are what was asked for.
static void test_random_panels(void **state) {
    (void)state;
    const int64_t n_cols = 384;
    const size_t bytes = layout_panel_bytes(WEIGHT_LUT3, n_cols, 64);
    uint8_t *all = malloc(4 * bytes), *one = malloc(bytes);
    layout_random_panels(WEIGHT_LUT3, n_cols, 64, 0, 4, 7, 0.25f, all);
    for (int panel = 0; panel < 4; panel++) {
        layout_random_panels(WEIGHT_LUT3, n_cols, 64, panel, 1, 7, 0.25f, one);
        assert_memory_equal(all + (size_t)panel * bytes, one, bytes);
    }
    const weight w = {.type = WEIGHT_LUT3, .group_size = 64, .n_rows = 64, .n_cols = n_cols, .data = all};
    int counts[8] = {0};
    for (int64_t row = 0; row < 64; row++)
        for (int64_t col = 0; col < n_cols; col++) {
            const float scale = layout_scale(&w, row, col);
            assert_true(scale >= 0.125f && scale <= 0.375f);
            counts[layout_code(&w, row, col)]++;
        }
    for (int i = 0; i < 8; i++) assert_in_range(counts[i], 64 * 384 / 8 * 9 / 10, 64 * 384 / 8 * 11 / 10);
    free(all);
    free(one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_panels),     cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_example),    cmocka_unit_test(test_values),
        cmocka_unit_test(test_row_orders), cmocka_unit_test(test_random_panels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
