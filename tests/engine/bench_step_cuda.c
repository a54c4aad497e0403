// Where the time of one decoded token goes on the GPU: the whole step, and chains of one kind of verb alone,
// against the bytes that each must read. Every line is a graph that is replayed without the host in between;
// a last line has the host.
//
//     bench_step_cuda MODEL.flt [CONTEXT [BATCH]]      (512, 1)
#include <cuda_runtime_api.h>

#include "engine/base/clock.h"
#include "kernels/cuda/lut_gemm.h"
#include "kernels/cuda/state.h"
#include "tests/engine/placed_model.h"

enum { REPLAYS = 30 };

static placed_model model;
static backend_state *state;
static kv_pool pool;
static kernel_batch batch;
static double bandwidth;

typedef struct verbs { // which of them a chain has
    bool embed, qkv, attend, o_proj, gate_up, down_proj, head, sample;
} verbs;

static norm_args norm_with(const weight *w) {
    const arch *a = &model.file.arch;
    return (norm_args){.weight = w->data ? w : NULL, .eps = a->norm_eps, .offset = a->norm_offset};
}

static void queue(const verbs *v, const sample_args *samples) {
    const arch *a = &model.file.arch;
    const backend_ops *ops = model.be->ops;
    const weight *all = model.tensors;
    ops->begin(state, &batch, &pool);
    if (v->embed) ops->embed(state, &all[TENSOR_EMBEDDING], a->embed_scale);
    for (int layer = 0; layer < a->n_layers; layer++) {
        const weight *t = all + arch_layer_tensor(layer, (layer_slot)0);
        if (v->qkv)
            ops->qkv(state, &(qkv_args){layer, norm_with(&t[SLOT_ATTN_NORM]), &t[SLOT_QKV],
                                        norm_with(&t[SLOT_Q_NORM]), norm_with(&t[SLOT_K_NORM]),
                                        model.inv_freq[a->layers[layer].rope], a->q_scale});
        if (v->attend) ops->attend(state, &(attend_args){layer, a->layers[layer].window, a->attn_softcap});
        if (v->o_proj)
            ops->project_add(state, &(project_args){PROJECT_ATTENTION, &t[SLOT_O_PROJ],
                                                    norm_with(&t[SLOT_POST_ATTN_NORM])});
        if (v->gate_up)
            ops->gate_up(state, &(gate_up_args){norm_with(&t[SLOT_FF_NORM]), &t[SLOT_GATE_UP], a->act});
        if (v->down_proj)
            ops->project_add(
                state, &(project_args){PROJECT_FF, &t[SLOT_DOWN_PROJ], norm_with(&t[SLOT_POST_FF_NORM])});
    }
    if (v->head)
        ops->head(state, &(head_args){norm_with(&all[TENSOR_FINAL_NORM]),
                                      &all[a->tied ? TENSOR_EMBEDDING : TENSOR_HEAD], a->final_softcap});
    if (v->sample) ops->sample(state, samples);
}

static void check_code(int code, const flute_error *err) {
    if (code == FLUTE_OK) return;
    fprintf(stderr, "bench_step_cuda: %s\n", err->message);
    exit(1);
}

static void check_cuda(cudaError_t code) {
    if (code == cudaSuccess) return;
    fprintf(stderr, "bench_step_cuda: %s\n", cudaGetErrorString(code));
    exit(1);
}

// Microseconds of a replay of what verbs queue.
static double replay(const verbs *v, const sample_args *samples) {
    flute_error err;
    cudaEvent_t start, end;
    float ms = 0;
    queue(v, samples);
    check_code(model.be->ops->finish(state, &err), &err);
    const step_graph *graph = &state->graphs[0];
    for (int i = 1; i < state->n_graphs; i++)
        if (state->graphs[i].used > graph->used) graph = &state->graphs[i];
    check_cuda(cudaEventCreate(&start));
    check_cuda(cudaEventCreate(&end));
    for (int i = -2; i < REPLAYS; i++) {
        if (i == 0) check_cuda(cudaEventRecord(start, state->be->device.stream));
        check_cuda(cudaGraphLaunch(graph->exec, state->be->device.stream));
    }
    check_cuda(cudaEventRecord(end, state->be->device.stream));
    check_cuda(cudaEventSynchronize(end));
    check_cuda(cudaEventElapsedTime(&ms, start, end));
    return (double)ms * 1e3 / REPLAYS;
}

// Bytes of the weights in a slot of all layers.
static double slot_bytes(layer_slot slot) {
    double bytes = 0;
    for (int layer = 0; layer < model.file.arch.n_layers; layer++)
        bytes += (double)model.tensors[arch_layer_tensor(layer, slot)].size;
    return bytes;
}

static void line(const char *name, double us, double bytes, int n) {
    printf("%-34s %9.1f %9.2f %9.1f %7.1f\n", name, us, us / n, bytes / bandwidth * 1e6,
           bytes / us * 1e6 / bandwidth * 100);
    fflush(stdout);
}

