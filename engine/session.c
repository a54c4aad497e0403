#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/model.h"
#include "engine/sampling.h"

enum { DEFAULT_CONTEXT = 4096, MAX_BATCH_ROWS = 4096 };
// Logits that one step of flute_session_score keeps: 128 rows of 32 Ki vocabulary, 32 of 128 Ki.
enum { SCORE_LOGITS_BYTES = 16 << 20 };

// flute_session_cancel is a request only while a prefill runs.
enum { RUN_IDLE, RUN_BUSY, RUN_CANCELED };

struct flute_session {
    flute_model *model;
    kv_sequence sequence;
    int32_t *tokens; // (context) the ids in the cache
    float *logits;   // (n_vocab) after the last token, if has_logits
    void *scratch;   // of sample_token
    bool has_logits;
    int batch_rows;
    atomic_int run;
};

static int session_vocab(const flute_session *session) {
    return session->model->info.n_vocab;
}

// Rows of logits that one step of a score may hold.
static int score_rows(const flute_session *session) {
    const int64_t rows = SCORE_LOGITS_BYTES / ((int64_t)session_vocab(session) * (int64_t)sizeof(float));
    return rows < 1 ? 1 : rows < session->batch_rows ? (int)rows : session->batch_rows;
}

static int check_options(const flute_model *model, flute_session_options *options, flute_error *err) {
    const int max_context = model->info.max_context;
    if (options->context < 0 || options->context > max_context)
        return fail(err, FLUTE_ECONTEXT, "%s: a context of %d tokens; this model takes 1 to %d", model->path,
                    options->context, max_context);
    if (options->batch_rows < 0 || options->batch_rows > MAX_BATCH_ROWS)
        return fail(err, FLUTE_EINVAL, "batches of %d rows: the number must be 0 (the default) to %d",
                    options->batch_rows, MAX_BATCH_ROWS);
    if (options->context == 0)
        options->context = max_context < DEFAULT_CONTEXT ? max_context : DEFAULT_CONTEXT;
    if (options->batch_rows == 0) options->batch_rows = model->be->ops->batch_rows;
    if (options->batch_rows > options->context) options->batch_rows = options->context;
    return FLUTE_OK;
}

// Room in what the sessions of a model share; the caller holds the lock.
static int join_model(flute_session *session, int context, flute_error *err) {
    flute_model *model = session->model;
    const int n_sessions = model->n_sessions + 1;
    int code =
        kv_sequence_create(&session->sequence, &model->cache, context, model_available_memory(model), err);
    if (code) return code;
    const int rows = session->batch_rows > n_sessions ? session->batch_rows : n_sessions;
    const int logits = score_rows(session) > n_sessions ? score_rows(session) : n_sessions;
    code = step_reserve(&model->step, rows, logits, n_sessions, session->sequence.max_blocks, err);
    if (code) {
        kv_sequence_free(&session->sequence);
        return code;
    }
    model->n_sessions = n_sessions;
    return FLUTE_OK;
}

int flute_session_create(flute_session **out, flute_model *model, const flute_session_options *options,
                         flute_error *err) {
    *out = NULL;
    flute_session_options wanted = options ? *options : (flute_session_options){0};
    int code = check_options(model, &wanted, err);
    if (code) return code;

    flute_session *session = calloc(1, sizeof *session);
    if (!session) return fail_memory(err, sizeof *session, "a session");
    session->model = model;
    session->batch_rows = wanted.batch_rows;
    atomic_init(&session->run, RUN_IDLE);
    const size_t n_vocab = (size_t)session_vocab(session);
    session->tokens = malloc((size_t)wanted.context * sizeof *session->tokens);
    session->logits = malloc(n_vocab * sizeof *session->logits);
    session->scratch = malloc(sample_scratch_bytes((int)n_vocab));
    if (session->tokens && session->logits && session->scratch) {
        pthread_mutex_lock(&model->lock);
        code = join_model(session, wanted.context, err);
        pthread_mutex_unlock(&model->lock);
    } else {
        code = fail_memory(err, (size_t)wanted.context * sizeof *session->tokens, "a session");
    }
    if (code) {
        flute_session_free(session);
        return code;
    }
    *out = session;
    return FLUTE_OK;
}

int flute_session_fork(flute_session **out, const flute_session *session, flute_error *err) {
    flute_model *model = session->model;
    int code = flute_session_create(
        out, model,
        &(flute_session_options){.context = session->sequence.context, .batch_rows = session->batch_rows},
        err);
    if (code) return code;
    flute_session *fork = *out;
    const int length = session->sequence.length;
    pthread_mutex_lock(&model->lock);
    kv_sequence_share(&fork->sequence, &session->sequence, length);
    pthread_mutex_unlock(&model->lock);
    memcpy(fork->tokens, session->tokens, (size_t)length * sizeof *fork->tokens);
    if (session->has_logits)
        memcpy(fork->logits, session->logits, (size_t)session_vocab(session) * sizeof *fork->logits);
    fork->has_logits = session->has_logits;
    return FLUTE_OK;
}

