#include "kernels/host.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "kernels/batch.h"
#include "kernels/layout.h"
#include "kernels/sample.h"

static host_step *step_of(backend_state *state) {
    return (host_step *)state;
}

// Buffers.

void *host_allocate(size_t bytes, const char *what, flute_error *err) {
    void *memory;
    if (posix_memalign(&memory, 4096, bytes > 0 ? bytes : 1) != 0) {
        fail_memory(err, bytes, what);
        return NULL;
    }
    return memset(memory, 0, bytes);
}

void host_step_free(host_step *step) {
    free(step->ids); // and what lies behind them
    free(step->tables);
    free(step->logits);
    free(step->slots);
    free(step->tokens);
    free(step->sample_scratch);
}

int host_step_create(host_step *step, const backend *be, const kernel_dims *dims, int multiple,
                     flute_error *err) {
    const size_t rows = (size_t)dims->max_rows, n_logits = (size_t)dims->max_logits;
    const char *what = "the buffers of a forward step";
    assert(dims->head_dim % 16 == 0 && (dims->n_heads == 0 || dims->n_heads % dims->n_kv_heads == 0));
    step->comm = be->comm;
    step->dims = *dims;
    step->multiple = multiple;
    step->logits_stride = round_up(dims->n_vocab, multiple);
    const size_t n_wanted = n_logits * (size_t)step->logits_stride;
    if (!(step->ids = host_allocate((3 * rows + n_logits) * sizeof *step->ids, what, err)) ||
        !(step->logits = host_allocate(n_wanted * sizeof *step->logits, what, err)) ||
        !(step->tokens = host_allocate(n_logits * sizeof *step->tokens, what, err)) ||
        !(step->sample_scratch = host_allocate(sample_scratch_bytes(dims->n_vocab), what, err)))
        return FLUTE_ENOMEM;
    step->positions = step->ids + rows;
    step->sequences = step->positions + rows;
    step->logits_rows = step->sequences + rows;
    if (!be->comm) return FLUTE_OK;
    step->slot_width = round_up(layout_share_rows(dims->n_vocab, 0, be->comm->size).n, multiple);
    const size_t n_slots = (size_t)be->comm->size * n_logits * (size_t)step->slot_width;
    step->slots = host_allocate(n_slots * sizeof *step->slots, what, err);
    return step->slots ? FLUTE_OK : FLUTE_ENOMEM;
}

// The batch.

static int reserve_tables(host_step *step, size_t n, flute_error *err) {
    if (n <= step->tables_capacity) return FLUTE_OK;
    int32_t *tables = realloc(step->tables, n * sizeof *tables);
    if (!tables) return fail_memory(err, n * sizeof *tables, "block tables");
    step->tables = tables;
    step->tables_capacity = n;
    return FLUTE_OK;
}

void host_begin(backend_state *state, const kernel_batch *batch, kv_pool *pool) {
    host_step *step = step_of(state);
    const size_t n_rows = (size_t)batch->n_rows, n_logits = (size_t)batch->n_logits;
    const size_t n_table = (size_t)batch->n_sequences * (size_t)batch->max_blocks;
    step->error = (flute_error){0};
    if (kernel_batch_check(batch, &step->dims, pool, &step->error)) return;
    if (reserve_tables(step, n_table, &step->error)) return;
    step->n_rows = batch->n_rows;
    step->n_logits = batch->n_logits;
    step->max_blocks = batch->max_blocks;
    step->cache = *pool;
    memcpy(step->ids, batch->ids, n_rows * sizeof *step->ids);
    memcpy(step->positions, batch->positions, n_rows * sizeof *step->positions);
    memcpy(step->sequences, batch->sequences, n_rows * sizeof *step->sequences);
    memcpy(step->tables, batch->block_tables, n_table * sizeof *step->tables);
    if (n_logits) memcpy(step->logits_rows, batch->logits_rows, n_logits * sizeof *step->logits_rows);
}

int host_finish(backend_state *state, flute_error *err) {
    const flute_error *first = &step_of(state)->error;
    return first->code ? fail(err, first->code, "%s", first->message) : FLUTE_OK;
}

// Logits and tokens.

void host_sum_ranks(host_step *step, float *x, int64_t n) {
    if (step->comm) step->comm->ops->all_reduce(step->comm, x, (size_t)n, NULL, &step->error);
}

float *host_own_logits(host_step *step) {
    if (!step->comm) return step->logits;
    return step->slots + step->comm->rank * step->n_logits * step->slot_width;
}

