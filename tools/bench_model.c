// flute-bench prefill, decode and latency: whole models through the public API, as an application would use
// it.
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "tools/bench.h"
#include "tools/cli.h"

// ---- The arithmetic of a model

// Operations of n tokens in the layers, each of which attends to `attended` others on average, and of the
// head for n_logits of them. A weight is one multiplication and one addition.
static double count_operations(const flute_model_info *info, double n, double attended, double n_logits) {
    const double heads = (double)info->n_heads * info->head_dim,
                 kv_heads = (double)info->n_kv_heads * info->head_dim;
    const double layer = info->hidden * (2 * heads + 2 * kv_heads) + 3.0 * info->hidden * info->n_ff;
    return 2 * n * info->n_layers * (layer + 2 * heads * attended) +
           2 * n_logits * (double)info->hidden * info->n_vocab;
}

// ---- Sequences

typedef struct sequences {
    int n, n_prompt, n_generate;
    flute_session **sessions; // (n)
    int32_t *prompts;         // (n, n_prompt)
    int32_t *ids;             // (n) what each step appends
    flute_sampling *sampling; // (n) greedy
} sequences;

// Token ids that are no prompt in particular: speed does not depend on them, but equal ones would share
// prefixes.
static void fill_ids(int32_t *ids, int n, int n_vocab, uint32_t seed) {
    uint32_t state = seed * 2654435761u + 12345u;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        ids[i] = (int32_t)((state >> 8) % (uint32_t)n_vocab);
    }
}

static void sequences_free(sequences *s) {
    for (int i = 0; s->sessions && i < s->n; i++) flute_session_free(s->sessions[i]);
    free(s->sessions);
    free(s->prompts);
    free(s->ids);
    free(s->sampling);
}

// n empty sessions and their prompts. sequences_free takes what a failure leaves.
static int sequences_create(sequences *s, flute_model *model, const flute_model_info *info, int n,
                            int n_prompt, int n_generate, flute_error *err) {
    *s = (sequences){.n = n, .n_prompt = n_prompt, .n_generate = n_generate};
    const size_t n_ids = (size_t)n * (size_t)n_prompt;
    s->sessions = calloc((size_t)n, sizeof(flute_session *));
    s->prompts = calloc(n_ids, sizeof *s->prompts);
    s->ids = calloc((size_t)n, sizeof *s->ids);
    s->sampling = calloc((size_t)n, sizeof *s->sampling);
    if (!s->sessions || !s->prompts || !s->ids || !s->sampling)
        return fail_memory(err, n_ids * sizeof *s->prompts, "the prompts of a benchmark");
    const flute_session_options options = {.context = n_prompt + n_generate};
    for (int i = 0; i < n; i++) {
        fill_ids(s->prompts + (size_t)i * (size_t)n_prompt, n_prompt, info->n_vocab, (uint32_t)i + 1);
        s->sampling[i] = flute_sampling_default();
        s->sampling[i].temperature = 0;
        const int code = flute_session_create(&s->sessions[i], model, &options, err);
        if (code) return code;
    }
    return FLUTE_OK;
}

static int sequences_prefill(sequences *s, int i, flute_error *err) {
    return flute_session_prefill(s->sessions[i], s->prompts + (size_t)i * (size_t)s->n_prompt,
                                 (size_t)s->n_prompt, err);
}

static int sequences_rewind(sequences *s, int length, flute_error *err) {
    int code = FLUTE_OK;
    for (int i = 0; !code && i < s->n; i++) code = flute_session_rewind(s->sessions[i], length, err);
    return code;
}

// One forward step that appends ids and replaces them by the next ones.
static int sequences_step(sequences *s, double *seconds, flute_error *err) {
    const double start = seconds_now();
    const int code = flute_sessions_step(s->sessions, s->ids, (size_t)s->n, s->sampling, s->ids, err);
    *seconds = seconds_now() - start;
    return code;
}

