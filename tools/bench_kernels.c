// flute-bench kernels: single products on random weights, each type next to bf16 weights of the same shape in
// the same run.
#include <string.h>

#include "engine/base/fail.h"
#include "kernels/layout.h"
#include "tools/bench.h"

// A second device is another entry.
static const bench_device *const devices[] = {&bench_device_cpu};

// The wanted device, or the last one of the table that opens.
static int open_device(const bench_options *options, const bench_device **device, void **state,
                       flute_error *err) {
    const flute_device wanted = options->model.device;
    int code = fail(err, FLUTE_EUNSUPPORTED, "flute-bench kernels: not on this device; use --device cpu");
    for (int i = sizeof devices / sizeof *devices - 1; code && i >= 0; i--) {
        if (wanted != FLUTE_DEVICE_AUTO && devices[i]->id != wanted) continue;
        *device = devices[i], *state = NULL;
        code = devices[i]->open(options, state, err);
        if (code) devices[i]->close(*state);
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

static int measure_shape(const bench_device *device, void *state, const bench_options *options,
                         const int64_t shape[2], const bench_list *rows, bench_report *report, FILE *out,
                         flute_error *err) {
    double dense[BENCH_MAX_VALUES] = {0}, seconds[BENCH_MAX_VALUES] = {0};
    for (int i = 0; i < options->n_types; i++) {
        const bench_product product = {options->types[i],   shape[0], shape[1],
                                       options->group_size, rows,     options->repeats};
        int code = device->measure(state, &product, seconds, err);
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
    void *state = NULL;
    int code = open_device(options, &device, &state, err);
    if (code) return code;
    const int n_shapes = options->n_shapes ? options->n_shapes : device->n_shapes;
    const int64_t(*shapes)[2] = options->n_shapes ? options->shapes : device->shapes;
    const bench_list *rows = options->rows.n ? &options->rows : &device->rows;
    snprintf(report->device, sizeof report->device, "%s", device->describe(state));
    report->read_bandwidth = device->read_bandwidth(state);
    if (out)
        fprintf(out, "%s\nread bandwidth %.1f GB/s\n\n%-14s %-5s %5s %5s %10s %8s %7s %9s %8s\n",
                report->device, report->read_bandwidth / 1e9, "N x K", "type", "group", "M", "us", "GB/s",
                "% read", "GFLOP/s", "vs bf16");
    for (int i = 0; !code && i < n_shapes; i++)
        code = measure_shape(device, state, options, shapes[i], rows, report, out, err);
    device->close(state);
    return code;
}
