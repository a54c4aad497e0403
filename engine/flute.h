// flute: run LLaMA and Gemma models with 2, 3 and 4-bit non-uniform weights. The public C API.
//
//   flute_model *model;  flute_session *session;  flute_error err;
//   flute_model_open(&model, "llama3-8b-nf3.flt", NULL, &err);
//   flute_session_create(&session, model, NULL, &err);
//   n = flute_tokenize(model, text, strlen(text), FLUTE_ADD_BOS, ids, capacity, &err);
//   flute_session_prefill(session, ids, n, &err);
//   flute_session_sample(session, &sampling, &id, &err);
//   while (!flute_token_is_eos(model, id)) flute_session_step(session, id, &sampling, &id, &err);
//
// Functions return 0 or a negative flute_code and fill *err, which may be NULL. Objects are opaque and owned
// by the caller; *_free accepts NULL. A model may be shared by threads; a session belongs to one thread at a
// time. A model must outlive its sessions. Only libc headers are included; C++ callers are welcome.
#ifndef FLUTE_H
#define FLUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct flute_model flute_model;     // weights and tokenizer on a device
typedef struct flute_session flute_session; // one sequence of tokens, its KV cache and its buffers

// "0.1.0".
FLUTE_API const char *flute_version(void);

// ---- Ranks

// Tensor parallelism: one model over several processes, its "ranks", each with a GPU or a share of the CPUs
// of its own, on one host or several. All ranks call flute_ranks_start first of all. Rank 0 then does what a
// single process would do, with the ranks in flute_model_options; the others call flute_ranks_follow and take
// part in it until rank 0 calls flute_ranks_free. When a rank dies or fails, all end within seconds.
typedef struct flute_ranks flute_ranks;

typedef struct flute_ranks_options {
    // 0: as many as the launcher that started this process says (RANK and WORLD_SIZE, Open MPI, PMI, Slurm;
    // MASTER_ADDR and MASTER_PORT say where rank 0 is), and one without a launcher. Otherwise the number that
    // a launcher must have started, or, without one, that are forked here.
    int n;
    int timeout_s; // in which all ranks must have come; 0: 60
    // Called once, from another thread, when a rank has failed: the process should end without delay. cause
    // is NULL where another rank reports it. NULL: calls fail with the cause instead.
    void (*on_failure)(const flute_error *cause);
} flute_ranks_options;

// Call it before the process has threads. *out is NULL for a single rank. Where ranks were forked here, it
// returns in the calling process, too, when all have ended, with *status ≥ 0: what the process should exit
// with. In a rank *status is −1. FLUTE_ECANCELED: another rank failed, and says why.
FLUTE_API int flute_ranks_start(flute_ranks **out, const flute_ranks_options *options, int *status,
                                flute_error *err);
// The number of this rank; 0 for NULL.
FLUTE_API int flute_ranks_rank(const flute_ranks *ranks);
// Does what rank 0 says until it is done. For all ranks but 0. On failure rank 0 has been told why.
FLUTE_API int flute_ranks_follow(flute_ranks *ranks, flute_error *err);
// Ends the other ranks without a word, as rank 0 is about to end itself. Async-signal-safe.
FLUTE_API void flute_ranks_leave(const flute_ranks *ranks);
// Dismisses the other ranks. Its models must be gone. Accepts NULL.
FLUTE_API void flute_ranks_free(flute_ranks *ranks);

// ---- Models

// FLUTE_DEVICE_AUTO is a GPU where the build and the machine have one, and the CPU otherwise.
typedef enum flute_device { FLUTE_DEVICE_AUTO, FLUTE_DEVICE_CPU, FLUTE_DEVICE_CUDA } flute_device;
typedef enum flute_kernels {
    FLUTE_KERNELS_AUTO, // the fastest for the machine
    FLUTE_KERNELS_REF,  // the scalar float reference: slow, for comparison
} flute_kernels;

// How ranks communicate. FLUTE_COMM_AUTO is NCCL among GPUs, and among CPUs MPI where that started them, or
// shared memory. GPUs may use the latter two as well, through the host: slow, but several ranks can share a
// GPU.
typedef enum flute_comm { FLUTE_COMM_AUTO, FLUTE_COMM_LOCAL, FLUTE_COMM_MPI, FLUTE_COMM_NCCL } flute_comm;

