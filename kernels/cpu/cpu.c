// What does not depend on the instruction set: choosing one, single rows, the cache's order.
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "kernels/cpu/octet.h"
#include "kernels/layout.h"

const char *cpu_isa_name(cpu_isa isa) {
    static const char *const names[CPU_N_ISAS] = {
#define CPU_ISA_TEXT(NAME, text) text,
        CPU_ISAS(CPU_ISA_TEXT)
#undef CPU_ISA_TEXT
    };
    return (unsigned)isa < CPU_N_ISAS ? names[isa] : "unknown";
}

const cpu_kernels *cpu_kernels_of(cpu_isa isa) {
    if (isa == CPU_PORTABLE) return &cpu_kernels_portable;
#ifdef FLUTE_CPU_X86 // __builtin_cpu_supports also asks whether the system saves the registers
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); // and F16C with them
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool has_bf16 =
        avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
    if (isa == CPU_AVX2 && avx2) return &cpu_kernels_avx2;
    if (isa == CPU_AVX512 && avx512) return &cpu_kernels_avx512;
    if (isa == CPU_AVX512_BF16 && has_bf16) return &cpu_kernels_avx512_bf16;
#endif
    return NULL;
}

bool cpu_isa_available(cpu_isa isa) {
    return cpu_kernels_of(isa) != NULL;
}

cpu_isa cpu_isa_best(void) {
    int isa = CPU_N_ISAS - 1;
    while (!cpu_isa_available((cpu_isa)isa)) isa--;
    return (cpu_isa)isa;
}

static f16 scale_at(const uint8_t *scales, int group, int row) {
    f16 bits;
    memcpy(&bits, scales + sizeof bits * (size_t)(group * PANEL_ROWS + row % 8 * 2 + row / 8), sizeof bits);
    return bits;
}

static void quantized_row(const weight *w, int64_t row, float scale, float *out) {
    const int unit_cols = layout_unit_cols(w->group_size), in_panel = (int)(row % PANEL_ROWS);
    const int half = in_panel / 8, first_lane = in_panel % 8 * 4;
    const size_t block_bytes = layout_block_bytes(w->type);
    const uint8_t *unit = (const uint8_t *)w->data +
                          (size_t)(row / PANEL_ROWS) * layout_panel_bytes(w->type, w->n_cols, w->group_size);
    for (int64_t col = 0; col < w->n_cols; col += 8) {
        const int in_unit = (int)(col % unit_cols), block = in_unit / BLOCK_COLS;
        if (in_unit == 0 && col > 0) unit += layout_unit_bytes(w->type, w->group_size);
        const uint8_t *scales = unit + (size_t)(unit_cols / BLOCK_COLS) * block_bytes;
        uint8_t codes[2][8];
        octet_codes(w->type, unit + (size_t)block * block_bytes, in_unit % BLOCK_COLS / RUN_COLS,
                    first_lane + in_unit % RUN_COLS / 8, codes);
        const float group = f16_to_float(scale_at(scales, in_unit / w->group_size, in_panel));
        for (int i = 0; i < 8; i++) {
            const uint8_t code = codes[half][i];
            float value = w->type == WEIGHT_INT8 ? (float)(code - 128) : bf16_to_float(w->table[code]);
            out[col + i] = value * group * scale;
        }
    }
}

void cpu_weight_row(const weight *w, int64_t row, float scale, float *out) {
    if (weight_is_quantized(w->type)) {
        quantized_row(w, row, scale, out);
        return;
    }
    for (int64_t col = 0; col < w->n_cols; col++) out[col] = weight_value(w, row, col) * scale;
}

void cpu_kv_append(const cpu_kv *kv, int token, const float *key, const float *value) {
    const int t = token % kv->block_tokens;
    bf16 *keys = kv->data + kv->blocks[token / kv->block_tokens] * kv->block_stride;
    bf16 *values = keys + (int64_t)kv->head_dim * kv->padded_tokens + (int64_t)(t / 2) * kv->head_dim * 2;
    for (int d = 0; d < kv->head_dim; d++) {
        keys[(int64_t)(d / 2) * kv->padded_tokens * 2 + t * 2 + d % 2] = bf16_from_float(key[d]);
        values[d * 2 + t % 2] = bf16_from_float(value[d]);
    }
}
