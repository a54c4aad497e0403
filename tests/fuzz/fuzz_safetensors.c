// A safetensors file in memory: what opens must be readable to the last byte of every tensor.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_tensor(const safetensors *st, const char *name, int64_t n_rows, int64_t n_cols) {
    safetensors_tensor t;
    flute_error err;
    if (safetensors_find(st, name, n_rows, n_cols, &t, &err)) return;
    float *row = malloc((size_t)n_cols * sizeof *row);
    if (!row) return;
    for (int64_t i = 0; i < n_rows; i++) safetensors_read_rows(&t, i, 1, row);
    safetensors_release_rows(st, &t, 0, n_rows);
    free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    // The names and shapes of the seeds: mutations keep some and bend the rest.
    static const char *const names[] = {"a", "b", "lm_head.weight", "model.norm.weight"};
    safetensors *st;
    flute_error err;
    if (safetensors_open_buffer(&st, data, size, "input", &err)) {
        if (err.code >= 0 || strlen(err.message) == 0) abort();
        return 0;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        (void)safetensors_has(st, names[i]);
        for (int64_t n_rows = 1; n_rows <= 4; n_rows++) {
            for (int64_t n_cols = 1; n_cols <= 4; n_cols++) read_tensor(st, names[i], n_rows, n_cols);
        }
    }
    safetensors_free(st);
    return 0;
}
