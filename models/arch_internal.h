// What the files of models/ share about the descriptor; nobody else includes it.
#ifndef FLUTE_ARCH_INTERNAL_H
#define FLUTE_ARCH_INTERNAL_H

#include "models/arch.h"

// The sizes of a model: where each lies in arch, what it is called, and what is believable.
enum { ARCH_N_SIZES = 8 };
typedef struct arch_size {
    const char *name;       // in arch and in a .flt header
    const char *config_key; // in config.json
    int min, max;
    size_t offset;
} arch_size;
extern const arch_size arch_sizes[ARCH_N_SIZES];

// The float fields, likewise. min is exclusive where it must be positive.
enum { ARCH_N_SCALARS = 6 };
typedef struct arch_scalar {
    const char *name;
    double min, max;
    bool positive;
    size_t offset;
} arch_scalar;
extern const arch_scalar arch_scalars[ARCH_N_SCALARS];

static inline int *arch_size_of(arch *a, const arch_size *field) {
    return (int *)((char *)a + field->offset);
}
static inline float *arch_scalar_of(arch *a, const arch_scalar *field) {
    return (float *)((char *)a + field->offset);
}

// Checks every range and every relation between fields: what engine and kernels may rely on.
int arch_check(const arch *a, const char *origin, flute_error *err);

// A config.json while it is read.
typedef struct config {
    yyjson_val *text;  // the object with the fields of the language model
    yyjson_val *outer; // the whole file: the same, but for multimodal checkpoints
    const char *origin;
    flute_error *err;
} config;

// The families. Each sets the defaults of transformers' configuration class, reads what the file says, and
// derives the rest. Token ids and the final check are arch_from_config's business.
int llama_from_config(arch *a, const config *c);
int gemma_from_config(arch *a, const config *c);
int gemma2_from_config(arch *a, const config *c);
int gemma3_from_config(arch *a, const config *c);

// Reads what all families spell alike: the sizes of arch_sizes, the norm's epsilon and the tied head, over
// the defaults in *a. n_kv_heads == 0 defaults to n_heads, head_dim == 0 to hidden / n_heads.
int config_read_common(arch *a, const config *c);
// Refuses a member that is true, saying so.
int config_refuse_true(const config *c, const char *key);
// Reads a RoPE: from params (rope_scaling or rope_parameters, may be NULL) with theta as the default base.
// Refuses types that rope_inv_freq does not know.
int config_read_rope(const config *c, yyjson_val *params, double theta, rope *out);
// The object that holds a model's only RoPE in either dialect, or NULL.
yyjson_val *config_rope_params(const config *c);
// Reads an optional positive number; a null member means "none" and gives 0.
int config_read_scalar(const config *c, const char *key, float *out);

#endif
