// Times the GPU's LUT-GEMM: microseconds and the share of the read bandwidth measured in the same run, next
// to cuBLAS in bf16, for the shapes of the published models, and the chain of all projections of one token of
// Llama-3-8B with its true dependencies; then the sampler. Exits with 77 where there is no device.
//
//     bench_cuda [--tokens M,M...] [--path PATH]... [WHAT...]
//
// WHAT: cublas lut4 lut3 lut2 sampler int8; default all but the last. PATH: auto gemv tile wide, each timed
// in turn; default auto. From 64 tokens on, TFLOP/s instead of percent.
//
// Method: a CUDA graph of launches that rotate over 400 MB of weights, so that nothing comes from L2; the
// host holds the stream back until the graph is queued; the median of 15 replays. Overlapped launches, as in
// the decode step.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lut_gemm.h"
#include "kernels/cuda/sample.h"
#include "kernels/layout.h"

enum { GROUP = 128, REPLAYS = 15, WARM_UP = 3, MIN_LAUNCHES = 16 };
static const size_t ROTATE = (size_t)400 << 20;

static const int64_t shapes[][2] = {{4096, 4096}, {6144, 4096},  {4096, 14336},
                                    {8192, 8192}, {28672, 4096}, {57344, 8192}};
enum { N_SHAPES = 6, MOST_TOKENS = 2048, CHAIN_TOKENS = 64, COMPUTE_TOKENS = 64 };
static const char *const path_names[] = {"auto", "gemv", "tile", "wide"};
enum { N_PATHS = 4, MOST_COUNTS = 16 };

static void check(cudaError_t code, const char *what) {
    if (code == cudaSuccess) return;
    fprintf(stderr, "bench_cuda: %s: %s\n", what, cudaGetErrorString(code));
    exit(1);
}

static void check_flute(int code, const flute_error *err) {
    if (code >= 0) return;
    fprintf(stderr, "bench_cuda: %s\n", err->message);
    exit(1);
}

typedef struct bench {
    lut_device device;
    cudaStream_t stream;
    cublasHandle_t cublas;
    uint8_t *weights; // as many bytes as a token of the largest type needs
    size_t size;
    void *x, *y;
    double bandwidth; // GB/s
    int tokens[MOST_COUNTS], n_counts;
    bool paths[N_PATHS];
} bench;

static void CUDART_CB wait_for(void *flag) {
    while (!atomic_load((atomic_int *)flag)) {}
}