static void measure(int context, int n_rows) {
    const arch *a = &model.file.arch;
    sample_args greedy[MAX_GRAPH_ROWS] = {{0}}, all_tokens[MAX_GRAPH_ROWS], top_p[MAX_GRAPH_ROWS],
                top_k[MAX_GRAPH_ROWS];
    const weight *head = &model.tensors[a->tied ? TENSOR_EMBEDDING : TENSOR_HEAD];
    const double kv = (double)n_rows * (context + 1) * a->n_layers * a->n_kv_heads * a->head_dim * 4;
    const double qkv = slot_bytes(SLOT_QKV), o = slot_bytes(SLOT_O_PROJ), gate_up = slot_bytes(SLOT_GATE_UP);
    const double down = slot_bytes(SLOT_DOWN_PROJ), n = a->n_layers;
    for (int i = 0; i < n_rows; i++) {
        all_tokens[i] = (sample_args){.temperature = 1, .top_p = 1, .repeat_penalty = 1};
        top_p[i] = (sample_args){.temperature = 1, .top_p = 0.95f, .repeat_penalty = 1};
        top_k[i] = (sample_args){.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .repeat_penalty = 1};
    }
    printf("%-34s %9s %9s %9s %7s\n", "chain", "µs", "µs each", "floor µs", "% read");
    line("qkv", replay(&(verbs){.qkv = true}, NULL), qkv, (int)n);
    line("qkv, attend", replay(&(verbs){.qkv = true, .attend = true}, NULL), qkv + kv, (int)n);
    line("o_proj", replay(&(verbs){.o_proj = true}, NULL), o, (int)n);
    line("gate_up", replay(&(verbs){.gate_up = true}, NULL), gate_up, (int)n);
    line("down_proj", replay(&(verbs){.down_proj = true}, NULL), down, (int)n);
    line("o_proj, gate_up, down_proj",
         replay(&(verbs){.o_proj = true, .gate_up = true, .down_proj = true}, NULL), o + gate_up + down,
         (int)n);
    line("all layers",
         replay(&(verbs){.qkv = true, .attend = true, .o_proj = true, .gate_up = true, .down_proj = true},
                NULL),
         qkv + kv + o + gate_up + down, (int)n);
    line("head", replay(&(verbs){.head = true}, NULL), (double)head->size, 1);
    const verbs sampled = {.head = true, .sample = true};
    line("head, sample", replay(&sampled, greedy), (double)head->size, 1);
    line("head, sample among all", replay(&sampled, all_tokens), (double)head->size, 1);
    line("head, sample with top-p .95", replay(&sampled, top_p), (double)head->size, 1);
    line("head, sample with top-k 40 as well", replay(&sampled, top_k), (double)head->size, 1);
    // Every projection of a token, each waiting for the one before.
    line(
        "all projections",
        replay(&(verbs){.qkv = true, .o_proj = true, .gate_up = true, .down_proj = true, .head = true}, NULL),
        qkv + o + gate_up + down + (double)head->size, 1);
    const verbs all = {true, true, true, true, true, true, true, true};
    const double bytes = qkv + kv + o + gate_up + down + (double)head->size;
    line("the whole step", replay(&all, greedy), bytes, 1);
    const double start = seconds_now();
    for (int i = 0; i < REPLAYS; i++) {
        flute_error err;
        queue(&all, greedy);
        check_code(model.be->ops->finish(state, &err), &err);
    }
    line("the whole step, and the host", (seconds_now() - start) / REPLAYS * 1e6, bytes, 1);
}

int main(int argc, char **argv) {
    flute_error err;
    if (argc < 2) return fputs("usage: bench_step_cuda MODEL.flt [CONTEXT [BATCH]]\n", stderr), 2;
    const int context = argc > 2 ? atoi(argv[2]) : 512, n_rows = argc > 3 ? atoi(argv[3]) : 1;
    if (context < 0 || n_rows < 1 || n_rows > MAX_GRAPH_ROWS)
        return fprintf(stderr, "bench_step_cuda: a context from 0 and a batch of 1 to %d\n", MAX_GRAPH_ROWS),
               2;
    thread_pool *threads = threads_create(0, &err);
    backend *be = NULL;
    check_code(threads ? backend_create_cuda(threads, &be, &err) : err.code, &err);
    check_code(placed_model_open(&model, argv[1], be, &err), &err);
    kernel_dims dims;
    enum { BLOCK = 32 };
    const int max_blocks = context / BLOCK + 1;
    arch_kernel_dims(&model.file.arch, n_rows, n_rows, &dims);
    check_code(be->ops->kv_create(be, &dims, BLOCK, max_blocks * n_rows, &pool, &err), &err);
    check_code(be->ops->state_create(be, &dims, &state, &err), &err);
    int32_t rows[4][MAX_GRAPH_ROWS], *tables = malloc((size_t)(max_blocks * n_rows) * sizeof *tables);
    if (!tables) return fputs("bench_step_cuda: out of memory\n", stderr), 1;
    for (int i = 0; i < max_blocks * n_rows; i++) tables[i] = i;
    for (int i = 0; i < n_rows; i++) rows[0][i] = 1, rows[1][i] = context, rows[2][i] = rows[3][i] = i;
    batch = (kernel_batch){n_rows, rows[0], rows[1], rows[2], n_rows, max_blocks, tables, n_rows, rows[3]};
    bandwidth = be->ops->read_bandwidth(be);
    printf("%s, context %d, batch %d; %s reads %.0f GB/s\n", argv[1], context, n_rows, be->ops->describe(be),
           bandwidth / 1e9);
    measure(context, n_rows);
    be->ops->state_free(state);
    be->ops->kv_free(be, &pool);
    placed_model_close(&model);
    be->ops->free(be);
    threads_free(threads);
    free(tables);
    return 0;
}