void flute_session_free(flute_session *session) {
    if (!session) return;
    if (session->sequence.cache) {
        pthread_mutex_lock(&session->model->lock);
        kv_sequence_free(&session->sequence);
        session->model->n_sessions--;
        pthread_mutex_unlock(&session->model->lock);
    }
    free(session->tokens);
    free(session->logits);
    free(session->scratch);
    free(session);
}

int flute_session_context(const flute_session *session) {
    return session->sequence.context;
}

int flute_session_length(const flute_session *session) {
    return session->sequence.length;
}

const int32_t *flute_session_tokens(const flute_session *session) {
    return session->tokens;
}

const float *flute_session_logits(const flute_session *session) {
    return session->has_logits ? session->logits : NULL;
}

static void truncate_to(flute_session *session, int length) {
    pthread_mutex_lock(&session->model->lock);
    kv_sequence_truncate(&session->sequence, length);
    pthread_mutex_unlock(&session->model->lock);
    session->has_logits = false;
}

int flute_session_rewind(flute_session *session, int length, flute_error *err) {
    const int current = session->sequence.length;
    if (length < 0 || length > current)
        return fail(err, FLUTE_ERANGE, "rewind to %d tokens: the sequence has %d", length, current);
    if (length < current) truncate_to(session, length);
    session->has_logits = false;
    return FLUTE_OK;
}

void flute_session_cancel(flute_session *session) {
    int busy = RUN_BUSY;
    atomic_compare_exchange_strong(&session->run, &busy, RUN_CANCELED);
}

static int check_ids(const flute_session *session, const int32_t *ids, size_t n, flute_error *err) {
    const int n_vocab = session_vocab(session);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return fail(err, FLUTE_ERANGE, "token id %d (number %zu) is outside the vocabulary of 0 to %d",
                        (int)ids[i], i, n_vocab - 1);
    return FLUTE_OK;
}

static int check_prompt(const flute_session *session, const int32_t *ids, size_t n, flute_error *err) {
    const int context = session->sequence.context;
    if (n == 0) return fail(err, FLUTE_EINVAL, "the prompt is empty: it must have one token at least");
    if (n > (size_t)context)
        return fail(err, FLUTE_ECONTEXT,
                    "the prompt has %zu tokens, but the context takes %d; this model takes up to %d", n,
                    context, session->model->info.max_context);
    return check_ids(session, ids, n, err);
}

static void keep_logits(flute_session *session, int row) {
    const backend_ops *ops = session->model->be->ops;
    memcpy(session->logits, ops->logits(session->model->step.state, row),
           (size_t)session_vocab(session) * sizeof *session->logits);
    session->has_logits = true;
}

// Appends n ids in one step. With row set, hands out the logits of each; first_row is the number of the
// first. Otherwise keeps those of the last when last is set.
static int run_piece(flute_session *session, const int32_t *ids, int n, step_logits logits,
                     flute_logits_row *row, void *user, size_t first_row, flute_error *err) {
    flute_model *model = session->model;
    const backend_ops *ops = model->be->ops;
    const int length = session->sequence.length;
    int32_t *tokens = session->tokens + length;
    memmove(tokens, ids, (size_t)n * sizeof *ids); // ids may lie in session->tokens
    session->has_logits = false;

    pthread_mutex_lock(&model->lock);
    kv_sequence_append(&session->sequence, n);
    step_begin(&model->step);
    step_add(&model->step, &session->sequence, tokens, n, logits);
    int code = step_run(&model->step, &model->cache.pool, false, err);
    if (code) kv_sequence_truncate(&session->sequence, length);
    if (!code && logits != STEP_NO_LOGITS) keep_logits(session, model->step.batch.n_logits - 1);
    for (int i = 0; !code && row && i < n; i++)
        if (row(user, first_row + (size_t)i, ops->logits(model->step.state, i)))
            code = fail(err, FLUTE_ECANCELED, "canceled by the caller");
    pthread_mutex_unlock(&model->lock);
    return code;
}

// Appends ids[0 … n), in pieces of at most rows; see run_piece.
static int run_pieces(flute_session *session, const int32_t *ids, int n, int rows, flute_logits_row *row,
                      void *user, flute_error *err) {
    int code = FLUTE_OK;
    atomic_store(&session->run, RUN_BUSY);
    for (int done = 0; !code && done < n; done += rows) {
        if (atomic_load(&session->run) == RUN_CANCELED) {
            code = fail(err, FLUTE_ECANCELED, "canceled after %d of %d tokens", done, n);
            break;
        }
        const int piece = n - done < rows ? n - done : rows;
        const step_logits logits = row                 ? STEP_ALL_LOGITS
                                   : done + piece == n ? STEP_LAST_LOGITS
                                                       : STEP_NO_LOGITS;
        code = run_piece(session, ids + done, piece, logits, row, user, (size_t)done, err);
    }
    atomic_store(&session->run, RUN_IDLE);
    return code;
}

