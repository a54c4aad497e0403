// The sixteen codes that a lane owns of one run of a packed block (layout.h), by plain shifts.
#ifndef FLUTE_KERNELS_CPU_OCTET_H
#define FLUTE_KERNELS_CPU_OCTET_H

#include <stdint.h>
#include <string.h>

#include "kernels/layout.h"

static inline uint32_t octet_word(const uint8_t *at) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

// codes[half][i]: of row lane / 4 + 8·half, column 32·run + 8·(lane % 4) + i.
static inline void octet_codes(weight_type type, const uint8_t *block, int run, int lane,
                               uint8_t codes[2][8]) {
    const uint8_t *nibbles = block + (run >> 1) * 512 + lane * 16 + (run & 1) * 8;
    if (type == WEIGHT_LUT4 || type == WEIGHT_INT8) {
        for (int half = 0; half < 2; half++) {
            uint32_t word = octet_word(nibbles + 4 * half);
            for (int i = 0; i < 8; i++) codes[half][i] = (uint8_t)(word >> (4 * i) & 15u);
            if (type == WEIGHT_LUT4) continue;
            word = octet_word(nibbles + 1024 + 4 * half); // the first plane holds the high nibbles
            for (int i = 0; i < 8; i++)
                codes[half][i] = (uint8_t)(codes[half][i] << 4 | (word >> (4 * i) & 15u));
        }
        return;
    }
    const uint32_t pairs = octet_word(block + lane * 16 + run * 4);
    const uint32_t thirds =
        type == WEIGHT_LUT3 ? octet_word(block + 512 + lane * 8 + (run >> 1) * 4) >> (2 * (~run & 1)) : 0;
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 8; i++)
            codes[half][i] = (uint8_t)((pairs >> (16 * half + 2 * i) & 3u) |
                                       (thirds >> (16 * half + i / 2 * 4 + i % 2) & 1u) << 2);
}

#endif
