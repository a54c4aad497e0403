// The CPU for flute-bench kernels: projections through the verb project_add of a backend. Copies of the
// matrix rotate, together larger than any cache.
#include <stdlib.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "engine/base/threads.h"
#include "kernels/kernels.h"
#include "kernels/layout.h"
#include "tools/bench.h"
#include "tools/cli.h"

enum { ROTATE_BYTES = 320 << 20, MAX_COPIES = 512 };

typedef struct packed { // a random matrix in host memory and where the backend placed it
    weight host, placed;
    uint8_t *bytes;
} packed;

typedef struct fill_task {
    packed *matrix;
    uint64_t seed;
} fill_task;

static void fill_panels(void *argument, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const fill_task *task = argument;
    const weight *w = &task->matrix->host;
    const size_t panel = weight_is_quantized(w->type) ? layout_panel_bytes(w->type, w->n_cols, w->group_size)
                                                      : (size_t)(PANEL_ROWS * w->n_cols) * sizeof(bf16);
    bench_random_panels(w, begin, end - begin, task->seed, task->matrix->bytes + (size_t)begin * panel);
}

static int packed_create(packed *matrix, backend *be, thread_pool *pool, weight_type type, int64_t n_rows,
                         int64_t n_cols, int group_size, uint64_t seed, flute_error *err) {
    weight *w = &matrix->host;
    *w = bench_random_weight(type, n_rows, n_cols, group_size);
    if (posix_memalign((void **)&matrix->bytes, 4096, w->size)) {
        matrix->bytes = NULL;
        return fail_memory(err, w->size, "a matrix to measure");
    }
    w->data = matrix->bytes;
    threads_for(pool, layout_padded_rows(n_rows) / PANEL_ROWS, 4, fill_panels, &(fill_task){matrix, seed});
    return be->ops->weight_place(be, w, &matrix->placed, err);
}

static void packed_release(packed *matrix, backend *be) {
    if (matrix->placed.data) be->ops->weight_release(be, &matrix->placed);
    free(matrix->bytes);
}

// One type and shape, ready to run: the copies, and a way to fill the activations with numbers that are not
// zero.
typedef struct kernel_setup {
    backend *be;
    packed embedding, gate_up;
    int n_copies;
    packed *copies;
} kernel_setup;

static void setup_release(kernel_setup *setup) {
    for (int i = 0; setup->copies && i < setup->n_copies; i++) packed_release(&setup->copies[i], setup->be);
    free(setup->copies);
    packed_release(&setup->gate_up, setup->be);
    packed_release(&setup->embedding, setup->be);
}

static int setup_create(kernel_setup *setup, backend *be, thread_pool *pool, weight_type type, int64_t n,
                        int64_t k, int group_size, flute_error *err) {
    *setup = (kernel_setup){.be = be};
    int code = packed_create(&setup->embedding, be, pool, WEIGHT_BF16, 16, n, 0, 1, err);
    // The weights that make activations of width K: as narrow as the shape allows, since only the result
    // counts.
    if (!code)
        code = packed_create(&setup->gate_up, be, pool, n % 32 ? WEIGHT_BF16 : WEIGHT_LUT2, 2 * k, n, 32, 2,
                             err);
    if (code) return code;
    size_t copies = ROTATE_BYTES / bench_random_weight(type, n, k, group_size).size + 1;
    setup->copies = calloc(copies, sizeof *setup->copies);
    if (!setup->copies) return fail_memory(err, copies * sizeof *setup->copies, "a table");
    for (; setup->n_copies < (int)copies && setup->n_copies < MAX_COPIES; setup->n_copies++)
        if ((code = packed_create(&setup->copies[setup->n_copies], be, pool, type, n, k, group_size,
                                  (uint64_t)setup->n_copies + 3, err)))
            return code;
    return FLUTE_OK;
}

