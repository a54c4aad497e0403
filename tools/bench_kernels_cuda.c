// An NVIDIA GPU for flute-bench kernels: the fused products as the engine runs them, and cuBLAS for bf16, in
// one call each. Activations lie as the engine's kernels leave them for the product (lut_gemm_order). What is
// timed is a CUDA graph of at least 16 products, overlapped as in a decode step, which rotate over copies of
// the matrix, together larger than any L2; the host holds the stream back until all of it is queued, so that
// no launch waits for the host. The card rests before each measurement: right behind cuBLAS with many rows an
// H200 is at its power limit, and takes 79 us where 59 are its own.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "engine/base/fail.h"
#include "engine/base/threads.h"
#include "kernels/cuda/backend.h"
#include "kernels/layout.h"
#include "tools/bench.h"

enum {
    ROTATE_BYTES = 320 << 20,
    MAX_COPIES = 128, // matrices below 2.5 MB stay in L2
    MIN_LAUNCHES = 16,
    FILL_BYTES = 4 << 20, // random weights made on the host; the device repeats them
    REST_NS = 200000000,  // before each measurement, for the card's power limit to forget the one before
};

// One type and shape on the device.
typedef struct kernel_setup {
    const product_device *device;
    lut_path path;
    weight matrix; // data: n_copies of it, one after the other
    int n_copies;
    void *weights, *x, *y;   // x: (most rows, k) bf16 in any order; y: (most rows, n) bf16
    product_scratch scratch; // where the GPU has no kernel of its own for many rows
} kernel_setup;

static void setup_release(kernel_setup *setup) {
    cudaFree(setup->weights);
    cudaFree(setup->x);
    cudaFree(setup->y);
    cudaFree(setup->scratch.weights);
}

// Device memory full of random panels of w: whole ones, wherever in the matrix they come to lie.
static int fill_random(void *to, size_t size, const weight *w, flute_error *err) {
    const bool quantized = weight_is_quantized(w->type);
    const size_t panel = quantized ? layout_panel_bytes(w->type, w->n_cols, w->group_size)
                                   : (size_t)(PANEL_ROWS * w->n_cols) * sizeof(bf16);
    int64_t n_panels = layout_padded_rows(w->n_rows) / PANEL_ROWS;
    if (n_panels > FILL_BYTES / (int64_t)panel + 1) n_panels = FILL_BYTES / (int64_t)panel + 1;
    uint8_t *host = malloc((size_t)n_panels * panel);
    if (!host) return fail_memory(err, (size_t)n_panels * panel, "random weights");
    bench_random_panels(w, 0, n_panels, 3, host);
    size_t done = (size_t)n_panels * panel < size ? (size_t)n_panels * panel : size;
    cudaError_t code = cudaMemcpy(to, host, done, cudaMemcpyHostToDevice);
    for (size_t n; code == cudaSuccess && done < size; done += n) {
        n = size - done < done ? size - done : done;
        code = cudaMemcpy((uint8_t *)to + done, to, n, cudaMemcpyDeviceToDevice);
    }
    if (code == cudaSuccess) code = cudaDeviceSynchronize(); // the products' stream would not wait
    free(host);
    return code == cudaSuccess ? FLUTE_OK : cuda_fail(err, code, "random weights");
}

static int setup_create(kernel_setup *setup, const bench_backend *on, const bench_product *product,
                        flute_error *err) {
    int most_rows = 1;
    for (int i = 0; i < product->m->n; i++)
        if (product->m->values[i] > most_rows) most_rows = product->m->values[i];
    const weight matrix = bench_random_weight(product->type, product->n, product->k, product->group_size);
    const weight x = bench_random_weight(WEIGHT_BF16, most_rows, product->k, 0);
    const size_t x_bytes = lut_order_bytes(most_rows, product->k); // room for x in any order
    const size_t copies = ROTATE_BYTES / matrix.size + 1;
    *setup = (kernel_setup){.device = &((cuda_backend *)on->be)->device,
                            .path = (lut_path)on->path,
                            .matrix = matrix,
                            .n_copies = copies < MAX_COPIES ? (int)copies : MAX_COPIES};
    const kernel_dims dims = {.hidden = (int)product->k, .max_rows = most_rows};
    const size_t weights_bytes = (size_t)setup->n_copies * matrix.size,
                 y_bytes = (size_t)most_rows * (size_t)product->n * sizeof(bf16),
                 scratch_bytes = product_weights_bytes(setup->device, &dims);
    int code = cuda_allocate(&setup->weights, weights_bytes, "matrices to measure", err);
    if (!code) code = cuda_allocate(&setup->x, x_bytes, "rows to multiply", err);
    if (!code) code = cuda_allocate(&setup->y, y_bytes, "products", err);
    if (!code && scratch_bytes)
        code = cuda_allocate((void **)&setup->scratch.weights, scratch_bytes, "dequantized weights", err);
    if (!code) code = fill_random(setup->weights, weights_bytes, &matrix, err);
    return code ? code : fill_random(setup->x, x_bytes, &x, err);
}

