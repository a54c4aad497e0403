// flute-bench prefill and decode: whole models through the public API, as an application would use it.
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "tools/bench.h"
#include "tools/cli.h"

// Token ids that are no prompt in particular: speed does not depend on them, but equal ones would share
// prefixes.
static void fill_ids(int32_t *ids, int n, int n_vocab, uint32_t seed) {
    uint32_t state = seed * 2654435761u + 12345u;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        ids[i] = (int32_t)((state >> 8) % (uint32_t)n_vocab);
    }
}

static int check_context(const bench_options *options, const flute_model_info *info, int tokens,
                         flute_error *err) {
    (void)options;
    if (tokens <= info->max_context) return FLUTE_OK;
    return fail(err, FLUTE_ECONTEXT,
                "%s: a measurement needs %d tokens, the model was made for %d; ask for shorter ones",
                info->name, tokens, info->max_context);
}

static int measure_prefill(flute_model *model, const flute_model_info *info, int n_prompt, int repeats,
                           double *seconds, flute_error *err) {
    int code = FLUTE_OK;
    flute_session *session = NULL;
    double *times = calloc((size_t)repeats, sizeof *times);
    int32_t *ids = calloc((size_t)n_prompt, sizeof *ids);
    if (!times || !ids) {
        code = fail_memory(err, (uint64_t)n_prompt * sizeof *ids, "a prompt");
        goto done;
    }
    if ((code = flute_session_create(&session, model, &(flute_session_options){.context = n_prompt}, err)))
        goto done;
    fill_ids(ids, n_prompt, info->n_vocab, 1);
    for (int repeat = -1; repeat < repeats; repeat++) { // the first, uncounted, warms up
        if ((code = flute_session_rewind(session, 0, err))) goto done;
        double start = cli_now();
        if ((code = flute_session_prefill(session, ids, (size_t)n_prompt, err))) goto done;
        if (repeat >= 0) times[repeat] = cli_now() - start;
    }
    *seconds = bench_median(times, repeats);
done:
    flute_session_free(session);
    free(times);
    free(ids);
    return code;
}

int bench_prefill(flute_model *model, const bench_options *options, double bandwidth, FILE *out,
                  yyjson_mut_doc *doc, yyjson_mut_val *records, flute_error *err) {
    (void)bandwidth; // prefill is bound by arithmetic
    flute_model_info info;
    flute_model_get_info(model, &info);
    if (out) fprintf(out, "\nprefill\n%8s %12s %12s %12s\n", "prompt", "ms", "tokens/s", "GFLOP/s");
    for (int i = 0; i < options->prompts.n; i++) {
        const int n_prompt = options->prompts.values[i];
        double seconds = 0;
        int code = check_context(options, &info, n_prompt, err);
        if (code || (code = measure_prefill(model, &info, n_prompt, options->repeats, &seconds, err)))
            return code;
        double rate = n_prompt / seconds;
        // Two operations for each weight of the layers; the head runs for the last token only.
        double layer_weights =
            (double)info.n_layers *
            ((double)info.hidden * (info.n_heads * 2 + info.n_kv_heads * 2) * info.head_dim +
             3.0 * info.hidden * info.n_ff);
        double gflops = 2 * layer_weights * rate / 1e9;
        if (out) fprintf(out, "%8d %12.2f %12.1f %12.1f\n", n_prompt, seconds * 1e3, rate, gflops);
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "prompt", n_prompt);
        yyjson_mut_obj_add_real(doc, record, "seconds", seconds);
        yyjson_mut_obj_add_real(doc, record, "tokens_per_second", rate);
        yyjson_mut_obj_add_real(doc, record, "gflops", gflops);
    }
    return FLUTE_OK;
}

typedef struct decode_times {
    double median, p50, p90, p99; // seconds: of a whole measurement, and percentiles of single steps
} decode_times;

static int decode_steps(flute_session **sessions, int batch, const int32_t *ids, const bench_options *options,
                        double *steps, flute_error *err) {
    for (int step = 0; step < options->n_decode; step++) {
        double start = cli_now();
        int code = flute_sessions_decode(sessions, ids + (size_t)step * (size_t)batch, (size_t)batch, err);
        if (code) return code;
        steps[step] = cli_now() - start;
    }
    return FLUTE_OK;
}

