#include "kernels/layout.h"

#include <assert.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packed words are little-endian"
#endif

enum { LANES = 32, RUNS = BLOCK_COLS / RUN_COLS, RUN_CODES = 8 };

// A plane holds some of the bits of every code of a block. Of one run, a lane owns eight codes of row g (half
// 0) and eight of row g + 8 (half 1): an "octet" is one such eight, in column order.
enum { PLANE4_BYTES = 1024, PLANE2_BYTES = 512, PLANE1_BYTES = 256 };

static uint32_t load_word(const uint8_t *at) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static void or_word(uint8_t *at, uint32_t bits) {
    uint32_t word = load_word(at) | bits;
    memcpy(at, &word, sizeof word);
}

// 4-bit plane: two granules of 16 bytes a lane, each for two runs; one word an octet, code i at bit 4i.
static size_t plane4_word(int run, int lane, int half) {
    return (size_t)(run >> 1) * (LANES * 16) + (size_t)lane * 16 + (size_t)(run & 1) * 8 + (size_t)half * 4;
}

// 2-bit plane: 16 bytes a lane, one word a run, code i at bit 16·half + 2i.
static size_t plane2_word(int run, int lane) {
    return (size_t)lane * 16 + (size_t)run * 4;
}

// 1-bit plane: 8 bytes a lane, one word two runs. Pair p = 4·half + i/2 of a run stands in nibble p, at its
// bits 2 and 3 for the even run and 0 and 1 for the odd one. A shift by 0 or 2 thus puts the third bit of
// every even code at bit 2 of the nibble whose bits 0 and 1 hold the rest of it in the 2-bit plane: (x2 &
// 0x33333333) | (x1 & 0x44444444) is eight codes, ready as selectors of a byte permutation.
static size_t plane1_word(int run, int lane) {
    return (size_t)lane * 8 + (size_t)(run >> 1) * 4;
}
static int plane1_bit(int run, int half, int i) {
    return 4 * (4 * half + i / 2) + 2 * ((run & 1) ^ 1) + (i & 1);
}

static unsigned plane4_get(const uint8_t *plane, int run, int lane, int half, int i) {
    return (load_word(plane + plane4_word(run, lane, half)) >> (4 * i)) & 15u;
}

static unsigned plane2_get(const uint8_t *plane, int run, int lane, int half, int i) {
    return (load_word(plane + plane2_word(run, lane)) >> (16 * half + 2 * i)) & 3u;
}

static unsigned plane1_get(const uint8_t *plane, int run, int lane, int half, int i) {
    return (load_word(plane + plane1_word(run, lane)) >> plane1_bit(run, half, i)) & 1u;
}

// The planes below start from zeroed memory.
static void plane4_put(uint8_t *plane, int run, int lane, int half, const uint8_t *codes, int shift) {
    uint32_t word = 0;
    for (int i = 0; i < RUN_CODES; i++) word |= (uint32_t)((codes[i] >> shift) & 15) << (4 * i);
    or_word(plane + plane4_word(run, lane, half), word);
}

static void plane2_put(uint8_t *plane, int run, int lane, int half, const uint8_t *codes) {
    uint32_t word = 0;
    for (int i = 0; i < RUN_CODES; i++) word |= (uint32_t)(codes[i] & 3) << (16 * half + 2 * i);
    or_word(plane + plane2_word(run, lane), word);
}

static void plane1_put(uint8_t *plane, int run, int lane, int half, const uint8_t *codes, int shift) {
    uint32_t word = 0;
    for (int i = 0; i < RUN_CODES; i++)
        word |= (uint32_t)((codes[i] >> shift) & 1) << plane1_bit(run, half, i);
    or_word(plane + plane1_word(run, lane), word);
}

static void octet_put(weight_type type, uint8_t *block, int run, int lane, int half, const uint8_t *codes) {
    switch (type) {
    case WEIGHT_LUT2:
        plane2_put(block, run, lane, half, codes);
        break;
    case WEIGHT_LUT3:
        plane2_put(block, run, lane, half, codes);
        plane1_put(block + PLANE2_BYTES, run, lane, half, codes, 2);
        break;
    case WEIGHT_LUT4:
        plane4_put(block, run, lane, half, codes, 0);
        break;
    case WEIGHT_INT8:
        plane4_put(block, run, lane, half, codes, 4);
        plane4_put(block + PLANE4_BYTES, run, lane, half, codes, 0);
        break;
    default:
        assert(!"dense weights are not packed");
    }
}

