// A .flt whose weights a backend has placed: what tests of backends need of engine/model.c, without its
// sessions.
#ifndef FLUTE_TESTS_ENGINE_PLACED_MODEL_H
#define FLUTE_TESTS_ENGINE_PLACED_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/flt.h"
#include "kernels/kernels.h"

typedef struct placed_model {
    backend *be; // borrowed
    file_map map;
    flt file;
    weight *tensors;    // (arch_n_tensors) in the backend's memory
    float *inv_freq[2]; // (head_dim / 2)
} placed_model;

static inline void placed_model_close(placed_model *m) { // accepts a zeroed one
    for (int i = 0; m->tensors && i < arch_n_tensors(&m->file.arch); i++)
        if (m->tensors[i].data) m->be->ops->weight_release(m->be, &m->tensors[i]);
    free(m->tensors);
    for (int i = 0; i < 2; i++) free(m->inv_freq[i]);
    flt_free(&m->file);
    file_map_close(&m->map);
    memset(m, 0, sizeof *m);
}

static inline int placed_model_open(placed_model *m, const char *path, backend *be, flute_error *err) {
    memset(m, 0, sizeof *m);
    m->be = be;
    int code = file_map_open(&m->map, path, err);
    if (!code) code = flt_parse(&m->file, m->map.data, m->map.size, path, err);
    const int n = code ? 0 : arch_n_tensors(&m->file.arch);
    if (!code && !(m->tensors = (weight *)calloc((size_t)n, sizeof(weight))))
        code = fail_memory(err, (size_t)n * sizeof(weight), "tensors");
    for (int i = 0; !code && i < n; i++)
        if (m->file.tensors[i].data)
            code = be->ops->weight_place(be, &m->file.tensors[i], &m->tensors[i], err);
    for (int i = 0; !code && i < m->file.arch.n_ropes; i++) {
        const size_t bytes = (size_t)(m->file.arch.head_dim / 2) * sizeof(float);
        if (!(m->inv_freq[i] = (float *)malloc(bytes)))
            code = fail_memory(err, bytes, "rotary frequencies");
        else
            rope_inv_freq(&m->file.arch.rope[i], m->file.arch.head_dim, m->inv_freq[i]);
    }
    if (code) placed_model_close(m);
    return code;
}

#endif
