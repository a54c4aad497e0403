// The ranks that rank 0 leads: they do with their backends and caches what it does, each with its part of the
// weights (lead.h).
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/lead.h"
#include "engine/model.h"
#include "engine/scatter.h"

enum { MAX_MODELS = 64 };

typedef struct followed {
    flute_model *model; // NULL: closed, or could not be opened
    open_message message;
} followed;

typedef struct follower {
    flute_ranks *ranks;
    followed models[MAX_MODELS]; // by number modulo MAX_MODELS
} follower;

// ---- Opening

static int open_model(follower *f, followed *m, flute_error *err) {
    const open_message *message = &m->message;
    const flute_model_options options = {.device = (flute_device)message->device,
                                         .kernels = (flute_kernels)message->kernels,
                                         .n_threads = message->n_threads,
                                         .ranks = f->ranks,
                                         .comm = (flute_comm)message->comm,
                                         .scatter = message->scatter};
    int code = model_create(&m->model, message->path, &options, err);
    if (message->scatter && !m->model) return code; // and what follows cannot be read: see follow_open
    if (message->scatter) {
        int received = scatter_make_room(m->model, message->file_size, err);
        if (!received)
            received =
                ranks_receive(f->ranks, (void *)(uintptr_t)m->model->map.data, message->header_size, err);
        if (!code) code = received;
    }
    if (!code) code = model_read(m->model, err);
    if (!code && flt_identity(&m->model->file) != message->identity)
        code =
            fail(err, FLUTE_EINVAL, "%s: the file here is not that of rank 0; copy it again", message->path);
    return code;
}

static int follow_open(follower *f, followed *m, uint64_t size, flute_error *err) {
    flute_error result = {0};
    uint64_t *digests = NULL;
    layout_run own = {0, 0};
    if (m->model) return fail(err, FLUTE_EUNSUPPORTED, "more than %d models are open", MAX_MODELS);
    int code = ranks_receive(f->ranks, &m->message, sizeof m->message, err);
    if (code) return code;
    if (size != sizeof m->message + (m->message.scatter ? m->message.header_size : 0))
        return fail(err, FLUTE_EDEVICE, "rank 0 sent %llu bytes to open a model", (unsigned long long)size);
    code = open_model(f, m, &result);
    if (code && m->message.scatter && !m->model) return fail(err, code, "%s", result.message);
    if (!code && m->message.verify) {
        own = layout_share(m->message.n_chunks, ranks_local_rank(f->ranks), ranks_local_size(f->ranks));
        digests = malloc((size_t)m->message.n_chunks * sizeof *digests + 1);
        if (digests)
            flt_digest_chunks(&m->model->file, m->model->pool, own.first, own.n, digests, NULL);
        else
            code = fail_memory(&result, (size_t)m->message.n_chunks * sizeof *digests, "checksums");
    }
    result.code = code;
    code = ranks_reply(f->ranks, &result, digests ? digests + own.first : NULL,
                       (size_t)own.n * sizeof *digests, err);
    free(digests);
    return code;
}

static int follow_join(follower *f, followed *m, flute_error *err) {
    flute_model *model = m->model;
    flute_error result = {0};
    const comm_kind *kind = model_comm_kind(model, err);
    if (!kind) return FLUTE_EUNSUPPORTED;
    if (strcmp(kind->name, m->message.comm_kind) != 0)
        return fail(err, FLUTE_EUNSUPPORTED, "rank 0 communicates by %s, this rank by %s; build all alike",
                    m->message.comm_kind, kind->name);
    int code = model_join(model, kind, &m->message.ticket, err);
    if (!code && m->message.scatter) code = scatter_weights(model, err);
    if (code) return code;
    result.code = model_place(model, &result);
    return ranks_reply(f->ranks, &result, NULL, 0, err);
}

static void follow_close(followed *m) {
    flute_model_free(m->model);
    m->model = NULL;
}

// ---- Working

static int follow_grow(follower *f, followed *m, uint64_t size, flute_error *err) {
    flute_error result = {0};
    int32_t *numbers = malloc(size + 1);
    if (!numbers) return fail_memory(err, size, "a message of rank 0");
    int code = ranks_receive(f->ranks, numbers, size, err);
    if (!code) {
        const int n_blocks = (int)(size / sizeof *numbers) - 1;
        result.code = kv_cache_follow_grow(&m->model->cache, numbers[0], numbers + 1, n_blocks, &result);
        code = ranks_reply(f->ranks, &result, NULL, 0, err);
    }
    free(numbers);
    return code;
}

