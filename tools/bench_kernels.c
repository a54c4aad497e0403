// flute-bench kernels: single products on random weights, each type next to bf16 weights of the same shape in
// the same run.
#include <string.h>

#include "engine/base/fail.h"
#include "kernels/layout.h"
#include "tools/bench.h"

// In rising order of preference.
static const bench_device *const devices[] = {
    &bench_device_cpu,
#ifdef FLUTE_HAVE_CUDA
    &bench_device_cuda,
#endif
};

weight bench_random_weight(weight_type type, int64_t n_rows, int64_t n_cols, int group_size) {
    weight w = {.type = type, .n_rows = n_rows, .n_cols = n_cols};
    if (!weight_is_quantized(type)) {
        w.size = (size_t)n_rows * (size_t)n_cols * sizeof(bf16);
        return w;
    }
    w.group_size = group_size;
    w.size = layout_matrix_bytes(type, n_rows, n_cols, group_size);
    for (int i = 0, n = 1 << weight_type_bits(type); type != WEIGHT_INT8 && i < n; i++)
        w.table[i] = bf16_from_float((float)(2 * i + 1 - n) / (float)n);
    return w;
}

void bench_random_panels(const weight *w, int64_t first, int64_t n, uint64_t seed, uint8_t *out) {
    if (weight_is_quantized(w->type)) {
        layout_random_panels(w->type, w->n_cols, w->group_size, first, n, seed, 0.02f, out);
        return;
    }
    const int64_t begin = first * PANEL_ROWS, end = begin + n * PANEL_ROWS;
    const int64_t n_values = ((end < w->n_rows ? end : w->n_rows) - begin) * w->n_cols;
    uint32_t state = (uint32_t)(seed + (uint64_t)first) * 2654435761u + 1u;
    for (int64_t i = 0; i < n_values; i++) {
        state = state * 1664525u + 1013904223u;
        ((bf16 *)(void *)out)[i] = (bf16)(0x3c00u | ((state >> 16) & 0x80ffu)); // ±0.008 to ±0.03
    }
}

static void release(bench_backend *b) {
    if (b->be) b->be->ops->free(b->be);
    threads_free(b->pool);
}

// The wanted device, or the last one of the table that opens.
static int open_device(const bench_options *options, const bench_device **device, bench_backend *on,
                       flute_error *err) {
    const flute_device wanted = options->model.device;
    int code =
        fail(err, FLUTE_EUNSUPPORTED, "this flute was built without CUDA: choose the device cpu or auto");
    for (int i = sizeof devices / sizeof *devices - 1; code && i >= 0; i--) {
        if (wanted != FLUTE_DEVICE_AUTO && devices[i]->id != wanted) continue;
        *device = devices[i], *on = (bench_backend){0};
        code = devices[i]->create(options, on, err);
        if (code) release(on);
    }
    return code;
}

static void fill_record(bench_kernel_record *record, const bench_product *product, int m, double seconds,
                        double dense_seconds) {
    const double weights = (double)product->n * (double)product->k;
    const bool quantized = weight_is_quantized(product->type);
    const double bytes =
        quantized ? (double)layout_matrix_bytes(product->type, product->n, product->k, product->group_size)
                  : weights * sizeof(bf16);
    *record = (bench_kernel_record){.n = product->n,
                                    .k = product->k,
                                    .type = product->type,
                                    .group_size = quantized ? product->group_size : 0,
                                    .m = m,
                                    .seconds = seconds,
                                    .bytes = bytes / seconds,
                                    .flops = 2 * weights * m / seconds,
                                    .intensity = 2 * weights * m / bytes,
                                    .speedup = dense_seconds / seconds};
}

static void print_record(FILE *out, const bench_kernel_record *record, double bandwidth) {
    char shape[48];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)record->n, (long long)record->k);
    fprintf(out, "%-14s %-5s %5d %5d %10.1f %8.1f %7.1f %9.1f %8.2f\n", shape, weight_type_name(record->type),
            record->group_size, record->m, record->seconds * 1e6, record->bytes / 1e9,
            100 * record->bytes / bandwidth, record->flops / 1e9, record->speedup);
    fflush(out);
}

static int measure_shape(const bench_device *device, const bench_backend *on, const bench_options *options,
                         const int64_t shape[2], const bench_list *rows, bench_report *report, FILE *out,
                         flute_error *err) {
    const int repeats = options->repeats ? options->repeats : device->repeats;
    double dense[BENCH_MAX_VALUES] = {0}, seconds[BENCH_MAX_VALUES] = {0};
    for (int i = 0; i < options->n_types; i++) {
        const bench_product product = {options->types[i],   shape[0], shape[1],
                                       options->group_size, rows,     repeats};
        int code = device->measure(on, &product, seconds, err);
        if (code) return code;
        if (i == 0) memcpy(dense, seconds, sizeof dense);
        for (int j = 0; j < rows->n; j++) {
            bench_kernel_record *record = &report->kernels[report->n_kernels++];
            fill_record(record, &product, rows->values[j], seconds[j], dense[j]);
            if (out) print_record(out, record, report->read_bandwidth);
        }
    }
    return FLUTE_OK;
}

int bench_kernels(const bench_options *options, bench_report *report, FILE *out, flute_error *err) {
    const bench_device *device = NULL;
    bench_backend on;
    int code = open_device(options, &device, &on, err);
    if (code) return code;
    const int n_shapes = options->n_shapes ? options->n_shapes : device->n_shapes;
    const int64_t(*shapes)[2] = options->n_shapes ? options->shapes : device->shapes;
    const bench_list *rows = options->rows.n ? &options->rows : &device->rows;
    snprintf(report->device, sizeof report->device, "%s", on.be->ops->describe(on.be));
    report->read_bandwidth = on.be->ops->read_bandwidth(on.be);
    if (report->read_bandwidth <= 0) {
        release(&on);
        return fail(err, FLUTE_ENOMEM, "there is no memory to measure the read bandwidth with");
    }
    if (out)
        fprintf(out, "%s\nread bandwidth %.1f GB/s\n\n%-14s %-5s %5s %5s %10s %8s %7s %9s %8s\n",
                report->device, report->read_bandwidth / 1e9, "N x K", "type", "group", "M", "us", "GB/s",
                "% read", "GFLOP/s", "vs bf16");
    for (int i = 0; !code && i < n_shapes; i++)
        code = measure_shape(device, &on, options, shapes[i], rows, report, out, err);
    release(&on);
    return code;
}
