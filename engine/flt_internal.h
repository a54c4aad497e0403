// What the reader and the writer of .flt files share.
#ifndef FLUTE_FLT_INTERNAL_H
#define FLUTE_FLT_INTERNAL_H

#include "engine/flt.h"

// The first bytes of every .flt file of every version. All numbers in a file are little-endian.
typedef struct flt_prefix {
    char magic[8];
    uint32_t version;
    uint32_t alignment;
    uint64_t header_size;     // bytes of the header area, which follows the prefix
    uint64_t header_checksum; // XXH3-64 of the header area
    uint64_t file_size;
    uint64_t zeros[2];
    uint64_t checksum; // XXH3-64 of the bytes before it
} flt_prefix;

_Static_assert(sizeof(flt_prefix) == FLT_PREFIX_BYTES, "the prefix has no padding");

// A region of the file with a checksum of its own.
struct flt_blob {
    uint64_t offset; // a multiple of FLT_ALIGNMENT
    uint64_t extent; // its size rounded up to FLT_ALIGNMENT: the padding is checked too
    uint64_t checksum;
    int64_t first_chunk; // number of its first chunk among all of the file
    int tensor;          // arch_tensor_at index; -1: the tokenizer
};

// Dense tensors and quantized ones as layout.h has them.
size_t flt_tensor_bytes(weight_type type, int64_t n_rows, int64_t n_cols, int group_size);

// FLUTE_OK, or what is wrong with type, group and table for a tensor of this role and width. origin names
// file and tensor.
int flt_check_tensor(const weight *w, tensor_role role, const char *origin, flute_error *err);

#endif