typedef struct flute_model_options {
    flute_device device;
    flute_kernels kernels;
    int n_threads;      // CPU threads of each rank, at most 1024; 0: all that the process may use
    bool no_verify;     // skip the checksums of the file's contents
    flute_ranks *ranks; // NULL: this process alone
    flute_comm comm;    // of rank 0 counts
    bool scatter;       // only rank 0 has the file: it sends the others their parts
    // Told how loading gets on, by the thread that opens the model: bytes checked and copied to the device by
    // this process, of all that it has to. done is 0 first and total at last. Not called where there is
    // nothing to do: a CPU uses the file where it is, and with no_verify reads it later. NULL: nobody.
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *progress_user;
} flute_model_options;

// Opens a .flt file. options == NULL means all defaults (a zeroed struct).
FLUTE_API int flute_model_open(flute_model **out, const char *path, const flute_model_options *options,
                               flute_error *err);
FLUTE_API void flute_model_free(flute_model *model);

typedef struct flute_model_info {
    const char *name;         // "Llama-3-8B"; owned by the model
    const char *architecture; // "llama", "gemma2", …
    const char *weights;      // type of the projections: "lut4", "bf16", …
    const char *device;       // one line for people: "cpu: AMD EPYC, 2 threads, avx512"
    int group_size;           // of the projections, 0 for dense
    int n_layers, hidden, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
    int max_context; // positions the model was made for
    uint64_t n_parameters;
    uint64_t weight_bytes;   // all tensors as stored, of all ranks
    uint64_t decode_bytes;   // bytes of weights read for one decoded token (all but the embedding rows)
    uint64_t kv_token_bytes; // bytes of KV cache of one token, of all ranks
    bool has_tokenizer;
    int n_ranks; // 1 for a process alone
} flute_model_info;

FLUTE_API void flute_model_get_info(const flute_model *model, flute_model_info *info);

// Read bandwidth of the device's memory in bytes per second, measured now on a buffer of its own (about 0.2
// s), times the number of GPUs that the ranks have: the yardstick of every speed that the tools print.
FLUTE_API double flute_model_measure_bandwidth(flute_model *model);

// Seconds that one all-reduce of so many bytes takes among the ranks of a model, measured now; with NCCL one
// of many in a graph, as in decoding. 0 for a single rank.
FLUTE_API int flute_model_measure_all_reduce(flute_model *model, size_t bytes, double *seconds,
                                             flute_error *err);
// Seconds that rank 0 has spent in collectives since the model was opened, waiting for others included. On a
// GPU only those of steps count that ran while flute_model_time_collectives was on: between two events around
// each collective, which cost a step some microseconds each.
FLUTE_API double flute_model_collective_seconds(const flute_model *model);
FLUTE_API void flute_model_time_collectives(flute_model *model, bool on);

// ---- Text and tokens

enum {
    FLUTE_ADD_BOS = 1,       // put the model's BOS token first
    FLUTE_PARSE_SPECIAL = 2, // spellings of special tokens in the text become those tokens
};

// Encodes size bytes of UTF-8. Returns the number of ids, or a negative code; writes the first capacity of
// them.
FLUTE_API int64_t flute_tokenize(const flute_model *model, const char *text, size_t size, int flags,
                                 int32_t *ids, size_t capacity, flute_error *err);
// True for every token that ends a generation.
FLUTE_API bool flute_token_is_eos(const flute_model *model, int32_t id);
// The BOS token, or -1.
FLUTE_API int32_t flute_token_bos(const flute_model *model);

// Tokens to text, piece by piece: never half a UTF-8 character. The stream continues a text: a space at its
// start is kept. Control tokens give no text.
typedef struct flute_detokenizer flute_detokenizer;
FLUTE_API int flute_detokenizer_create(flute_detokenizer **out, const flute_model *model, flute_error *err);
FLUTE_API void flute_detokenizer_free(flute_detokenizer *detok);
// The text that id completes, NUL-terminated, valid until the next call; *size may be NULL.
FLUTE_API const char *flute_detokenizer_push(flute_detokenizer *detok, int32_t id, size_t *size);
// What is held back at the end of a stream.
FLUTE_API const char *flute_detokenizer_flush(flute_detokenizer *detok, size_t *size);

// Conversations. Roles are "system", "user" and "assistant".
typedef struct flute_message {
    const char *role;
    const char *content; // UTF-8
} flute_message;

// Renders a conversation with the model's template (Llama 3, Gemma; plain text for others), ending where the
// assistant speaks next, as ids with BOS. Contents never yield special tokens. Returns as flute_tokenize.
// Where the answer was what the model generated, the next rendering begins with the ids of this one and the
// session reuses them. System text goes into the first user message where the template has no such role.
FLUTE_API int64_t flute_chat_tokenize(const flute_model *model, const flute_message *messages,
                                      size_t n_messages, int32_t *ids, size_t capacity, flute_error *err);

// ---- Sessions

