// Reading .flt files. weights.md specifies the format.
#include "engine/flt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "engine/flt_internal.h"
#include "kernels/layout.h"

enum { CONTEXT_BYTES = 320 }; // "FILE: tensor layers.17.gate_up", the origin of messages about a tensor

// ---- Rules that hold for reading and writing

size_t flt_tensor_bytes(weight_type type, int64_t n_rows, int64_t n_cols, int group_size) {
    // Dimensions come from an arch, whose bounds keep every product below 2^45.
    if (weight_is_quantized(type)) return layout_matrix_bytes(type, n_rows, n_cols, group_size);
    return (size_t)n_rows * (size_t)n_cols * (size_t)(weight_type_bits(type) / 8);
}

int flt_check_tensor(const weight *w, tensor_role role, const char *origin, flute_error *err) {
    if (!weight_is_quantized(w->type)) {
        if (w->group_size == 0) return FLUTE_OK;
        return fail(err, FLUTE_EFORMAT, "%s: dense (%s), yet it has a group size; convert the model again",
                    origin, weight_type_name(w->type));
    }
    if (role == ROLE_NORM) {
        return fail(err, FLUTE_EFORMAT, "%s: norms are dense, not %s; convert the model again", origin,
                    weight_type_name(w->type));
    }
    if (w->group_size != 32 && w->group_size != 64 && w->group_size != 128 && w->group_size != 256) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: the group size is %d; it must be 32, 64, 128 or 256; convert the model again",
                    origin, w->group_size);
    }
    if (w->n_cols % w->group_size != 0) {
        return fail(err, FLUTE_ESHAPE,
                    "%s: K=%lld is not a multiple of the group size %d; convert the model again", origin,
                    (long long)w->n_cols, w->group_size);
    }
    if (w->type == WEIGHT_INT8) return FLUTE_OK;
    for (int i = 0; i < 1 << weight_type_bits(w->type); i++) {
        if (isfinite(bf16_to_float(w->table[i]))) continue;
        return fail(err, FLUTE_EFORMAT, "%s: entry %d of the table is not finite", origin, i);
    }
    return FLUTE_OK;
}

// ---- The prefix

// What the size of the file says, once its prefix is known to be whole.
static int check_extent(const flt_prefix *prefix, size_t size, const char *origin, flute_error *err) {
    if (prefix->file_size > size) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: truncated: it has %zu of %llu bytes; copy, download or convert it again", origin,
                    size, (unsigned long long)prefix->file_size);
    }
    if (prefix->file_size < size) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: %llu bytes follow where the file should end; copy, download or convert it again",
                    origin, (unsigned long long)(size - prefix->file_size));
    }
    if (prefix->alignment != FLT_ALIGNMENT || prefix->header_size < 2 ||
        prefix->header_size > size - FLT_PREFIX_BYTES ||
        (prefix->header_size + FLT_PREFIX_BYTES) % FLT_ALIGNMENT != 0) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: the prefix makes no sense (alignment %u, header of %llu bytes); convert the model "
                    "again",
                    origin, (unsigned)prefix->alignment, (unsigned long long)prefix->header_size);
    }
    return FLUTE_OK;
}

static int read_prefix(flt_prefix *prefix, const uint8_t *data, size_t size, const char *origin,
                       flute_error *err) {
    const size_t magic_size = sizeof prefix->magic;
    if (size < magic_size || memcmp(data, FLT_MAGIC, magic_size) != 0) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: not a .flt file; flute-quantize makes one from a Hugging Face checkpoint", origin);
    }
    if (size < sizeof *prefix) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: truncated: it has only %zu bytes; copy, download or convert it again", origin, size);
    }
    memcpy(prefix, data, sizeof *prefix);
    if (prefix->version == __builtin_bswap32(FLT_VERSION)) {
        return fail(
            err, FLUTE_EVERSION,
            "%s: its numbers have the wrong byte order; .flt files are little-endian: convert the model "
            "again with flute-quantize",
            origin);
    }
    bool whole = XXH3_64bits(prefix, offsetof(flt_prefix, checksum)) == prefix->checksum;
    if (prefix->version > FLT_VERSION) {
        return fail(
            err, FLUTE_EVERSION,
            "%s: format version %u is newer than this program, which reads version %d: update flute%s",
            origin, (unsigned)prefix->version, FLT_VERSION,
            whole ? "" : " (or the file is damaged: its prefix fails its checksum)");
    }
    if (!whole) {
        return fail(err, FLUTE_ECHECKSUM,
                    "%s: damaged: the prefix fails its checksum; copy, download or convert it again", origin);
    }
    if (prefix->version != FLT_VERSION) {
        return fail(err, FLUTE_EVERSION, "%s: format version %u is unknown; convert the model again", origin,
                    (unsigned)prefix->version);
    }
    int code = check_extent(prefix, size, origin, err);
    if (code) return code;
    if (XXH3_64bits(data + FLT_PREFIX_BYTES, prefix->header_size) != prefix->header_checksum) {
        return fail(err, FLUTE_ECHECKSUM,
                    "%s: damaged: the header fails its checksum; copy, download or convert it again", origin);
    }
    return FLUTE_OK;
}

