#include "engine/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "engine/base/json.h"

enum {
    MAX_HEADER_BYTES = 100000000, // the limit of the reference implementation
    MAX_SHARDS = 4096,
    MAX_DIMS = 8,
};

static const char index_name[] = "model.safetensors.index.json";

// One file.
typedef struct shard {
    char *path;          // for messages
    const char *file;    // its name inside the folder, a part of path
    file_map map;        // zeroed for a buffer
    yyjson_doc *doc;     // the header, which tensor names point into
    const uint8_t *data; // the tensors' bytes
    size_t size;
} shard;

typedef struct entry {
    const char *name, *dtype; // in the shard's header
    int shard;
    int n_dims;
    int64_t shape[MAX_DIMS];
    size_t begin, end; // in the shard's data
} entry;

struct safetensors {
    char *path;
    bool mapped; // the data lie in file mappings
    shard *shards;
    int n_shards;
    entry *entries; // sorted by name once open
    int n_entries;
    int entries_capacity;
};

static const struct {
    const char *name;
    int bytes;
    weight_type type; // WEIGHT_N_TYPES: may be in a file, but is of no use here
} dtypes[] = {
    {"F32", 4, WEIGHT_F32},      {"F16", 2, WEIGHT_F16},         {"BF16", 2, WEIGHT_BF16},
    {"F64", 8, WEIGHT_N_TYPES},  {"I64", 8, WEIGHT_N_TYPES},     {"U64", 8, WEIGHT_N_TYPES},
    {"I32", 4, WEIGHT_N_TYPES},  {"U32", 4, WEIGHT_N_TYPES},     {"I16", 2, WEIGHT_N_TYPES},
    {"U16", 2, WEIGHT_N_TYPES},  {"I8", 1, WEIGHT_N_TYPES},      {"U8", 1, WEIGHT_N_TYPES},
    {"BOOL", 1, WEIGHT_N_TYPES}, {"F8_E4M3", 1, WEIGHT_N_TYPES}, {"F8_E5M2", 1, WEIGHT_N_TYPES},
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

// Index into dtypes, or -1: later versions of the format may know more, with elements of less than a byte.
static int dtype_find(const char *name) {
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) return i;
    }
    return -1;
}

// ---- One header

// The array's numbers, each below 2^62. Returns how many, or -1 when it is anything else or longer.
static int read_numbers(yyjson_val *array, int capacity, int64_t *out) {
    size_t i, n;
    yyjson_val *item;
    if (!yyjson_is_arr(array) || yyjson_arr_size(array) > (size_t)capacity) return -1;
    yyjson_arr_foreach(array, i, n, item) {
        if (!yyjson_is_uint(item) || yyjson_get_uint(item) >= (uint64_t)1 << 62) return -1;
        out[i] = (int64_t)yyjson_get_uint(item);
    }
    return (int)n;
}

// Whether the shape times the element is exactly size bytes.
static bool extent_matches(const entry *e, int element_bytes) {
    int64_t bytes = element_bytes;
    for (int i = 0; i < e->n_dims; i++) {
        if (__builtin_mul_overflow(bytes, e->shape[i], &bytes)) return false;
    }
    return (uint64_t)bytes == e->end - e->begin;
}

static int parse_entry(const shard *file, yyjson_val *key, yyjson_val *value, entry *out, flute_error *err) {
    const char *name = yyjson_get_str(key);
    if (strlen(name) != yyjson_get_len(key)) {
        return fail(err, FLUTE_EFORMAT, "%s: a tensor name holds a NUL character", file->path);
    }
    out->name = name;
    out->dtype = yyjson_get_str(yyjson_obj_get(value, "dtype"));
    out->n_dims = read_numbers(yyjson_obj_get(value, "shape"), MAX_DIMS, out->shape);
    int64_t offsets[2];
    int n_offsets = read_numbers(yyjson_obj_get(value, "data_offsets"), 2, offsets);
    if (!out->dtype || out->n_dims < 0 || n_offsets != 2 || offsets[0] > offsets[1]) {
        return fail(err, FLUTE_EFORMAT, "%s: the header's entry of %.80s needs dtype, shape and data_offsets",
                    file->path, name);
    }
    if ((uint64_t)offsets[1] > file->size) {
        return fail(
            err, FLUTE_EFORMAT,
            "%s: truncated: %.80s ends at byte %lld of the data, of which there are %zu; fetch the file "
            "again",
            file->path, name, (long long)offsets[1], file->size);
    }
    out->begin = (size_t)offsets[0];
    out->end = (size_t)offsets[1];
    int dtype = dtype_find(out->dtype);
    if (dtype >= 0 && !extent_matches(out, dtypes[dtype].bytes)) {
        return fail(err, FLUTE_EFORMAT, "%s: the shape of %.80s does not fit its %zu bytes of %s", file->path,
                    name, out->end - out->begin, out->dtype);
    }
    return FLUTE_OK;
}

