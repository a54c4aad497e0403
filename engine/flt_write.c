// Writing .flt files. weights.md specifies the format.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "engine/base/fail.h"
#include "engine/base/json.h"
#include "engine/flt_internal.h"

// The checksum of a region as it grows: chunks are hashed one by one, and their digests into another hash.
typedef struct region_hash {
    XXH3_state_t *chunk, *digests;
    size_t chunk_bytes; // in the current chunk
} region_hash;

// What the directory will say of a tensor.
typedef struct written_tensor {
    weight w; // data NULL
    struct flt_blob blob;
    bool complete;
} written_tensor;

struct flt_writer {
    arch arch;
    char *name, *generator;
    tokenizer_kind tokenizer;
    struct flt_blob tokenizer_blob;
    size_t tokenizer_size;
    written_tensor *tensors; // (arch_n_tensors)
    int current;             // the tensor that is being written; -1: none
    uint64_t appended;       // bytes of it
    uint64_t end;            // of the last region
    size_t header_size;
    region_hash hash;
    file_writer *file;
};

// ---- Regions

static void hash_reset(region_hash *h) {
    XXH3_64bits_reset(h->chunk);
    XXH3_64bits_reset(h->digests);
    h->chunk_bytes = 0;
}

static void hash_chunk_end(region_hash *h) {
    const uint64_t digest = XXH3_64bits_digest(h->chunk);
    XXH3_64bits_update(h->digests, &digest, sizeof digest);
    XXH3_64bits_reset(h->chunk);
    h->chunk_bytes = 0;
}

static void hash_update(region_hash *h, const uint8_t *data, size_t size) {
    while (size > 0) {
        const size_t room = FLT_CHUNK_BYTES - h->chunk_bytes, n = size < room ? size : room;
        XXH3_64bits_update(h->chunk, data, n);
        h->chunk_bytes += n;
        data += n;
        size -= n;
        if (h->chunk_bytes == FLT_CHUNK_BYTES) hash_chunk_end(h);
    }
}

static uint64_t hash_end(region_hash *h) {
    if (h->chunk_bytes > 0) hash_chunk_end(h);
    return XXH3_64bits_digest(h->digests);
}

static int append(flt_writer *writer, const void *data, size_t size, flute_error *err) {
    hash_update(&writer->hash, data, size);
    int code = file_writer_at(writer->file, writer->end, data, size, err);
    if (!code) writer->end += size;
    return code;
}

static void begin_region(flt_writer *writer, struct flt_blob *blob) {
    hash_reset(&writer->hash);
    blob->offset = writer->end;
}

// Pads with zeros, which the checksum covers too.
static int end_region(flt_writer *writer, struct flt_blob *blob, flute_error *err) {
    static const uint8_t zeros[FLT_ALIGNMENT];
    const size_t padding = (FLT_ALIGNMENT - writer->end % FLT_ALIGNMENT) % FLT_ALIGNMENT;
    int code = padding ? append(writer, zeros, padding, err) : FLUTE_OK;
    blob->extent = writer->end - blob->offset;
    blob->checksum = hash_end(&writer->hash);
    return code;
}

// ---- The header

static void add_blob(yyjson_mut_doc *doc, yyjson_mut_val *object, const struct flt_blob *blob,
                     uint64_t size) {
    char checksum[17];
    snprintf(checksum, sizeof checksum, "%016llx", (unsigned long long)blob->checksum);
    yyjson_mut_obj_add_uint(doc, object, "offset", blob->offset);
    yyjson_mut_obj_add_uint(doc, object, "size", size);
    yyjson_mut_obj_add_strcpy(doc, object, "checksum", checksum);
}

static void add_tensor(yyjson_mut_doc *doc, yyjson_mut_val *list, const char *name,
                       const written_tensor *tensor) {
    const weight *w = &tensor->w;
    yyjson_mut_val *object = yyjson_mut_arr_add_obj(doc, list);
    yyjson_mut_obj_add_strcpy(doc, object, "name", name);
    yyjson_mut_obj_add_str(doc, object, "type", weight_type_name(w->type));
    yyjson_mut_val *shape = yyjson_mut_obj_add_arr(doc, object, "shape");
    yyjson_mut_arr_add_sint(doc, shape, w->n_rows);
    yyjson_mut_arr_add_sint(doc, shape, w->n_cols);
    if (weight_is_quantized(w->type)) yyjson_mut_obj_add_int(doc, object, "group", w->group_size);
    if (weight_is_quantized(w->type) && w->type != WEIGHT_INT8) {
        yyjson_mut_val *table = yyjson_mut_obj_add_arr(doc, object, "table");
        for (int i = 0; i < 1 << weight_type_bits(w->type); i++)
            yyjson_mut_arr_add_real(doc, table, bf16_to_float(w->table[i]));
    }
    add_blob(doc, object, &tensor->blob, w->size);
}