// ---- The header

// Reads "offset", "size" and "checksum" of object into the next blob.
static int read_blob(flt *out, yyjson_val *object, int tensor, const char *origin, size_t *size,
                     flute_error *err) {
    int64_t offset = 0, bytes = 0;
    const char *text = NULL;
    int code = json_get_int(object, "offset", JSON_REQUIRED, 0, (int64_t)out->size, &offset, origin, err);
    if (code) return code;
    code = json_get_int(object, "size", JSON_REQUIRED, 1, (int64_t)out->size, &bytes, origin, err);
    if (code) return code;
    code = json_get_string(object, "checksum", JSON_REQUIRED, &text, origin, err);
    if (code) return code;
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) {
        return fail(err, FLUTE_EFORMAT, "%s: the checksum is not 16 hexadecimal digits", origin);
    }
    // Both are at most the size of a file in memory: nothing overflows.
    uint64_t extent = ((uint64_t)bytes + FLT_ALIGNMENT - 1) / FLT_ALIGNMENT * FLT_ALIGNMENT;
    if (offset % FLT_ALIGNMENT != 0 || (uint64_t)offset + extent > out->size) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: %lld bytes at offset %lld are not aligned to %d or not inside the file", origin,
                    (long long)bytes, (long long)offset, FLT_ALIGNMENT);
    }
    out->blobs[out->n_blobs++] = (struct flt_blob){
        .offset = (uint64_t)offset, .extent = extent, .checksum = strtoull(text, NULL, 16), .tensor = tensor};
    *size = (size_t)bytes;
    return FLUTE_OK;
}

static int read_tokenizer(flt *out, yyjson_val *root, const char *origin, flute_error *err) {
    char context[CONTEXT_BYTES];
    snprintf(context, sizeof context, "%s: tokenizer", origin);
    yyjson_val *object = yyjson_obj_get(root, "tokenizer");
    const char *name = NULL;
    int code = json_get_string(object, "kind", JSON_REQUIRED, &name, context, err);
    if (code) return code;
    int kind = tokenizer_kind_parse(name);
    if (kind < 0) {
        return fail(err, FLUTE_EUNSUPPORTED, "%s: the kind \"%.40s\" is unknown: update flute", context,
                    name);
    }
    out->tokenizer = (tokenizer_kind)kind;
    if (kind == TOKENIZER_NONE) return FLUTE_OK;
    code = read_blob(out, object, -1, context, &out->tokenizer_size, err);
    if (code) return code;
    out->tokenizer_blob = out->base + out->blobs[out->n_blobs - 1].offset;
    return FLUTE_OK;
}

static int read_table(weight *w, yyjson_val *object, const char *origin, flute_error *err) {
    yyjson_val *table = yyjson_obj_get(object, "table"), *item;
    const size_t n = (size_t)1 << weight_type_bits(w->type);
    if (yyjson_arr_size(table) != n) { // 0 for what is no array
        return fail(err, FLUTE_EFORMAT, "%s: \"table\" must be an array of %zu numbers", origin, n);
    }
    size_t i, size;
    yyjson_arr_foreach(table, i, size, item) {
        double value = yyjson_is_num(item) ? yyjson_get_num(item) : (double)NAN;
        // Compared as double: a value beyond float must not become infinity on the way.
        bf16 stored = fabs(value) < 3.5e38 ? bf16_from_float((float)value) : 0x7f80;
        if ((double)bf16_to_float(stored) != value) {
            return fail(err, FLUTE_EFORMAT, "%s: entry %zu of \"table\" is not a finite bf16 number", origin,
                        i);
        }
        w->table[i] = stored;
    }
    return FLUTE_OK;
}