static int compare_begin(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int check_overlaps(const shard *file, entry *entries, int n, flute_error *err) {
    if (n == 0) return FLUTE_OK; // entries may be NULL, which qsort must not get
    qsort(entries, (size_t)n, sizeof *entries, compare_begin);
    for (int i = 1; i < n; i++) {
        if (entries[i].begin < entries[i - 1].end) {
            return fail(err, FLUTE_EFORMAT, "%s: malformed header: %.80s and %.80s overlap", file->path,
                        entries[i - 1].name, entries[i].name);
        }
    }
    return FLUTE_OK;
}

static int reserve_entries(safetensors *st, size_t more, flute_error *err) {
    size_t needed = (size_t)st->n_entries + more;
    if (needed <= (size_t)st->entries_capacity) return FLUTE_OK;
    entry *grown = realloc(st->entries, needed * sizeof *grown); // a header bounds needed by 10^8 / 20
    if (!grown) return fail_memory(err, needed * sizeof *grown, "the list of tensors");
    st->entries = grown;
    st->entries_capacity = (int)needed;
    return FLUTE_OK;
}

// Checks the prefix and parses the header of size bytes at data; sets the shard's doc, data and size.
static int parse_header(shard *file, const uint8_t *data, size_t size, flute_error *err) {
    static const char lfs[] = "version https://git-lfs";
    if (size >= sizeof lfs - 1 && memcmp(data, lfs, sizeof lfs - 1) == 0) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: a Git LFS pointer, not the file itself; run `git lfs pull` there", file->path);
    }
    uint64_t length = 0;
    if (size >= 8) {
        for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
    }
    if (size < 8 || length > size - 8 || length > MAX_HEADER_BYTES) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: not a safetensors file, or cut off inside its header (%zu bytes)", file->path, size);
    }
    file->doc = json_parse((const char *)data + 8, (size_t)length, file->path, err);
    if (!file->doc) return FLUTE_EFORMAT;
    if (!yyjson_is_obj(yyjson_doc_get_root(file->doc))) {
        return fail(err, FLUTE_EFORMAT, "%s: the safetensors header is no JSON object", file->path);
    }
    file->data = data + 8 + length;
    file->size = size - 8 - (size_t)length;
    return FLUTE_OK;
}

// Adds the tensors of the last shard.
static int parse_shard(safetensors *st, const uint8_t *data, size_t size, flute_error *err) {
    shard *file = &st->shards[st->n_shards - 1];
    int code = parse_header(file, data, size, err);
    if (code) return code;
    yyjson_val *root = yyjson_doc_get_root(file->doc), *key, *value;
    if ((code = reserve_entries(st, yyjson_obj_size(root), err))) return code;
    int first = st->n_entries;
    size_t i, n;
    yyjson_obj_foreach(root, i, n, key, value) {
        if (yyjson_equals_str(key, "__metadata__")) continue;
        entry *added = &st->entries[st->n_entries];
        *added = (entry){.shard = st->n_shards - 1};
        if ((code = parse_entry(file, key, value, added, err))) return code;
        st->n_entries++;
    }
    return check_overlaps(file, st->entries + first, st->n_entries - first, err);
}

// ---- All files