static int measure_decode(flute_model *model, const flute_model_info *info, int context, int batch,
                          const bench_options *options, decode_times *times, flute_error *err) {
    const int n = options->n_decode, n_ids = context > n * batch ? context : n * batch;
    int code = FLUTE_OK;
    flute_session **sessions = calloc((size_t)batch, sizeof(flute_session *));
    int32_t *ids = calloc((size_t)n_ids, sizeof *ids);
    double *steps = calloc((size_t)(n * options->repeats), sizeof *steps);
    double *totals = calloc((size_t)options->repeats, sizeof *totals);
    if (!sessions || !ids || !steps || !totals) {
        code = fail_memory(err, (uint64_t)n_ids * sizeof *ids, "a benchmark");
        goto done;
    }
    for (int i = 0; i < batch; i++) {
        if ((code = flute_session_create(&sessions[i], model,
                                         &(flute_session_options){.context = context + n}, err)))
            goto done;
        fill_ids(ids, context, info->n_vocab, (uint32_t)i + 1);
        if ((code = flute_session_prefill(sessions[i], ids, (size_t)context, err))) goto done;
    }
    fill_ids(ids, n * batch, info->n_vocab, 999);
    for (int repeat = -1; repeat < options->repeats; repeat++) { // the first, uncounted, warms up
        double *own = steps + (size_t)(repeat < 0 ? 0 : repeat) * (size_t)n;
        for (int i = 0; i < batch; i++)
            if ((code = flute_session_rewind(sessions[i], context, err))) goto done;
        if ((code = decode_steps(sessions, batch, ids, options, own, err))) goto done;
        if (repeat < 0) continue;
        for (int step = 0; step < n; step++) totals[repeat] += own[step];
    }
    times->median = bench_median(totals, options->repeats);
    bench_median(steps, n * options->repeats); // sorts
    times->p50 = bench_percentile(steps, n * options->repeats, 50);
    times->p90 = bench_percentile(steps, n * options->repeats, 90);
    times->p99 = bench_percentile(steps, n * options->repeats, 99);
done:
    for (int i = 0; sessions && i < batch; i++) flute_session_free(sessions[i]);
    free(sessions);
    free(ids);
    free(steps);
    free(totals);
    return code;
}

int bench_decode(flute_model *model, const bench_options *options, double bandwidth, FILE *out,
                 yyjson_mut_doc *doc, yyjson_mut_val *records, flute_error *err) {
    flute_model_info info;
    flute_model_get_info(model, &info);
    if (out)
        fprintf(out, "\ndecode\n%8s %6s %10s %10s %9s %9s %9s %8s %7s\n", "context", "batch", "tokens/s",
                "steps/s", "ms p50", "ms p90", "ms p99", "GB/s", "% read");
    for (int i = 0; i < options->contexts.n * options->batches.n; i++) {
        const int context = options->contexts.values[i / options->batches.n];
        const int batch = options->batches.values[i % options->batches.n];
        decode_times times = {0};
        int code = check_context(options, &info, context + options->n_decode, err);
        if (code || (code = measure_decode(model, &info, context, batch, options, &times, err))) return code;
        // Bytes that a step cannot avoid: every weight once, and the cache of every sequence, half of the new
        // tokens on average.
        double bytes = (double)info.decode_bytes +
                       (double)info.kv_token_bytes * batch * (context + 0.5 * options->n_decode);
        double steps = options->n_decode / times.median, rate = bytes * steps;
        if (out)
            fprintf(out, "%8d %6d %10.1f %10.1f %9.3f %9.3f %9.3f %8.1f %7.1f\n", context, batch,
                    steps * batch, steps, times.p50 * 1e3, times.p90 * 1e3, times.p99 * 1e3, rate / 1e9,
                    100 * rate / bandwidth);
        yyjson_mut_val *record = yyjson_mut_arr_add_obj(doc, records);
        yyjson_mut_obj_add_int(doc, record, "context", context);
        yyjson_mut_obj_add_int(doc, record, "batch", batch);
        yyjson_mut_obj_add_real(doc, record, "tokens_per_second", steps * batch);
        yyjson_mut_obj_add_real(doc, record, "step_ms_p50", times.p50 * 1e3);
        yyjson_mut_obj_add_real(doc, record, "step_ms_p90", times.p90 * 1e3);
        yyjson_mut_obj_add_real(doc, record, "step_ms_p99", times.p99 * 1e3);
        yyjson_mut_obj_add_real(doc, record, "bytes_per_second", rate);
        yyjson_mut_obj_add_real(doc, record, "bandwidth_share", rate / bandwidth);
    }
    return FLUTE_OK;
}
