// One answer of a model: prefill, then token by token, as text to standard output or into memory.
#ifndef FLUTE_GENERATE_H
#define FLUTE_GENERATE_H

#include "tools/cli.h"
#include "tools/stop.h"

typedef enum finish_reason {
    FINISH_LENGTH,
    FINISH_EOS,
    FINISH_STOP,
    FINISH_CONTEXT,
    FINISH_CANCELED
} finish_reason;
const char *finish_name(finish_reason reason); // "length", "eos", "stop", "context", "canceled"

typedef struct generator {
    // What to do.
    flute_model *model;
    flute_session *session;
    flute_sampling sampling;
    const char *const *stops; // (n_stops) texts that end the answer and are not part of it
    int n_stops;
    bool ignore_eos;
    bool stream;        // print the text to standard output as it comes
    bool safe;          // with control characters made visible
    int64_t max_tokens; // -1: until something else ends the answer

    // What the last call did. text and ids belong to the generator.
    char *text; // NUL-terminated; "" when the model has no tokenizer
    size_t text_size, text_capacity;
    int32_t *ids; // generated, without the EOS token
    size_t n_ids, ids_capacity;
    finish_reason finish;

    // Sums over all calls.
    int64_t prompt_tokens, prefill_tokens, decode_steps; // prefill_tokens: prompt tokens that were not cached
    double prefill_seconds, decode_seconds;
} generator;

void generator_free(generator *g);

// Continues ids: (n). A canceled answer is a success with FINISH_CANCELED.
int generate(generator *g, const int32_t *ids, size_t n, flute_error *err);
// Ends the running answer soon; async-signal-safe.
void generate_cancel(void);

// Tokens per second so far; 0 when nothing was measured.
double generator_prefill_speed(const generator *g);
double generator_decode_speed(const generator *g);

#endif