// Whether a measurement of so many tokens is possible; *skip: it is not, but nobody asked for it.
static int check_context(const bench_list *list, const flute_model_info *info, int tokens, bool *skip,
                         flute_error *err) {
    *skip = tokens > info->max_context && !list->chosen;
    if (tokens <= info->max_context || *skip) return FLUTE_OK;
    return fail(err, FLUTE_ECONTEXT,
                "%s: a measurement needs %d tokens, the model was made for %d; ask for shorter ones",
                info->name, tokens, info->max_context);
}

// ---- Prefill

static int measure_prefill(flute_model *model, const flute_model_info *info, int n_prompt, int repeats,
                           double *seconds, flute_error *err) {
    sequences s;
    double *times = calloc((size_t)repeats, sizeof *times);
    int code = sequences_create(&s, model, info, 1, n_prompt, 0, err);
    if (!code && !times) code = fail_memory(err, (uint64_t)repeats * sizeof *times, "times");
    for (int repeat = -1; !code && repeat < repeats; repeat++) { // the first, uncounted, warms up
        if ((code = sequences_rewind(&s, 0, err))) break;
        const double start = seconds_now();
        code = sequences_prefill(&s, 0, err);
        if (repeat >= 0) times[repeat] = seconds_now() - start;
    }
    if (!code) *seconds = bench_median(times, repeats);
    sequences_free(&s);
    free(times);
    return code;
}

int bench_prefill(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                  flute_error *err) {
    const flute_model_info *info = &report->model;
    if (out) fprintf(out, "\nprefill\n%8s %12s %12s %12s\n", "prompt", "ms", "tokens/s", "GFLOP/s");
    for (int i = 0; i < options->prompts.n; i++) {
        const int n = options->prompts.values[i];
        double seconds = 0;
        bool skip;
        int code = check_context(&options->prompts, info, n, &skip, err);
        if (!code && !skip) code = measure_prefill(model, info, n, options->repeats, &seconds, err);
        if (code) return code;
        if (skip) continue;
        // The least that a prompt can read and write: the weights once, its part of the cache once.
        const double operations = count_operations(info, n, 0.5 * n, 1),
                     bytes = (double)info->decode_bytes + (double)info->kv_token_bytes * n;
        bench_prefill_record *record = &report->prefill[report->n_prefill++];
        *record = (bench_prefill_record){n, seconds, n / seconds, operations / seconds, operations / bytes};
        if (out)
            fprintf(out, "%8d %12.2f %12.1f %12.1f\n", n, seconds * 1e3, record->tokens, record->flops / 1e9);
        if (out) fflush(out);
    }
    return FLUTE_OK;
}

// ---- Decode

// One repeat. steps: (n_generate) seconds; *seconds: their sum.
static int run_decode(sequences *s, double *steps, double *seconds, flute_error *err) {
    int code = sequences_rewind(s, s->n_prompt, err);
    for (int i = 0; i < s->n; i++) s->ids[i] = s->prompts[i];
    *seconds = 0;
    for (int step = 0; !code && step < s->n_generate; step++) {
        code = sequences_step(s, &steps[step], err);
        *seconds += steps[step];
    }
    return code;
}

// The share of the steps' time that goes into collectives, of steps of their own: on a GPU timing them makes
// them slower. steps: room for (n_generate).
static int measure_collectives(flute_model *model, sequences *s, double *steps, double *share,
                               flute_error *err) {
    double seconds = 0;
    flute_model_time_collectives(model, true);
    int code = run_decode(s, steps, &seconds, err); // warms up
    const double before = flute_model_collective_seconds(model);
    if (!code) code = run_decode(s, steps, &seconds, err);
    if (!code) *share = (flute_model_collective_seconds(model) - before) / seconds;
    flute_model_time_collectives(model, false);
    return code;
}