static int read_shape(weight *w, yyjson_val *object, const arch_tensor *expected, const char *origin,
                      flute_error *err) {
    yyjson_val *shape = yyjson_obj_get(object, "shape");
    yyjson_val *n_rows = yyjson_arr_get(shape, 0), *n_cols = yyjson_arr_get(shape, 1);
    if (yyjson_arr_size(shape) != 2 || !yyjson_is_uint(n_rows) || !yyjson_is_uint(n_cols)) {
        return fail(err, FLUTE_EFORMAT, "%s: \"shape\" must be [rows, columns]", origin);
    }
    if (yyjson_get_uint(n_rows) != (uint64_t)expected->n_rows ||
        yyjson_get_uint(n_cols) != (uint64_t)expected->n_cols) {
        return fail(err, FLUTE_ESHAPE,
                    "%s: the shape is %llu x %llu, where the architecture needs %lld x %lld; convert the "
                    "model again",
                    origin, (unsigned long long)yyjson_get_uint(n_rows),
                    (unsigned long long)yyjson_get_uint(n_cols), (long long)expected->n_rows,
                    (long long)expected->n_cols);
    }
    w->n_rows = expected->n_rows;
    w->n_cols = expected->n_cols;
    return FLUTE_OK;
}

static int read_tensor(flt *out, int index, const arch_tensor *expected, yyjson_val *object,
                       const char *origin, flute_error *err) {
    char context[CONTEXT_BYTES];
    snprintf(context, sizeof context, "%s: tensor %s", origin, expected->name);
    weight w = {.type = WEIGHT_F32};
    if (out->tensors[index].data) return fail(err, FLUTE_EFORMAT, "%s: is there twice", context);
    const char *name = NULL;
    int code = json_get_string(object, "type", JSON_REQUIRED, &name, context, err);
    if (code) return code;
    int type = weight_type_parse(name);
    if (type < 0) {
        return fail(err, FLUTE_EUNSUPPORTED, "%s: the type \"%.40s\" is unknown: update flute", context,
                    name);
    }
    w.type = (weight_type)type;
    if ((code = read_shape(&w, object, expected, context, err))) return code;
    int64_t group = 0;
    code = json_get_int(object, "group", JSON_OPTIONAL, 0, 1 << 20, &group, context, err);
    if (code) return code;
    w.group_size = (int)group;
    if (weight_is_quantized(w.type) && w.type != WEIGHT_INT8) {
        if ((code = read_table(&w, object, context, err))) return code;
    }
    if ((code = flt_check_tensor(&w, expected->role, context, err))) return code;
    if ((code = read_blob(out, object, index, context, &w.size, err))) return code;
    const size_t needed = flt_tensor_bytes(w.type, w.n_rows, w.n_cols, w.group_size);
    if (w.size != needed) {
        return fail(err, FLUTE_EFORMAT, "%s: has %zu bytes, where its type and shape need %zu", context,
                    w.size, needed);
    }
    w.data = out->base + out->blobs[out->n_blobs - 1].offset;
    out->tensors[index] = w;
    return FLUTE_OK;
}

// The tensors of an architecture, in the order of their names.
typedef struct name_index {
    char name[48];
    int index;
} name_index;

static int compare_names(const void *a, const void *b) {
    return strcmp(((const name_index *)a)->name, ((const name_index *)b)->name);
}

static int read_tensors(flt *out, yyjson_val *root, name_index *names, const char *origin, flute_error *err) {
    const int n_tensors = arch_n_tensors(&out->arch);
    int n_names = 0;
    arch_tensor expected;
    for (int i = 0; i < n_tensors; i++) {
        arch_tensor_at(&out->arch, i, &expected);
        if (expected.role == ROLE_ABSENT) continue;
        memcpy(names[n_names].name, expected.name, sizeof expected.name);
        names[n_names++].index = i;
    }
    qsort(names, (size_t)n_names, sizeof *names, compare_names);
    yyjson_val *list = yyjson_obj_get(root, "tensors"), *object;
    if (!yyjson_is_arr(list)) return fail(err, FLUTE_EFORMAT, "%s: \"tensors\" is not an array", origin);
    size_t i, size;
    yyjson_arr_foreach(list, i, size, object) {
        const char *name = NULL;
        int code = json_get_string(object, "name", JSON_REQUIRED, &name, origin, err);
        if (code) return code;
        name_index key = {.index = 0};
        snprintf(key.name, sizeof key.name, "%s", name);
        const name_index *found = bsearch(&key, names, (size_t)n_names, sizeof *names, compare_names);
        if (!found || strlen(name) >= sizeof key.name) {
            return fail(err, FLUTE_EFORMAT, "%s: tensor %.60s is not part of this architecture (%s)", origin,
                        name, out->arch.name);
        }
        arch_tensor_at(&out->arch, found->index, &expected);
        code = read_tensor(out, found->index, &expected, object, origin, err);
        if (code) return code;
    }
    for (int k = 0; k < n_names; k++) {
        if (out->tensors[names[k].index].data) continue;
        return fail(err, FLUTE_EFORMAT, "%s: tensor %s is missing; convert the model again", origin,
                    names[k].name);
    }
    return FLUTE_OK;
}