static int follow_copy_block(follower *f, followed *m, flute_error *err) {
    int32_t numbers[2];
    kv_cache *cache = &m->model->cache;
    int code = ranks_receive(f->ranks, numbers, sizeof numbers, err);
    if (!code)
        cache->be->ops->kv_copy_block(cache->be, &cache->dims, &cache->pool, numbers[0], &cache->pool,
                                      numbers[1]);
    return code;
}

static int follow_reserve(follower *f, followed *m, flute_error *err) {
    reserve_message sizes;
    flute_error result = {0};
    int code = ranks_receive(f->ranks, &sizes, sizeof sizes, err);
    if (code) return code;
    result.code = step_reserve(&m->model->step, sizes.max_rows, sizes.max_logits, sizes.max_sequences,
                               sizes.max_blocks, &result);
    return ranks_reply(f->ranks, &result, NULL, 0, err);
}

static int receive_numbers(follower *f, int32_t *to, size_t n, flute_error *err) {
    return ranks_receive(f->ranks, to, n * sizeof *to, err);
}

static int follow_step(follower *f, followed *m, flute_error *err) {
    step *s = &m->model->step;
    step_message message;
    int code = ranks_receive(f->ranks, &message, sizeof message, err);
    if (code) return code;
    if (message.n_rows > s->max_rows || message.n_logits > s->max_logits ||
        message.n_sequences > s->max_sequences || message.max_blocks > s->max_blocks)
        return fail(err, FLUTE_EDEVICE, "rank 0 runs a step of %d rows that it has not announced",
                    message.n_rows);
    const size_t rows = (size_t)message.n_rows;
    const size_t blocks = (size_t)message.n_sequences * (size_t)message.max_blocks;
    step_begin(s);
    s->batch.n_rows = message.n_rows;
    s->batch.n_sequences = message.n_sequences;
    s->batch.n_logits = message.n_logits;
    s->batch.max_blocks = message.max_blocks;
    if (!code) code = receive_numbers(f, s->ids, rows, err);
    if (!code) code = receive_numbers(f, s->positions, rows, err);
    if (!code) code = receive_numbers(f, s->sequences, rows, err);
    if (!code) code = receive_numbers(f, s->logits_rows, (size_t)message.n_logits, err);
    if (!code) code = receive_numbers(f, s->block_tables, blocks, err);
    return code ? code : step_run(s, &m->model->cache.pool, false, err);
}

static int follow_measure(follower *f, followed *m, flute_error *err) {
    measure_message what;
    double seconds;
    int code = ranks_receive(f->ranks, &what, sizeof what, err);
    return code ? code : measure_all_reduce(m->model->comm, &what, &seconds, err);
}

static int follow_command(follower *f, const ranks_header *header, flute_error *err) {
    followed *m = &f->models[(unsigned)header->model % MAX_MODELS];
    if (header->command != RANKS_OPEN && !m->model && header->command != RANKS_CLOSE)
        return fail(err, FLUTE_EDEVICE, "rank 0 uses a model that is not open");
    switch ((ranks_command)header->command) {
    case RANKS_OPEN:
        return follow_open(f, m, header->size, err);
    case RANKS_JOIN:
        return follow_join(f, m, err);
    case RANKS_CLOSE:
        follow_close(m);
        return FLUTE_OK;
    case RANKS_GROW:
        return follow_grow(f, m, header->size, err);
    case RANKS_COPY_BLOCK:
        return follow_copy_block(f, m, err);
    case RANKS_RESERVE:
        return follow_reserve(f, m, err);
    case RANKS_MEASURE:
        return follow_measure(f, m, err);
    case RANKS_STEP:
        return follow_step(f, m, err);
    default:
        return fail(err, FLUTE_EDEVICE, "rank 0 sent an unknown command, %u", (unsigned)header->command);
    }
}

int flute_ranks_follow(flute_ranks *ranks, flute_error *err) {
    follower *f = calloc(1, sizeof *f);
    if (!f) return fail_memory(err, sizeof *f, "the models of a rank");
    f->ranks = ranks;
    flute_error local = {0};
    int code = FLUTE_OK;
    while (!code) {
        ranks_header header;
        code = ranks_receive(ranks, &header, sizeof header, &local);
        if (code || header.command == RANKS_QUIT) break;
        code = follow_command(f, &header, &local);
        if (code) ranks_give_up(ranks, &local);
    }
    for (int i = 0; i < MAX_MODELS; i++) follow_close(&f->models[i]);
    free(f);
    return code ? fail(err, code, "%s", local.message) : FLUTE_OK;
}
