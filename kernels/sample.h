// Sampling, shared by the backends that compute on the host; a device backend repeats it.
#ifndef FLUTE_KERNELS_SAMPLE_H
#define FLUTE_KERNELS_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): turns
// counter, in place, into four random words. sample_uniform uses key = seed and counter = position, low words
// first, and the upper 53 bits of words 1 (high) and 0 (low).
void sample_philox(const uint32_t key[2], uint32_t counter[4]);

// Bytes of scratch memory that sample_token needs, aligned to 4.
size_t sample_scratch_bytes(int n_vocab);

// Chooses a token from logits: (n_vocab), which stay as they are.
//
// Penalties: a token that occurs c > 0 times in history gets, first, its logit divided by repeat_penalty
// where positive and multiplied where not (0 counts as 1), and then presence_penalty + c · frequency_penalty
// subtracted. Ids in history outside the vocabulary are ignored. temperature <= 0 then takes the largest
// logit. Otherwise tokens rank by logit, the lower id first among equals, their weights are exp((logit −
// largest) / temperature), and top-k, top-p (of the weight that top-k left) and min-p each keep a run of the
// best, never fewer than one (min_p above 1 counts as 1). The draw walks the kept tokens by increasing id and
// takes the first at which the running sum of weights exceeds sample_uniform(seed, position) times their
// total.
//
// FLUTE_ERANGE: a logit is NaN or +infinity, or all are −infinity. *token is untouched then.
int sample_token(const sample_args *args, const float *logits, int n_vocab, void *scratch, int32_t *token,
                 flute_error *err);

#ifdef __cplusplus
}
#endif
#endif
