// A matrix or vector of weights, as it lies in a .flt file and in the memory of a backend.
#ifndef FLUTE_WEIGHT_H
#define FLUTE_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/numeric.h"

#ifdef __cplusplus
extern "C" {
#endif

// X(NAME, "name in files", bits of one weight)
#define WEIGHT_TYPES(X)                                                                                      \
    X(F32, "f32", 32)                                                                                        \
    X(F16, "f16", 16)                                                                                        \
    X(BF16, "bf16", 16)                                                                                      \
    X(LUT2, "lut2", 2)                                                                                       \
    X(LUT3, "lut3", 3)                                                                                       \
    X(LUT4, "lut4", 4)                                                                                       \
    X(INT8, "int8", 8)

typedef enum weight_type {
#define WEIGHT_ENUM(NAME, text, bits) WEIGHT_##NAME,
    WEIGHT_TYPES(WEIGHT_ENUM)
#undef WEIGHT_ENUM
        WEIGHT_N_TYPES
} weight_type;

const char *weight_type_name(weight_type type); // "lut4"
int weight_type_parse(const char *name);        // -1 for an unknown name
int weight_type_bits(weight_type type);

static inline int weight_is_quantized(weight_type type) {
    return type >= WEIGHT_LUT2;
}

// LUTb:  W[n][k] = table[code] · scale[n][k / group_size], codes of b bits, scales f16 (a negative one flips
// the
//        table), in the order of layout.h.
// INT8:  W[n][k] = (code − 128) · scale[n][k / group_size]. The code is stored as two 4-bit planes, so that a
//        4-bit kernel runs over it twice: code − 128 = 16·(high − 8) + low, both tables exact in bf16.
// dense: row-major (n_rows, n_cols).
typedef struct weight {
    weight_type type;
    int group_size;         // columns of one scale: 32, 64, 128 or 256; 0 for dense
    int64_t n_rows, n_cols; // N outputs, K inputs, without padding; a vector is (1, n); 0 rows or columns: a
                            // rank's empty part
    bf16 table[16];         // first 2^b entries, LUT types only
    const void *data;       // in the memory of whoever placed it; NULL: the model has no such tensor
    size_t size;            // bytes
    // A rank's part of a matrix (kernels/shard.h): its row 0 is row first_row of the whole, and its column
    // lead_cols the rank's first own one. Columns before that, and behind the rank's last, are there because
    // quantized matrices are cut at whole units; they belong to neighbours, and activations are zero there.
    int64_t first_row, lead_cols; // 0 for a whole matrix
} weight;

#ifdef __cplusplus
}
#endif
#endif
