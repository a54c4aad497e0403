// What the parts of the engine share of a model; callers outside see flute.h only.
#ifndef FLUTE_MODEL_H
#define FLUTE_MODEL_H

#include <pthread.h>

#include "engine/base/file.h"
#include "engine/base/threads.h"
#include "engine/flt.h"
#include "engine/flute.h"
#include "engine/kv_cache.h"
#include "engine/step.h"
#include "models/graph.h"
#include "tokenizer/tokenizer.h"

struct device_kind; // model.c

struct flute_model {
    char *path;
    file_map map;
    flt file;
    tokenizer *tok;      // NULL where the file has none
    int32_t end_of_turn; // of the chat style, -1: none
    thread_pool *pool;
    const struct device_kind *device;
    backend *be;
    weight *tensors; // (n_tensors) as placed by the backend
    int n_tensors;
    model_weights weights;
    flute_model_info info;
    char device_line[256];

    // Sessions share one KV pool and one set of activation buffers: the lock serializes their forward steps,
    // which share the device anyway.
    pthread_mutex_t lock;
    kv_cache cache;
    step step;
    int n_sessions;
};

// Bytes of memory that a new KV pool may take on the model's device.
uint64_t model_available_memory(const flute_model *model);
// FLUTE_EUNSUPPORTED, naming the file, when the model has no tokenizer.
int model_need_tokenizer(const flute_model *model, flute_error *err);

#endif