static int compare_names(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static const entry *find_exact(const safetensors *st, const char *name) {
    entry key = {.name = name};
    if (st->n_entries == 0) return NULL;
    return bsearch(&key, st->entries, (size_t)st->n_entries, sizeof key, compare_names);
}

static int sort_names(safetensors *st, flute_error *err) {
    if (st->n_entries == 0) {
        return fail(err, FLUTE_EFORMAT, "%s: there are no tensors in it", st->path);
    }
    qsort(st->entries, (size_t)st->n_entries, sizeof *st->entries, compare_names);
    for (int i = 1; i < st->n_entries; i++) {
        if (strcmp(st->entries[i - 1].name, st->entries[i].name) == 0) {
            return fail(err, FLUTE_EFORMAT, "%s: the tensor %.80s is there twice", st->path,
                        st->entries[i].name);
        }
    }
    return FLUTE_OK;
}

// "folder/name", or a copy of folder without a name; malloc'd.
static char *path_join(const char *folder, const char *name) {
    char *path = NULL;
    int n = name ? asprintf(&path, "%s/%s", folder, name) : asprintf(&path, "%s", folder);
    return n < 0 ? NULL : path;
}

static bool path_exists(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool exists = path && access(path, F_OK) == 0;
    free(path);
    return exists;
}

static safetensors *create(const char *path, int max_shards, flute_error *err) {
    safetensors *st = calloc(1, sizeof *st);
    if (st) {
        st->path = strdup(path);
        st->shards = calloc((size_t)max_shards, sizeof *st->shards);
    }
    if (st && st->path && st->shards) return st;
    safetensors_free(st);
    fail_memory(err, sizeof *st + (size_t)max_shards * sizeof(shard), "the checkpoint's list of files");
    return NULL;
}

// Maps and parses folder/name (or folder itself, a file, without a name).
static int add_file(safetensors *st, const char *folder, const char *name, flute_error *err) {
    shard *file = &st->shards[st->n_shards++];
    file->path = path_join(folder, name);
    if (!file->path) return fail_memory(err, strlen(folder), "a path");
    file->file = name ? file->path + strlen(folder) + 1 : file->path;
    int code = file_map_open(&file->map, file->path, err);
    if (code) return code;
    return parse_shard(st, file->map.data, file->map.size, err);
}

// ---- Folders

static shard *shard_find(const safetensors *st, const char *name, int first) {
    for (int i = 0; i < st->n_shards; i++) {
        shard *file = &st->shards[(first + i) % st->n_shards];
        if (strcmp(file->file, name) == 0) return file;
    }
    return NULL;
}

// Opens the shard that an entry of the index names, once.
static int add_indexed(safetensors *st, yyjson_val *value, flute_error *err) {
    const char *name = yyjson_get_str(value);
    // A name with a slash would lead out of the folder.
    if (!name || strlen(name) != yyjson_get_len(value) || strchr(name, '/')) {
        return fail(err, FLUTE_EFORMAT, "%s/%s: \"weight_map\" must map every tensor to a file name",
                    st->path, index_name);
    }
    // Tensors of one shard stand together: the last one opened is the likely one.
    if (shard_find(st, name, st->n_shards - 1)) return FLUTE_OK;
    if (st->n_shards == MAX_SHARDS) {
        return fail(err, FLUTE_EFORMAT, "%s/%s: names more than %d files", st->path, index_name, MAX_SHARDS);
    }
    if (!path_exists(st->path, name)) {
        return fail(
            err, FLUTE_EIO,
            "%s/%s: this shard is missing, though %s names it; fetch it from where the checkpoint came "
            "from",
            st->path, name, index_name);
    }
    return add_file(st, st->path, name, err);
}

static int open_index(safetensors *st, yyjson_val *root, flute_error *err) {
    yyjson_val *map = yyjson_obj_get(root, "weight_map"), *key, *value;
    if (yyjson_obj_size(map) == 0) {
        return fail(err, FLUTE_EFORMAT, "%s/%s: \"weight_map\" is missing or empty", st->path, index_name);
    }
    size_t i, n;
    int code;
    yyjson_obj_foreach(map, i, n, key, value) {
        if ((code = add_indexed(st, value, err))) return code;
    }
    if ((code = sort_names(st, err))) return code;
    yyjson_obj_foreach(map, i, n, key, value) {
        const entry *found = find_exact(st, yyjson_get_str(key));
        if (!found || strcmp(st->shards[found->shard].file, yyjson_get_str(value)) != 0) {
            return fail(err, FLUTE_EFORMAT,
                        "%s/%s: does not hold %.80s, which %s places there; the files do not belong together",
                        st->path, yyjson_get_str(value), yyjson_get_str(key), index_name);
        }
    }
    return FLUTE_OK;
}

static int open_sharded(safetensors **out, const char *folder, flute_error *err) {
    flute_error problem;
    int code = FLUTE_ENOMEM;
    yyjson_doc *doc = NULL;
    char *path = path_join(folder, index_name);
    safetensors *st = create(folder, MAX_SHARDS, err);
    if (!st) goto end;
    if (!path) {
        fail_memory(err, strlen(folder), "a path");
        goto end;
    }
    st->mapped = true;
    doc = json_parse_file(path, &problem);
    code =
        doc ? open_index(st, yyjson_doc_get_root(doc), err) : fail(err, problem.code, "%s", problem.message);
end:
    yyjson_doc_free(doc);
    free(path);
    if (code) {
        safetensors_free(st);
        st = NULL;
    }
    *out = st;
    return code;
}

static int open_single(safetensors **out, const char *folder, const char *name, flute_error *err) {
    *out = NULL;
    safetensors *st = create(folder, 1, err);
    if (!st) return FLUTE_ENOMEM;
    st->mapped = true;
    int code = add_file(st, folder, name, err);
    if (!code) code = sort_names(st, err);
    if (code) {
        safetensors_free(st);
        return code;
    }
    *out = st;
    return FLUTE_OK;
}

static int refuse_folder(const char *folder, flute_error *err) {
    if (path_exists(folder, "pytorch_model.bin") || path_exists(folder, "pytorch_model.bin.index.json") ||
        path_exists(folder, "consolidated.00.pth")) {
        return fail(
            err, FLUTE_EUNSUPPORTED,
            "%s: holds PyTorch files only, which can run code when they are opened; save the model as "
            "safetensors first (in transformers: from_pretrained, then save_pretrained)",
            folder);
    }
    return fail(err, FLUTE_EIO,
                "%s: neither model.safetensors nor %s is there; is this a checkpoint's folder?", folder,
                index_name);
}

// ---- The interface

int safetensors_open(safetensors **out, const char *path, flute_error *err) {
    *out = NULL;
    struct stat info;
    if (stat(path, &info) != 0) return fail(err, FLUTE_EIO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) return open_single(out, path, NULL, err);
    if (path_exists(path, "model.safetensors")) return open_single(out, path, "model.safetensors", err);
    if (path_exists(path, index_name)) return open_sharded(out, path, err);
    return refuse_folder(path, err);
}

int safetensors_open_buffer(safetensors **out, const void *data, size_t size, const char *origin,
                            flute_error *err) {
    *out = NULL;
    safetensors *st = create(origin, 1, err);
    if (!st) return FLUTE_ENOMEM;
    int code = FLUTE_ENOMEM;
    shard *file = &st->shards[st->n_shards++];
    file->file = file->path = strdup(origin);
    if (!file->path) {
        fail_memory(err, strlen(origin), "a path");
        goto failed;
    }
    if ((code = parse_shard(st, data, size, err))) goto failed;
    if ((code = sort_names(st, err))) goto failed;
    *out = st;
    return FLUTE_OK;
failed:
    safetensors_free(st);
    return code;
}

void safetensors_free(safetensors *st) {
    if (!st) return;
    for (int i = 0; i < st->n_shards; i++) {
        yyjson_doc_free(st->shards[i].doc);
        file_map_close(&st->shards[i].map);
        free(st->shards[i].path);
    }
    free(st->shards);
    free(st->entries);
    free(st->path);
    free(st);
}

int safetensors_count(const safetensors *checkpoint) {
    return checkpoint->n_entries;
}

// Tries the names under which checkpoints keep a tensor of the language model.
static const entry *find_entry(const safetensors *st, const char *name) {
    const entry *found = find_exact(st, name);
    char alias[256];
    if (found) return found;
    snprintf(alias, sizeof alias, "language_model.%s", name);
    if ((found = find_exact(st, alias))) return found;
    if (strncmp(name, "model.", 6) != 0) return NULL;
    snprintf(alias, sizeof alias, "model.language_model.%s", name + 6);
    return find_exact(st, alias);
}

bool safetensors_has(const safetensors *checkpoint, const char *name) {
    return find_entry(checkpoint, name) != NULL;
}

static bool shape_is(const entry *e, int64_t n_rows, int64_t n_cols) {
    if (e->n_dims == 2) return e->shape[0] == n_rows && e->shape[1] == n_cols;
    return e->n_dims == 1 && n_rows == 1 && e->shape[0] == n_cols;
}

// "(4096, 14336)".
static void format_shape(const entry *e, char *out, size_t size) {
    size_t used = (size_t)snprintf(out, size, "(");
    for (int i = 0; i < e->n_dims && used < size; i++) {
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)e->shape[i]);
    }
    if (used < size) snprintf(out + used, size - used, ")");
}

