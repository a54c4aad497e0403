#include "engine/lead.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "engine/model.h"
#include "engine/scatter.h"

static bool alone(const lead *l) {
    return !l || !l->ranks;
}

// ---- Opening

// The digests of the file's chunks, as each host has computed them.
typedef struct host_digests {
    flute_ranks *ranks;
    int64_t n_chunks;
    int n_nodes;
    uint64_t *digests; // (n_nodes, n_chunks)
} host_digests;

static void *place_digests(void *user, int rank, size_t size) {
    const host_digests *h = user;
    const rank_link *link = ranks_peer(h->ranks, rank);
    const layout_run run = layout_share(h->n_chunks, link->local_rank, link->local_size);
    if (size != (size_t)run.n * sizeof *h->digests) return NULL;
    return h->digests + link->node * h->n_chunks + run.first;
}

static int compare_hosts(const flute_model *model, const host_digests *h, flute_error *err) {
    for (int rank = 0, node = 0; rank < ranks_size(h->ranks); rank++) {
        if (ranks_peer(h->ranks, rank)->node != node) continue;
        flute_error local = {0};
        int code = flt_compare_digests(&model->file, h->digests + node * h->n_chunks, model->path, &local);
        if (code) return fail(err, code, "%s: %.440s", ranks_peer(h->ranks, rank)->host, local.message);
        node++;
    }
    return FLUTE_OK;
}

// Collects the replies to RANKS_OPEN; each host has read its file once, its ranks a part each.
static int verify_together(const flute_model *model, bool verify, flute_error *err) {
    flute_ranks *ranks = model->lead.ranks;
    if (!verify) return ranks_collect(ranks, NULL, NULL, err);
    host_digests h = {.ranks = ranks, .n_chunks = flt_n_chunks(&model->file)};
    for (int rank = 0; rank < ranks_size(ranks); rank++)
        if (ranks_peer(ranks, rank)->node >= h.n_nodes) h.n_nodes = ranks_peer(ranks, rank)->node + 1;
    const size_t n = (size_t)h.n_nodes * (size_t)h.n_chunks;
    h.digests = calloc(n + 1, sizeof *h.digests);
    if (!h.digests) return fail_memory(err, n * sizeof *h.digests, "checksums");
    const layout_run own = layout_share(h.n_chunks, 0, ranks_local_size(ranks));
    flt_digest_chunks(&model->file, model->pool, own.first, own.n, h.digests, &model->progress.reading);
    int code = ranks_collect(ranks, place_digests, &h, err);
    if (!code) code = compare_hosts(model, &h, err);
    free(h.digests);
    return code;
}

static int join(flute_model *model, const comm_kind *kind, const open_message *message, flute_error *err) {
    flute_ranks *ranks = model->lead.ranks;
    int code = ranks_tell(ranks, RANKS_JOIN, model->lead.model, NULL, 0, err);
    if (!code) code = model_join(model, kind, &message->ticket, err);
    if (!code && message->scatter) code = scatter_weights(model, err);
    return ranks_failure(ranks, code, err);
}

int lead_open(flute_model *model, const flute_model_options *options, flute_error *err) {
    flute_ranks *ranks = model->lead.ranks;
    const flt *file = &model->file;
    const comm_kind *kind = model_comm_kind(model, err);
    if (!kind) return FLUTE_EUNSUPPORTED;
    open_message message = {.device = (int32_t)options->device,
                            .kernels = (int32_t)options->kernels,
                            .n_threads = options->n_threads,
                            .comm = (int32_t)options->comm,
                            .verify = !options->no_verify && !options->scatter,
                            .scatter = options->scatter,
                            .identity = flt_identity(file),
                            .file_size = file->size,
                            .header_size = file->header_size,
                            .n_chunks = flt_n_chunks(file)};
    if (strlen(model->path) >= sizeof message.path)
        return fail(err, FLUTE_EINVAL, "%s: the name is too long for the ranks", model->path);
    memcpy(message.path, model->path, strlen(model->path) + 1);
    snprintf(message.comm_kind, sizeof message.comm_kind, "%s", kind->name);
    int code = kind->ticket(&message.ticket, err);
    if (!code && options->scatter && !options->no_verify)
        code = flt_verify(file, model->pool, model->path, &model->progress.reading, err);
    if (code) return code;
    const ranks_part parts[] = {{&message, sizeof message}, {file->base, file->header_size}};
    code = ranks_tell(ranks, RANKS_OPEN, model->lead.model, parts, options->scatter ? 2 : 1, err);
    if (!code) code = verify_together(model, message.verify, err);
    if (!code) code = join(model, kind, &message, err);
    return code;
}

