// The .flt container, version 1 (weights.md is its specification): everything flute-run needs in one file.
#ifndef FLUTE_FLT_H
#define FLUTE_FLT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "engine/base/file.h"
#include "engine/base/threads.h"
#include "kernels/weight.h"
#include "models/arch.h"
#include "tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FLT_MAGIC "FLUTEflt" // the first eight bytes of every file

enum {
    FLT_VERSION = 1,
    FLT_ALIGNMENT = 4096,
    FLT_PREFIX_BYTES = 64,
    FLT_CHUNK_BYTES =
        1 << 20, // a region's checksum is that of its chunks' checksums, so that threads can share it
};

// A parsed file. Pointers lead into the buffer that was parsed, which must outlive it.
typedef struct flt {
    arch arch;
    tokenizer_kind tokenizer;
    const void *tokenizer_blob;
    size_t tokenizer_size;
    weight *tensors;        // (arch_n_tensors) in arch_tensor_at order; absent ones have data == NULL
    char *name;             // of the model, for people
    struct flt_blob *blobs; // every checksummed region; opaque
    int n_blobs;
    const uint8_t *base;
    size_t size;
    size_t header_size; // of prefix and header, which the blobs follow
} flt;

// Parses and validates size bytes at data (aligned to 64): the prefix, the header and its checksum, the
// descriptor, and that every tensor the architecture needs is there once, with its type, shape, group and
// extent. Contents are not read: flt_verify does that. origin names the file in messages.
int flt_parse(flt *out, const void *data, size_t size, const char *origin, flute_error *err);
void flt_free(flt *file); // accepts a zeroed one
// A number that tells files apart: the checksum of prefix and header, which holds the checksums of all else.
uint64_t flt_identity(const flt *file);

// Told, by the calling thread, of bytes that have been read since the last time.
typedef struct flt_progress {
    void (*advance)(void *user, uint64_t bytes);
    void *user;
} flt_progress;

// Compares the checksum of every region with the header's, on all threads. Names the first region that
// differs. progress may be NULL.
int flt_verify(const flt *file, thread_pool *pool, const char *origin, const flt_progress *progress,
               flute_error *err);
// The same in parts, for those who share the work: the digests of some of the file's chunks, and the
// comparison once all are there. digests: (flt_n_chunks).
int64_t flt_n_chunks(const flt *file);
uint64_t flt_chunks_bytes(const flt *file, int64_t first, int64_t n);
void flt_digest_chunks(const flt *file, thread_pool *pool, int64_t first, int64_t n, uint64_t *digests,
                       const flt_progress *progress);
int flt_compare_digests(const flt *file, const uint64_t *digests, const char *origin, flute_error *err);

// Writing. Tensors may be added in any order; each is complete when added. The header comes last but stands
// first: its size is fixed at creation from an upper bound.
typedef struct flt_writer flt_writer;

typedef struct flt_writer_options {
    const arch *arch;
    const char *name;
    const char *generator; // "flute-quantize 0.1.0 --bits 4 …"
    tokenizer_kind tokenizer;
    const void *tokenizer_blob;
    size_t tokenizer_size;
} flt_writer_options;

int flt_writer_create(flt_writer **out, const char *path, const flt_writer_options *options,
                      flute_error *err);
// Starts tensor `index` (arch_tensor_at); type, group_size and table are taken from *w, shape from the arch.
// Its bytes then follow through flt_writer_append, in order, until flt_writer_end checks that all came.
int flt_writer_begin(flt_writer *writer, int index, const weight *w, flute_error *err);
int flt_writer_append(flt_writer *writer, const void *data, size_t size, flute_error *err);
int flt_writer_end(flt_writer *writer, flute_error *err);
// Writes the header and renames the file into place; frees the writer in every case.
int flt_writer_commit(flt_writer *writer, flute_error *err);
void flt_writer_abort(flt_writer *writer); // accepts NULL

#ifdef __cplusplus
}
#endif
#endif