int safetensors_find(const safetensors *checkpoint, const char *name, int64_t n_rows, int64_t n_cols,
                     safetensors_tensor *out, flute_error *err) {
    const entry *e = find_entry(checkpoint, name);
    if (!e) {
        return fail(err, FLUTE_EFORMAT,
                    "%s: the tensor %.80s is missing; the checkpoint is incomplete or does "
                    "not match its config.json",
                    checkpoint->path, name);
    }
    const shard *file = &checkpoint->shards[e->shard];
    if (!shape_is(e, n_rows, n_cols)) {
        char shape[128];
        format_shape(e, shape, sizeof shape);
        return fail(err, FLUTE_ESHAPE, "%s: %.80s is %s, but config.json makes it (%lld, %lld)", file->path,
                    e->name, shape, (long long)n_rows, (long long)n_cols);
    }
    int dtype = dtype_find(e->dtype);
    if (dtype < 0 || dtypes[dtype].type == WEIGHT_N_TYPES) {
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%s: %.80s has the dtype %.20s; F32, F16 and BF16 can be read: convert the original "
                    "checkpoint",
                    file->path, e->name, e->dtype);
    }
    *out = (safetensors_tensor){.name = e->name,
                                .type = dtypes[dtype].type,
                                .n_rows = n_rows,
                                .n_cols = n_cols,
                                .data = file->data + e->begin,
                                .size = e->end - e->begin};
    return FLUTE_OK;
}