// The header as text, malloc'd. Before anything is written it has the largest numbers that may come, and its
// size is the upper bound.
static char *make_header(const flt_writer *writer, size_t *size, flute_error *err) {
    char *text = NULL;
    arch_tensor expected;
    yyjson_write_err problem;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) {
        fail_memory(err, sizeof *writer->tensors, "the header of a model");
        return NULL;
    }
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_str(doc, root, "format", "flt");
    yyjson_mut_obj_add_str(doc, root, "generator", writer->generator);
    yyjson_mut_obj_add_str(doc, root, "name", writer->name);
    yyjson_mut_obj_add_val(doc, root, "arch", arch_to_json(&writer->arch, doc));
    yyjson_mut_val *words = yyjson_mut_obj_add_obj(doc, root, "tokenizer");
    yyjson_mut_obj_add_str(doc, words, "kind", tokenizer_kind_name(writer->tokenizer));
    if (writer->tokenizer != TOKENIZER_NONE)
        add_blob(doc, words, &writer->tokenizer_blob, writer->tokenizer_size);
    yyjson_mut_val *list = yyjson_mut_obj_add_arr(doc, root, "tensors");
    for (int i = 0; i < arch_n_tensors(&writer->arch); i++) {
        arch_tensor_at(&writer->arch, i, &expected);
        if (expected.role != ROLE_ABSENT) add_tensor(doc, list, expected.name, &writer->tensors[i]);
    }
    text = yyjson_mut_write_opts(doc, YYJSON_WRITE_NOFLAG, NULL, size, &problem);
    if (!text && problem.code == YYJSON_WRITE_ERROR_INVALID_STRING)
        fail(err, FLUTE_EINVAL, "the model's name is not UTF-8; rename its folder");
    else if (!text)
        fail_memory(err, sizeof *writer->tensors, "the header of a model");
    yyjson_mut_doc_free(doc);
    return text;
}

// Reserves the area between the prefix and the first region.
static int reserve_header(flt_writer *writer, flute_error *err) {
    const struct flt_blob widest = {.offset = UINT64_MAX >> 1, .checksum = UINT64_MAX};
    weight w = {.type = WEIGHT_LUT4,
                .group_size = 256,
                .n_rows = INT64_MAX,
                .n_cols = INT64_MAX,
                .size = SIZE_MAX >> 1};
    for (int i = 0; i < 16; i++) w.table[i] = 0x807f; // as many digits as a bf16 can have
    for (int i = 0; i < arch_n_tensors(&writer->arch); i++)
        writer->tensors[i] = (written_tensor){w, widest, false};
    writer->tokenizer_blob = widest;
    size_t size = 0;
    flute_error problem;
    char *text = make_header(writer, &size, &problem);
    if (!text) return fail(err, problem.code, "%s", problem.message);
    free(text);
    memset(writer->tensors, 0, (size_t)arch_n_tensors(&writer->arch) * sizeof *writer->tensors);
    writer->end = (size + FLT_PREFIX_BYTES + FLT_ALIGNMENT - 1) / FLT_ALIGNMENT * FLT_ALIGNMENT;
    writer->header_size = (size_t)writer->end - FLT_PREFIX_BYTES;
    return FLUTE_OK;
}

static int write_header(flt_writer *writer, flute_error *err) {
    size_t size = 0;
    char *area = malloc(writer->header_size);
    if (!area) return fail_memory(err, writer->header_size, "the header of a model");
    flute_error problem;
    char *text = make_header(writer, &size, &problem);
    if (!text) {
        free(area);
        return fail(err, problem.code, "%s", problem.message);
    }
    assert(size <= writer->header_size);
    memset(area, ' ', writer->header_size);
    memcpy(area, text, size);
    free(text);
    flt_prefix prefix = {.version = FLT_VERSION,
                         .alignment = FLT_ALIGNMENT,
                         .header_size = writer->header_size,
                         .header_checksum = XXH3_64bits(area, writer->header_size),
                         .file_size = writer->end};
    memcpy(prefix.magic, FLT_MAGIC, sizeof prefix.magic);
    prefix.checksum = XXH3_64bits(&prefix, offsetof(flt_prefix, checksum));
    int code = file_writer_at(writer->file, FLT_PREFIX_BYTES, area, writer->header_size, err);
    if (!code) code = file_writer_at(writer->file, 0, &prefix, sizeof prefix, err);
    free(area);
    return code;
}

