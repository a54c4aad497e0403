// Checkpoints in safetensors files: one file, or a folder with model.safetensors or with
// model.safetensors.index.json and the shards that it names.
//
// A file is eight bytes of header length (little-endian), a JSON header {"name": {"dtype", "shape",
// "data_offsets"}, …} and the tensors' bytes. All headers are validated when the checkpoint is opened;
// tensors are mapped, not read.
#ifndef FLUTE_SAFETENSORS_H
#define FLUTE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct safetensors safetensors; // an open checkpoint; threads may share it

// A tensor found in a checkpoint. Everything in it belongs to the checkpoint.
typedef struct safetensors_tensor {
    const char *name;       // as the file has it
    weight_type type;       // WEIGHT_F32, WEIGHT_F16 or WEIGHT_BF16
    int64_t n_rows, n_cols; // vectors are (1, n)
    const uint8_t *data;    // row-major, little-endian, at any alignment
    size_t size;            // n_rows · n_cols elements
} safetensors_tensor;

// Opens a folder or a single .safetensors file. FLUTE_EIO for files that are missing, FLUTE_EFORMAT for
// malformed ones, FLUTE_EUNSUPPORTED for a folder that holds only PyTorch .bin files.
int safetensors_open(safetensors **out, const char *path, flute_error *err);

// The same over one file's bytes in memory, which must outlive *out. origin names them in messages.
int safetensors_open_buffer(safetensors **out, const void *data, size_t size, const char *origin,
                            flute_error *err);

void safetensors_free(safetensors *checkpoint); // accepts NULL

int safetensors_count(const safetensors *checkpoint); // tensors in all files

// Whether there is a tensor of that name, in any dtype. Names are looked up as safetensors_find does.
bool safetensors_has(const safetensors *checkpoint, const char *name);

// Finds a tensor by the name that arch_tensor_at gives ("model.layers.0.mlp.up_proj.weight"). Checkpoints of
// multimodal models keep the language model under a prefix of its own: where the plain name is not there,
// "language_model.model.…" and "model.language_model.…" are tried, and "language_model.lm_head.…" for the
// head. The tensor must be (n_rows, n_cols), or a vector of n_cols when n_rows is 1. FLUTE_EFORMAT when it is
// missing, FLUTE_ESHAPE for another shape, FLUTE_EUNSUPPORTED for a dtype other than F32, F16, BF16.
int safetensors_find(const safetensors *checkpoint, const char *name, int64_t n_rows, int64_t n_cols,
                     safetensors_tensor *out, flute_error *err);

// Rows [first, first + n_rows) in float; out: (n_rows, n_cols). The range must lie inside the tensor.
void safetensors_read_rows(const safetensors_tensor *tensor, int64_t first, int64_t n_rows, float *out);

// Tells the kernel that the pages of these rows will not be needed again, so that converting a checkpoint
// larger than memory keeps a small resident set. Reading them again is correct, only slower. The
// page that the range ends in stays, for the range after it. Nothing happens for a buffer.
void safetensors_release_rows(const safetensors *checkpoint, const safetensors_tensor *tensor, int64_t first,
                              int64_t n_rows);

#ifdef __cplusplus
}
#endif
#endif
