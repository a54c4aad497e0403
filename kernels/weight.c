#include "kernels/weight.h"

static const struct {
    const char *name;
    int bits;
} types[WEIGHT_N_TYPES] = {
#define WEIGHT_ROW(NAME, text, bits) {text, bits},
    WEIGHT_TYPES(WEIGHT_ROW)
#undef WEIGHT_ROW
};

const char *weight_type_name(weight_type type) {
    return (unsigned)type < WEIGHT_N_TYPES ? types[type].name : "unknown";
}

int weight_type_parse(const char *name) {
    for (int type = 0; type < WEIGHT_N_TYPES; type++)
        if (strcmp(name, types[type].name) == 0) return type;
    return -1;
}

int weight_type_bits(weight_type type) {
    return (unsigned)type < WEIGHT_N_TYPES ? types[type].bits : 0;
}