void host_gather_logits(host_step *step) {
    if (!step->comm) return;
    const int size = step->comm->size;
    const int64_t slot = step->n_logits * step->slot_width;
    if (step->comm->ops->all_gather(step->comm, host_own_logits(step), step->slots,
                                    (size_t)slot * sizeof(float), NULL, &step->error))
        return;
    for (int rank = 0; rank < size; rank++) {
        const layout_run run = layout_share_rows(step->dims.n_vocab, rank, size);
        const int64_t stride = round_up(run.n, step->multiple);
        for (int i = 0; i < step->n_logits; i++)
            memcpy(step->logits + i * step->logits_stride + run.first, step->slots + rank * slot + i * stride,
                   (size_t)run.n * sizeof(float));
    }
}

const float *host_logits(backend_state *state, int i) {
    return step_of(state)->logits + i * step_of(state)->logits_stride;
}

void host_sample(backend_state *state, const sample_args *args) {
    host_step *step = step_of(state);
    for (int i = 0; i < step->n_logits && args && !step->error.code; i++)
        sample_token(&args[i], host_logits(state, i), step->dims.n_vocab, step->sample_scratch,
                     &step->tokens[i], &step->error);
}

const int32_t *host_tokens(backend_state *state) {
    return step_of(state)->tokens;
}

// The cache.

int host_kv_create(size_t block_bytes, int block_tokens, int n_blocks, kv_pool *pool, flute_error *err) {
    const size_t bytes = (size_t)n_blocks * block_bytes;
    void *data = calloc(bytes > 0 ? bytes : 1, 1);
    if (!data) return fail_memory(err, bytes, "the KV cache; ask for a smaller context with -c");
    *pool = (kv_pool){.block_tokens = block_tokens, .n_blocks = n_blocks, .data = data};
    return FLUTE_OK;
}

void host_kv_free(backend *be, kv_pool *pool) {
    (void)be;
    free(pool->data);
    *pool = (kv_pool){0};
}

void host_kv_copy_block(size_t block_bytes, const kv_pool *source, int from, kv_pool *target, int to) {
    assert(source->block_tokens == target->block_tokens);
    memcpy((uint8_t *)target->data + (size_t)to * block_bytes,
           (const uint8_t *)source->data + (size_t)from * block_bytes, block_bytes);
}

// The backend.

void host_free(backend *be) {
    free(be);
}

int host_weight_place(backend *be, const weight *host, weight *placed, flute_error *err) {
    (void)be, (void)err;
    *placed = *host;
    return FLUTE_OK;
}

void host_weight_release(backend *be, weight *placed) {
    (void)be;
    placed->data = NULL;
}

// Read bandwidth. Each worker reads one piece of its own, as it does weights; integer sums are as fast as the
// loads and vectorise on any target.

enum { READ_BYTES = 512 << 20 };

typedef struct read_job {
    uint8_t *bytes;
    bool fill;
} read_job;

static void read_piece(void *argument, int worker, int n_workers) {
    typedef uint64_t word8 __attribute__((vector_size(64)));
    const read_job *job = (const read_job *)argument;
    const size_t lines = READ_BYTES / sizeof(word8);
    const size_t begin = lines * (size_t)worker / (size_t)n_workers;
    const size_t end = lines * (size_t)(worker + 1) / (size_t)n_workers;
    if (job->fill) { // pages that were never written are all one page of zeros
        memset(job->bytes + begin * sizeof(word8), 1, (end - begin) * sizeof(word8));
        return;
    }
    const word8 *at = (const word8 *)(const void *)job->bytes;
    word8 sums[4] = {{0}};
    size_t i = begin;
    for (; i + 4 <= end; i += 4)
        for (int j = 0; j < 4; j++) sums[j] += at[i + (size_t)j];
    sums[0] += sums[1] + sums[2] + sums[3];
    __asm__ volatile("" : : "m"(sums[0])); // the sum is used
}

double host_read_bandwidth(thread_pool *pool) {
    read_job job = {NULL, true};
    void *memory;
    if (posix_memalign(&memory, 4096, READ_BYTES) != 0) return 0;
    job.bytes = (uint8_t *)memory;
    threads_run(pool, read_piece, &job);
    job.fill = false;
    double best = 0, start = seconds_now(), before = start, now;
    do {
        threads_run(pool, read_piece, &job);
        now = seconds_now();
        if (READ_BYTES / (now - before) > best) best = READ_BYTES / (now - before);
        before = now;
    } while (now - start < 0.2);
    free(memory);
    return best;
}
