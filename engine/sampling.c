#include "engine/sampling.h"

#include <math.h>

#include "engine/base/fail.h"

flute_sampling flute_sampling_default(void) {
    return (flute_sampling){.temperature = 0.8f,
                            .top_k = 40,
                            .top_p = 0.95f,
                            .min_p = 0.05f,
                            .repeat_penalty = 1,
                            .penalty_window = 64};
}

// NaN fails every comparison, so it is refused, too.
static int check(const char *name, float value, float min, float max, flute_error *err) {
    if (value >= min && value <= max) return FLUTE_OK;
    return fail(err, FLUTE_EINVAL, "%s is %g, but must be from %g to %g", name, (double)value, (double)min,
                (double)max);
}

int flute_sampling_check(const flute_sampling *sampling, flute_error *err) {
    int code = check("temperature", sampling->temperature, 0, 100, err);
    if (!code && sampling->top_k < 0)
        code = fail(err, FLUTE_EINVAL, "top-k is %d, but must be 0 (all tokens) or more", sampling->top_k);
    if (!code) code = check("top-p", sampling->top_p, 0, 1, err);
    if (!code) code = check("min-p", sampling->min_p, 0, 1, err);
    if (!code) code = check("repeat penalty", sampling->repeat_penalty, 0.01f, 100, err);
    if (!code) code = check("presence penalty", sampling->presence_penalty, -100, 100, err);
    if (!code) code = check("frequency penalty", sampling->frequency_penalty, -100, 100, err);
    if (!code && sampling->penalty_window < -1)
        code =
            fail(err, FLUTE_EINVAL, "penalty window is %d, but must be -1 (everything), 0 (nothing) or more",
                 sampling->penalty_window);
    return code;
}

void sampling_args(const flute_sampling *sampling, const int32_t *tokens, int n_tokens, sample_args *args) {
    const int window = sampling->penalty_window;
    const int n_history = window < 0 || window > n_tokens ? n_tokens : window;
    *args = (sample_args){.temperature = sampling->temperature,
                          .top_k = sampling->top_k,
                          .top_p = sampling->top_p,
                          .min_p = sampling->min_p,
                          .repeat_penalty = sampling->repeat_penalty,
                          .presence_penalty = sampling->presence_penalty,
                          .frequency_penalty = sampling->frequency_penalty,
                          .seed = sampling->seed,
                          .position = (uint64_t)n_tokens,
                          .history = tokens + (n_tokens - n_history),
                          .n_history = n_history};
}