static const char *blob_name(const flt *file, const struct flt_blob *blob, arch_tensor *scratch) {
    if (blob->tensor < 0) return "tokenizer";
    arch_tensor_at(&file->arch, blob->tensor, scratch);
    return scratch->name;
}

static int compare_blobs(const void *a, const void *b) {
    const struct flt_blob *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int64_t blob_chunks(const struct flt_blob *blob) {
    return (int64_t)((blob->extent + FLT_CHUNK_BYTES - 1) / FLT_CHUNK_BYTES);
}

// The regions follow each other without gap or overlap from the header to the end of the file, so that every
// byte of the file is covered by a checksum.
static int check_tiling(flt *file, uint64_t first, const char *origin, flute_error *err) {
    uint64_t end = first;
    int64_t chunk = 0;
    arch_tensor scratch;
    qsort(file->blobs, (size_t)file->n_blobs, sizeof *file->blobs, compare_blobs);
    for (int i = 0; i < file->n_blobs; i++) {
        const struct flt_blob *blob = &file->blobs[i];
        if (blob->offset != end) {
            return fail(err, FLUTE_EFORMAT,
                        "%s: %s begins at %llu, where %llu is due: regions overlap or leave a gap", origin,
                        blob_name(file, blob, &scratch), (unsigned long long)blob->offset,
                        (unsigned long long)end);
        }
        end += blob->extent;
        file->blobs[i].first_chunk = chunk;
        chunk += blob_chunks(blob);
    }
    if (end == file->size) return FLUTE_OK;
    return fail(err, FLUTE_EFORMAT, "%s: nothing covers the bytes from %llu to the end", origin,
                (unsigned long long)end);
}

static int read_header(flt *out, yyjson_val *root, const char *origin, flute_error *err) {
    int code = arch_from_json(&out->arch, yyjson_obj_get(root, "arch"), origin, err);
    if (code) return code;
    const char *name = "";
    if ((code = json_get_string(root, "name", JSON_OPTIONAL, &name, origin, err))) return code;
    const size_t n_tensors = (size_t)arch_n_tensors(&out->arch);
    out->name = strdup(name);
    out->tensors = calloc(n_tensors, sizeof *out->tensors);
    out->blobs = calloc(n_tensors + 1, sizeof *out->blobs); // and the tokenizer
    name_index *names = calloc(n_tensors, sizeof *names);
    if (!out->name || !out->tensors || !out->blobs || !names) {
        code = fail_memory(err, n_tensors * (sizeof *out->tensors + sizeof *out->blobs + sizeof *names),
                           "the directory of tensors");
    }
    if (!code) code = read_tokenizer(out, root, origin, err);
    if (!code) code = read_tensors(out, root, names, origin, err);
    free(names);
    return code;
}

int flt_parse(flt *out, const void *data, size_t size, const char *origin, flute_error *err) {
    *out = (flt){.base = data, .size = size};
    flt_prefix prefix;
    int code = read_prefix(&prefix, data, size, origin, err);
    if (code) return code;
    out->header_size = FLT_PREFIX_BYTES + (size_t)prefix.header_size;
    yyjson_doc *doc =
        json_parse((const char *)data + FLT_PREFIX_BYTES, (size_t)prefix.header_size, origin, err);
    if (!doc) return FLUTE_EFORMAT;
    code = read_header(out, yyjson_doc_get_root(doc), origin, err);
    yyjson_doc_free(doc);
    if (!code) code = check_tiling(out, out->header_size, origin, err);
    if (code) flt_free(out);
    return code;
}

void flt_free(flt *file) {
    free(file->tensors);
    free(file->blobs);
    free(file->name);
    *file = (flt){.size = 0};
}

uint64_t flt_identity(const flt *file) {
    return XXH3_64bits(file->base, file->header_size);
}

// ---- Verification

// Chunks of all regions in one row, so that threads and ranks share large regions and small ones alike.
typedef struct digest_job {
    const flt *file;
    int64_t first; // number of the job's first chunk
    uint64_t *digests;
} digest_job;

static void digest_chunks(void *argument, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const digest_job *job = argument;
    const flt *file = job->file;
    begin += job->first;
    end += job->first;
    int low = 0, high = file->n_blobs; // the region of chunk `begin` lies in [low, high)
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (file->blobs[middle].first_chunk <= begin)
            low = middle;
        else
            high = middle;
    }
    for (int64_t chunk = begin; chunk < end; chunk++) {
        while (low + 1 < file->n_blobs && chunk >= file->blobs[low + 1].first_chunk) low++;
        const struct flt_blob *blob = &file->blobs[low];
        uint64_t at = (uint64_t)(chunk - blob->first_chunk) * FLT_CHUNK_BYTES;
        uint64_t size = blob->extent - at < FLT_CHUNK_BYTES ? blob->extent - at : FLT_CHUNK_BYTES;
        job->digests[chunk] = XXH3_64bits(file->base + blob->offset + at, size);
    }
}