// The bytes of a row range; the header does not promise any alignment of them.
static const uint8_t *row_bytes(const safetensors_tensor *tensor, int64_t first, int64_t n_rows,
                                size_t *size) {
    assert(first >= 0 && n_rows >= 0 && first + n_rows <= tensor->n_rows);
    size_t row = (size_t)tensor->n_cols * (size_t)(weight_type_bits(tensor->type) / 8);
    *size = (size_t)n_rows * row;
    return tensor->data + (size_t)first * row;
}

void safetensors_read_rows(const safetensors_tensor *tensor, int64_t first, int64_t n_rows, float *out) {
    size_t size;
    const uint8_t *data = row_bytes(tensor, first, n_rows, &size);
    if (tensor->type == WEIGHT_F32) {
        memcpy(out, data, size);
        return;
    }
    uint16_t half;
    for (size_t i = 0; i < size / 2; i++) {
        memcpy(&half, data + 2 * i, 2);
        out[i] = tensor->type == WEIGHT_BF16 ? bf16_to_float(half) : f16_to_float(half);
    }
}

void safetensors_release_rows(const safetensors *checkpoint, const safetensors_tensor *tensor, int64_t first,
                              int64_t n_rows) {
    if (!checkpoint->mapped) return;
    size_t size;
    const uint8_t *data = row_bytes(tensor, first, n_rows, &size);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    // The page that begins before the range goes as well: the range before has been read by then, and
    // mappings begin at a page. The one that ends after it stays for the next range.
    uintptr_t begin = (uintptr_t)data / page * page;
    uintptr_t end = ((uintptr_t)data + size) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}