// Fills steps: (repeats, n_generate) seconds, *seconds, the median of what all steps of a repeat take, and
// *collectives, the share of it that goes into collectives.
static int measure_decode(flute_model *model, sequences *s, const bench_options *options, double *steps,
                          double *seconds, double *collectives, flute_error *err) {
    const int repeats = options->repeats;
    double *totals = calloc((size_t)repeats, sizeof *totals), warm;
    int code = totals ? FLUTE_OK : fail_memory(err, (uint64_t)repeats * sizeof *totals, "times");
    for (int i = 0; !code && i < s->n; i++) code = sequences_prefill(s, i, err);
    if (!code && options->model.ranks) code = measure_collectives(model, s, steps, collectives, err);
    if (!code) code = run_decode(s, steps, &warm, err);
    for (int repeat = 0; !code && repeat < repeats; repeat++)
        code = run_decode(s, steps + (size_t)repeat * (size_t)s->n_generate, &totals[repeat], err);
    if (!code) *seconds = bench_median(totals, repeats);
    free(totals);
    return code;
}

static int decode_one(flute_model *model, const bench_options *options, int context, int batch,
                      const flute_model_info *info, bench_decode_record *record, flute_error *err) {
    const int n = options->n_generate, n_steps = n * options->repeats;
    sequences s;
    double *steps = calloc((size_t)n_steps, sizeof *steps), seconds = 0, collectives = 0;
    int code = sequences_create(&s, model, info, batch, context, n, err);
    if (!code && !steps) code = fail_memory(err, (uint64_t)n_steps * sizeof *steps, "times");
    if (!code) code = measure_decode(model, &s, options, steps, &seconds, &collectives, err);
    if (!code) {
        // What a step cannot avoid: every weight once, and the cache of every sequence, half of the new
        // tokens on average.
        const double attended = context + 0.5 * n, steps_per_second = n / seconds;
        const double bytes = (double)info->decode_bytes + (double)info->kv_token_bytes * batch * attended;
        const double operations = count_operations(info, batch, attended, batch);
        *record = (bench_decode_record){.context = context,
                                        .batch = batch,
                                        .tokens = steps_per_second * batch,
                                        .bytes = bytes * steps_per_second,
                                        .flops = operations * steps_per_second,
                                        .intensity = operations / bytes,
                                        .step = bench_percentiles_of(steps, n_steps),
                                        .collectives = collectives};
    }
    sequences_free(&s);
    free(steps);
    return code;
}

int bench_decode(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                 flute_error *err) {
    const bench_list *contexts = &options->contexts, *batches = &options->batches;
    if (out)
        fprintf(out, "\ndecode\n%8s %6s %10s %9s %9s %9s %8s %7s%s\n", "context", "batch", "tokens/s",
                "ms p50", "ms p90", "ms p99", "GB/s", "% read", options->model.ranks ? "  % sums" : "");
    for (int i = 0; i < contexts->n * batches->n; i++) {
        const int context = contexts->values[i / batches->n], batch = batches->values[i % batches->n];
        bench_decode_record *r = &report->decode[report->n_decode];
        bool skip;
        int code = check_context(contexts, &report->model, context + options->n_generate, &skip, err);
        if (!code && !skip) code = decode_one(model, options, context, batch, &report->model, r, err);
        if (code) return code;
        if (skip) continue;
        report->n_decode++;
        if (out)
            fprintf(out, "%8d %6d %10.1f %9.3f %9.3f %9.3f %8.1f %7.1f", context, batch, r->tokens,
                    r->step.p50 * 1e3, r->step.p90 * 1e3, r->step.p99 * 1e3, r->bytes / 1e9,
                    100 * r->bytes / report->read_bandwidth);
        if (out && options->model.ranks) fprintf(out, " %7.1f", 100 * r->collectives);
        if (out) fputc('\n', out);
        if (out) fflush(out);
    }
    return FLUTE_OK;
}

// ---- Latency

// All prompts arrive at once and are run one after the other; then the sequences continue together. first:
// (n) seconds until each has its first token; steps: (n_generate − 1), each of which gives every sequence one
// more.
static int serve(sequences *s, double *first, double *steps, flute_error *err) {
    int code = sequences_rewind(s, 0, err);
    const double start = seconds_now();
    for (int i = 0; !code && i < s->n; i++) {
        if ((code = sequences_prefill(s, i, err))) break;
        code = flute_session_sample(s->sessions[i], &s->sampling[i], &s->ids[i], err);
        first[i] = seconds_now() - start;
    }
    for (int step = 0; !code && step < s->n_generate - 1; step++) code = sequences_step(s, &steps[step], err);
    return code;
}