int64_t flt_n_chunks(const flt *file) {
    if (file->n_blobs == 0) return 0;
    const struct flt_blob *last = &file->blobs[file->n_blobs - 1];
    return last->first_chunk + blob_chunks(last);
}

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

uint64_t flt_chunks_bytes(const flt *file, int64_t first, int64_t n) {
    uint64_t bytes = 0;
    for (int i = 0; i < file->n_blobs; i++) {
        const struct flt_blob *blob = &file->blobs[i];
        const int64_t n_chunks = blob_chunks(blob), begin = clamp(first - blob->first_chunk, 0, n_chunks),
                      end = clamp(first + n - blob->first_chunk, 0, n_chunks);
        if (begin == end) continue;
        bytes += (end == n_chunks ? blob->extent : (uint64_t)end * FLT_CHUNK_BYTES) -
                 (uint64_t)begin * FLT_CHUNK_BYTES;
    }
    return bytes;
}

void flt_digest_chunks(const flt *file, thread_pool *pool, int64_t first, int64_t n, uint64_t *digests,
                       const flt_progress *progress) {
    enum { REPORT_CHUNKS = 128 }; // between reports: some 10 ms from memory
    const int64_t end = first + n;
    for (int64_t piece; first < end; first += piece) {
        piece = progress && end - first > REPORT_CHUNKS ? REPORT_CHUNKS : end - first;
        digest_job job = {.file = file, .first = first, .digests = digests};
        threads_for(pool, piece, 4, digest_chunks, &job);
        if (progress) progress->advance(progress->user, flt_chunks_bytes(file, first, piece));
    }
}

int flt_compare_digests(const flt *file, const uint64_t *digests, const char *origin, flute_error *err) {
    arch_tensor scratch;
    for (int i = 0; i < file->n_blobs; i++) {
        const struct flt_blob *blob = &file->blobs[i];
        const size_t n_chunks = (size_t)blob_chunks(blob);
        if (XXH3_64bits(digests + blob->first_chunk, n_chunks * sizeof *digests) == blob->checksum) continue;
        return fail(err, FLUTE_ECHECKSUM,
                    "%s: damaged: %s (bytes %llu to %llu) fails its checksum; copy, download or convert the "
                    "file again",
                    origin, blob_name(file, blob, &scratch), (unsigned long long)blob->offset,
                    (unsigned long long)(blob->offset + blob->extent));
    }
    return FLUTE_OK;
}

int flt_verify(const flt *file, thread_pool *pool, const char *origin, const flt_progress *progress,
               flute_error *err) {
    const int64_t n_chunks = flt_n_chunks(file);
    uint64_t *digests = calloc((size_t)n_chunks + 1, sizeof *digests);
    if (!digests) return fail_memory(err, ((size_t)n_chunks + 1) * sizeof *digests, "checksums");
    flt_digest_chunks(file, pool, 0, n_chunks, digests, progress);
    int code = flt_compare_digests(file, digests, origin, err);
    free(digests);
    return code;
}
