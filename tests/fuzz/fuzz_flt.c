// A .flt file in memory: what parses must be readable to the last byte of every tensor. Checksums would stop
// every mutation at the door, so each input is tried as it is and again with its prefix sealed anew.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "engine/flt.h"
#include "kernels/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void seal(uint8_t *data, size_t size) {
    const uint64_t file_size = size;
    uint64_t header_size;
    memcpy(&header_size, data + 16, sizeof header_size);
    if (header_size <= size - FLT_PREFIX_BYTES) {
        const uint64_t checksum = XXH3_64bits(data + FLT_PREFIX_BYTES, (size_t)header_size);
        memcpy(data + 24, &checksum, sizeof checksum);
    }
    memcpy(data + 32, &file_size, sizeof file_size);
    const uint64_t checksum = XXH3_64bits(data, 56);
    memcpy(data + 56, &checksum, sizeof checksum);
}

static void try_file(const uint8_t *data, size_t size) {
    flt file;
    flute_error err;
    if (flt_parse(&file, data, size, "input", &err)) {
        if (err.code >= 0 || strlen(err.message) == 0) abort();
        return;
    }
    volatile double sum = 0;
    for (int i = 0; i < arch_n_tensors(&file.arch); i++) {
        const weight *w = &file.tensors[i];
        if (!w->data) continue;
        sum = sum + weight_value(w, 0, 0) + weight_value(w, w->n_rows - 1, w->n_cols - 1);
        sum = sum + ((const uint8_t *)w->data)[w->size - 1];
    }
    if (file.tokenizer_size > 0) sum = sum + ((const uint8_t *)file.tokenizer_blob)[file.tokenizer_size - 1];
    if (flt_verify(&file, NULL, "input", NULL, &err) && err.code != FLUTE_ECHECKSUM) abort();
    flt_free(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    // As large as the input, so that the sanitizer sees a read behind its end, and aligned like a mapping.
    void *copy;
    if (posix_memalign(&copy, 4096, size ? size : 1)) return 0;
    if (size) memcpy(copy, data, size);
    try_file(copy, size);
    if (size >= FLT_PREFIX_BYTES) {
        seal(copy, size);
        try_file(copy, size);
    }
    free(copy);
    return 0;
}
