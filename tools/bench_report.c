// What flute-bench measured, as JSON and as charts.
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "tools/bench.h"
#include "tools/bench_plot.h"

// ---- JSON; flute-bench --help lists the keys

static void add_percentiles(yyjson_mut_doc *doc, yyjson_mut_val *record, const char *const keys[3],
                            const bench_percentiles *p) {
    yyjson_mut_obj_add_real(doc, record, keys[0], p->p50 * 1e3);
    yyjson_mut_obj_add_real(doc, record, keys[1], p->p90 * 1e3);
    yyjson_mut_obj_add_real(doc, record, keys[2], p->p99 * 1e3);
}

static void json_prefill(const bench_report *report, yyjson_mut_doc *doc, yyjson_mut_val *records) {
    for (int i = 0; i < report->n_prefill; i++) {
        const bench_prefill_record *r = &report->prefill[i];
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "prompt", r->prompt);
        yyjson_mut_obj_add_real(doc, record, "ms", r->seconds * 1e3);
        yyjson_mut_obj_add_real(doc, record, "tokens_per_second", r->tokens);
        yyjson_mut_obj_add_real(doc, record, "gflops", r->flops / 1e9);
        yyjson_mut_obj_add_real(doc, record, "intensity", r->intensity);
    }
}

static void json_decode(const bench_report *report, yyjson_mut_doc *doc, yyjson_mut_val *records) {
    static const char *const keys[] = {"step_ms_p50", "step_ms_p90", "step_ms_p99"};
    for (int i = 0; i < report->n_decode; i++) {
        const bench_decode_record *r = &report->decode[i];
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "context", r->context);
        yyjson_mut_obj_add_int(doc, record, "batch", r->batch);
        yyjson_mut_obj_add_real(doc, record, "tokens_per_second", r->tokens);
        add_percentiles(doc, record, keys, &r->step);
        yyjson_mut_obj_add_real(doc, record, "bytes_per_second", r->bytes);
        yyjson_mut_obj_add_real(doc, record, "bandwidth_share", r->bytes / report->read_bandwidth);
        yyjson_mut_obj_add_real(doc, record, "gflops", r->flops / 1e9);
        yyjson_mut_obj_add_real(doc, record, "intensity", r->intensity);
        yyjson_mut_obj_add_real(doc, record, "collectives_share", r->collectives);
    }
}

static void json_sums(const bench_report *report, yyjson_mut_doc *doc, yyjson_mut_val *records) {
    for (int i = 0; i < report->n_sums; i++) {
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "bytes", report->sums[i].bytes);
        yyjson_mut_obj_add_real(doc, record, "us", report->sums[i].seconds * 1e6);
    }
}

static void json_latency(const bench_report *report, yyjson_mut_doc *doc, yyjson_mut_val *records) {
    static const char *const first[] = {"first_ms_p50", "first_ms_p90", "first_ms_p99"}, *const token[] = {
                                                                                             "token_ms_p50",
                                                                                             "token_ms_p90",
                                                                                             "token_ms_p99"};
    for (int i = 0; i < report->n_latency; i++) {
        const bench_latency_record *r = &report->latency[i];
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "prompt", r->prompt);
        yyjson_mut_obj_add_int(doc, record, "batch", r->batch);
        add_percentiles(doc, record, first, &r->first);
        add_percentiles(doc, record, token, &r->token);
    }
}

static void json_kernels(const bench_report *report, yyjson_mut_doc *doc, yyjson_mut_val *records) {
    for (int i = 0; i < report->n_kernels; i++) {
        const bench_kernel_record *r = &report->kernels[i];
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "n", r->n);
        yyjson_mut_obj_add_int(doc, record, "k", r->k);
        yyjson_mut_obj_add_str(doc, record, "type", weight_type_name(r->type));
        yyjson_mut_obj_add_int(doc, record, "group", r->group_size);
        yyjson_mut_obj_add_int(doc, record, "m", r->m);
        yyjson_mut_obj_add_real(doc, record, "us", r->seconds * 1e6);
        yyjson_mut_obj_add_real(doc, record, "bytes_per_second", r->bytes);
        yyjson_mut_obj_add_real(doc, record, "bandwidth_share", r->bytes / report->read_bandwidth);
        yyjson_mut_obj_add_real(doc, record, "gflops", r->flops / 1e9);
        yyjson_mut_obj_add_real(doc, record, "intensity", r->intensity);
        yyjson_mut_obj_add_real(doc, record, "speedup_over_bf16", r->speedup);
    }
}