// Median seconds of one product with M rows.
static int setup_measure(kernel_setup *setup, int m, int repeats, double *seconds, flute_error *err) {
    const backend_ops *ops = setup->be->ops;
    const weight *first = &setup->copies[0].host;
    const kernel_dims dims = {.hidden = (int)first->n_rows,
                              .n_heads = 1,
                              .n_kv_heads = 1,
                              .head_dim = 32,
                              .n_ff = (int)first->n_cols,
                              .n_vocab = 16,
                              .n_layers = 1,
                              .max_rows = m,
                              .max_logits = 1};
    backend_state *state = NULL;
    kv_pool pool = {0};
    int code = FLUTE_OK;
    double *times = calloc((size_t)repeats, sizeof *times);
    int32_t *zeros = calloc((size_t)m, sizeof *zeros), *positions = calloc((size_t)m, sizeof *positions);
    if (!times || !zeros || !positions) {
        code = fail_memory(err, (uint64_t)m * sizeof *zeros, "a batch");
        goto done;
    }
    for (int i = 0; i < m; i++) positions[i] = i;
    const kernel_batch batch = {.n_rows = m,
                                .ids = zeros,
                                .positions = positions,
                                .sequences = zeros,
                                .n_sequences = 1,
                                .max_blocks = 1,
                                .block_tables = zeros};
    if ((code = ops->kv_create(setup->be, &dims, m, 1, &pool, err)) ||
        (code = ops->state_create(setup->be, &dims, &state, err)))
        goto done;
    for (int repeat = -1; repeat < repeats; repeat++) { // the first, uncounted, warms up
        ops->begin(state, &batch, &pool);
        ops->embed(state, &setup->embedding.placed, 1.0f);
        ops->gate_up(state, &(gate_up_args){.norm = {.weight = NULL}, .weight = &setup->gate_up.placed});
        if ((code = ops->finish(state, err))) goto done;
        double start = seconds_now();
        ops->begin(state, &batch, &pool);
        for (int i = 0; i < setup->n_copies; i++)
            ops->project_add(state, &(project_args){.input = PROJECT_FF, .weight = &setup->copies[i].placed});
        if ((code = ops->finish(state, err))) goto done;
        if (repeat >= 0) times[repeat] = (seconds_now() - start) / setup->n_copies;
    }
    *seconds = bench_median(times, repeats);
done:
    if (state) ops->state_free(state);
    if (pool.data) ops->kv_free(setup->be, &pool);
    free(times);
    free(zeros);
    free(positions);
    return code;
}

static int cpu_create(const bench_options *options, bench_backend *out, flute_error *err) {
    if (options->path) return fail(err, FLUTE_EUNSUPPORTED, "--path chooses among kernels of a GPU");
    if (!(out->pool = threads_create(options->model.n_threads, err))) return FLUTE_ENOMEM;
    return options->model.kernels == FLUTE_KERNELS_REF ? backend_create_ref(out->pool, &out->be, err)
                                                       : backend_create_cpu(out->pool, &out->be, err);
}

static int cpu_measure(const bench_backend *on, const bench_product *product, double *seconds,
                       flute_error *err) {
    kernel_setup setup;
    int code = setup_create(&setup, on->be, on->pool, product->type, product->n, product->k,
                            product->group_size, err);
    for (int i = 0; !code && i < product->m->n; i++)
        code = setup_measure(&setup, product->m->values[i], product->repeats, &seconds[i], err);
    setup_release(&setup);
    return code;
}

// The projections of Llama-3-8B: o, qkv, gate and up, down.
const bench_device bench_device_cpu = {
    .id = FLUTE_DEVICE_CPU,
    .n_shapes = 4,
    .shapes = {{4096, 4096}, {6144, 4096}, {28672, 4096}, {4096, 14336}},
    .rows = {4, {1, 8, 16, 64}, false},
    .repeats = 3,
    .create = cpu_create,
    .measure = cpu_measure,
};
