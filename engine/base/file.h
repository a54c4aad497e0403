// Files: read-only mappings, whole-file reads, and atomic writing.
#ifndef FLUTE_FILE_H
#define FLUTE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

// A read-only mapping of a whole file. An empty file has data == NULL and size == 0.
typedef struct file_map {
    const uint8_t *data;
    size_t size;
} file_map;

int file_map_open(file_map *map, const char *path, flute_error *err);
void file_map_close(file_map *map); // accepts a zeroed map

// Reads a whole file into malloc'd memory with a NUL after the last byte (not counted in *size).
int file_read(const char *path, char **data, size_t *size, flute_error *err);

// Writes PATH by way of a temporary file beside it, so that PATH appears whole or not at all.
typedef struct file_writer file_writer;

// Creates the temporary file. Fails at once when the directory is missing or not writable.
file_writer *file_writer_open(const char *path, flute_error *err);
// Both write all of size bytes or fail (a full disk names the file and the bytes that were needed).
int file_writer_append(file_writer *writer, const void *data, size_t size, flute_error *err);
int file_writer_at(file_writer *writer, uint64_t offset, const void *data, size_t size, flute_error *err);
uint64_t file_writer_size(const file_writer *writer); // bytes up to the furthest one written
// Flushes to disk, renames into place and frees the writer; on failure the temporary file is removed.
int file_writer_commit(file_writer *writer, flute_error *err);
// Removes the temporary file and frees the writer; accepts NULL. Call it on every error path.
void file_writer_abort(file_writer *writer);

// Removes the temporary files of all open writers. Async-signal-safe: for a tool's SIGINT handler.
void file_writer_remove_all(void);

#ifdef __cplusplus
}
#endif
#endif
