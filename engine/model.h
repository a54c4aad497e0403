// What the parts of the engine share of a model; callers outside see flute.h only.
#ifndef FLUTE_MODEL_H
#define FLUTE_MODEL_H

#include <pthread.h>

#include "engine/base/file.h"
#include "engine/base/threads.h"
#include "engine/flt.h"
#include "engine/flute.h"
#include "engine/kv_cache.h"
#include "engine/lead.h"
#include "engine/shard.h"
#include "engine/step.h"
#include "models/graph.h"
#include "tokenizer/tokenizer.h"

struct device_kind; // model.c

// How much has been read, for flute_model_options.progress.
typedef struct load_progress {
    void (*report)(void *user, uint64_t done, uint64_t total); // NULL: nobody wants to know
    void *user;
    uint64_t done, total;
    flt_progress reading; // advances this
} load_progress;

struct flute_model {
    char *path;
    file_map map;
    flt file;
    tokenizer *tok;      // NULL where the file has none
    int32_t end_of_turn; // of the chat style, -1: none
    thread_pool *pool;
    const struct device_kind *device;
    backend *be;
    weight *tensors; // (n_tensors) this rank's part of each, as placed by the backend
    void **copies;   // (n_tensors) parts that do not lie in one piece in the file; NULL: none
    int n_tensors;
    shard shard;
    lead lead;          // of rank 0 of several
    flute_comm wanted;  // how the ranks shall communicate
    comm *comm;         // NULL: a single rank
    flute_ranks *ranks; // NULL: a single rank
    model_weights weights;
    flute_model_info info;
    char device_line[256];
    load_progress progress;

    // Sessions share one KV pool and one set of activation buffers: the lock serializes their forward steps,
    // which share the device anyway.
    pthread_mutex_t lock;
    kv_cache cache;
    step step;
    int n_sessions;
};

// The steps of flute_model_open, which ranks take together (lead.h, follow.c). Create starts threads and
// backend; *out, which may be partly built, is the caller's to free. Read maps the file, unless map has it
// already, and parses it. Place cuts this rank's part of the weights and gives it to the backend.
int model_create(flute_model **out, const char *path, const flute_model_options *options, flute_error *err);
int model_read(flute_model *model, flute_error *err);
int model_place(flute_model *model, flute_error *err);
// How the ranks of this model communicate. NULL: not in that way, and err says why.
const comm_kind *model_comm_kind(const flute_model *model, flute_error *err);
// Collective: model->comm, which is watched from then on.
int model_join(flute_model *model, const comm_kind *kind, const comm_ticket *ticket, flute_error *err);

// Bytes of memory that a new KV pool may take on the model's device.
uint64_t model_available_memory(const flute_model *model);
// FLUTE_EUNSUPPORTED, naming the file, when the model has no tokenizer.
int model_need_tokenizer(const flute_model *model, flute_error *err);

#endif