static int compare_floats(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Microseconds of what was captured.
static double graph_time(bench *b, cudaGraph_t graph) {
    cudaGraphExec_t replay;
    cudaEvent_t start, end;
    float ms[WARM_UP + REPLAYS];
    check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
    check(cudaEventCreate(&start), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = 0; i < WARM_UP + REPLAYS; i++) {
        atomic_int queued = 0;
        check(cudaLaunchHostFunc(b->stream, wait_for, &queued), "cudaLaunchHostFunc");
        check(cudaEventRecord(start, b->stream), "cudaEventRecord");
        check(cudaGraphLaunch(replay, b->stream), "cudaGraphLaunch");
        check(cudaEventRecord(end, b->stream), "cudaEventRecord");
        atomic_store(&queued, 1);
        check(cudaStreamSynchronize(b->stream), "the replay");
        check(cudaEventElapsedTime(&ms[i], start, end), "cudaEventElapsedTime");
    }
    qsort(ms + WARM_UP, REPLAYS, sizeof *ms, compare_floats);
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(replay);
    return (double)ms[WARM_UP + REPLAYS / 2] * 1000;
}

static void capture_begin(bench *b) {
    check(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
}

// Microseconds from capture_begin to here.
static double capture_time(bench *b) {
    cudaGraph_t graph;
    check(cudaStreamEndCapture(b->stream, &graph), "cudaStreamEndCapture");
    const double us = graph_time(b, graph);
    cudaGraphDestroy(graph);
    return us;
}

static weight make_weight(weight_type type, int64_t n_rows, int64_t n_cols, const void *data) {
    weight w = {.type = type, .group_size = GROUP, .n_rows = n_rows, .n_cols = n_cols, .data = data};
    for (int i = 0; i < 16; i++) w.table[i] = bf16_from_float((float)(i * i - 100) / 100.0f);
    w.size = layout_matrix_bytes(type, n_rows, n_cols, GROUP);
    return w;
}

static void multiply(bench *b, const weight *w, lut_path path, const void *x, int n_tokens, void *y,
                     lut_epilogue epilogue) {
    flute_error err;
    const lut_gemm_args args = {.w = w,
                                .x = x,
                                .x_stride = w->n_cols,
                                .n_tokens = n_tokens,
                                .y = y,
                                .y_stride = epilogue == LUT_SILU_MUL ? w->n_rows / 2 : w->n_rows,
                                .epilogue = epilogue,
                                .overlap = true,
                                .path = path};
    check_flute(lut_gemm(&b->device, &args, b->stream, &err), &err);
}

static double time_shape(bench *b, weight_type type, lut_path path, int64_t n_rows, int64_t n_cols,
                         int n_tokens) {
    const size_t size = layout_matrix_bytes(type, n_rows, n_cols, GROUP);
    const int copies = size > ROTATE / 3 ? 3 : (int)(ROTATE / size),
              n = copies > MIN_LAUNCHES ? copies : MIN_LAUNCHES;
    capture_begin(b);
    for (int i = 0; i < n; i++) {
        const weight w = make_weight(type, n_rows, n_cols, b->weights + (size_t)(i % copies) * size);
        multiply(b, &w, path, b->x, n_tokens, b->y, LUT_STORE_F32);
    }
    return capture_time(b) / n;
}

static double time_cublas(bench *b, int64_t n_rows, int64_t n_cols, int n_tokens) {
    const size_t size = (size_t)(n_rows * n_cols) * 2;
    const int copies = size > ROTATE / 3 ? 3 : (int)(ROTATE / size),
              n = copies > MIN_LAUNCHES ? copies : MIN_LAUNCHES;
    const float one = 1, zero = 0;
    capture_begin(b);
    for (int i = 0; i < n; i++)
        cublasGemmEx(b->cublas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n_rows, n_tokens, (int)n_cols, &one,
                     b->weights + (size_t)(i % copies) * size, CUDA_R_16BF, (int)n_cols, b->x, CUDA_R_16BF,
                     (int)n_cols, &zero, b->y, CUDA_R_16BF, (int)n_rows, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT);
    return capture_time(b) / n;
}

// The projections of one token of Llama-3-8B, one after the other, each on the result of the one before.
static double time_token(bench *b, weight_type type, lut_path path, int n_tokens, double *bytes) {
    static const struct {
        int64_t n_rows, n_cols;
        lut_epilogue epilogue;
    } steps[] = {{6144, 4096, LUT_STORE_BF16},
                 {4096, 4096, LUT_STORE_BF16},
                 {28672, 4096, LUT_SILU_MUL},
                 {4096, 14336, LUT_STORE_BF16},
                 {128256, 4096, LUT_STORE_F32}};
    const uint8_t *at = b->weights;
    void *in = b->x, *out = b->y;
    capture_begin(b);
    for (int i = 0; i <= 128; i++) {
        const int step = i == 128 ? 4 : i % 4;
        const weight w = make_weight(type, steps[step].n_rows, steps[step].n_cols, at);
        multiply(b, &w, path, in, n_tokens, out, steps[step].epilogue);
        void *swap = in;
        in = out, out = swap;
        at += w.size;
    }
    *bytes = (double)(at - b->weights);
    return capture_time(b);
}

// Packed random weights everywhere, in units of any shape: what matters is that scales are finite.
static void fill_weights(bench *b, weight_type type) {
    const size_t piece = layout_matrix_bytes(type, 4096, 4096, GROUP);
    uint8_t *data = malloc(piece);
    if (!data) {
        fprintf(stderr, "bench_cuda: out of memory\n");
        exit(1);
    }
    layout_random_panels(type, 4096, GROUP, 0, 4096 / PANEL_ROWS, 1, 0.02f, data);
    for (size_t at = 0; at < b->size; at += piece) {
        const size_t size = b->size - at < piece ? b->size - at : piece;
        check(cudaMemcpy(b->weights + at, data, size, cudaMemcpyHostToDevice), "copy of the weights");
    }
    free(data);
}

static void print_header(const char *title) {
    printf("\n%-14s M", title);
    for (int s = 0; s < N_SHAPES; s++)
        printf("   %6lldx%-7lld", (long long)shapes[s][0], (long long)shapes[s][1]);
    printf("  Llama-3-8B token\n");
}

// bytes: of weights.
static void print_time(const bench *b, double us, double bytes, int64_t n_weights, int n_tokens) {
    if (n_tokens >= COMPUTE_TOKENS)
        printf("  %8.2f (%3.0fT)", us, (double)n_weights * n_tokens * 2 / us * 1e-6);
    else
        printf("  %8.2f (%3.0f%%)", us, bytes / us * 1e-3 / b->bandwidth * 100);
}

static void bench_path(bench *b, weight_type type, lut_path path) {
    for (int m = 0; m < b->n_counts; m++) {
        const int n_tokens = b->tokens[m];
        printf("%-10s %5d", path_names[path], n_tokens);
        for (int s = 0; s < N_SHAPES; s++) {
            const double us = time_shape(b, type, path, shapes[s][0], shapes[s][1], n_tokens);
            const double bytes = (double)layout_matrix_bytes(type, shapes[s][0], shapes[s][1], GROUP);
            print_time(b, us, bytes, shapes[s][0] * shapes[s][1], n_tokens);
        }
        if (n_tokens <= CHAIN_TOKENS) {
            double bytes;
            const double us = time_token(b, type, path, n_tokens, &bytes);
            printf("  %8.1f (%3.0f%%)", us, bytes / us * 1e-3 / b->bandwidth * 100);
        }
        printf("\n");
        fflush(stdout);
    }
}

static void bench_type(bench *b, weight_type type) {
    fill_weights(b, type);
    print_header(weight_type_name(type));
    for (int path = 0; path < N_PATHS; path++)
        if (b->paths[path]) bench_path(b, type, (lut_path)path);
}

static void bench_cublas(bench *b) {
    check(cudaMemset(b->weights, 0x3c, b->size),
          "cudaMemset"); // 0.0115: finite, and timing hardly depends on it
    print_header("cuBLAS bf16");
    for (int m = 0; m < b->n_counts; m++) {
        printf("%-10s %5d", "", b->tokens[m]);
        for (int s = 0; s < N_SHAPES; s++) {
            const double us = time_cublas(b, shapes[s][0], shapes[s][1], b->tokens[m]);
            print_time(b, us, (double)(shapes[s][0] * shapes[s][1]) * 2, shapes[s][0] * shapes[s][1],
                       b->tokens[m]);
        }
        printf("\n");
        fflush(stdout);
    }
}

// The sampler on the vocabulary of Llama 3, with logits that spread like those of a model.
static void bench_sampler(bench *b) {
    enum { VOCAB = 128256, CALLS = 20, MAX_ROWS = 32 };
    static const struct {
        const char *name;
        cuda_sample_row row;
    } kinds[] = {{"greedy", {.top_p = 1}},
                 {"all tokens", {.temperature = 1, .top_p = 1, .uniform = 0.7}},
                 {"top-k 40, top-p .95", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .uniform = 0.7}},
                 {"top-p .95", {.temperature = 1, .top_p = 0.95f, .uniform = 0.7}}};
    float *logits = b->y;
    uint8_t *scratch = b->weights;
    cuda_sample_row *rows = b->x, host_rows[MAX_ROWS];
    int32_t *tokens = (int32_t *)(rows + MAX_ROWS);
    float *host = malloc(VOCAB * sizeof *host);
    if (!host) exit(1);
    for (int i = 0; i < VOCAB; i++) {
        host[i] = -24;
        for (int k = 0; k < 12; k++) host[i] += 4 * (float)rand() / (float)RAND_MAX; // a deviation of 4
    }
    for (int i = 0; i < MAX_ROWS; i++)
        check(cudaMemcpy(logits + (size_t)i * VOCAB, host, VOCAB * sizeof *host, cudaMemcpyHostToDevice),
              "copy");
    free(host);
    printf("\nsampler, %d tokens%14s%14s%14s\n", VOCAB, "1 row", "8 rows", "32 rows");
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        printf("%-22s", kinds[kind].name);
        for (int i = 0; i < MAX_ROWS; i++) host_rows[i] = kinds[kind].row;
        check(cudaMemcpy(rows, host_rows, sizeof host_rows, cudaMemcpyHostToDevice), "copy");
        for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows *= n_rows == 1 ? 8 : 4) {
            flute_error err;
            capture_begin(b);
            for (int i = 0; i < CALLS; i++)
                check_flute(cuda_sample(logits, VOCAB, VOCAB, n_rows, rows, NULL, scratch, tokens, true,
                                        b->stream, &err),
                            &err);
            printf("%14.2f", capture_time(b) / CALLS);
        }
        printf("\n");
    }
}