// The KV cache of the whole context is reserved when a session is made: a session never runs out of memory
// in the middle of a text. FLUTE_ENOMEM says how many tokens would fit.
typedef struct flute_session_options {
    int context;    // most tokens in the sequence; 0: the model's max_context, at most 4096
    int batch_rows; // most rows of one forward step during prefill; 0: what suits the device
} flute_session_options;

FLUTE_API int flute_session_create(flute_session **out, flute_model *model,
                                   const flute_session_options *options, flute_error *err);
// A new session with the same options, tokens and logits, which shares the cached prefix until one of the two
// leaves it: several continuations of one prompt.
FLUTE_API int flute_session_fork(flute_session **out, const flute_session *session, flute_error *err);
FLUTE_API void flute_session_free(flute_session *session);
FLUTE_API int flute_session_context(const flute_session *session);
// Tokens in the cache now, and what they are: (length) ids, owned by the session.
FLUTE_API int flute_session_length(const flute_session *session);
FLUTE_API const int32_t *flute_session_tokens(const flute_session *session);

// Makes the sequence exactly ids (n ≥ 1): keeps the longest common prefix that is cached, drops the rest,
// runs what is new in batches. Afterwards the logits are those after the last id. FLUTE_ECONTEXT when n
// exceeds the context, FLUTE_ERANGE for an id outside the vocabulary, FLUTE_ECANCELED when
// flute_session_cancel came. On failure the sequence is the part that was completed.
FLUTE_API int flute_session_prefill(flute_session *session, const int32_t *ids, size_t n, flute_error *err);
// Appends one token; logits are those after it. Errors as prefill, FLUTE_ECONTEXT when the context is full.
FLUTE_API int flute_session_decode(flute_session *session, int32_t id, flute_error *err);
// Appends ids[i] to sessions[i], all of one model and distinct, in one forward step. All or none.
FLUTE_API int flute_sessions_decode(flute_session *const *sessions, const int32_t *ids, size_t n,
                                    flute_error *err);
// Drops tokens from the end until length remain (0 ≤ length ≤ current). There are no logits afterwards.
FLUTE_API int flute_session_rewind(flute_session *session, int length, flute_error *err);
// Like prefill of a fresh sequence, but hands out the logits of every position: row(user, i, logits) for
// i = 0 … n − 1 in order, logits (n_vocab) valid during the call, which must not touch sessions of this
// model. A non-zero return stops with FLUTE_ECANCELED.
typedef int flute_logits_row(void *user, size_t i, const float *logits);
FLUTE_API int flute_session_score(flute_session *session, const int32_t *ids, size_t n, flute_logits_row *row,
                                  void *user, flute_error *err);
// Logits after the last token, (n_vocab) floats owned by the session, valid until its next step; NULL when
// there are none.
FLUTE_API const float *flute_session_logits(const flute_session *session);

// How the next token is chosen; flute_sampling_default() gives the documented defaults.
typedef struct flute_sampling {
    float temperature;       // 0.8; 0 is greedy
    int top_k;               // 40; 0: all
    float top_p;             // 0.95; 1: all
    float min_p;             // 0.05; 0: none
    float repeat_penalty;    // 1 (none)
    float presence_penalty;  // 0
    float frequency_penalty; // 0
    int penalty_window;      // last tokens that the penalties look at: 64; 0: none; -1: the whole sequence
    uint64_t seed;           // 0 is a seed like any other
} flute_sampling;

FLUTE_API flute_sampling flute_sampling_default(void);
// FLUTE_EINVAL names the first parameter that makes no sense.
FLUTE_API int flute_sampling_check(const flute_sampling *sampling, flute_error *err);
// Draws the next token from the logits. The draw depends on seed and position only: the same session history
// and seed give the same token. Does not append it.
FLUTE_API int flute_session_sample(flute_session *session, const flute_sampling *sampling, int32_t *id,
                                   flute_error *err);
// Appends one token and draws the next one in the same forward step: flute_session_decode and
// flute_session_sample in one, without moving logits. There are no logits afterwards.
FLUTE_API int flute_session_step(flute_session *session, int32_t id, const flute_sampling *sampling,
                                 int32_t *next, flute_error *err);
// The same for n sessions, as flute_sessions_decode; sampling and next: (n).
FLUTE_API int flute_sessions_step(flute_session *const *sessions, const int32_t *ids, size_t n,
                                  const flute_sampling *sampling, int32_t *next, flute_error *err);
// Makes a running prefill or score of this session end after its current batch with FLUTE_ECANCELED; if none
// runs, nothing. Async-signal-safe, and may come from another thread.
FLUTE_API void flute_session_cancel(flute_session *session);

#ifdef __cplusplus
}
#endif
#endif