int flute_session_prefill(flute_session *session, const int32_t *ids, size_t n, flute_error *err) {
    int code = check_prompt(session, ids, n, err);
    if (code) return code;
    const int wanted = (int)n, length = session->sequence.length;
    int common = 0;
    while (common < length && common < wanted && session->tokens[common] == ids[common]) common++;
    if (common == wanted && length == wanted && session->has_logits) return FLUTE_OK;
    // The last token runs again when only its logits are missing.
    if (common == wanted) common--;
    truncate_to(session, common);
    return run_pieces(session, ids + common, wanted - common, session->batch_rows, NULL, NULL, err);
}

int flute_session_score(flute_session *session, const int32_t *ids, size_t n, flute_logits_row *row,
                        void *user, flute_error *err) {
    int code = check_prompt(session, ids, n, err);
    if (code) return code;
    truncate_to(session, 0);
    return run_pieces(session, ids, (int)n, score_rows(session), row, user, err);
}

// Checks everything before anything changes.
static int check_step(flute_session *const *sessions, const int32_t *ids, size_t n,
                      const flute_sampling *sampling, flute_error *err) {
    for (size_t i = 0; i < n; i++) {
        const flute_session *session = sessions[i];
        if (session->model != sessions[0]->model)
            return fail(err, FLUTE_EINVAL, "session %zu is of another model than session 0", i);
        for (size_t j = 0; j < i; j++)
            if (sessions[j] == session)
                return fail(err, FLUTE_EINVAL, "sessions %zu and %zu are the same one", j, i);
        const int context = session->sequence.context;
        if (session->sequence.length == context)
            return fail(err, FLUTE_ECONTEXT,
                        "the context of %d tokens is full: 0 more would fit; this model takes up to %d",
                        context, session->model->info.max_context);
        int code = check_ids(session, &ids[i], 1, err);
        if (!code && sampling) code = flute_sampling_check(&sampling[i], err);
        if (code) return code;
    }
    return FLUTE_OK;
}

// The step itself, under the lock.
static int step_sessions(flute_session *const *sessions, const int32_t *ids, size_t n,
                         const flute_sampling *sampling, int32_t *next, flute_error *err) {
    flute_model *model = sessions[0]->model;
    step *s = &model->step;
    step_begin(s);
    for (size_t i = 0; i < n; i++) {
        flute_session *session = sessions[i];
        session->tokens[session->sequence.length] = ids[i];
        session->has_logits = false;
        kv_sequence_append(&session->sequence, 1);
        step_add(s, &session->sequence, &ids[i], 1, STEP_LAST_LOGITS);
        if (sampling) sampling_args(&sampling[i], session->tokens, session->sequence.length, &s->samples[i]);
    }
    int code = step_run(s, &model->cache.pool, sampling != NULL, err);
    for (size_t i = 0; i < n; i++) {
        if (code) {
            kv_sequence_truncate(&sessions[i]->sequence, sessions[i]->sequence.length - 1);
        } else if (sampling) {
            next[i] = model->be->ops->tokens(s->state)[i];
        } else {
            keep_logits(sessions[i], (int)i);
        }
    }
    return code;
}

int flute_sessions_step(flute_session *const *sessions, const int32_t *ids, size_t n,
                        const flute_sampling *sampling, int32_t *next, flute_error *err) {
    if (n == 0) return FLUTE_OK;
    int code = check_step(sessions, ids, n, sampling, err);
    if (code) return code;
    flute_model *model = sessions[0]->model;
    pthread_mutex_lock(&model->lock);
    code = step_sessions(sessions, ids, n, sampling, next, err);
    pthread_mutex_unlock(&model->lock);
    return code;
}

int flute_sessions_decode(flute_session *const *sessions, const int32_t *ids, size_t n, flute_error *err) {
    return flute_sessions_step(sessions, ids, n, NULL, NULL, err);
}

int flute_session_decode(flute_session *session, int32_t id, flute_error *err) {
    return flute_sessions_step(&session, &id, 1, NULL, NULL, err);
}

int flute_session_step(flute_session *session, int32_t id, const flute_sampling *sampling, int32_t *next,
                       flute_error *err) {
    return flute_sessions_step(&session, &id, 1, sampling, next, err);
}

int flute_session_sample(flute_session *session, const flute_sampling *sampling, int32_t *id,
                         flute_error *err) {
    int code = flute_sampling_check(sampling, err);
    if (code) return code;
    if (!session->has_logits)
        return fail(
            err, FLUTE_EINVAL,
            "there are no logits to draw from: flute_session_prefill or flute_session_decode comes first");
    sample_args args;
    sampling_args(sampling, session->tokens, session->sequence.length, &args);
    return sample_token(&args, session->logits, session_vocab(session), session->scratch, id, err);
}