static int queue_product(const kernel_setup *setup, int copy, int m, flute_error *err) {
    weight w = setup->matrix;
    w.data = (const uint8_t *)setup->weights + (size_t)copy * w.size;
    if (weight_is_quantized(w.type)) {
        const lut_gemm_args args = {
            .w = &w,
            .x = setup->x,
            .x_stride = w.n_cols,
            .n_tokens = m,
            .y = setup->y,
            .y_stride = w.n_rows,
            .epilogue = LUT_STORE_BF16,
            .x_order = setup->path == LUT_PATH_AUTO ? product_order(setup->device, &w, m) : (lut_order){0},
            .overlap = true,
            .path = setup->path};
        return product(setup->device, &setup->scratch, &args, err);
    }
    const float one = 1, zero = 0; // column-major: yᵀ = W · xᵀ
    const cublasStatus_t status =
        cublasGemmEx(setup->device->cublas, CUBLAS_OP_T, CUBLAS_OP_N, (int)w.n_rows, m, (int)w.n_cols, &one,
                     w.data, CUDA_R_16BF, (int)w.n_cols, setup->x, CUDA_R_16BF, (int)w.n_cols, &zero,
                     setup->y, CUDA_R_16BF, (int)w.n_rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_SUCCESS) return FLUTE_OK;
    return fail(err, FLUTE_EDEVICE, "cuBLAS: a product of %lld x %lld and %d rows: %s", (long long)w.n_rows,
                (long long)w.n_cols, m, cublasGetStatusString(status));
}

static int capture(const kernel_setup *setup, int m, int n, cudaGraphExec_t *out, flute_error *err) {
    cudaGraph_t graph = NULL;
    cudaError_t cuda = cudaStreamBeginCapture(setup->device->stream, cudaStreamCaptureModeThreadLocal);
    if (cuda != cudaSuccess) return cuda_fail(err, cuda, "recording products");
    int code = FLUTE_OK;
    for (int i = 0; !code && i < n; i++) code = queue_product(setup, i % setup->n_copies, m, err);
    cuda = cudaStreamEndCapture(setup->device->stream, &graph);
    if (!code && cuda == cudaSuccess) cuda = cudaGraphInstantiate(out, graph, 0);
    if (!code && cuda != cudaSuccess) code = cuda_fail(err, cuda, "recording products");
    if (graph) cudaGraphDestroy(graph);
    return code;
}

static void CUDART_CB wait_for(void *flag) {
    while (!atomic_load((atomic_int *)flag)) {}
}

static cudaError_t replay(cudaGraphExec_t graph, cudaStream_t stream, const cudaEvent_t ends[2], float *ms) {
    atomic_int queued = 0;
    cudaError_t code = cudaLaunchHostFunc(stream, wait_for, &queued);
    if (code == cudaSuccess) code = cudaEventRecord(ends[0], stream);
    if (code == cudaSuccess) code = cudaGraphLaunch(graph, stream);
    if (code == cudaSuccess) code = cudaEventRecord(ends[1], stream);
    atomic_store(&queued, 1);
    const cudaError_t done = cudaStreamSynchronize(stream); // in any case: the stream may look at `queued`
    if (code == cudaSuccess) code = done;
    return code == cudaSuccess ? cudaEventElapsedTime(ms, ends[0], ends[1]) : code;
}

// Median seconds of one product with m rows.
static int setup_measure(const kernel_setup *setup, int m, int repeats, double *seconds, flute_error *err) {
    const int n = setup->n_copies > MIN_LAUNCHES ? setup->n_copies : MIN_LAUNCHES;
    cudaGraphExec_t graph = NULL;
    cudaEvent_t ends[2] = {NULL, NULL};
    double *times = calloc((size_t)repeats, sizeof *times);
    if (!times) return fail_memory(err, (size_t)repeats * sizeof *times, "measurements");
    int code = capture(setup, m, n, &graph, err);
    cudaError_t cuda = cudaSuccess;
    nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
    for (int i = 0; !code && cuda == cudaSuccess && i < 2; i++) cuda = cudaEventCreate(&ends[i]);
    for (int i = -1; !code && cuda == cudaSuccess && i < repeats; i++) { // the first, uncounted, warms up
        float ms = 0;
        cuda = replay(graph, setup->device->stream, ends, &ms);
        if (i >= 0) times[i] = (double)ms * 1e-3 / n;
    }
    if (!code && cuda != cudaSuccess) code = cuda_fail(err, cuda, "measuring products");
    if (!code) *seconds = bench_median(times, repeats);
    for (int i = 0; i < 2; i++)
        if (ends[i]) cudaEventDestroy(ends[i]);
    if (graph) cudaGraphExecDestroy(graph);
    free(times);
    return code;
}

static int cuda_create(const bench_options *options, bench_backend *out, flute_error *err) {
    if (options->model.kernels == FLUTE_KERNELS_REF)
        return fail(err, FLUTE_EUNSUPPORTED, "the reference kernels run on the CPU: use --device cpu");
    out->path = options->path;
    if (!(out->pool = threads_create(1, err))) return FLUTE_ENOMEM;
    return backend_create_cuda(out->pool, &out->be, err);
}

static int cuda_measure(const bench_backend *on, const bench_product *product, double *seconds,
                        flute_error *err) {
    kernel_setup setup;
    int code = setup_create(&setup, on, product, err);
    for (int i = 0; !code && i < product->m->n; i++)
        code = setup_measure(&setup, product->m->values[i], product->repeats, &seconds[i], err);
    setup_release(&setup);
    return code;
}

// The projections of Llama-3-8B (o, qkv, gate and up, down) and those of Llama-3-70B.
const bench_device bench_device_cuda = {
    .id = FLUTE_DEVICE_CUDA,
    .n_shapes = 7,
    .shapes = {{4096, 4096},
               {6144, 4096},
               {28672, 4096},
               {4096, 14336},
               {8192, 8192},
               {57344, 8192},
               {8192, 28672}},
    .rows = {8, {1, 2, 4, 8, 16, 32, 64, 256}, false},
    .repeats = 15,
    .create = cuda_create,
    .measure = cuda_measure,
};
