#include "engine/model.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "engine/chat.h"

enum { MAX_THREADS = 1024 };

const char *flute_version(void) {
    return FLUTE_VERSION;
}

// ---- Devices

typedef struct device_kind {
    flute_device device;
    const char *name;
    int (*create)(const flute_model_options *options, thread_pool *pool, backend **out, flute_error *err);
    uint64_t (*available_memory)(void); // bytes that a new allocation may take
    bool own_memory;                    // weights are copied there
    int (*count)(void);                 // devices of this host; NULL: ranks share the one
} device_kind;

static int cpu_create(const flute_model_options *options, thread_pool *pool, backend **out,
                      flute_error *err) {
    if (options->kernels == FLUTE_KERNELS_REF) return backend_create_ref(pool, out, err);
    return backend_create_cpu(pool, out, err);
}

static uint64_t cpu_available_memory(void) {
    FILE *file = fopen("/proc/meminfo", "re");
    if (file) {
        char line[128];
        uint64_t kib = 0;
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1) break;
        fclose(file);
        if (kib) return kib * 1024;
    }
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

#ifdef FLUTE_HAVE_CUDA
static int cuda_create(const flute_model_options *options, thread_pool *pool, backend **out,
                       flute_error *err) {
    if (options->kernels == FLUTE_KERNELS_REF)
        return fail(err, FLUTE_EUNSUPPORTED,
                    "the reference kernels run on the CPU: choose the device cpu or auto");
    int code = options->ranks ? cuda_choose_device(ranks_local_rank(options->ranks), err) : FLUTE_OK;
    return code ? code : backend_create_cuda(pool, out, err);
}
#endif

// Every device of this build, the preferred one first: FLUTE_DEVICE_AUTO takes the first that can be had.
static const device_kind devices[] = {
#ifdef FLUTE_HAVE_CUDA
    {FLUTE_DEVICE_CUDA, "cuda", cuda_create, cuda_available_memory, true, cuda_device_count},
#endif
    {FLUTE_DEVICE_CPU, "cpu", cpu_create, cpu_available_memory, false, NULL},
};
enum { N_DEVICES = sizeof devices / sizeof *devices };

static int create_backend(flute_model *model, const flute_model_options *options, flute_error *err) {
    int code = FLUTE_EUNSUPPORTED;
    for (int i = 0; i < N_DEVICES; i++) {
        if (options->device != FLUTE_DEVICE_AUTO && options->device != devices[i].device) continue;
        code = devices[i].create(options, model->pool, &model->be, err);
        if (code == FLUTE_OK) {
            model->device = &devices[i];
            return FLUTE_OK;
        }
        if (options->device != FLUTE_DEVICE_AUTO) return code;
    }
    if (options->device == FLUTE_DEVICE_CUDA)
        return fail(err, code, "this flute was built without CUDA: choose the device cpu or auto");
    return code;
}

uint64_t model_available_memory(const flute_model *model) {
    return model->device->available_memory();
}

// ---- Opening

static void advance(void *user, uint64_t bytes) {
    load_progress *p = user;
    p->done += bytes;
    if (p->report && p->total) p->report(p->user, p->done, p->total);
}

// Bytes of this rank's part of the weights: in the file, or on a device, where dense f32 is half as large.
static uint64_t part_bytes(const flute_model *model, bool placed) {
    const arch *a = &model->file.arch;
    uint64_t bytes = 0;
    for (int i = 0; i < arch_n_tensors(a); i++) {
        weight w;
        layout_span spans[2];
        if (!model->file.tensors[i].data) continue;
        shard_weight(&model->shard, a, i, &model->file.tensors[i], &w, spans);
        bytes += placed && w.type == WEIGHT_F32 ? w.size / 2 : w.size;
    }
    return bytes;
}

// What lies ahead of this process: its share of the checksums, and of the weights where they are copied.
static void begin_progress(flute_model *model, const flute_model_options *options) {
    load_progress *p = &model->progress;
    const int64_t n_chunks = flt_n_chunks(&model->file);
    const int n_readers = options->scatter ? 1 : ranks_local_size(options->ranks);
    p->report = options->progress, p->user = options->progress_user;
    if (!options->no_verify)
        p->total = flt_chunks_bytes(&model->file, 0, layout_share(n_chunks, 0, n_readers).n);
    if (model->device->own_memory) p->total += part_bytes(model, false);
    advance(p, 0);
}