// ---- The writer

static void writer_free(flt_writer *writer) {
    if (!writer) return;
    free(writer->name);
    free(writer->generator);
    free(writer->tensors);
    XXH3_freeState(writer->hash.chunk);
    XXH3_freeState(writer->hash.digests);
    free(writer);
}

void flt_writer_abort(flt_writer *writer) {
    if (writer) file_writer_abort(writer->file);
    writer_free(writer);
}

static int write_tokenizer(flt_writer *writer, const flt_writer_options *options, flute_error *err) {
    if (options->tokenizer == TOKENIZER_NONE) return FLUTE_OK;
    begin_region(writer, &writer->tokenizer_blob);
    int code = append(writer, options->tokenizer_blob, options->tokenizer_size, err);
    return code ? code : end_region(writer, &writer->tokenizer_blob, err);
}

int flt_writer_create(flt_writer **out, const char *path, const flt_writer_options *options,
                      flute_error *err) {
    int code = FLUTE_OK;
    flute_error problem; // err may be NULL
    flt_writer *writer = calloc(1, sizeof *writer);
    const size_t n_tensors = (size_t)arch_n_tensors(options->arch);
    *out = NULL;
    if (!writer) return fail_memory(err, sizeof *writer, "a writer");
    writer->arch = *options->arch;
    writer->name = strdup(options->name);
    writer->generator = strdup(options->generator);
    writer->tensors = calloc(n_tensors, sizeof *writer->tensors);
    writer->tokenizer = options->tokenizer;
    writer->tokenizer_size = options->tokenizer_size;
    writer->current = -1;
    writer->hash.chunk = XXH3_createState(); // aligned to 64, which calloc does not promise
    writer->hash.digests = XXH3_createState();
    if (!writer->name || !writer->generator || !writer->tensors || !writer->hash.chunk ||
        !writer->hash.digests) {
        code = fail_memory(err, n_tensors * sizeof *writer->tensors, "the directory of tensors");
        goto error;
    }
    if ((code = reserve_header(writer, err))) goto error;
    writer->file = file_writer_open(path, &problem);
    if (!writer->file) {
        code = fail(err, problem.code, "%s", problem.message);
        goto error;
    }
    if ((code = write_tokenizer(writer, options, err))) goto error;
    *out = writer;
    return FLUTE_OK;
error:
    flt_writer_abort(writer);
    return code;
}

int flt_writer_begin(flt_writer *writer, int index, const weight *w, flute_error *err) {
    arch_tensor expected;
    assert(writer->current < 0 && index >= 0 && index < arch_n_tensors(&writer->arch));
    arch_tensor_at(&writer->arch, index, &expected);
    assert(expected.role != ROLE_ABSENT && !writer->tensors[index].complete);
    weight stored = *w;
    stored.data = NULL;
    stored.n_rows = expected.n_rows;
    stored.n_cols = expected.n_cols;
    int code = flt_check_tensor(&stored, expected.role, expected.name, err);
    if (code) return code;
    stored.size = flt_tensor_bytes(stored.type, stored.n_rows, stored.n_cols, stored.group_size);
    writer->tensors[index].w = stored;
    writer->current = index;
    writer->appended = 0;
    begin_region(writer, &writer->tensors[index].blob);
    return FLUTE_OK;
}

int flt_writer_append(flt_writer *writer, const void *data, size_t size, flute_error *err) {
    assert(writer->current >= 0 && writer->appended + size <= writer->tensors[writer->current].w.size);
    writer->appended += size;
    return append(writer, data, size, err);
}

int flt_writer_end(flt_writer *writer, flute_error *err) {
    assert(writer->current >= 0);
    written_tensor *tensor = &writer->tensors[writer->current];
    assert(writer->appended == tensor->w.size);
    writer->current = -1;
    tensor->complete = true;
    return end_region(writer, &tensor->blob, err);
}

int flt_writer_commit(flt_writer *writer, flute_error *err) {
    arch_tensor expected;
    assert(writer->current < 0);
    for (int i = 0; i < arch_n_tensors(&writer->arch); i++) {
        arch_tensor_at(&writer->arch, i, &expected);
        assert(expected.role == ROLE_ABSENT || writer->tensors[i].complete);
    }
    int code = write_header(writer, err);
    if (code)
        file_writer_abort(writer->file);
    else
        code = file_writer_commit(writer->file, err);
    writer_free(writer);
    return code;
}