void bench_report_json(const bench_report *report, yyjson_mut_doc *doc) {
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_str(doc, root, "version", flute_version());
    yyjson_mut_obj_add_strcpy(doc, root, "command", report->command);
    yyjson_mut_obj_add_strcpy(doc, root, "date", report->date);
    yyjson_mut_obj_add_strcpy(doc, root, "device", report->device);
    yyjson_mut_obj_add_real(doc, root, "read_bandwidth", report->read_bandwidth);
    if (report->model.name) {
        yyjson_mut_obj_add_strcpy(doc, root, "model", report->model.name);
        yyjson_mut_obj_add_strcpy(doc, root, "weights", report->model.weights);
        yyjson_mut_obj_add_int(doc, root, "group", report->model.group_size);
        yyjson_mut_obj_add_uint(doc, root, "weight_bytes", report->model.weight_bytes);
        yyjson_mut_obj_add_uint(doc, root, "decode_bytes", report->model.decode_bytes);
        yyjson_mut_obj_add_uint(doc, root, "kv_token_bytes", report->model.kv_token_bytes);
        yyjson_mut_obj_add_int(doc, root, "ranks", report->model.n_ranks);
    }
    if (report->n_prefill) json_prefill(report, doc, yyjson_mut_obj_add_arr(doc, root, "prefill"));
    if (report->n_decode) json_decode(report, doc, yyjson_mut_obj_add_arr(doc, root, "decode"));
    if (report->n_latency) json_latency(report, doc, yyjson_mut_obj_add_arr(doc, root, "latency"));
    if (report->n_sums) json_sums(report, doc, yyjson_mut_obj_add_arr(doc, root, "sums"));
    if (report->n_kernels) json_kernels(report, doc, yyjson_mut_obj_add_arr(doc, root, "kernels"));
}

// ---- Charts

static void plot_roofline(plot *p, const bench_report *report) {
    plot_panel *panel =
        plot_add_panel(p, "Roofline: operations per second, and what reading the memory allows",
                       "operations per byte that has to be read", PLOT_LOG, "GFLOP/s", PLOT_LOG);
    char name[64];
    panel->wide = true;
    panel->roof = report->read_bandwidth / 1e9;
    snprintf(panel->limit_name, sizeof panel->limit_name, "memory reads at %.3g GB/s", panel->roof);
    for (int i = 0; i < report->n_decode; i++) {
        const bench_decode_record *r = &report->decode[i];
        plot_point point = {r->intensity, r->flops / 1e9, 0, ""};
        snprintf(name, sizeof name, "decode, %d in the cache", r->context);
        snprintf(point.label, sizeof point.label, "\xc3\x97%d", r->batch);
        plot_add(p, plot_find_series(panel, name, true), point);
    }
    for (int i = 0; i < report->n_prefill; i++) {
        const bench_prefill_record *r = &report->prefill[i];
        plot_point point = {r->intensity, r->flops / 1e9, 0, ""};
        snprintf(point.label, sizeof point.label, "%d", r->prompt);
        plot_add(p, plot_find_series(panel, "prefill", true), point);
    }
    for (int i = 0; i < report->n_kernels; i++) {
        const bench_kernel_record *r = &report->kernels[i];
        plot_add(p, plot_find_series(panel, weight_type_name(r->type), false),
                 (plot_point){r->intensity, r->flops / 1e9, 0, ""});
    }
}

static void limit_share(plot_panel *panel, const bench_report *report) {
    panel->limit = 100;
    snprintf(panel->limit_name, sizeof panel->limit_name, "memory reads at %.3g GB/s",
             report->read_bandwidth / 1e9);
}

static void plot_decode(plot *p, const bench_report *report) {
    static const char batch[] = "batch (sequences per step)";
    plot_panel *rate = plot_add_panel(p, "Decode: tokens per second, all sequences together", batch,
                                      PLOT_VALUES, "tokens/s", PLOT_LINEAR);
    plot_panel *share = plot_add_panel(p, "Decode: share of the read bandwidth", batch, PLOT_VALUES,
                                       "% of read bandwidth", PLOT_LINEAR);
    plot_panel *step = plot_add_panel(p, "Decode: time per step, median and 99th percentile", batch,
                                      PLOT_VALUES, "ms per step", PLOT_LOG);
    limit_share(share, report);
    for (int i = 0; i < report->n_decode; i++) {
        const bench_decode_record *r = &report->decode[i];
        char name[48];
        snprintf(name, sizeof name, "%d tokens in the cache", r->context);
        plot_add(p, plot_find_series(rate, name, true), (plot_point){r->batch, r->tokens, 0, ""});
        plot_add(p, plot_find_series(share, name, true),
                 (plot_point){r->batch, 100 * r->bytes / report->read_bandwidth, 0, ""});
        plot_add(p, plot_find_series(step, name, true),
                 (plot_point){r->batch, r->step.p50 * 1e3, r->step.p99 * 1e3, ""});
    }
}

static void plot_prefill(plot *p, const bench_report *report) {
    plot_panel *panel = plot_add_panel(p, "Prefill: tokens per second", "prompt length (tokens)", PLOT_VALUES,
                                       "tokens/s", PLOT_LINEAR);
    for (int i = 0; i < report->n_prefill; i++)
        plot_add(p, plot_find_series(panel, "one prompt", true),
                 (plot_point){report->prefill[i].prompt, report->prefill[i].tokens, 0, ""});
}