static int check_options(const flute_model_options *options, flute_error *err) {
    if (options->device < FLUTE_DEVICE_AUTO || options->device > FLUTE_DEVICE_CUDA)
        return fail(err, FLUTE_EINVAL, "device %d: there is no such device", (int)options->device);
    if (options->kernels < FLUTE_KERNELS_AUTO || options->kernels > FLUTE_KERNELS_REF)
        return fail(err, FLUTE_EINVAL, "kernels %d: there are no such kernels", (int)options->kernels);
    if (options->comm < FLUTE_COMM_AUTO || options->comm > FLUTE_COMM_NCCL)
        return fail(err, FLUTE_EINVAL, "comm %d: ranks do not communicate like that", (int)options->comm);
    if (options->n_threads < 0 || options->n_threads > MAX_THREADS)
        return fail(err, FLUTE_EINVAL, "%d threads: the number must be 0 (all) to %d", options->n_threads,
                    MAX_THREADS);
    return FLUTE_OK;
}

int model_create(flute_model **out, const char *path, const flute_model_options *options, flute_error *err) {
    flute_model *model = calloc(1, sizeof *model);
    *out = model;
    if (!model) return fail_memory(err, sizeof *model, "a model");
    pthread_mutex_init(&model->lock, NULL);
    model->ranks = options->ranks;
    model->wanted = options->comm;
    model->progress.reading = (flt_progress){advance, &model->progress};
    model->path = strdup(path);
    if (!model->path) return fail_memory(err, strlen(path) + 1, "a file name");
    int n_threads = options->n_threads;
    if (n_threads == 0) n_threads = threads_available() / ranks_local_size(options->ranks);
    model->pool = threads_create(n_threads > 0 ? n_threads : 1, err);
    return model->pool ? create_backend(model, options, err) : FLUTE_ENOMEM;
}

int model_read(flute_model *model, flute_error *err) {
    int code = model->map.data ? FLUTE_OK : file_map_open(&model->map, model->path, err);
    if (!code) code = flt_parse(&model->file, model->map.data, model->map.size, model->path, err);
    if (!code)
        shard_init(&model->shard, &model->file.arch, model->file.tensors, flute_ranks_rank(model->ranks),
                   ranks_size(model->ranks));
    return code;
}

const comm_kind *model_comm_kind(const flute_model *model, flute_error *err) {
    const comm_kind *own = model->be->ops->comm;
    const bool automatic = model->wanted == FLUTE_COMM_AUTO;
    if (own && (automatic || model->wanted == FLUTE_COMM_NCCL)) return own;
    if (model->wanted == FLUTE_COMM_NCCL)
        fail(err, FLUTE_EUNSUPPORTED, "NCCL is for GPUs, and for a flute that was built with it");
    else if (automatic && model->device->own_memory)
        fail(err, FLUTE_EUNSUPPORTED,
             "this flute was built without NCCL: GPUs need --comm local or mpi, which are slow");
    else
        return ranks_host_comm(model->ranks, model->wanted, err);
    return NULL;
}

int model_join(flute_model *model, const comm_kind *kind, const comm_ticket *ticket, flute_error *err) {
    const backend_ops *ops = model->be->ops;
    comm *c;
    int code = kind->join(&c, ticket, model->shard.rank, model->shard.size, err);
    if (code) return code;
    if (kind != ops->comm && ops->comm_adopt) {
        comm *host = c;
        code = ops->comm_adopt(&c, host, err);
        if (code) {
            comm_free(host);
            return code;
        }
    }
    model->comm = c;
    ranks_watch_comm(model->ranks, c);
    return FLUTE_OK;
}

static int read_tokenizer(flute_model *model, flute_error *err) {
    int code = FLUTE_OK;
    if (model->file.tokenizer != TOKENIZER_NONE)
        code = tokenizer_create(&model->tok, model->file.tokenizer, model->file.tokenizer_blob,
                                model->file.tokenizer_size, model->path, err);
    model->end_of_turn = code ? -1 : chat_end_of_turn(model->file.arch.chat, model->tok);
    return code;
}

// Whether the weights fit, before the first of them is copied.
static int check_memory(const flute_model *model, flute_error *err) {
    if (!model->device->own_memory) return FLUTE_OK;
    const uint64_t bytes = part_bytes(model, true), available = model_available_memory(model);
    if (bytes <= available) return FLUTE_OK;
    return fail(err, FLUTE_ENOMEM,
                "%s: the weights need %.1f GiB, but %.1f GiB of the GPU's memory are free; use fewer bits "
                "(flute-quantize "
                "--bits) or --device cpu",
                model->path, (double)bytes / 0x1p30, (double)available / 0x1p30);
}