static unsigned block_get(weight_type type, const uint8_t *block, int row, int col) {
    int run = col / RUN_COLS, lane = (row % 8) * 4 + col % RUN_COLS / RUN_CODES, half = row / 8,
        i = col % RUN_CODES;
    switch (type) {
    case WEIGHT_LUT2:
        return plane2_get(block, run, lane, half, i);
    case WEIGHT_LUT3:
        return plane2_get(block, run, lane, half, i) | plane1_get(block + PLANE2_BYTES, run, lane, half, i)
                                                           << 2;
    case WEIGHT_LUT4:
        return plane4_get(block, run, lane, half, i);
    case WEIGHT_INT8:
        return plane4_get(block, run, lane, half, i) << 4 |
               plane4_get(block + PLANE4_BYTES, run, lane, half, i);
    default:
        assert(!"dense weights are not packed");
        return 0;
    }
}

int64_t layout_padded_rows(int64_t n_rows) {
    return round_up(n_rows, PANEL_ROWS);
}

int layout_unit_cols(int group_size) {
    return group_size > BLOCK_COLS ? group_size : BLOCK_COLS;
}

int64_t layout_padded_cols(int64_t n_cols, int group_size) {
    return round_up(n_cols, layout_unit_cols(group_size));
}

size_t layout_block_bytes(weight_type type) {
    return (size_t)PANEL_ROWS * BLOCK_COLS / 8 * (size_t)weight_type_bits(type);
}

size_t layout_unit_bytes(weight_type type, int group_size) {
    size_t cols = (size_t)layout_unit_cols(group_size);
    return cols / BLOCK_COLS * layout_block_bytes(type) +
           cols / (size_t)group_size * PANEL_ROWS * sizeof(f16);
}

size_t layout_panel_bytes(weight_type type, int64_t n_cols, int group_size) {
    int64_t units = layout_padded_cols(n_cols, group_size) / layout_unit_cols(group_size);
    return (size_t)units * layout_unit_bytes(type, group_size);
}

size_t layout_matrix_bytes(weight_type type, int64_t n_rows, int64_t n_cols, int group_size) {
    return (size_t)(layout_padded_rows(n_rows) / PANEL_ROWS) * layout_panel_bytes(type, n_cols, group_size);
}

// The scales of a unit: for each of its groups sixteen f16, rows 0, 8, 1, 9, … 7, 15, so that a lane reads
// the two of its rows as one word.
static size_t scale_index(int group_in_unit, int row) {
    return (size_t)group_in_unit * PANEL_ROWS + (size_t)(row % 8) * 2 + (size_t)(row / 8);
}

static void pack_block(weight_type type, int64_t n_cols, int n_rows, const uint8_t *codes, int64_t first_col,
                       uint8_t *block) {
    for (int row = 0; row < n_rows; row++)
        for (int piece = 0; piece < BLOCK_COLS / RUN_CODES; piece++) {
            int64_t col = first_col + piece * RUN_CODES;
            if (col >= n_cols) break;
            octet_put(type, block, piece / 4, row % 8 * 4 + piece % 4, row / 8, codes + row * n_cols + col);
        }
}

void layout_pack_panel(weight_type type, int64_t n_cols, int group_size, int n_rows, const uint8_t *codes,
                       const f16 *scales, uint8_t *out) {
    assert(n_cols % group_size == 0 && n_rows >= 1 && n_rows <= PANEL_ROWS);
    const int unit_cols = layout_unit_cols(group_size);
    const int64_t n_groups = n_cols / group_size;
    memset(out, 0, layout_panel_bytes(type, n_cols, group_size));
    for (int64_t first_col = 0; first_col < n_cols; first_col += unit_cols) {
        for (int block = 0; block < unit_cols / BLOCK_COLS; block++, out += layout_block_bytes(type))
            pack_block(type, n_cols, n_rows, codes, first_col + block * BLOCK_COLS, out);
        for (int group = 0; group < unit_cols / group_size; group++) {
            int64_t column = first_col / group_size + group;
            if (column >= n_groups) break;
            for (int row = 0; row < n_rows; row++)
                memcpy(out + sizeof(f16) * scale_index(group, row), &scales[row * n_groups + column],
                       sizeof(f16));
        }
        out += (size_t)(unit_cols / group_size) * PANEL_ROWS * sizeof(f16);
    }
}

// Where things are in the packed form of *w.
static const uint8_t *unit_at(const weight *w, int64_t row, int64_t col) {
    return (const uint8_t *)w->data +
           (size_t)(row / PANEL_ROWS) * layout_panel_bytes(w->type, w->n_cols, w->group_size) +
           (size_t)(col / layout_unit_cols(w->group_size)) * layout_unit_bytes(w->type, w->group_size);
}