static int latency_one(flute_model *model, const bench_options *options, int prompt, int batch,
                       const flute_model_info *info, bench_latency_record *record, flute_error *err) {
    const int repeats = options->repeats, n_steps = options->n_generate - 1;
    sequences s;
    double *first = calloc((size_t)repeats * (size_t)batch, sizeof *first),
           *steps = calloc((size_t)repeats * (size_t)n_steps, sizeof *steps);
    int code = sequences_create(&s, model, info, batch, prompt, options->n_generate, err);
    if (!code && (!first || !steps)) code = fail_memory(err, (uint64_t)repeats * sizeof *first, "times");
    for (int repeat = -1; !code && repeat < repeats; repeat++) { // the first, uncounted, warms up
        const size_t at = (size_t)(repeat < 0 ? 0 : repeat);
        code = serve(&s, first + at * (size_t)batch, steps + at * (size_t)n_steps, err);
    }
    if (!code)
        *record = (bench_latency_record){prompt, batch, bench_percentiles_of(first, repeats * batch),
                                         bench_percentiles_of(steps, repeats * n_steps)};
    sequences_free(&s);
    free(first);
    free(steps);
    return code;
}

int bench_latency(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
                  flute_error *err) {
    const bench_list *prompts = &options->prompts, *batches = &options->batches;
    if (options->n_generate < 2)
        return fail(err, FLUTE_EINVAL, "--generate: the time between two tokens takes at least 2");
    if (out)
        fprintf(out, "\n%-15s%30s%30s\n%8s %6s %9s %9s %9s %9s %9s %9s\n", "latency, ms", "first token",
                "next token", "prompt", "batch", "p50", "p90", "p99", "p50", "p90", "p99");
    for (int i = 0; i < prompts->n * batches->n; i++) {
        const int prompt = prompts->values[i / batches->n], batch = batches->values[i % batches->n];
        bench_latency_record *r = &report->latency[report->n_latency];
        bool skip;
        int code = check_context(prompts, &report->model, prompt + options->n_generate, &skip, err);
        if (!code && !skip) code = latency_one(model, options, prompt, batch, &report->model, r, err);
        if (code) return code;
        if (skip) continue;
        report->n_latency++;
        if (out)
            fprintf(out, "%8d %6d %9.2f %9.2f %9.2f %9.3f %9.3f %9.3f\n", prompt, batch, r->first.p50 * 1e3,
                    r->first.p90 * 1e3, r->first.p99 * 1e3, r->token.p50 * 1e3, r->token.p90 * 1e3,
                    r->token.p99 * 1e3);
        if (out) fflush(out);
    }
    return FLUTE_OK;
}

// ---- All-reduces

int bench_sums(flute_model *model, const bench_options *options, bench_report *report, FILE *out,
               flute_error *err) {
    if (!options->model.ranks && strcmp(report->command, "sums") == 0)
        return fail(err, FLUTE_EINVAL, "there is one rank, and nothing to sum up; give --tp N");
    if (!options->model.ranks) return FLUTE_OK;
    if (out) fprintf(out, "\nsums\n%10s %10s %8s\n", "bytes", "us", "GB/s");
    for (int64_t bytes = 4 << 10; bytes <= 64 << 20; bytes *= 4) {
        bench_sum_record *record = &report->sums[report->n_sums];
        record->bytes = bytes;
        const int code = flute_model_measure_all_reduce(model, (size_t)bytes, &record->seconds, err);
        if (code) return code;
        report->n_sums++;
        if (out)
            fprintf(out, "%10lld %10.1f %8.2f\n", (long long)bytes, record->seconds * 1e6,
                    (double)bytes / record->seconds / 1e9);
    }
    return FLUTE_OK;
}