// This rank's part of a tensor goes to the backend. What does not lie in one piece is copied together, and
// stays so where the backend uses the memory of the host.
static int place_tensor(flute_model *model, int index, flute_error *err) {
    const weight *whole = &model->file.tensors[index];
    weight host, *placed = &model->tensors[index];
    layout_span spans[2];
    void *copy = NULL;
    const int n_spans = shard_weight(&model->shard, &model->file.arch, index, whole, &host, spans);
    if (n_spans == 0) {
        *placed = host;
        return FLUTE_OK;
    }
    if (!host.data) {
        if (posix_memalign(&copy, FLT_ALIGNMENT, host.size) != 0)
            return fail_memory(err, host.size, "a rank's part of the weights");
        shard_copy(whole, spans, n_spans, copy);
        host.data = copy;
    }
    int code = model->be->ops->weight_place(model->be, &host, placed, err);
    if (!code && model->device->own_memory) advance(&model->progress, host.size);
    if (!code && placed->data == copy)
        model->copies[index] = copy;
    else
        free(copy);
    return code;
}

static int place_weights(flute_model *model, flute_error *err) {
    const arch *a = &model->file.arch;
    const int n_tensors = arch_n_tensors(a);
    int code = check_memory(model, err);
    if (code) return code;
    model->tensors = calloc((size_t)n_tensors, sizeof *model->tensors);
    model->copies = calloc((size_t)n_tensors, sizeof *model->copies);
    if (!model->tensors || !model->copies)
        return fail_memory(err, (size_t)n_tensors * sizeof *model->tensors, "tensors");
    for (; model->n_tensors < n_tensors; model->n_tensors++) {
        if (!model->file.tensors[model->n_tensors].data) continue;
        code = place_tensor(model, model->n_tensors, err);
        if (code) return code;
    }
    model->weights.tensors = model->tensors;
    for (int i = 0; i < a->n_ropes; i++) {
        const size_t bytes = (size_t)(a->head_dim / 2) * sizeof(float);
        model->weights.inv_freq[i] = malloc(bytes);
        if (!model->weights.inv_freq[i]) return fail_memory(err, bytes, "rotary frequencies");
        rope_inv_freq(&a->rope[i], a->head_dim, model->weights.inv_freq[i]);
    }
    return FLUTE_OK;
}

int model_place(flute_model *model, flute_error *err) {
    kernel_dims dims;
    model->be->comm = model->comm;
    int code = place_weights(model, err);
    if (code) return code;
    shard_kernel_dims(&model->shard, &model->file.arch, 1, 1, &dims);
    kv_cache_init(&model->cache, model->be, &dims);
    model->cache.lead = &model->lead;
    step_init(&model->step, &model->file.arch, &model->shard, &model->weights, model->be);
    model->step.lead = &model->lead;
    return FLUTE_OK;
}

// Weights of a tensor without padding rows.
static uint64_t count_parameters(const arch_tensor *tensor) {
    if (tensor->n_sources == 0) return (uint64_t)tensor->n_rows * (uint64_t)tensor->n_cols;
    uint64_t rows = 0;
    for (int i = 0; i < tensor->n_sources; i++) rows += (uint64_t)tensor->sources[i].n_rows;
    return rows * (uint64_t)tensor->n_cols;
}

static void describe(flute_model *model) {
    const arch *a = &model->file.arch;
    const backend_ops *ops = model->be->ops;
    const weight *projection = &model->file.tensors[arch_layer_tensor(0, SLOT_QKV)];
    const char *name = model->device->name, *device = ops->describe(model->be);
    kernel_dims dims;
    arch_kernel_dims(a, 1, 1, &dims);
    const int n_devices = model->device->count ? model->device->count() : INT_MAX;
    char shared[32] = "";
    if (ranks_local_size(model->ranks) > n_devices)
        snprintf(shared, sizeof shared, ", sharing %d GPU%s", n_devices, n_devices > 1 ? "s" : "");
    if (model->comm)
        snprintf(model->device_line, sizeof model->device_line, "%d ranks by %s%s, each %s: %s",
                 model->comm->size, model->comm->name, shared, name, device);
    else
        snprintf(model->device_line, sizeof model->device_line, "%s: %s", name, device);
    flute_model_info *info = &model->info;
    *info = (flute_model_info){
        .name = model->file.name,
        .architecture = a->name,
        .weights = weight_type_name(projection->type),
        .device = model->device_line,
        .group_size = projection->group_size,
        .n_layers = a->n_layers,
        .hidden = a->hidden,
        .n_heads = a->n_heads,
        .n_kv_heads = a->n_kv_heads,
        .head_dim = a->head_dim,
        .n_ff = a->n_ff,
        .n_vocab = a->n_vocab,
        .max_context = a->max_context,
        .kv_token_bytes = ops->kv_bytes(model->be, &dims, 1),
        .has_tokenizer = model->tok != NULL,
        .n_ranks = ranks_size(model->ranks),
    };
    for (int i = 0; i < model->n_tensors; i++) {
        const weight *w = &model->file.tensors[i];
        arch_tensor tensor;
        arch_tensor_at(a, i, &tensor);
        if (!w->data) continue;
        info->n_parameters += count_parameters(&tensor);
        info->weight_bytes += w->size;
        // Of an embedding that is not the head, too, a token reads one row: next to nothing.
        if (i != TENSOR_EMBEDDING || a->tied) info->decode_bytes += w->size;
    }
}