static void plot_latency(plot *p, const bench_report *report) {
    static const char prompt[] = "prompt length (tokens)";
    plot_panel *first = plot_add_panel(p, "Latency: time to first token, median and 99th percentile", prompt,
                                       PLOT_VALUES, "ms to the first token", PLOT_LOG);
    plot_panel *token = plot_add_panel(p, "Latency: time per token, median and 99th percentile", prompt,
                                       PLOT_VALUES, "ms per token of a sequence", PLOT_LOG);
    for (int i = 0; i < report->n_latency; i++) {
        const bench_latency_record *r = &report->latency[i];
        char name[48];
        snprintf(name, sizeof name, r->batch == 1 ? "%d sequence" : "%d sequences", r->batch);
        plot_add(p, plot_find_series(first, name, true),
                 (plot_point){r->prompt, r->first.p50 * 1e3, r->first.p99 * 1e3, ""});
        plot_add(p, plot_find_series(token, name, true),
                 (plot_point){r->prompt, r->token.p50 * 1e3, r->token.p99 * 1e3, ""});
    }
}

// Two panels for each shape; records of a shape are adjacent.
static void plot_kernels(plot *p, const bench_report *report) {
    static const char rows[] = "M (rows of activations)";
    plot_panel *time = NULL, *share = NULL;
    for (int i = 0; i < report->n_kernels; i++) {
        const bench_kernel_record *r = &report->kernels[i], *before = i ? r - 1 : NULL;
        const char *type = weight_type_name(r->type);
        if (!before || before->n != r->n || before->k != r->k) {
            char title[96];
            snprintf(title, sizeof title, "%lld \xc3\x97 %lld: time", (long long)r->n, (long long)r->k);
            time = plot_add_panel(p, title, rows, PLOT_VALUES, "\xc2\xb5s for one product", PLOT_LOG);
            snprintf(title, sizeof title, "%lld \xc3\x97 %lld: share of the read bandwidth", (long long)r->n,
                     (long long)r->k);
            share = plot_add_panel(p, title, rows, PLOT_VALUES, "% of read bandwidth", PLOT_LINEAR);
            limit_share(share, report);
        }
        plot_add(p, plot_find_series(time, type, true), (plot_point){r->m, r->seconds * 1e6, 0, ""});
        plot_add(p, plot_find_series(share, type, true),
                 (plot_point){r->m, 100 * r->bytes / report->read_bandwidth, 0, ""});
    }
}

static void fill_plot(plot *p, const bench_report *report) {
    const flute_model_info *model = &report->model;
    if (model->name && model->group_size)
        snprintf(p->title, sizeof p->title, "%.80s \xc2\xb7 %.20s, group %d", model->name, model->weights,
                 model->group_size);
    else if (model->name)
        snprintf(p->title, sizeof p->title, "%.80s \xc2\xb7 %.20s", model->name, model->weights);
    else
        snprintf(p->title, sizeof p->title, "flute kernels on random weights");
    snprintf(p->subtitle, sizeof p->subtitle,
             "%s \xc2\xb7 reads %.3g GB/s \xc2\xb7 %s \xc2\xb7 flute-bench %s", report->device,
             report->read_bandwidth / 1e9, report->date, flute_version());
    if (report->n_decode || report->n_prefill || report->n_kernels) plot_roofline(p, report);
    if (report->n_decode) plot_decode(p, report);
    if (report->n_prefill) plot_prefill(p, report);
    if (report->n_latency) plot_latency(p, report);
    if (report->n_kernels) plot_kernels(p, report);
}

static bool is_html(const char *path) {
    const char *suffix = strrchr(path, '.');
    return suffix && strcmp(suffix, ".html") == 0;
}

int bench_plot_check(const char *path, flute_error *err) {
    const char *suffix = strrchr(path, '.');
    if (is_html(path) || (suffix && strcmp(suffix, ".svg") == 0)) return FLUTE_OK;
    return fail(err, FLUTE_EINVAL, "--plot: '%s' ends neither in .svg nor in .html", path);
}

static const char page_begin[] = "<!doctype html>\n"
                                 "<html lang=\"en\">\n"
                                 "<meta charset=\"utf-8\">\n"
                                 "<title>flute-bench</title>\n"
                                 "<style>\n"
                                 "  :root { color-scheme: light dark }\n"
                                 "  body { margin: 0 }\n"
                                 "  svg { display: block; margin: auto; max-width: 100%; height: auto }\n"
                                 "</style>\n";

int bench_report_plot(const bench_report *report, const char *path, file_writer *writer, flute_error *err) {
    plot *p = plot_create(err);
    if (!p) return FLUTE_ENOMEM;
    int code = FLUTE_OK;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out) {
        fill_plot(p, report);
        fputs(is_html(path) ? page_begin : "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", out);
        plot_write_svg(p, out);
        if (is_html(path)) fputs("</html>\n", out);
    }
    if (!out || fclose(out) || p->out_of_memory)
        code = fail(err, FLUTE_ENOMEM, "%s: out of memory for the plot", path);
    else
        code = file_writer_append(writer, text, size, err);
    free(text);
    plot_free(p);
    return code;
}