unsigned layout_code(const weight *w, int64_t row, int64_t col) {
    int block = (int)(col % layout_unit_cols(w->group_size)) / BLOCK_COLS;
    const uint8_t *at = unit_at(w, row, col) + (size_t)block * layout_block_bytes(w->type);
    return block_get(w->type, at, (int)(row % PANEL_ROWS), (int)(col % BLOCK_COLS));
}

static f16 scale_bits(const weight *w, int64_t row, int64_t col) {
    const int unit_cols = layout_unit_cols(w->group_size);
    const uint8_t *scales =
        unit_at(w, row, col) + (size_t)(unit_cols / BLOCK_COLS) * layout_block_bytes(w->type);
    f16 bits;
    memcpy(&bits,
           scales +
               sizeof bits * scale_index((int)(col % unit_cols) / w->group_size, (int)(row % PANEL_ROWS)),
           sizeof bits);
    return bits;
}

float layout_scale(const weight *w, int64_t row, int64_t col) {
    return f16_to_float(scale_bits(w, row, col));
}

void layout_unpack_panel(weight_type type, int64_t n_cols, int group_size, const uint8_t *panel,
                         uint8_t *codes, f16 *scales) {
    const weight w = {
        .type = type, .group_size = group_size, .n_rows = PANEL_ROWS, .n_cols = n_cols, .data = panel};
    const int64_t n_groups = n_cols / group_size;
    for (int64_t row = 0; row < PANEL_ROWS; row++) {
        for (int64_t col = 0; col < n_cols; col++)
            codes[row * n_cols + col] = (uint8_t)layout_code(&w, row, col);
        for (int64_t group = 0; group < n_groups; group++)
            scales[row * n_groups + group] = scale_bits(&w, row, group * group_size);
    }
}

float weight_value(const weight *w, int64_t row, int64_t col) {
    const size_t index = (size_t)(row * w->n_cols + col);
    switch (w->type) {
    case WEIGHT_F32:
        return ((const float *)w->data)[index];
    case WEIGHT_F16:
        return f16_to_float(((const f16 *)w->data)[index]);
    case WEIGHT_BF16:
        return bf16_to_float(((const bf16 *)w->data)[index]);
    case WEIGHT_INT8:
        return (float)((int)layout_code(w, row, col) - 128) * layout_scale(w, row, col);
    default:
        return bf16_to_float(w->table[layout_code(w, row, col)]) * layout_scale(w, row, col);
    }
}

// Of a packed row, run by run: a run lies in one block and one group.
static void packed_values(const weight *w, int64_t row, int64_t col, int64_t n, float *out) {
    float table[256];
    for (int code = 0; code < 1 << weight_type_bits(w->type); code++)
        table[code] = w->type == WEIGHT_INT8 ? (float)(code - 128) : bf16_to_float(w->table[code]);
    const int unit_cols = layout_unit_cols(w->group_size);
    const size_t block_bytes = layout_block_bytes(w->type);
    while (n > 0) {
        const int first = (int)(col % BLOCK_COLS), left_in_run = RUN_COLS - first % RUN_COLS;
        const int n_now = n < left_in_run ? (int)n : left_in_run;
        const uint8_t *block = unit_at(w, row, col) + (size_t)(col % unit_cols / BLOCK_COLS) * block_bytes;
        const float scale = layout_scale(w, row, col);
        for (int i = 0; i < n_now; i++)
            out[i] = table[block_get(w->type, block, (int)(row % PANEL_ROWS), first + i)] * scale;
        out += n_now;
        col += n_now;
        n -= n_now;
    }
}

void weight_values(const weight *w, int64_t row, int64_t col, int64_t n, float *out) {
    if (weight_is_quantized(w->type))
        packed_values(w, row, col, n, out);
    else
        for (int64_t i = 0; i < n; i++) out[i] = weight_value(w, row, col + i);
}

void weight_row(const weight *w, int64_t row, float *out) {
    weight_values(w, row, 0, w->n_cols, out);
}

// SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator.
static uint64_t random_bits(uint64_t counter) {
    uint64_t z = counter * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void random_scales(int64_t n, uint64_t counter, float scale, uint8_t *out) {
    for (int64_t i = 0; i < n; i++) {
        float uniform = (float)(random_bits(counter + (uint64_t)i) >> 40) * 0x1p-24f;
        f16 value = f16_from_float(scale * (0.5f + uniform));
        memcpy(out + (size_t)i * sizeof value, &value, sizeof value);
    }
}

void layout_random_panels(weight_type type, int64_t n_cols, int group_size, int64_t first_panel,
                          int64_t n_panels, uint64_t seed, float scale, uint8_t *out) {
    const size_t panel_bytes = layout_panel_bytes(type, n_cols, group_size);
    const size_t unit_bytes = layout_unit_bytes(type, group_size);
    const size_t scale_bytes = (size_t)(layout_unit_cols(group_size) / group_size) * PANEL_ROWS * sizeof(f16);
    for (int64_t panel = first_panel; panel < first_panel + n_panels; panel++, out += panel_bytes) {
        // Counters of a panel: 2^40 apart, so that neither panels nor seeds share numbers.
        uint64_t counter = random_bits(seed + 1) + ((uint64_t)panel << 40);
        for (size_t at = 0; at < panel_bytes; at += sizeof counter) {
            uint64_t bits = random_bits(++counter);
            memcpy(out + at, &bits, sizeof bits);
        }
        for (size_t unit = 0; unit < panel_bytes; unit += unit_bytes, counter += scale_bytes)
            random_scales((int64_t)(scale_bytes / sizeof(f16)), counter, scale,
                          out + unit + unit_bytes - scale_bytes);
    }
}

static row_source gate_up_source(const row_order_dims *dims, int64_t row) {
    int64_t channel = row / 16 * 8 + row % 8;
    return (row_source){row % 16 < 8 ? 0 : 1, channel < dims->n_rows_source ? channel : -1};
}

static row_source qkv_source(const row_order_dims *dims, int64_t row) {
    const int queries = dims->n_heads / dims->n_kv_heads;
    const int64_t width = (int64_t)(queries + 2) * dims->head_dim;
    const int64_t kv_head = row / width;
    const int head = (int)(row % width / dims->head_dim), i = (int)(row % dims->head_dim);
    if (head == queries + 1) return (row_source){2, kv_head * dims->head_dim + i};
    int channel = i / 16 * 8 + i % 8 + (i % 16 < 8 ? 0 : dims->head_dim / 2);
    if (head == queries) return (row_source){1, kv_head * dims->head_dim + channel};
    return (row_source){0, (kv_head * queries + head) * dims->head_dim + channel};
}

row_source layout_row_source(row_order order, const row_order_dims *dims, int64_t row) {
    switch (order) {
    case ROWS_GATE_UP:
        return gate_up_source(dims, row);
    case ROWS_QKV:
        return qkv_source(dims, row);
    default:
        return (row_source){0, row};
    }
}

int64_t layout_row_count(row_order order, const row_order_dims *dims) {
    switch (order) {
    case ROWS_GATE_UP:
        return 2 * round_up(dims->n_rows_source, 8);
    case ROWS_QKV:
        return (int64_t)(dims->n_heads + 2 * dims->n_kv_heads) * dims->head_dim;
    default:
        return dims->n_rows_source;
    }
}

layout_span layout_cut(const weight *whole, layout_run rows, layout_run cols, layout_run *covered) {
    if (!weight_is_quantized(whole->type)) {
        const size_t bytes = (size_t)weight_type_bits(whole->type) / 8;
        const size_t row_bytes = (size_t)whole->n_cols * bytes;
        *covered = cols;
        return (layout_span){.offset = (size_t)rows.first * row_bytes + (size_t)cols.first * bytes,
                             .bytes = (size_t)cols.n * bytes,
                             .stride = row_bytes,
                             .n = rows.n};
    }
    assert(rows.first % PANEL_ROWS == 0);
    const int unit_cols = layout_unit_cols(whole->group_size);
    const size_t unit_bytes = layout_unit_bytes(whole->type, whole->group_size);
    const size_t panel_bytes = layout_panel_bytes(whole->type, whole->n_cols, whole->group_size);
    const int64_t first = cols.first / unit_cols, end = (cols.first + cols.n + unit_cols - 1) / unit_cols;
    covered->first = first * unit_cols;
    covered->n = (end * unit_cols < whole->n_cols ? end * unit_cols : whole->n_cols) - covered->first;
    return (layout_span){.offset =
                             (size_t)(rows.first / PANEL_ROWS) * panel_bytes + (size_t)first * unit_bytes,
                         .bytes = (size_t)(end - first) * unit_bytes,
                         .stride = panel_bytes,
                         .n = layout_padded_rows(rows.n) / PANEL_ROWS};
}