static int usage(const char *what) {
    fprintf(stderr,
            "bench_cuda: %s; say bench_cuda [--tokens M,M...] [--path auto|gemv|tile|wide]... "
            "[cublas|lut4|lut3|lut2|sampler|int8]...\n",
            what);
    return 2;
}

// "1,16,64"
static bool parse_tokens(bench *b, const char *text) {
    for (b->n_counts = 0; *text && b->n_counts < MOST_COUNTS; text += *text == ',') {
        char *end;
        const long n = strtol(text, &end, 10);
        if (end == text || (*end && *end != ',') || n < 1 || n > MOST_TOKENS) return false;
        b->tokens[b->n_counts++] = (int)n;
        text = end;
    }
    return *text == 0 && b->n_counts > 0;
}

static bool parse_path(bench *b, const char *name) {
    for (int i = 0; i < N_PATHS; i++)
        if (strcmp(name, path_names[i]) == 0) return b->paths[i] = true;
    return false;
}

static bool is_known(const char *name) {
    const int type = weight_type_parse(name);
    return strcmp(name, "cublas") == 0 || strcmp(name, "sampler") == 0 ||
           (type >= 0 && weight_is_quantized((weight_type)type));
}

int main(int argc, char **argv) {
    static const char *const default_types[] = {"cublas", "lut4", "lut3", "lut2", "sampler"};
    bench b = {0};
    flute_error err = {0};
    int n_devices = 0, first = 1;
    parse_tokens(&b, "1,2,4,8,16,32,64,128,256,2048");
    for (; first + 1 < argc && argv[first][0] == '-'; first += 2)
        if (strcmp(argv[first], "--tokens") == 0 ? !parse_tokens(&b, argv[first + 1])
            : strcmp(argv[first], "--path") == 0 ? !parse_path(&b, argv[first + 1])
                                                 : true)
            return usage(argv[first]);
    for (int i = first; i < argc; i++)
        if (!is_known(argv[i])) return usage(argv[i]);
    if (!b.paths[LUT_PATH_GEMV] && !b.paths[LUT_PATH_TILE] && !b.paths[LUT_PATH_WIDE])
        b.paths[LUT_PATH_AUTO] = true;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("bench_cuda: skipped, no CUDA device\n");
        return 77;
    }
    check_flute(lut_device_open(&b.device, &err), &err);
    struct cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, b.device.ordinal), "cudaGetDeviceProperties");
    b.bandwidth = lut_read_bandwidth(&err);
    check_flute((int)b.bandwidth, &err);
    printf("%s, %d SMs, reads %.0f GB/s; group %d; microseconds (%% of that bandwidth)\n", properties.name,
           b.device.n_sms, b.bandwidth, GROUP);
    check(cudaStreamCreate(&b.stream), "cudaStreamCreate");
    b.size = (size_t)8800 << 20;
    check(cudaMalloc((void **)&b.weights, b.size), "cudaMalloc");
    const size_t size = (size_t)MOST_TOKENS * 57344 * 4; // more than CHAIN_TOKENS of 128256
    check(cudaMalloc(&b.x, size), "cudaMalloc");
    check(cudaMalloc(&b.y, size), "cudaMalloc");
    check(cudaMemset(b.x, 0x3c, size), "cudaMemset");
    if (cublasCreate(&b.cublas) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(b.cublas, b.stream) != CUBLAS_STATUS_SUCCESS) {
        fprintf(stderr, "bench_cuda: cuBLAS does not start\n");
        return 1;
    }
    const char *const *types = first < argc ? (const char *const *)argv + first : default_types;
    const int n_types = first < argc ? argc - first : (int)(sizeof default_types / sizeof *default_types);
    for (int i = 0; i < n_types; i++)
        if (strcmp(types[i], "cublas") == 0)
            bench_cublas(&b);
        else if (strcmp(types[i], "sampler") == 0)
            bench_sampler(&b);
        else
            bench_type(&b, (weight_type)weight_type_parse(types[i]));
    lut_device_close(&b.device);
    return 0;
}