int lead_placed(const lead *l, flute_error *err) {
    return alone(l) ? FLUTE_OK : ranks_collect(l->ranks, NULL, NULL, err);
}

void lead_close(const lead *l) {
    if (!alone(l)) ranks_tell(l->ranks, RANKS_CLOSE, l->model, NULL, 0, NULL);
}

// ---- Working

int lead_grow(const lead *l, int n_blocks_new, const int32_t *blocks, int n_blocks, flute_error *err) {
    if (alone(l)) return FLUTE_OK;
    const int32_t number = n_blocks_new;
    const ranks_part parts[] = {{&number, sizeof number}, {blocks, (size_t)n_blocks * sizeof *blocks}};
    int code = ranks_tell(l->ranks, RANKS_GROW, l->model, parts, 2, err);
    return code ? code : ranks_collect(l->ranks, NULL, NULL, err);
}

void lead_copy_block(const lead *l, int from, int to) {
    if (alone(l)) return;
    const int32_t numbers[] = {from, to};
    // A rank that is gone shows in the next step.
    ranks_tell(l->ranks, RANKS_COPY_BLOCK, l->model, &(ranks_part){numbers, sizeof numbers}, 1, NULL);
}

int lead_reserve(const lead *l, const reserve_message *sizes, flute_error *err) {
    if (alone(l)) return FLUTE_OK;
    return ranks_tell(l->ranks, RANKS_RESERVE, l->model, &(ranks_part){sizes, sizeof *sizes}, 1, err);
}

int lead_reserved(const lead *l, int own, flute_error *err) {
    if (alone(l)) return own;
    if (own) {
        ranks_end_all(l->ranks, err);
        return own;
    }
    return ranks_collect(l->ranks, NULL, NULL, err);
}

int lead_step(const lead *l, const kernel_batch *batch, flute_error *err) {
    if (alone(l)) return FLUTE_OK;
    const step_message message = {batch->n_rows, batch->n_sequences, batch->max_blocks, batch->n_logits};
    const size_t rows = (size_t)batch->n_rows * sizeof(int32_t);
    const size_t blocks = (size_t)batch->n_sequences * (size_t)batch->max_blocks * sizeof(int32_t);
    const ranks_part parts[] = {
        {&message, sizeof message},
        {batch->ids, rows},
        {batch->positions, rows},
        {batch->sequences, rows},
        {batch->logits_rows, (size_t)batch->n_logits * sizeof(int32_t)},
        {batch->block_tables, blocks},
    };
    return ranks_tell(l->ranks, RANKS_STEP, l->model, parts, sizeof parts / sizeof *parts, err);
}

// By the clock; the first one warms up.
static int clock_all_reduce(comm *c, float *data, size_t n, int repeats, double *seconds, flute_error *err) {
    double start = 0;
    int code = FLUTE_OK;
    for (int i = 0; i <= repeats && !code; i++) {
        code = c->ops->all_reduce(c, data, n, NULL, err);
        if (i > 0 || code) continue;
        code = c->ops->barrier(c, NULL, err);
        start = seconds_now();
    }
    *seconds = (seconds_now() - start) / repeats;
    return code;
}

int measure_all_reduce(comm *c, const measure_message *what, double *seconds, flute_error *err) {
    float *data;
    int code = c->ops->alloc(c, (void **)&data, what->n_floats * sizeof *data, err);
    if (code) return code;
    code = (c->ops->time_all_reduce ? c->ops->time_all_reduce
                                    : clock_all_reduce)(c, data, what->n_floats, what->repeats, seconds, err);
    c->ops->release(c, data);
    return code;
}

int lead_measure(const lead *l, comm *c, const measure_message *what, double *seconds, flute_error *err) {
    int code = ranks_tell(l->ranks, RANKS_MEASURE, l->model, &(ranks_part){what, sizeof *what}, 1, err);
    if (!code) code = measure_all_reduce(c, what, seconds, err);
    return ranks_failure(l->ranks, code, err);
}

int lead_failure(const lead *l, int code, flute_error *err) {
    return alone(l) || !code ? code : ranks_failure(l->ranks, code, err);
}
