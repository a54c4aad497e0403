#include "tools/generate.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"

static flute_session *volatile running; // the session of the answer in progress
static volatile sig_atomic_t canceled;

void generate_cancel(void) {
    canceled = 1;
    if (running) flute_session_cancel(running);
}

const char *finish_name(finish_reason reason) {
    static const char *const names[] = {"length", "eos", "stop", "context", "canceled"};
    return names[reason];
}

void generator_free(generator *g) {
    free(g->text);
    free(g->ids);
    *g = (generator){0};
}

double generator_prefill_speed(const generator *g) {
    return g->prefill_seconds > 0 ? (double)g->prefill_tokens / g->prefill_seconds : 0;
}

double generator_decode_speed(const generator *g) {
    return g->decode_seconds > 0 ? (double)g->decode_steps / g->decode_seconds : 0;
}

static int keep_text(generator *g, const char *text, size_t size, flute_error *err) {
    if (g->text_capacity < g->text_size + size + 1) {
        const size_t capacity = 2 * g->text_capacity + size + 1024;
        char *larger = realloc(g->text, capacity);
        if (!larger) return fail_memory(err, capacity, "the answer");
        g->text = larger;
        g->text_capacity = capacity;
    }
    memcpy(g->text + g->text_size, text, size);
    g->text_size += size;
    g->text[g->text_size] = 0;
    return FLUTE_OK;
}

static int keep_id(generator *g, int32_t id, flute_error *err) {
    if (g->n_ids == g->ids_capacity) {
        const size_t capacity = 2 * g->ids_capacity + 256;
        int32_t *larger = realloc(g->ids, capacity * sizeof *larger);
        if (!larger) return fail_memory(err, capacity * sizeof *larger, "the answer");
        g->ids = larger;
        g->ids_capacity = capacity;
    }
    g->ids[g->n_ids++] = id;
    return FLUTE_OK;
}

// Lets out what the stop filter has let through.
static int put_ready(generator *g, const stop_filter *filter, flute_error *err) {
    if (filter->ready == 0) return FLUTE_OK;
    int code = keep_text(g, filter->held, filter->ready, err);
    if (code || !g->stream) return code;
    cli_put_text(stdout, filter->held, filter->ready, g->safe);
    return cli_flush(err);
}

// One more token into ids and text; without a tokenizer the ids themselves are the output.
static int put_token(generator *g, flute_detokenizer *detok, stop_filter *filter, int32_t id,
                     flute_error *err) {
    int code = keep_id(g, id, err);
    if (code) return code;
    if (!detok) {
        if (!g->stream) return FLUTE_OK;
        printf("%s%" PRId32, g->n_ids > 1 ? " " : "", id);
        return cli_flush(err);
    }
    size_t size;
    const char *text = flute_detokenizer_push(detok, id, &size);
    if (!stop_push(filter, text, size)) return fail_memory(err, size, "the answer");
    return put_ready(g, filter, err);
}

static int put_rest(generator *g, flute_detokenizer *detok, stop_filter *filter, flute_error *err) {
    if (!detok) return FLUTE_OK;
    size_t size;
    const char *text = flute_detokenizer_flush(detok, &size);
    if (!stop_push(filter, text, size)) return fail_memory(err, size, "the answer");
    int code = put_ready(g, filter, err);
    if (filter->stopped) g->finish = FINISH_STOP;
    stop_flush(filter);
    return code ? code : put_ready(g, filter, err);
}

static int decode_loop(generator *g, flute_detokenizer *detok, stop_filter *filter, flute_error *err) {
    int32_t id;
    int code = flute_session_sample(g->session, &g->sampling, &id, err);
    while (!code) {
        if (!g->ignore_eos && flute_token_is_eos(g->model, id)) {
            g->finish = FINISH_EOS;
            break;
        }
        if ((code = put_token(g, detok, filter, id, err))) break;
        if (filter->stopped) {
            g->finish = FINISH_STOP;
            break;
        }
        if (canceled) {
            g->finish = FINISH_CANCELED;
            break;
        }
        if (g->max_tokens >= 0 && (int64_t)g->n_ids >= g->max_tokens) break;
        if (flute_session_length(g->session) == flute_session_context(g->session)) {
            g->finish = FINISH_CONTEXT;
            break;
        }
        const double start = seconds_now();
        code = flute_session_step(g->session, id, &g->sampling, &id, err);
        g->decode_seconds += seconds_now() - start;
        g->decode_steps += !code;
    }
    return code;
}

static int prefill(generator *g, const int32_t *ids, size_t n, flute_error *err) {
    const int32_t *cached = flute_session_tokens(g->session);
    const size_t length = (size_t)flute_session_length(g->session);
    size_t common = 0;
    while (common < length && common < n && cached[common] == ids[common]) common++;
    const double start = seconds_now();
    int code = flute_session_prefill(g->session, ids, n, err);
    g->prefill_seconds += seconds_now() - start;
    g->prompt_tokens += (int64_t)n;
    g->prefill_tokens += (int64_t)(n - common);
    return code;
}

int generate(generator *g, const int32_t *ids, size_t n, flute_error *err) {
    flute_detokenizer *detok = NULL;
    stop_filter filter;
    flute_model_info info;
    flute_model_get_info(g->model, &info);
    stop_init(&filter, g->stops, g->n_stops);
    g->text_size = g->n_ids = 0;
    g->finish = FINISH_LENGTH;
    canceled = 0;
    running = g->session;

    int code = keep_text(g, "", 0, err);
    if (!code && info.has_tokenizer) code = flute_detokenizer_create(&detok, g->model, err);
    if (!code) code = prefill(g, ids, n, err);
    if (!code && g->max_tokens != 0) code = decode_loop(g, detok, &filter, err);
    if (code == FLUTE_ECANCELED) {
        g->finish = FINISH_CANCELED;
        code = FLUTE_OK;
    }
    if (!code) code = put_rest(g, detok, &filter, err);

    running = NULL;
    stop_free(&filter);
    flute_detokenizer_free(detok);
    return code;
}