static int open_model(flute_model **model, const char *path, const flute_model_options *options,
                      flute_error *err) {
    int code = model_create(model, path, options, err);
    if (!code) code = model_read(*model, err);
    if (code) return code;
    begin_progress(*model, options);
    if (options->ranks) {
        flute_model_options same = *options; // on every rank the device that was found here
        same.device = (*model)->device->device;
        (*model)->lead = (lead){options->ranks, ranks_new_model(options->ranks)};
        code = lead_open(*model, &same, err);
    } else if (!options->no_verify) {
        code = flt_verify(&(*model)->file, (*model)->pool, path, &(*model)->progress.reading, err);
    }
    if (!code) code = read_tokenizer(*model, err);
    if (!code) code = model_place(*model, err);
    if (!code) code = lead_placed(&(*model)->lead, err);
    return code;
}

int flute_model_open(flute_model **out, const char *path, const flute_model_options *options,
                     flute_error *err) {
    static const flute_model_options defaults = {0};
    if (!options) options = &defaults;
    *out = NULL;
    int code = check_options(options, err);
    if (code) return code;
    flute_model *model;
    code = open_model(&model, path, options, err);
    if (code) {
        flute_model_free(model);
        return code;
    }
    describe(model);
    *out = model;
    return FLUTE_OK;
}

void flute_model_free(flute_model *model) {
    if (!model) return;
    lead_close(&model->lead);
    step_free(&model->step);
    kv_cache_free(&model->cache);
    for (int i = 0; i < model->n_tensors; i++) {
        if (model->tensors[i].data) model->be->ops->weight_release(model->be, &model->tensors[i]);
        free(model->copies[i]);
    }
    free(model->tensors);
    free(model->copies);
    for (int i = 0; i < 2; i++) free(model->weights.inv_freq[i]);
    if (model->comm) {
        ranks_forget_comm(model->ranks, model->comm);
        comm_free(model->comm);
    }
    tokenizer_free(model->tok);
    flt_free(&model->file);
    file_map_close(&model->map);
    if (model->be) model->be->ops->free(model->be);
    threads_free(model->pool);
    pthread_mutex_destroy(&model->lock);
    free(model->path);
    free(model);
}

void flute_model_get_info(const flute_model *model, flute_model_info *info) {
    *info = model->info;
}

double flute_model_measure_bandwidth(flute_model *model) {
    pthread_mutex_lock(&model->lock);
    const int local = ranks_local_size(model->ranks);
    const int n_devices = model->device->count ? model->device->count() : 1;
    double bandwidth = model->be->ops->read_bandwidth(model->be);
    if (model->comm && model->device->own_memory) // of all GPUs, some of which may be shared
        bandwidth *= model->comm->size * (n_devices < local ? (double)n_devices / local : 1);
    pthread_mutex_unlock(&model->lock);
    return bandwidth;
}

int flute_model_measure_all_reduce(flute_model *model, size_t bytes, double *seconds, flute_error *err) {
    enum { REPEAT_BYTES = 32 << 20, MAX_REPEATS = 200 };
    *seconds = 0;
    if (bytes < sizeof(float) || bytes > (size_t)1 << 32)
        return fail(err, FLUTE_EINVAL, "an all-reduce of %zu bytes: 4 to 2^32 can be measured", bytes);
    if (!model->comm) return FLUTE_OK;
    measure_message what = {.n_floats = bytes / sizeof(float), .repeats = (int)(REPEAT_BYTES / bytes) + 2};
    if (what.repeats > MAX_REPEATS) what.repeats = MAX_REPEATS;
    pthread_mutex_lock(&model->lock);
    int code = lead_measure(&model->lead, model->comm, &what, seconds, err);
    pthread_mutex_unlock(&model->lock);
    return code;
}

double flute_model_collective_seconds(const flute_model *model) {
    return model->comm ? model->comm->seconds : 0;
}

void flute_model_time_collectives(flute_model *model, bool on) {
    pthread_mutex_lock(&model->lock);
    if (model->comm) model->comm->timed = on;
    pthread_mutex_unlock(&model->lock);
}
